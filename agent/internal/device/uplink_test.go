package device

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

func TestUplink(t *testing.T) {
	need(t)
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	eth1, err := netlink.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	for link, mtu := range map[netlink.Link]int{eth0: 1450, eth1: 1400} {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.LinkSetMTU(link, 1500) })
	}
	for _, link := range []netlink.Link{eth0, eth1} {
		a := netip.MustParsePrefix("fd00:1::1/64")
		if link == eth1 {
			a = netip.MustParsePrefix("fd00:2::1/64")
		}
		if err := addAddress(link, a); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = removeAddress(link, a) })
	}
	via := func(link netlink.Link, dst, gateway string, edit ...func(*netlink.Route)) netlink.Route {
		r := netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNetOf(netip.MustParsePrefix(dst)), Gw: net.ParseIP(gateway)}
		for _, f := range edit {
			f(&r)
		}
		return r
	}
	mtu := func(n int) func(*netlink.Route) { return func(r *netlink.Route) { r.MTU = n } }
	ours := func(r *netlink.Route) { r.Protocol = routeProtocol }
	default4 := via(eth0, "0.0.0.0/0", "192.0.2.2")
	tests := []struct {
		name   string
		routes []netlink.Route
		want   state.Uplink
	}{
		{name: "no route"},
		{name: "MTU of the link", routes: []netlink.Route{default4}, want: state.Uplink{MTU: 1450}},
		{name: "MTU of the route", routes: []netlink.Route{via(eth0, "0.0.0.0/0", "192.0.2.2", mtu(1390))}, want: state.Uplink{MTU: 1390}},
		{
			name:   "halves of the Internet",
			routes: []netlink.Route{via(eth0, "0.0.0.0/1", "192.0.2.2"), via(eth1, "128.0.0.0/1", "198.51.100.2")},
			want:   state.Uplink{MTU: 1450},
		},
		{
			name: "two ways at once",
			routes: []netlink.Route{{Dst: ipNetOf(netip.MustParsePrefix("0.0.0.0/0")), MultiPath: []*netlink.NexthopInfo{
				{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP("192.0.2.2")},
				{LinkIndex: eth1.Attrs().Index, Gw: net.ParseIP("198.51.100.2")},
			}}},
			want: state.Uplink{MTU: 1400},
		},
		{
			name:   "through the tunnel only",
			routes: []netlink.Route{via(eth1, "0.0.0.0/1", "198.51.100.2", ours)},
		},
		{
			name: "unreachable", routes: []netlink.Route{{Dst: ipNetOf(netip.MustParsePrefix("0.0.0.0/0")), Type: 7}}, // RTN_UNREACHABLE
		},
		{name: "IPv6 alone", routes: []netlink.Route{via(eth1, "::/0", "fd00:2::2")}, want: state.Uplink{MTU: 1400, IPv6: true}},
		{
			name:   "both, IPv6 the narrower",
			routes: []netlink.Route{default4, via(eth1, "::/0", "fd00:2::2", mtu(1320))},
			want:   state.Uplink{MTU: 1320, IPv6: true},
		},
		{
			name:   "both, IPv4 the narrower",
			routes: []netlink.Route{via(eth1, "0.0.0.0/0", "198.51.100.2"), via(eth0, "::/0", "fd00:1::2")},
			want:   state.Uplink{MTU: 1400, IPv6: true},
		},
		{
			name:   "IPv6 through the tunnel only",
			routes: []netlink.Route{default4, via(eth1, "2000::/3", "fd00:2::2", ours)},
			want:   state.Uplink{MTU: 1450},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i := range tt.routes {
				if err := netlink.RouteAdd(&tt.routes[i]); err != nil {
					t.Fatalf("route %v: %v", tt.routes[i], err)
				}
			}
			defer func() {
				for i := range tt.routes {
					if err := netlink.RouteDel(&tt.routes[i]); err != nil {
						t.Errorf("route %v: %v", tt.routes[i], err)
					}
				}
			}()
			got, err := Uplink()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("uplink (-want +got):\n%s", diff)
			}
		})
	}
}
