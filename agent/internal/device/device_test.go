package device

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

const (
	linkName   = "wg0"
	socketPath = "/var/run/wireguard/wg0.sock"
	listenPort = 51820
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

func hasKernelWireGuard() bool {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wgprobe"
	link := &netlink.Wireguard{LinkAttrs: attrs}
	if netlink.LinkAdd(link) != nil {
		return false
	}
	return netlink.LinkDel(link) == nil
}

// onEach runs f with each data plane. The kernel's is a matter of the machine: where
// that has none, as [TestAuto] then checks, tests/integration's TestKernel runs it in a
// virtual machine.
func onEach(t *testing.T, f func(t *testing.T, p spec.DataPlane)) {
	need(t)
	t.Run(string(spec.Userspace), func(t *testing.T) { f(t, spec.Userspace) })
	onKernel(t, f)
}

func onKernel(t *testing.T, f func(t *testing.T, p spec.DataPlane)) {
	need(t)
	switch {
	case hasKernelWireGuard():
		t.Run(string(spec.Kernel), func(t *testing.T) { f(t, spec.Kernel) })
	case os.Getenv("VPN_GATEWAY_DEVICE_TESTS") != "":
		t.Error("TestKernel runs this program, and the kernel has no WireGuard")
	default:
		t.Log("this kernel has no WireGuard: see TestKernel of tests/integration")
	}
}

// options of the devices wg0 and wg0g, of which wg0 is opened.
func options(p spec.DataPlane, log *slog.Logger) Options {
	return Options{
		Names: map[key.Slot]string{key.Blue: linkName, key.Green: linkName + "g"}, First: key.Blue,
		DataPlane: p, Log: log,
	}
}

func open(t testing.TB, p spec.DataPlane) *Tunnels {
	t.Helper()
	d, err := Open(options(p, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// desired is a gateway for those peers.
func desired(t testing.TB, peers ...state.Peer) state.Tunnel {
	t.Helper()
	private := key.GeneratePrivate()
	recordSecret(t, private)
	w := state.Tunnel{
		Slot:   key.Blue,
		Link:   state.Link{Name: linkName, MTU: 1380, Addresses: prefixes("10.8.0.1/24")},
		Device: state.Device{PrivateKey: private, ListenPort: listenPort},
	}
	for _, p := range peers {
		recordSecret(t, p.PresharedKey)
		set(&w, p)
	}
	return w
}

// set adds a peer, or puts it in the place of the one of its key. Copies of w keep
// what they have.
func set(w *state.Tunnel, p state.Peer) {
	unset(w, p.PublicKey)
	w.Device.Peers = append(w.Device.Peers, p)
	slices.SortFunc(w.Device.Peers, func(a, b state.Peer) int { return strings.Compare(a.Name, b.Name) })
}

func unset(w *state.Tunnel, k key.Public) {
	w.Device.Peers = slices.DeleteFunc(slices.Clone(w.Device.Peers), func(p state.Peer) bool { return p.PublicKey == k })
}

// difference is what the agent would do now, the firewall aside. applied is as
// in [plan.Diff].
func difference(t testing.TB, d *Tunnels, want state.Tunnel, applied *state.Tunnel) plan.Plan {
	t.Helper()
	o, err := d.Observe()
	if err != nil {
		t.Fatal(err)
	}
	var last *state.Desired
	if applied != nil {
		last = &state.Desired{Tunnels: []state.Tunnel{*applied}}
	}
	p := plan.Diff(state.Desired{Tunnels: []state.Tunnel{want}}, o, last)
	p.Firewall = plan.Firewall{}
	return p
}

// converge applies, and fails unless one run is enough.
func converge(t testing.TB, d *Tunnels, want state.Tunnel, applied *state.Tunnel) {
	t.Helper()
	if err := d.Apply(difference(t, d, want, applied)); err != nil {
		t.Fatal(err)
	}
	if p := difference(t, d, want, &want); !p.Empty() {
		t.Fatalf("after Apply there is still to do: %q", p.Summary(10))
	}
}

func publicKey(w state.Tunnel) key.Public { return w.Device.PrivateKey.Public() }

func endpoint() netip.AddrPort { return netip.AddrPortFrom(uplinkAddress(), listenPort) }

func linkNames(t testing.TB) []string {
	t.Helper()
	list, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range list {
		out = append(out, l.Attrs().Name)
	}
	return out
}

// ourRoutes lists routes of our protocol, whatever link they go through.
func ourRoutes(t testing.TB) []netlink.Route {
	t.Helper()
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestLifeOfADevice(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		before := linkNames(t)
		forwardingBefore, err := forwarding()
		if err != nil {
			t.Fatal(err)
		}
		d, err := Open(options(p, nil))
		if err != nil {
			t.Fatal(err)
		}
		if d.DataPlane() != p || d.Reason() == "" {
			t.Errorf("data plane %q because %q, want %q and a reason", d.DataPlane(), d.Reason(), p)
		}
		o, err := d.Observe()
		if err != nil {
			t.Fatal(err)
		}
		seen := o.Tunnels[key.Blue]
		seen.Device.ListenPort = 0 // wireguard-go may have bound a port of chance
		o.Tunnels[key.Blue] = seen
		fresh := state.Observed{
			Tunnels: map[key.Slot]state.ObservedTunnel{key.Blue: {
				LinkExists: true, Link: state.Link{Name: linkName, MTU: 1420},
				Device: state.ObservedDevice{Peers: map[key.Public]state.ObservedPeer{}},
			}},
			Forwarding: maps.Clone(forwardingBefore), // a successor of another test's may have left it on
		}
		fresh.Forwarding[linkName] = false
		if diff := cmp.Diff(fresh, o, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Errorf("a fresh device (-want +got):\n%s", diff)
		}

		k := key.GeneratePrivate().Public()
		want := desired(t, state.Peer{
			Name: "site", PublicKey: k, PresharedKey: key.GeneratePreshared(),
			Endpoint: netip.MustParseAddrPort("203.0.113.7:51820"), Keepalive: 25 * time.Second,
			AllowedIPs: prefixes("10.8.0.7/32", "fd00:8::7/128", "192.168.50.0/24", "fd00:50::/64"),
		})
		want.Link.Addresses = prefixes("10.8.0.1/24", "fd00:8::1/64")
		want.Link.Routes = prefixes("192.168.50.0/24", "fd00:50::/64")
		converge(t, d, want, nil)
		o, err = d.Observe()
		if err != nil {
			t.Fatal(err)
		}
		site, _ := want.Device.Peer(k)
		site.Name = ""
		device := state.ObservedDevice{
			PrivateKey: want.Device.PrivateKey, ListenPort: listenPort,
			Peers: map[key.Public]state.ObservedPeer{k: {Peer: site}},
		}
		running := state.Observed{
			Tunnels:    map[key.Slot]state.ObservedTunnel{key.Blue: {LinkExists: true, LinkUp: true, Link: want.Link, Device: device}},
			Forwarding: map[string]bool{"eth0": true, "eth1": true, linkName: true},
		}
		counters := cmpopts.IgnoreFields(state.ObservedPeer{}, "TransmitBytes") // it calls the site already
		if diff := cmp.Diff(running, o, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}), counters); diff != "" {
			t.Errorf("the device in force (-want +got):\n%s", diff)
		}
		c := newCollector(0)
		if err := d.EachPeer(key.Blue, c.add); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(device.Peers, c.peers, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}), counters); diff != "" {
			t.Errorf("EachPeer (-want +got):\n%s", diff)
		}

		if err := d.Remove(); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Errorf("Close after Remove: %v", err)
		}
		if diff := cmp.Diff(before, linkNames(t)); diff != "" {
			t.Errorf("links that Remove leaves (-before +after):\n%s", diff)
		}
		if list := ourRoutes(t); len(list) > 0 {
			t.Errorf("routes that Remove leaves: %v", list)
		}
		if _, err := os.Lstat(socketPath); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket %s after Remove: %v, want %v", socketPath, err, fs.ErrNotExist)
		}
		after, err := forwarding()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(forwardingBefore, after); diff != "" {
			t.Errorf("forwarding that Remove leaves (-before +after):\n%s", diff)
		}
	})
}

// TestUnnamedPeersAreUntouched changes everything that can be changed beside a
// peer, and some of its own, while its packets are forwarded between two
// network namespaces.
func TestUnnamedPeersAreUntouched(t *testing.T) {
	other := key.GeneratePrivate().Public()
	changes := []struct {
		name   string
		change func(w *state.Tunnel, second *client)
	}{
		{"peer added", func(w *state.Tunnel, _ *client) {
			set(w, state.Peer{Name: "other", PublicKey: other, AllowedIPs: prefixes("10.8.0.9/32")})
		}},
		{"40 peers added", func(w *state.Tunnel, _ *client) { // wgctrl splits from 32 on
			for i := range 40 {
				k := key.GeneratePrivate().Public()
				set(w, state.Peer{Name: "many", PublicKey: k, AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 8, 0, byte(100 + i)}), 32)}})
			}
		}},
		{"peer's pre-shared key", edit(func(p *state.Peer) { p.PresharedKey = key.GeneratePreshared() })},
		{"peer's allowed IPs, more", edit(func(p *state.Peer) { p.AllowedIPs = prefixes("10.8.0.3/32", "10.9.0.0/24") })},
		{"peer's allowed IPs, fewer", edit(func(p *state.Peer) { p.AllowedIPs = prefixes("10.9.0.0/24") })},
		{"peer's keepalive", edit(func(p *state.Peer) { p.Keepalive = 30 * time.Second })},
		{"peer's endpoint", edit(func(p *state.Peer) { p.Endpoint = netip.MustParseAddrPort("203.0.113.8:1") })},
		{"peer removed", func(w *state.Tunnel, second *client) { unset(w, second.private.Public()) }},
		{"route", func(w *state.Tunnel, _ *client) { w.Link.Routes = prefixes("10.9.0.0/24") }},
		{"route removed", func(w *state.Tunnel, _ *client) { w.Link.Routes = nil }},
		{"address added", func(w *state.Tunnel, _ *client) { w.Link.Addresses = prefixes("10.8.0.1/24", "10.9.0.1/30") }},
		{"address removed", func(w *state.Tunnel, _ *client) { w.Link.Addresses = prefixes("10.8.0.1/24") }},
		{"mtu", func(w *state.Tunnel, _ *client) { w.Link.MTU = 1300 }},
	}
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		d := open(t, p)
		first := newClient(t, 0, "10.8.0.2", key.GeneratePreshared())
		second := newClient(t, 1, "10.8.0.3", key.Preshared{})
		want := desired(t, first.peer("first"), second.peer("second"))
		converge(t, d, want, nil)
		first.connect(t, publicKey(want), endpoint())
		second.connect(t, publicKey(want), endpoint())
		first.ping(t, insideAddress())
		second.ping(t, insideAddress())
		for _, tt := range changes {
			t.Run(tt.name, func(t *testing.T) {
				before := observedPeer(t, d, first)
				applied := want
				tt.change(&want, second)
				if difference(t, d, want, &applied).Empty() {
					t.Fatal("nothing to change")
				}
				stop := first.stream(t, insideAddress())
				converge(t, d, want, &applied)
				answered := stop()
				first.ping(t, insideAddress())
				// Its counters run on: it is the same peer with the same session.
				after := observedPeer(t, d, first)
				if got := after.ReceiveBytes - before.ReceiveBytes; got < int64(36*answered) {
					t.Errorf("bytes received from the peer grew by %d while %d packets of 36 were answered", got, answered)
				}
			})
		}
	})
}

func edit(f func(p *state.Peer)) func(*state.Tunnel, *client) {
	return func(w *state.Tunnel, second *client) {
		p, _ := w.Device.Peer(second.private.Public())
		f(&p)
		set(w, p)
	}
}

func observedPeer(t testing.TB, d *Tunnels, c *client) state.ObservedPeer {
	t.Helper()
	all := newCollector(0)
	if err := d.EachPeer(key.Blue, all.add); err != nil {
		t.Fatal(err)
	}
	p, ok := all.peers[c.private.Public()]
	if !ok {
		t.Fatalf("the device does not know peer %s", c.private.Public())
	}
	return p
}
