package device

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// TestSecondTunnel goes through a rotation of the server key: a second tunnel
// comes, routes move to it and back, the first one goes.
func TestSecondTunnel(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		before := linkNames(t)
		d := open(t, p)
		blue := desired(t, state.Peer{Name: "a", PublicKey: key.GeneratePrivate().Public(), AllowedIPs: prefixes("10.8.0.2/32", "10.66.0.0/16")})
		green := desired(t)
		green.Slot, green.Link.Name, green.Device.ListenPort = key.Green, linkName+"g", listenPort+1
		green.Device.Peers = blue.Device.Peers
		var applied *state.Desired
		step := func(name string, tunnels ...state.Tunnel) {
			t.Helper()
			want := state.Desired{Tunnels: tunnels}
			var o state.Observed
			for range 2 { // what is left to do, and whether anything is
				var err error
				if o, err = d.Observe(); err != nil {
					t.Fatal(err)
				}
				todo := plan.Diff(want, o, applied)
				todo.Firewall = plan.Firewall{}
				if applied != nil && todo.Empty() {
					break
				}
				if err := d.Apply(todo); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				applied = &want
			}
			if len(o.Tunnels) != len(tunnels) {
				t.Errorf("%s: %d tunnels, want %d", name, len(o.Tunnels), len(tunnels))
			}
			for _, tunnel := range tunnels {
				if diff := cmp.Diff(tunnel.Link, o.Tunnels[tunnel.Slot].Link, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
					t.Errorf("%s: link (-want +got):\n%s", name, diff)
				}
			}
		}
		blue.Link.Routes = prefixes("10.66.0.0/16")
		step("one", blue)
		green.Link.Addresses = prefixes("10.8.0.1/32")
		step("two", blue, green)
		for _, name := range []string{linkName, linkName + "g"} {
			if got, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/rp_filter"); err != nil || string(got) != "2\n" {
				t.Errorf("filter of reverse paths of %s: %q, %v", name, got, err)
			}
		}
		moved := green
		moved.Link.Routes = prefixes("10.8.0.2/32", "10.66.0.0/16")
		without := blue
		without.Link.Routes = nil
		step("moved", without, moved)
		if got, want := throughLink(t, "10.66.0.1"), linkName+"g"; got != want {
			t.Errorf("moved: the way leads through %s, want %s", got, want)
		}
		step("moved back", blue, green)
		if got := throughLink(t, "10.66.0.1"); got != linkName {
			t.Errorf("moved back: the way leads through %s, want %s", got, linkName)
		}
		step("moved again", without, moved)
		green.Link.Addresses, green.Link.Routes = prefixes("10.8.0.1/24"), prefixes("10.66.0.0/16")
		step("the first one has gone", green)
		for _, to := range []string{"10.66.0.1", "10.8.0.2"} {
			if got, want := throughLink(t, to), linkName+"g"; got != want {
				t.Errorf("gone: the way to %s leads through %s, want %s", to, got, want)
			}
		}
		if slices.Contains(linkNames(t), linkName) {
			t.Errorf("%s is still there", linkName)
		}
		step("back in the first slot", green, without)
		if err := d.Remove(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, linkNames(t)); diff != "" {
			t.Errorf("links that Remove leaves (-before +after):\n%s", diff)
		}
	})
}

// TestRetirementWithAFault: a route that cannot be made, such as one that another
// link has, does not hold up the retirement of the older key, and costs nobody the
// way that he has.
func TestRetirementWithAFault(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		eth1, err := netlink.LinkByName("eth1")
		if err != nil {
			t.Fatal(err)
		}
		foreign := &netlink.Route{LinkIndex: eth1.Attrs().Index, Dst: ipNetOf(netip.MustParsePrefix("10.77.0.0/16")), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(foreign); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.RouteDel(foreign) })
		d := open(t, p)
		blue := desired(t, state.Peer{Name: "a", PublicKey: key.GeneratePrivate().Public(), AllowedIPs: prefixes("10.8.0.2/32")})
		green := desired(t)
		green.Slot, green.Link.Name, green.Device.ListenPort = key.Green, linkName+"g", listenPort+1
		green.Device.Peers = blue.Device.Peers
		green.Link.Addresses, green.Link.Routes = prefixes("10.8.0.1/32"), prefixes("10.8.0.2/32")
		two := state.Desired{Tunnels: []state.Tunnel{blue, green}}
		if err := d.Apply(plan.Diff(two, state.Observed{}, nil)); err != nil {
			t.Fatal(err)
		}
		green.Link.Addresses, green.Link.Routes = prefixes("10.8.0.1/24"), prefixes("10.77.0.0/16")
		o, err := d.Observe()
		if err != nil {
			t.Fatal(err)
		}
		err = d.Apply(plan.Diff(state.Desired{Tunnels: []state.Tunnel{green}}, o, &two))
		if !state.OnlyOf(err, key.Green) {
			t.Errorf("error %v, want one of the tunnel whose route cannot be made", err)
		}
		if slices.Contains(linkNames(t), linkName) {
			t.Errorf("%s is still there", linkName)
		}
		if got, want := throughLink(t, "10.8.0.2"), linkName+"g"; got != want {
			t.Errorf("the way leads through %s, want %s", got, want)
		}
	})
}

// TestSecondTunnelCannotBeOpened: its name is somebody else's.
func TestSecondTunnelCannotBeOpened(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = linkName + "g"
		foreign := &netlink.Veth{LinkAttrs: attrs, PeerName: "wgpeer"}
		if err := netlink.LinkAdd(foreign); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.LinkDel(foreign) })
		d := open(t, p)
		blue, green := desired(t), desired(t)
		green.Slot, green.Link.Name, green.Device.ListenPort = key.Green, linkName+"g", listenPort+1
		green.Link.Addresses = prefixes("10.8.0.1/32")
		err := d.Apply(plan.Diff(state.Desired{Tunnels: []state.Tunnel{blue, green}}, state.Observed{}, nil))
		if !errors.Is(err, ErrLinkTaken) || !state.OnlyOf(err, key.Green) {
			t.Errorf("Apply: %v, want %v of the second tunnel alone", err, ErrLinkTaken)
		}
		if left := difference(t, d, blue, nil); len(left.Tunnels) > 0 {
			t.Errorf("the first tunnel is not all there: %v", left.Summary(10))
		}
	})
}

func throughLink(t *testing.T, to string) string {
	t.Helper()
	routes, err := netlink.RouteGet(netip.MustParseAddr(to).AsSlice())
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Name
}

// TestSecondTunnelIsTakenOver is the kernel's alone: a killed agent leaves both.
func TestSecondTunnelIsTakenOver(t *testing.T) {
	onKernel(t, func(t *testing.T, p spec.DataPlane) {
		d, err := Open(options(p, nil))
		if err != nil {
			t.Fatal(err)
		}
		blue, green := desired(t), desired(t)
		green.Slot, green.Link.Name, green.Device.ListenPort, green.Link.Addresses = key.Green, linkName+"g", listenPort+1, nil
		if err := d.Apply(plan.Diff(state.Desired{Tunnels: []state.Tunnel{blue, green}}, state.Observed{}, nil)); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		successor := open(t, p)
		o, err := successor.Observe()
		if err != nil {
			t.Fatal(err)
		}
		if got := o.Tunnels[key.Green].Device.PrivateKey; got != green.Device.PrivateKey {
			t.Errorf("the second tunnel was not taken over: %v", o.Tunnels)
		}
	})
}
