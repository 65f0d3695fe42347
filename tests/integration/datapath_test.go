package integration

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// lab is a world with two connected clients and a machine behind the gateway that
// has two addresses.
type lab struct {
	*world
	alice, bob person
	config     gateway.Config
	clients    [2]*wgclient.Client
}

// otherIP is the second address of the machine behind the gateway.
func (l *lab) otherIP() netip.Addr { return l.ServiceIP().Next() }

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{alice: newPerson(t, "alice", "10.8.0.2"), bob: newPerson(t, "bob", "10.8.0.3")}
	l.config = gateway.Config{Peers: []gateway.Peer{l.alice.entry(), l.bob.entry()}}
	l.world = newWorld(t, netns.Plan{Clients: 2}, l.config)
	if err := l.Service.AddAddress(netns.UplinkInterface, netip.PrefixFrom(l.otherIP(), 24)); err != nil {
		t.Fatal(err)
	}
	var services []netip.AddrPort
	for _, ip := range []netip.Addr{l.ServiceIP(), l.otherIP()} {
		for _, port := range []uint16{80, 443, 8000, 8080} {
			services = append(services, netip.AddrPortFrom(ip, port))
		}
	}
	serveWhoami(t, l.Service, services...)
	for i, p := range []person{l.alice, l.bob} {
		l.clients[i] = p.connect(t, l.world, i, "10.0.0.0/8")
		serveWhoami(t, l.Clients[i], netip.AddrPortFrom(p.addresses[0], 80))
	}
	return l
}

// apply changes the configuration and returns when it is in force.
func (l *lab) apply(t *testing.T, change func(*gateway.Config)) {
	t.Helper()
	c := l.config
	c.Peers = append([]gateway.Peer(nil), c.Peers...)
	change(&c)
	if err := l.Reload(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) service(port uint16) netip.AddrPort { return netip.AddrPortFrom(l.ServiceIP(), port) }

// TestDataPath is what peers can and cannot do. All settings change on one running
// gateway: whatever the values say must hold after a reload as well as from the
// start.
func TestDataPath(t *testing.T) {
	l := newLab(t)
	t.Run("masquerade", func(t *testing.T) { testMasquerade(t, l) })
	t.Run("routed", func(t *testing.T) { testRouted(t, l) })
	t.Run("allowed destinations", func(t *testing.T) { testDestinations(t, l) })
	t.Run("isolation", func(t *testing.T) { testIsolation(t, l) })
	t.Run("gateway itself", func(t *testing.T) { testGatewayItself(t, l) })
	t.Run("spoofing", func(t *testing.T) { testSpoofing(t, l) })
}

// With masquerading the cluster sees the Pod's address only.
func testMasquerade(t *testing.T, l *lab) {
	for _, protocol := range []string{"tcp", "udp"} {
		for i := range l.clients {
			outcome, seen := flow(t, l.Clients[i], protocol, l.service(80))
			if outcome != passed || seen != l.Pod.IP() {
				t.Errorf("%s from client %d: %s as %s, want as the Pod's %s", protocol, i, outcome, seen, l.Pod.IP())
			}
		}
	}
	if outcome, _ := flow(t, l.Clients[0], "icmp", l.service(0)); outcome != passed {
		t.Errorf("ping: %s", outcome)
	}
}

// Without it, peers keep their addresses, and the cluster can call them.
func testRouted(t *testing.T, l *lab) {
	l.apply(t, func(c *gateway.Config) { c.Values = "routing: {masquerade: false}" })
	toPool := netns.Route{To: netip.MustParsePrefix("10.8.0.0/24"), Via: l.Pod.IP()}
	if err := l.Node.AddRoute(toPool); err != nil {
		t.Fatal(err)
	}
	for i, p := range []person{l.alice, l.bob} {
		if outcome, seen := flow(t, l.Clients[i], "tcp", l.service(80)); outcome != passed || seen != p.addresses[0] {
			t.Errorf("from %s: %s as %s, want as %s", p.name, outcome, seen, p.addresses[0])
		}
		if outcome, seen := flow(t, l.Service, "tcp", netip.AddrPortFrom(p.addresses[0], 80)); outcome != passed || seen != l.ServiceIP() {
			t.Errorf("to %s: %s as %s, want as %s", p.name, outcome, seen, l.ServiceIP())
		}
	}
	if err := l.Node.DeleteRoute(toPool); err != nil {
		t.Fatal(err)
	}
}

// Peers reach what their allowedDestinations list, or else routing's, by network,
// protocol and port.
func testDestinations(t *testing.T, l *lab) {
	l.apply(t, func(c *gateway.Config) {
		c.Values = fmt.Sprintf("routing: {allowedDestinations: [{cidr: %s/32}]}", l.ServiceIP())
		c.Peers[1].AllowedDestinations = []gateway.Destination{
			{CIDR: l.ServiceIP().String() + "/32", Protocol: "tcp", Ports: []any{443, "8000-8079"}},
			{CIDR: l.otherIP().String() + "/31", Protocol: "udp"},
			{CIDR: l.otherIP().String() + "/32", Protocol: "icmp"},
		}
	})
	tests := []struct {
		client   int
		protocol string
		ip       netip.Addr
		port     uint16
		want     string
	}{
		// alice has routing's: one address, anything.
		{0, "tcp", l.ServiceIP(), 80, passed},
		{0, "udp", l.ServiceIP(), 8080, passed},
		{0, "icmp", l.ServiceIP(), 0, passed},
		{0, "tcp", l.otherIP(), 80, rejected},
		{0, "udp", l.otherIP(), 80, rejected},
		{0, "icmp", l.otherIP(), 0, rejected},
		// bob has his own.
		{1, "tcp", l.ServiceIP(), 443, passed},
		{1, "tcp", l.ServiceIP(), 8000, passed},
		{1, "tcp", l.ServiceIP(), 8080, rejected},
		{1, "tcp", l.ServiceIP(), 80, rejected},
		{1, "icmp", l.ServiceIP(), 0, rejected},
		{1, "udp", l.otherIP(), 80, passed},
		{1, "icmp", l.otherIP(), 0, passed},
		{1, "tcp", l.otherIP(), 443, rejected},
	}
	for _, tt := range tests {
		name := fmt.Sprintf("%d %s %s %d", tt.client, tt.protocol, tt.ip, tt.port)
		if got, _ := flow(t, l.Clients[tt.client], tt.protocol, netip.AddrPortFrom(tt.ip, tt.port)); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	l.apply(t, func(c *gateway.Config) { c.Values = "routing: {allowedDestinations: []}" })
	if got, _ := flow(t, l.Clients[0], "tcp", l.service(80)); got != rejected {
		t.Errorf("with an empty list: %s, want %s", got, rejected)
	}
}

// Peers reach each other only where routing.peerToPeer says so, and then no more
// than their destinations allow.
func testIsolation(t *testing.T, l *lab) {
	bob := netip.AddrPortFrom(l.bob.addresses[0], 80)
	for _, tt := range []struct{ values, want string }{
		{"routing: {peerToPeer: false}", rejected},
		{"routing: {peerToPeer: true}", passed},
		{"routing: {peerToPeer: true, allowedDestinations: [{cidr: 10.244.0.0/16}]}", rejected},
		{"routing: {peerToPeer: true, allowedDestinations: [{cidr: 10.8.0.3/32}]}", passed},
		{"routing: {peerToPeer: false}", rejected},
	} {
		l.apply(t, func(c *gateway.Config) { c.Values = tt.values })
		for _, protocol := range []string{"tcp", "udp", "icmp"} {
			got, seen := flow(t, l.Clients[0], protocol, bob)
			if got != tt.want {
				t.Errorf("%s: %s to the other peer: %s, want %s", tt.values, protocol, got, tt.want)
			}
			// Not masqueraded: the peers know each other's addresses.
			if got == passed && protocol != "icmp" && seen != l.alice.addresses[0] {
				t.Errorf("the other peer saw %s, want %s", seen, l.alice.addresses[0])
			}
		}
	}
}

// Out of the tunnel the gateway answers to pings, and to nothing else: its metrics
// and its health are the cluster's.
func testGatewayItself(t *testing.T, l *lab) {
	own := netip.MustParseAddr("10.8.0.1")
	for _, ip := range []netip.Addr{own, l.Pod.IP()} {
		if got, _ := flow(t, l.Clients[0], "icmp", netip.AddrPortFrom(ip, 0)); got != passed {
			t.Errorf("ping of %s: %s", ip, got)
		}
		for _, port := range []uint16{8080, 8081} {
			before := l.stopped(t)
			ctx, cancel := context.WithCancel(t.Context())
			result := make(chan error)
			go func() {
				conn, err := l.Clients[0].DialContext(ctx, "tcp", netip.AddrPortFrom(ip, port).String())
				if err == nil {
					_ = conn.Close()
				}
				result <- err
			}()
			l.wantStopped(t, before, "gateway")
			cancel()
			if err := <-result; err == nil {
				t.Errorf("the tunnel leads to %s:%d", ip, port)
			}
		}
	}
	// The same from the cluster's side.
	conn, err := l.Service.DialContext(t.Context(), "tcp", net.JoinHostPort(l.Pod.IP().String(), "8080"))
	if err != nil {
		t.Errorf("from the cluster: %v", err)
	} else {
		_ = conn.Close()
	}
}

// Nobody can pass for somebody else: not a peer out of the tunnel, not a machine
// of the cluster for a peer. A genuine packet that follows on the same way shows
// that a forged one was not just slow.
func testSpoofing(t *testing.T, l *lab) {
	l.apply(t, func(c *gateway.Config) { c.Values = "routing: {masquerade: false, peerToPeer: true}" })
	toPool := netns.Route{To: netip.MustParsePrefix("10.8.0.0/24"), Via: l.Pod.IP()}
	if err := l.Node.AddRoute(toPool); err != nil {
		t.Fatal(err)
	}
	alice, bob := l.alice.addresses[0], l.bob.addresses[0]
	node := netip.MustParseAddr("10.244.0.1")
	const port = 4000
	behind := newInbox(t, l.Service, l.service(port))
	bobs := newInbox(t, l.Clients[1], netip.AddrPortFrom(bob, port))
	tests := []struct {
		name           string
		from           *netns.NS
		forged, honest netip.Addr
		to             *inbox
		target         netip.Addr
		reason         string // counted by the firewall; else WireGuard itself drops it
	}{
		{"peer as another peer", l.Clients[0], bob, alice, behind, l.ServiceIP(), ""},
		{"peer as the cluster", l.Clients[0], l.ServiceIP(), alice, bobs, bob, ""},
		{"peer as the gateway", l.Clients[0], netip.MustParseAddr("10.8.0.1"), alice, behind, l.ServiceIP(), ""},
		{"node as a peer, to a peer", l.Node, alice, node, bobs, bob, "spoofed"},
		{"node as a peer, to the gateway", l.Node, alice, node, nil, l.Pod.IP(), "spoofed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := l.stopped(t)
			target := netip.AddrPortFrom(tt.target, port)
			forge(t, tt.from, netip.AddrPortFrom(tt.forged, port), target, "forged")
			forge(t, tt.from, netip.AddrPortFrom(tt.honest, port), target, "honest")
			if tt.to != nil {
				if payload, from := tt.to.next(); payload != "honest" || from != tt.honest {
					t.Errorf("%s arrived from %s, want honest from %s", payload, from, tt.honest)
				}
			}
			if tt.reason != "" {
				l.wantStopped(t, before, tt.reason)
			}
		})
	}
	if err := l.Node.DeleteRoute(toPool); err != nil {
		t.Fatal(err)
	}
}

// TestSegmentSize: TCP connections through the tunnel must fit into it even where
// nobody hears ICMP's 'too big'. The agent derives the tunnel's MTU from the way
// to the Internet, and lowers the segment size of every connection to it.
func TestSegmentSize(t *testing.T) {
	alice := newPerson(t, "alice", "10.8.0.2")
	c := gateway.Config{Peers: []gateway.Peer{alice.entry()}}
	w := newWorld(t, netns.Plan{Clients: 1, MTU: 1450}, c)
	file := alice.file(w.Gateway, "10.0.0.0/8")
	file.MTU = 1500 // careless, or wrong about its own way
	wgclient.ForTest(t, file, wgclient.Options{NS: w.Clients[0]})
	const port = 80
	serveWhoami(t, w.Service, netip.AddrPortFrom(w.ServiceIP(), port))
	serveWhoami(t, w.Clients[0], netip.AddrPortFrom(alice.addresses[0], port))
	toPool := netns.Route{To: netip.MustParsePrefix("10.8.0.0/24"), Via: w.Pod.IP()}
	if err := w.Node.AddRoute(toPool); err != nil {
		t.Fatal(err)
	}
	behind, client := segmentSizes(t, w.Service, port), segmentSizes(t, w.Clients[0], port)
	for _, tt := range []struct {
		values  string
		wantMTU int
	}{
		{"", 1390}, // 1450 less 20 of IPv4, 8 of UDP, 32 of WireGuard
		{"server: {mtu: 1300}", 1300},
		{"server: {mtu: 0}", 1390},
	} {
		c.Values = tt.values
		if err := w.Reload(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		link, err := w.Pod.Network().Netlink().LinkByName(w.Interface)
		if err != nil {
			t.Fatal(err)
		}
		if got := link.Attrs().MTU; got != tt.wantMTU {
			t.Errorf("%q: MTU %d, want %d", tt.values, got, tt.wantMTU)
		}
		want := tt.wantMTU - 40 // headers of IPv4 and TCP
		if outcome, _ := flow(t, w.Clients[0], "tcp", netip.AddrPortFrom(w.ServiceIP(), port)); outcome != passed {
			t.Fatalf("%q: %s", tt.values, outcome)
		}
		if got := behind(); got != want {
			t.Errorf("%q: the service was offered segments of %d bytes, want %d", tt.values, got, want)
		}
		if outcome, _ := flow(t, w.Service, "tcp", netip.AddrPortFrom(alice.addresses[0], port)); outcome != passed {
			t.Fatalf("%q: from the cluster: %s", tt.values, outcome)
		}
		if got := client(); got != want {
			t.Errorf("%q: the client was offered segments of %d bytes, want %d", tt.values, got, want)
		}
	}
}

// TestUplinkOfAnyName: nothing may depend on the Pod's card being called eth0.
func TestUplinkOfAnyName(t *testing.T) {
	need(t)
	alice := newPerson(t, "alice", "10.8.0.2")
	w := &world{Topology: netns.TopologyForTest(t, netns.Plan{Clients: 1})}
	w.Gateway = startGateway(t, w.Topology, gateway.Options{
		Config: gateway.Config{Peers: []gateway.Peer{alice.entry()}, Values: "server: {interface: vpn-tunnel.0}"},
		Prepare: func(pod *netns.NS) error {
			card, err := pod.Netlink().LinkByName(netns.UplinkInterface)
			if err != nil {
				return err
			}
			if err := pod.SetUp(netns.UplinkInterface, false); err != nil {
				return err
			}
			if err := pod.Netlink().LinkSetName(card, "net1"); err != nil {
				return err
			}
			if err := pod.SetUp("net1", true); err != nil {
				return err
			}
			return pod.AddRoute(netns.DefaultRoute(netip.MustParseAddr("10.244.0.1")))
		},
	})
	alice.connect(t, w, 0, "10.0.0.0/8")
	serveWhoami(t, w.Service, netip.AddrPortFrom(w.ServiceIP(), 80))
	if outcome, seen := flow(t, w.Clients[0], "tcp", netip.AddrPortFrom(w.ServiceIP(), 80)); outcome != passed || seen != w.Pod.IP() {
		t.Errorf("%s as %s, want as %s", outcome, seen, w.Pod.IP())
	}
	s := systemOf(t, w.Pod.Network())
	if diff := cmp.Diff(map[string]string{"lo": "0", "net1": "1", "vpn-tunnel.0": "1"}, s.Forwarding); diff != "" {
		t.Errorf("forwarding (-want +got):\n%s", diff)
	}
	if text := strings.Join(s.Ruleset, ""); strings.Contains(text, "net1") || strings.Contains(text, netns.UplinkInterface) {
		t.Errorf("the ruleset names a network card:\n%s", text)
	}
}
