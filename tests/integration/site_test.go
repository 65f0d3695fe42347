package integration

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// TestSiteToSite connects a network behind a peer with the cluster, in both
// directions. The gateway calls the site, which knows no endpoint.
func TestSiteToSite(t *testing.T) {
	site, alice := newPerson(t, "site", "10.8.0.2"), newPerson(t, "alice", "10.8.0.3")
	network, host := netip.MustParsePrefix("192.168.50.0/24"), netip.MustParseAddr("192.168.50.7")
	entry := site.entry()
	entry.AllowedIPs = []string{network.String()}
	c := gateway.Config{Peers: []gateway.Peer{entry, alice.entry()}}
	w := newWorld(t, netns.Plan{Clients: 2}, c)
	entry.Endpoint = netip.AddrPortFrom(w.ClientIP(0), gateway.Port).String()
	c.Peers = []gateway.Peer{entry, alice.entry()}

	file := site.file(w.Gateway, "10.0.0.0/8")
	file.ListenPort, file.Peers[0].Endpoint = gateway.Port, ""
	wgclient.ForTest(t, file, wgclient.Options{NS: w.Clients[0]})
	alice.connect(t, w, 1, "10.0.0.0/8", network.String())
	if err := w.Clients[0].AddAddress("lo", netip.PrefixFrom(host, 32)); err != nil {
		t.Fatal(err)
	}
	serveWhoami(t, w.Clients[0], netip.AddrPortFrom(host, 80))
	serveWhoami(t, w.Service, netip.AddrPortFrom(w.ServiceIP(), 80))
	// What a cluster's network would do for it.
	if err := w.Node.AddRoute(netns.Route{To: network, Via: w.Pod.IP()}); err != nil {
		t.Fatal(err)
	}
	if err := w.Reload(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if routes := strings.Join(systemOf(t, w.Pod.Network()).Routes, "\n"); !strings.Contains(routes, network.String()+" via <nil> dev "+w.Interface) {
		t.Errorf("the Pod's routes, want one to the site:\n%s", routes)
	}

	toHost := netip.AddrPortFrom(host, 80)
	if outcome, seen := flow(t, w.Service, "tcp", toHost); outcome != passed || seen != w.ServiceIP() {
		t.Errorf("cluster → site: %s as %s, want as %s", outcome, seen, w.ServiceIP())
	}
	if outcome, seen := flow(t, w.Pod.Network(), "tcp", toHost); outcome != passed || seen != netip.MustParseAddr("10.8.0.1") {
		t.Errorf("gateway → site: %s as %s, want as the gateway's own", outcome, seen)
	}
	if outcome, seen := flow(t, w.Clients[0], "tcp", netip.AddrPortFrom(w.ServiceIP(), 80)); outcome != passed || seen != w.Pod.IP() {
		t.Errorf("site → cluster: %s as %s, want as %s", outcome, seen, w.Pod.IP())
	}
	// A site is a peer: others don't reach it without routing.peerToPeer.
	if outcome, _ := flow(t, w.Clients[1], "tcp", toHost); outcome != rejected {
		t.Errorf("peer → site: %s, want %s", outcome, rejected)
	}
	// Answers to what the cluster opened pass whatever the site may open itself.
	c.Peers[0].AllowedDestinations = []gateway.Destination{{CIDR: "10.99.0.0/16"}}
	if err := w.Reload(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if outcome, _ := flow(t, w.Service, "tcp", toHost); outcome != passed {
		t.Errorf("cluster → site without leave of its own: %s, want %s", outcome, passed)
	}
	if outcome, _ := flow(t, w.Clients[0], "tcp", netip.AddrPortFrom(w.ServiceIP(), 80)); outcome != rejected {
		t.Errorf("site → cluster without leave: %s, want %s", outcome, rejected)
	}
}

// TestIPv6 has both families inside the tunnel and calls the gateway over IPv6.
// The chart asks for the one sysctl that IPv6 needs; the Pod has it from the
// kubelet, here from podrun.
func TestIPv6(t *testing.T) {
	alice, bob := newPerson(t, "alice", "10.8.0.2", "fd00:8::2"), newPerson(t, "bob", "10.8.0.3", "fd00:8::3")
	c := gateway.Config{
		Values: `{ipv6: {enabled: true}, server: {addresses: [10.8.0.1/24, "fd00:8::1/64"]}}`,
		Peers:  []gateway.Peer{alice.entry(), bob.entry()},
	}
	w := newWorld(t, netns.Plan{Clients: 2, IPv6: true}, c)
	if got := podSysctls(w); got != "[{net.ipv6.conf.all.forwarding 1}]" {
		t.Errorf("sysctls of the Pod: %s", got)
	}
	endpoint6 := netip.AddrPortFrom(w.PublicIP6(), gateway.Port)
	if err := w.Publish(endpoint6, netip.AddrPortFrom(w.PodIP6(0), gateway.Port)); err != nil {
		t.Fatal(err)
	}
	file := alice.file(w.Gateway, "10.0.0.0/8", "fd00::/16")
	file.Peers[0].Endpoint = endpoint6.String()
	wgclient.ForTest(t, file, wgclient.Options{NS: w.Clients[0]})
	bob.connect(t, w, 1, "10.0.0.0/8", "fd00::/16")

	services := []netip.AddrPort{netip.AddrPortFrom(w.ServiceIP(), 80), netip.AddrPortFrom(w.ServiceIP6(), 80)}
	serveWhoami(t, w.Service, services...)
	serveWhoami(t, w.Clients[1], netip.AddrPortFrom(bob.addresses[1], 80))
	for i, want := range []netip.Addr{w.PodIP(0), w.PodIP6(0)} {
		for _, client := range w.Clients {
			for _, protocol := range []string{"tcp", "udp"} {
				if outcome, seen := flow(t, client, protocol, services[i]); outcome != passed || seen != want {
					t.Errorf("%s to %s: %s as %s, want as %s", protocol, services[i], outcome, seen, want)
				}
			}
		}
	}
	for _, ip := range []string{"10.8.0.1", "fd00:8::1"} {
		if outcome, _ := flow(t, w.Clients[0], "icmp", netip.AddrPortFrom(netip.MustParseAddr(ip), 0)); outcome != passed {
			t.Errorf("ping of %s: %s", ip, outcome)
		}
	}
	toBob := netip.AddrPortFrom(bob.addresses[1], 80)
	if outcome, _ := flow(t, w.Clients[0], "tcp", toBob); outcome != rejected {
		t.Errorf("to the other peer: %s, want %s", outcome, rejected)
	}
	c.Values = strings.Replace(c.Values, "{ipv6:", `{routing: {peerToPeer: true, allowedDestinations: [{cidr: "fd00::/16", protocol: tcp}]}, ipv6:`, 1)
	if err := w.Reload(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for name, f := range map[string]struct {
		protocol string
		to       netip.AddrPort
	}{"peer": {"tcp", toBob}, "tcp": {"tcp", services[1]}, "udp": {"udp", services[1]}, "ping": {"icmp", services[1]}, "IPv4": {"tcp", services[0]}} {
		got[name], _ = flow(t, w.Clients[0], f.protocol, f.to)
	}
	want := map[string]string{"peer": passed, "tcp": passed, "udp": rejected, "ping": rejected, "IPv4": rejected}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	// Packets may travel over IPv6 outside, whose header is 20 bytes longer.
	link, err := w.Pod.Network().Netlink().LinkByName(w.Interface)
	if err != nil {
		t.Fatal(err)
	}
	if got := link.Attrs().MTU; got != 1420 {
		t.Errorf("MTU %d, want 1420", got)
	}
}
