package state

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestBuild(t *testing.T) {
	private, preshared := key.GeneratePrivate(), key.GeneratePreshared()
	alice, site, named := key.Public{1}, key.Public{2}, key.Public{3}
	name := spec.Endpoint{Host: "site.example.com", Port: 51820}
	snapshot := &spec.Snapshot{
		Gateway: spec.Gateway{
			Server: spec.Server{
				Interface: "wg0", ListenPort: 51820,
				Addresses: prefixes("fd00:8::1/64", "10.8.0.1/24"),
			},
			IPv6: spec.IPv6{Enabled: true},
		},
		ServerKeys: []spec.ServerKey{{Key: private, Slot: key.Blue}},
		Peers: []spec.Peer{
			{Name: "alice", PublicKey: alice, Addresses: addrs("fd00:8::2", "10.8.0.2"), PresharedKey: preshared, PersistentKeepalive: 25},
			{
				Name: "site", PublicKey: site, Addresses: addrs("10.8.0.3"), Endpoint: spec.Endpoint{Host: "192.0.2.7", Port: 1},
				AllowedIPs: prefixes("192.168.50.0/24", "192.168.0.0/16", "10.8.0.3/32", "10.8.0.64/26"),
			},
			{Name: "named", PublicKey: named, AllowedIPs: prefixes("172.16.0.0/12"), Endpoint: name},
		},
	}
	got := Build(Inputs{
		Snapshot: snapshot, Uplink: Uplink{MTU: 1500},
		Resolved: map[spec.Endpoint]netip.AddrPort{name: netip.MustParseAddrPort("[2001:db8::7]:51820")},
	})
	want := Desired{Tunnels: []Tunnel{{
		Slot: key.Blue,
		Link: Link{
			Name: "wg0", MTU: 1440,
			Addresses: prefixes("10.8.0.1/24", "fd00:8::1/64"),
			Routes:    prefixes("172.16.0.0/12", "192.168.0.0/16"),
		},
		Device: Device{PrivateKey: private, ListenPort: 51820, Peers: []Peer{
			{
				Name: "alice", PublicKey: alice, PresharedKey: preshared, Keepalive: 25 * time.Second,
				AllowedIPs: prefixes("10.8.0.2/32", "fd00:8::2/128"),
			},
			{
				Name: "named", PublicKey: named, Endpoint: netip.MustParseAddrPort("[2001:db8::7]:51820"),
				AllowedIPs: prefixes("172.16.0.0/12"),
			},
			{
				Name: "site", PublicKey: site, Endpoint: netip.MustParseAddrPort("192.0.2.7:1"),
				AllowedIPs: prefixes("10.8.0.3/32", "10.8.0.64/26", "192.168.0.0/16", "192.168.50.0/24"),
			},
		}},
	}}}
	// The firewall has a test of its own.
	if diff := cmp.Diff(want, got, byValue, cmpopts.IgnoreFields(Desired{}, "Firewall")); diff != "" {
		t.Errorf("desired (-want +got):\n%s", diff)
	}
	// The snapshot is the caller's: nothing in it is sorted or cut.
	if diff := cmp.Diff(prefixes("fd00:8::1/64", "10.8.0.1/24"), snapshot.Gateway.Server.Addresses, byValue); diff != "" {
		t.Errorf("the snapshot's addresses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(prefixes("192.168.50.0/24", "192.168.0.0/16", "10.8.0.3/32", "10.8.0.64/26"), snapshot.Peers[1].AllowedIPs, byValue); diff != "" {
		t.Errorf("the snapshot's allowed IPs (-want +got):\n%s", diff)
	}
}

// The desired state has the same firewall and link whatever the order in which
// the user wrote things.
func TestBuildDoesNotDependOnOrder(t *testing.T) {
	peer := func(n byte, allowed ...string) spec.Peer {
		return spec.Peer{
			Name: string(rune('a' + n)), PublicKey: key.Public{n}, AllowedIPs: prefixes(allowed...),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 8, 0, n})},
		}
	}
	build := func(peers ...spec.Peer) Desired {
		return Build(Inputs{Snapshot: &spec.Snapshot{
			Gateway: spec.Gateway{Server: spec.Server{Interface: "wg0", Addresses: prefixes("10.8.0.1/24")}}, Peers: peers,
		}})
	}
	a := build(peer(2, "192.168.1.0/24", "192.168.2.0/24"), peer(3), peer(4, "172.16.0.0/16"))
	b := build(peer(4, "172.16.0.0/16"), peer(2, "192.168.2.0/24", "192.168.1.0/24"), peer(3))
	if diff := cmp.Diff(a, b, byValue); diff != "" {
		t.Errorf("two orders of writing differ:\n%s", diff)
	}
}

func TestBuildMTU(t *testing.T) {
	tests := []struct {
		name   string
		server int
		ipv6   bool
		uplink Uplink
		want   int
	}{
		{"written by the user", 1380, false, Uplink{MTU: 9001}, 1380},
		{"written by the user, above the uplink", 8000, false, Uplink{MTU: 1500}, 8000},
		{"Ethernet", 0, false, Uplink{MTU: 1500}, 1440},
		{"Ethernet, IPv6 outside", 0, false, Uplink{MTU: 1500, IPv6: true}, 1420},
		{"cloud", 0, false, Uplink{MTU: 1460}, 1400},
		{"overlay, IPv6 outside", 0, true, Uplink{MTU: 1450, IPv6: true}, 1370},
		{"jumbo", 0, true, Uplink{MTU: 9001, IPv6: true}, 8921},
		{"no uplink", 0, false, Uplink{}, 1420},
		{"no uplink, IPv6 outside", 0, true, Uplink{IPv6: true}, 1420},
		{"as narrow as IPv6 inside allows", 0, true, Uplink{MTU: 1300}, 1280},
		{"as narrow as IPv4 inside allows", 0, false, Uplink{MTU: 600}, 576},
		{"narrow, IPv4 inside only", 0, false, Uplink{MTU: 1300}, 1240},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &spec.Snapshot{Gateway: spec.Gateway{Server: spec.Server{MTU: tt.server}, IPv6: spec.IPv6{Enabled: tt.ipv6}}}
			if got := Build(Inputs{Snapshot: s, Uplink: tt.uplink}).Tunnels[0].Link.MTU; got != tt.want {
				t.Errorf("MTU: got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestBuildEndpoints(t *testing.T) {
	name := spec.Endpoint{Host: "site.example.com", Port: 51820}
	resolved := netip.MustParseAddrPort("192.0.2.9:51820")
	tests := []struct {
		name     string
		endpoint spec.Endpoint
		resolved map[spec.Endpoint]netip.AddrPort
		want     netip.AddrPort
	}{
		{"none", spec.Endpoint{}, nil, netip.AddrPort{}},
		{"address", spec.Endpoint{Host: "192.0.2.1", Port: 7}, nil, netip.MustParseAddrPort("192.0.2.1:7")},
		{"IPv6 address", spec.Endpoint{Host: "2001:db8::1", Port: 7}, nil, netip.MustParseAddrPort("[2001:db8::1]:7")},
		{"IPv4 address in IPv6 clothes", spec.Endpoint{Host: "::ffff:192.0.2.1", Port: 7}, nil, netip.MustParseAddrPort("192.0.2.1:7")},
		{"name", name, map[spec.Endpoint]netip.AddrPort{name: resolved}, resolved},
		{"name that does not resolve", name, nil, netip.AddrPort{}},
		{"same name, other port", name, map[spec.Endpoint]netip.AddrPort{{Host: name.Host, Port: 1}: resolved}, netip.AddrPort{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &spec.Snapshot{Peers: []spec.Peer{{Name: "p", PublicKey: key.Public{1}, Endpoint: tt.endpoint}}}
			got := Build(Inputs{Snapshot: s, Resolved: tt.resolved}).Tunnels[0].Device.Peers[0].Endpoint
			if got != tt.want {
				t.Errorf("endpoint: got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestBuildRoutes(t *testing.T) {
	tests := []struct {
		name           string
		pools, allowed []string
		want           []netip.Prefix
	}{
		{"addresses only", []string{"10.8.0.1/24"}, nil, nil},
		{"inside the pool", []string{"10.8.0.1/24"}, []string{"10.8.0.128/25", "10.8.0.0/24"}, nil},
		{"beside the pool", []string{"10.8.0.1/24"}, []string{"10.8.1.0/24"}, prefixes("10.8.1.0/24")},
		{"around the pool", []string{"10.8.0.1/24"}, []string{"10.8.0.0/16"}, prefixes("10.8.0.0/16")},
		{"nested", []string{"10.8.0.1/24"}, []string{"172.16.9.0/24", "172.16.0.0/12", "172.16.0.0/16"}, prefixes("172.16.0.0/12")},
		{"same start, then a neighbour", []string{"10.8.0.1/24"}, []string{"172.16.0.0/24", "172.16.0.0/16", "172.17.0.0/16"}, prefixes("172.16.0.0/16", "172.17.0.0/16")},
		{"written twice", []string{"10.8.0.1/24"}, []string{"172.16.0.0/16", "172.16.0.0/16"}, prefixes("172.16.0.0/16")},
		{"both families", []string{"10.8.0.1/24", "fd00:8::1/64"}, []string{"fd00:9::/64", "fd00:8::/80", "192.168.0.0/24"}, prefixes("192.168.0.0/24", "fd00:9::/64")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &spec.Snapshot{
				Gateway: spec.Gateway{Server: spec.Server{Addresses: prefixes(tt.pools...)}},
				Peers:   []spec.Peer{{Name: "p", PublicKey: key.Public{1}, Addresses: addrs("10.8.0.2"), AllowedIPs: prefixes(tt.allowed...)}},
			}
			if diff := cmp.Diff(tt.want, Build(Inputs{Snapshot: s}).Tunnels[0].Link.Routes, byValue, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
		})
	}
}
