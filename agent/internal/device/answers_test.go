package device

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

const interlinkName = linkName + "l"

// openLinked is open with a device between replicas, once a plan has one.
func openLinked(t *testing.T, p spec.DataPlane) *Tunnels {
	t.Helper()
	o := options(p, nil)
	o.Names[state.Interlink] = interlinkName
	d, err := Open(o)
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

// interlink has one sibling, which holds peers with those prefixes.
func interlink(t *testing.T, held ...string) *state.Tunnel {
	t.Helper()
	private := key.GeneratePrivate()
	recordSecret(t, private)
	return &state.Tunnel{
		Slot: state.Interlink,
		Link: state.Link{
			Name: interlinkName, MTU: 1440, Addresses: prefixes(uplinkAddress().String() + "/32"), Routes: prefixes(held...),
			Answers: prefixes("192.0.2.2/32"), AnswersFor: []string{linkName, linkName + "g"},
		},
		Device: state.Device{PrivateKey: private, ListenPort: 51840, Peers: []state.Peer{{
			Name: "b", PublicKey: key.GeneratePrivate().Public(), Endpoint: netip.MustParseAddrPort("192.0.2.2:51840"), Keepalive: 25 * time.Second,
			AllowedIPs: prefixes(append(held, "192.0.2.2/32")...),
		}}},
	}
}

// settle applies until nothing is left to do, and returns the last look.
func settle(t *testing.T, d *Tunnels, want state.Desired, applied *state.Desired) state.Observed {
	t.Helper()
	for range 3 {
		o, err := d.Observe()
		if err != nil {
			t.Fatal(err)
		}
		todo := plan.Diff(want, o, applied)
		todo.Firewall = plan.Firewall{}
		if todo.Empty() {
			return o
		}
		if err := d.Apply(todo); err != nil {
			t.Fatal(err)
		}
		applied = &want
	}
	t.Fatal("it does not converge")
	return state.Observed{}
}

func rules(t *testing.T) (out []string) {
	t.Helper()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RuleList(family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			out = append(out, fmt.Sprintf("%d: %d iif %s table %d", family, r.Priority, r.IifName, r.Table))
		}
	}
	return out
}

// wayOf is the device by which a packet that came in by another one would leave.
func wayOf(t *testing.T, to, in string) string {
	t.Helper()
	list, err := netlink.RouteGetWithOptions(netip.MustParseAddr(to).AsSlice(), &netlink.RouteGetOptions{
		Iif: in, SrcAddr: netip.MustParseAddr("10.8.0.9").AsSlice(),
	})
	if err != nil {
		return err.Error()
	}
	link, err := netlink.LinkByIndex(list[0].LinkIndex)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Name
}

// TestInterlink goes through the life of a device between replicas.
func TestInterlink(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		linksBefore, rulesBefore, uplinkBefore := linkNames(t), rules(t), routesOfLink(t, "eth0")
		d := openLinked(t, p)
		blue := desired(t, state.Peer{Name: "a", PublicKey: key.GeneratePrivate().Public(), AllowedIPs: prefixes("10.8.0.2/32", "10.66.0.0/16")})
		blue.Link.Routes = prefixes("10.66.0.0/16")
		alone := state.Desired{Tunnels: []state.Tunnel{blue}}
		settle(t, d, alone, nil)

		away := blue
		away.Link.Routes = nil
		linked := state.Desired{Tunnels: []state.Tunnel{away}, Interlink: interlink(t, "10.8.0.2/32", "10.66.0.0/16")}
		o := settle(t, d, linked, &alone)
		if diff := cmp.Diff(linked.Interlink.Link, o.Tunnels[state.Interlink].Link, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("link (-want +got):\n%s", diff)
		}
		if !o.Forwarding[interlinkName] {
			t.Error("packets that come in by it are not forwarded")
		}
		for to, want := range map[string]string{"10.8.0.2": interlinkName, "10.66.0.1": interlinkName, "10.8.0.3": linkName, "192.0.2.2": "eth0"} {
			if got := throughLink(t, to); got != want {
				t.Errorf("the way to %s leads through %s, want %s", to, got, want)
			}
		}
		for in, want := range map[string]string{linkName: interlinkName, "eth1": "eth0"} {
			if got := wayOf(t, "192.0.2.2", in); got != want {
				t.Errorf("what came in by %s for the sibling leaves by %s, want %s", in, got, want)
			}
		}

		back := linked
		back.Tunnels = alone.Tunnels
		half := *linked.Interlink
		half.Link.Routes, half.Device.Peers = nil, slices.Clone(half.Device.Peers)
		half.Device.Peers[0].AllowedIPs = prefixes("192.0.2.2/32")
		back.Interlink = &half
		settle(t, d, back, &linked)
		if got := throughLink(t, "10.66.0.1"); got != linkName {
			t.Errorf("the peer came back: the way leads through %s, want %s", got, linkName)
		}
		// What others break is mended.
		if err := removeRules(); err != nil {
			t.Fatal(err)
		}
		settle(t, d, linked, &back)
		if got := wayOf(t, "192.0.2.2", linkName); got != interlinkName {
			t.Errorf("after a repair, answers leave by %s, want %s", got, interlinkName)
		}

		settle(t, d, alone, &linked)
		if got := throughLink(t, "10.66.0.1"); got != linkName {
			t.Errorf("without siblings the way leads through %s, want %s", got, linkName)
		}
		if diff := cmp.Diff(rulesBefore, rules(t)); diff != "" {
			t.Errorf("rules that stay behind (-before +after):\n%s", diff)
		}
		settle(t, d, linked, &alone)
		if err := d.Remove(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]any{linksBefore, rulesBefore, uplinkBefore}, []any{linkNames(t), rules(t), routesOfLink(t, "eth0")}); diff != "" {
			t.Errorf("links and rules that Remove leaves, and routes of the uplink, which has the same address (-before +after):\n%s", diff)
		}
	})
}

func routesOfLink(t *testing.T, name string) (out []string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: link.Attrs().Index, Table: 0}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		out = append(out, r.String())
	}
	return out
}

// TestInterlinkIsTakenOver is the kernel's alone: a killed agent leaves it, with a key
// that nobody knows any more.
func TestInterlinkIsTakenOver(t *testing.T) {
	onKernel(t, func(t *testing.T, p spec.DataPlane) {
		o := options(p, nil)
		o.Names[state.Interlink] = interlinkName
		d, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		blue := desired(t)
		old := state.Desired{Tunnels: []state.Tunnel{blue}, Interlink: interlink(t, "10.8.0.2/32")}
		settle(t, d, old, nil)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		successor := openLinked(t, p)
		settle(t, successor, state.Desired{Tunnels: []state.Tunnel{blue}, Interlink: interlink(t, "10.8.0.3/32")}, nil)
	})
}

// TestInterlinkOfThousands measures what it costs that 10,000 peers are elsewhere.
func TestInterlinkOfThousands(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		const n = 10_000
		d := openLinked(t, p)
		blue := desired(t)
		blue.Link.Addresses = prefixes("10.8.0.1/16")
		link := interlink(t)
		for i := range n {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], 10<<24|8<<16|uint32(i+256))
			link.Link.Routes = append(link.Link.Routes, netip.PrefixFrom(netip.AddrFrom4(a), 32))
		}
		sibling := &link.Device.Peers[0]
		sibling.AllowedIPs = append(slices.Clone(link.Link.Routes), sibling.AllowedIPs...)
		all := state.Desired{Tunnels: []state.Tunnel{blue}, Interlink: link}
		first := plan.Diff(all, state.Observed{}, nil)
		start := time.Now()
		if err := d.Apply(first); err != nil {
			t.Fatal(err)
		}
		full := time.Since(start)
		start = time.Now()
		o, err := d.Observe()
		if err != nil {
			t.Fatal(err)
		}
		look := time.Since(start)
		if got := len(o.Tunnels[state.Interlink].Link.Routes); got != n {
			t.Fatalf("%d routes, want %d", got, n)
		}
		fewer := *link
		fewer.Link.Routes = slices.Delete(slices.Clone(link.Link.Routes), n/2, n/2+1)
		fewer.Device.Peers = slices.Clone(link.Device.Peers)
		fewer.Device.Peers[0].AllowedIPs = slices.Delete(slices.Clone(sibling.AllowedIPs), n/2, n/2+1)
		less := state.Desired{Tunnels: all.Tunnels, Interlink: &fewer}
		change := func(to, from state.Desired) time.Duration {
			start := time.Now()
			if err := d.Apply(plan.Changes(to, from)); err != nil {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		back, away := change(less, all), change(all, less)
		// All of them networks that tunnel and interlink have by turns.
		swapped := blue
		swapped.Link.Routes = link.Link.Routes
		fewer.Link.Routes = nil
		here := state.Desired{Tunnels: []state.Tunnel{swapped}, Interlink: &fewer}
		turn := change(here, all)
		t.Logf("%d peers elsewhere: all of them %s, looking at it %s, one comes back %s, one goes away %s, the routes of all change their device %s",
			n, full.Round(time.Millisecond), look.Round(time.Millisecond), back.Round(10*time.Microsecond), away.Round(10*time.Microsecond), turn.Round(time.Millisecond))
		settle(t, d, here, &here)
	})
}
