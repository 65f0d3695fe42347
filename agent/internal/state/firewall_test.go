package state

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

func dest(cidr string, protocol spec.Protocol, ports ...spec.PortRange) spec.Destination {
	return spec.Destination{CIDR: netip.MustParsePrefix(cidr), Protocol: protocol, Ports: ports}
}

func TestDisjoint(t *testing.T) {
	tests := []struct {
		name string
		in   []spec.Destination
		want []string
	}{
		{"nothing", nil, nil},
		{"all of IPv4", []spec.Destination{dest("0.0.0.0/0", "")}, []string{"0.0.0.0-255.255.255.255"}},
		{"all of IPv6", []spec.Destination{dest("::/0", spec.AnyProtocol)}, []string{"::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}},
		{"one host", []spec.Destination{dest("10.0.0.7/32", spec.TCP, spec.PortRange{First: 443, Last: 443})}, []string{"10.0.0.7-10.0.0.7 proto 6-6 port 443-443"}},
		{"the last of all hosts", []spec.Destination{dest("255.255.255.255/32", spec.UDP)}, []string{"255.255.255.255-255.255.255.255 proto 17-17"}},
		{
			"ICMP has a number in each family",
			[]spec.Destination{dest("10.0.0.0/8", spec.ICMP), dest("fd00::/8", spec.ICMP)},
			[]string{"10.0.0.0-10.255.255.255 proto 1-1", "fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff proto 58-58"},
		},
		{
			"several ports",
			[]spec.Destination{dest("10.0.0.0/8", spec.TCP, spec.PortRange{First: 8000, Last: 8080}, spec.PortRange{First: 443, Last: 443}, spec.PortRange{First: 8080, Last: 8090})},
			[]string{
				"10.0.0.0-10.255.255.255 proto 6-6 port 443-443",
				"10.0.0.0-10.255.255.255 proto 6-6 port 8000-8080",
				"10.0.0.0-10.255.255.255 proto 6-6 port 8081-8090",
			},
		},
		{
			"a network inside another, written first",
			[]spec.Destination{dest("10.1.0.0/16", spec.TCP, spec.PortRange{First: 443, Last: 443}), dest("10.0.0.0/8", spec.AnyProtocol)},
			[]string{"10.0.0.0-10.255.255.255"},
		},
		{
			"written twice",
			[]spec.Destination{dest("10.0.0.0/8", spec.UDP), dest("10.0.0.0/8", spec.UDP)},
			[]string{"10.0.0.0-10.255.255.255 proto 17-17"},
		},
		{
			"a protocol everywhere, everything somewhere",
			[]spec.Destination{dest("10.0.0.0/8", spec.TCP), dest("10.1.0.0/16", spec.AnyProtocol)},
			[]string{
				"10.0.0.0-10.0.255.255 proto 6-6",
				"10.1.0.0-10.1.255.255",
				"10.2.0.0-10.255.255.255 proto 6-6",
			},
		},
		{
			"networks side by side stay apart",
			[]spec.Destination{dest("10.0.1.0/24", spec.TCP), dest("10.0.0.0/24", spec.TCP)},
			[]string{"10.0.0.0-10.0.0.255 proto 6-6", "10.0.1.0-10.0.1.255 proto 6-6"},
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, g := range disjoint(tc.in) {
				got = append(got, g.String())
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("boxes (-want +got):\n%s", d)
			}
		})
	}
}

// point is one packet, as far as policies look at it.
type point struct {
	addr     netip.Addr
	protocol uint8
	port     uint16
}

// allows says what the user's words mean, with no box in sight.
func allows(d spec.Destination, p point) bool {
	if !d.CIDR.Contains(p.addr) {
		return false
	}
	switch d.Protocol {
	case spec.TCP:
		if p.protocol != 6 {
			return false
		}
	case spec.UDP:
		if p.protocol != 17 {
			return false
		}
	case spec.ICMP:
		return p.addr.Is4() && p.protocol == 1 || p.addr.Is6() && p.protocol == 58
	default:
		return true
	}
	return len(d.Ports) == 0 || slices.ContainsFunc(d.Ports, func(r spec.PortRange) bool { return r.First <= p.port && p.port <= r.Last })
}

func (g Grant) holds(p point) bool {
	return g.First.BitLen() == p.addr.BitLen() &&
		g.First.Compare(p.addr) <= 0 && p.addr.Compare(g.Last) <= 0 &&
		g.FirstProtocol <= p.protocol && p.protocol <= g.LastProtocol &&
		g.FirstPort <= p.port && p.port <= g.LastPort
}

// TestDisjointProperty compares the boxes with the user's words at every corner
// that a box can have: a packet is in exactly one box where some destination
// allows it, and in none otherwise.
func TestDisjointProperty(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 11))
	for round := range 300 {
		destinations := randomDestinations(rnd)
		boxes := disjoint(destinations)
		for _, p := range corners(destinations) {
			allowed := slices.ContainsFunc(destinations, func(d spec.Destination) bool { return allows(d, p) })
			in := 0
			for _, b := range boxes {
				if b.holds(p) {
					in++
				}
			}
			if allowed && in != 1 || !allowed && in != 0 {
				t.Fatalf("round %d: %v is in %d boxes, allowed: %t\ndestinations: %v\nboxes: %v", round, p, in, allowed, destinations, boxes)
			}
		}
		shuffled := slices.Clone(destinations)
		rnd.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if d := cmp.Diff(fmt.Sprint(boxes), fmt.Sprint(disjoint(shuffled))); d != "" {
			t.Fatalf("round %d: boxes depend on the order of %v (-want +got):\n%s", round, destinations, d)
		}
	}
}

// randomDestinations are networks of 16 addresses at most, out of two ranges of
// 16 at either end of their family.
func randomDestinations(rnd *rand.Rand) []spec.Destination {
	bases := []string{"10.0.0.0", "255.255.255.240", "fd00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0"}
	out := make([]spec.Destination, 1+rnd.IntN(7))
	for i := range out {
		a := netip.MustParseAddr(bases[rnd.IntN(len(bases))])
		for range rnd.IntN(16) {
			a = a.Next()
		}
		cidr, err := a.Prefix(a.BitLen() - rnd.IntN(5))
		if err != nil {
			panic(err)
		}
		d := spec.Destination{
			CIDR:     cidr,
			Protocol: []spec.Protocol{"", spec.AnyProtocol, spec.TCP, spec.UDP, spec.ICMP}[rnd.IntN(5)],
		}
		if d.Protocol == spec.TCP || d.Protocol == spec.UDP {
			for range rnd.IntN(4) {
				first := []int{0, 1, 443, 444, 8000, 65530}[rnd.IntN(6)]
				last := min(first+[]int{0, 1, 80, 65535}[rnd.IntN(4)], 65535)
				d.Ports = append(d.Ports, spec.PortRange{First: uint16(first), Last: uint16(last)})
			}
		}
		out[i] = d
	}
	return out
}

func corners(destinations []spec.Destination) []point {
	ports := []uint16{0, 1, 65535}
	addrs := map[netip.Addr]bool{}
	for _, d := range destinations {
		for _, r := range d.Ports {
			ports = append(ports, r.First-1, r.First, r.Last, r.Last+1)
		}
		for _, a := range []netip.Addr{d.CIDR.Addr(), lastAddr(d.CIDR)} {
			for _, near := range []netip.Addr{a.Prev(), a, a.Next()} {
				if near.IsValid() {
					addrs[near] = true
				}
			}
		}
	}
	slices.Sort(ports)
	ports = slices.Compact(ports)
	var out []point
	for a := range addrs {
		for _, protocol := range []uint8{0, 1, 5, 6, 7, 16, 17, 18, 57, 58, 59, 255} {
			for _, port := range ports {
				out = append(out, point{a, protocol, port})
			}
		}
	}
	return out
}

func TestMinus(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 5))
	random := func() Grant {
		a, b := rnd.IntN(4), rnd.IntN(4)
		g := Grant{
			First: netip.AddrFrom4([4]byte{10, 0, 0, byte(min(a, b))}), Last: netip.AddrFrom4([4]byte{10, 0, 0, byte(max(a, b))}),
			FirstProtocol: uint8(rnd.IntN(4)), FirstPort: uint16(rnd.IntN(4)),
		}
		g.LastProtocol = g.FirstProtocol + uint8(rnd.IntN(4-int(g.FirstProtocol)))
		g.LastPort = g.FirstPort + uint16(rnd.IntN(4-int(g.FirstPort)))
		return g
	}
	for range 2000 {
		g, b := random(), random()
		rest := g.minus(b)
		for i := range 4 * 4 * 4 {
			p := point{netip.AddrFrom4([4]byte{10, 0, 0, byte(i % 4)}), uint8(i / 4 % 4), uint16(i / 16)}
			in := 0
			for _, r := range rest {
				if r.holds(p) {
					in++
				}
			}
			want := 0
			if g.holds(p) && !b.holds(p) {
				want = 1
			}
			if in != want {
				t.Fatalf("%v minus %v is %v: %v is in %d of them, want %d", g, b, rest, p, in, want)
			}
		}
	}
}

func TestLastAddr(t *testing.T) {
	for _, tc := range []struct{ prefix, want string }{
		{"0.0.0.0/0", "255.255.255.255"},
		{"10.8.0.0/16", "10.8.255.255"},
		{"10.8.0.1/32", "10.8.0.1"},
		{"::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"fd00:8::/67", "fd00:8::1fff:ffff:ffff:ffff"},
		{"fd00:8::1/128", "fd00:8::1"},
	} {
		source := Source{Prefix: netip.MustParsePrefix(tc.prefix)}
		if got := source.Last(); got != netip.MustParseAddr(tc.want) {
			t.Errorf("last address of %s: got %s, want %s", tc.prefix, got, tc.want)
		}
	}
}

// snapshot of peers a, b, c… with addresses 10.8.0.2, 10.8.0.3, …
func snapshot(common []spec.Destination, own ...[]spec.Destination) *spec.Snapshot {
	s := &spec.Snapshot{}
	s.Gateway.Server.Interface = "wg0"
	s.Gateway.Server.ListenPort = 51820
	s.Gateway.Routing.AllowedDestinations = common
	a := netip.MustParseAddr("10.8.0.1")
	for i, d := range own {
		a = a.Next()
		s.Peers = append(s.Peers, spec.Peer{Name: string(rune('a' + i)), Addresses: []netip.Addr{a}, AllowedDestinations: d})
	}
	return s
}

// policyOf returns the policy of the peer with that address.
func policyOf(t *testing.T, fw Firewall, addr string) Policy {
	t.Helper()
	for _, s := range fw.Sources {
		if s.Prefix.Contains(netip.MustParseAddr(addr)) {
			return s.Policy
		}
	}
	t.Fatalf("no source holds %s: %v", addr, fw.Sources)
	return 0
}

func grantsOf(fw Firewall, p Policy) []string {
	out := []string{}
	for _, g := range fw.Grants {
		if g.Policy == p {
			out = append(out, g.String())
		}
	}
	return out
}

func TestPolicies(t *testing.T) {
	web := []spec.Destination{dest("10.0.0.0/8", spec.TCP, spec.PortRange{First: 443, Last: 443})}
	dns := []spec.Destination{dest("10.96.0.10/32", spec.UDP, spec.PortRange{First: 53, Last: 53})}
	both := slices.Concat(web, dns)
	reverse := slices.Concat(dns, web)

	fw := Build(Inputs{Snapshot: snapshot(web, nil, dns, []spec.Destination{}, web, both, reverse)}).Firewall
	a, b, c, d, e, f := policyOf(t, fw, "10.8.0.2"), policyOf(t, fw, "10.8.0.3"), policyOf(t, fw, "10.8.0.4"),
		policyOf(t, fw, "10.8.0.5"), policyOf(t, fw, "10.8.0.6"), policyOf(t, fw, "10.8.0.7")
	if a != d {
		t.Errorf("peers with the same destinations have policies %d and %d", a, d)
	}
	if e != f {
		t.Errorf("the order of destinations makes policies %d and %d of them", e, f)
	}
	if distinct := map[Policy]bool{a: true, b: true, c: true, e: true}; len(distinct) != 4 {
		t.Errorf("peers with different destinations share a policy: %v", distinct)
	}
	want := map[Policy][]string{
		a: {"10.0.0.0-10.255.255.255 proto 6-6 port 443-443"},
		b: {"10.96.0.10-10.96.0.10 proto 17-17 port 53-53"},
		c: {}, // an empty list allows nothing, none at all is the gateway's
		e: {"10.0.0.0-10.255.255.255 proto 6-6 port 443-443", "10.96.0.10-10.96.0.10 proto 17-17 port 53-53"},
	}
	for p, grants := range want {
		if diff := cmp.Diff(grants, grantsOf(fw, p)); diff != "" {
			t.Errorf("grants of policy %d (-want +got):\n%s", p, diff)
		}
	}
	if !slices.IsSortedFunc(fw.Grants, Grant.Compare) || !slices.IsSortedFunc(fw.Sources, Source.Compare) {
		t.Errorf("not sorted: %v %v", fw.Sources, fw.Grants)
	}

	// Others come and go: the policy keeps its number, in any company.
	for _, other := range []Firewall{
		Build(Inputs{Snapshot: snapshot(nil, dns)}).Firewall,
		Build(Inputs{Snapshot: snapshot(both, dns, web)}).Firewall,
		Build(Inputs{Snapshot: snapshot(dns, nil)}).Firewall,
	} {
		if got := policyOf(t, other, "10.8.0.2"); got != b {
			t.Errorf("policy %d became %d in other company", b, got)
		}
	}
}

func TestPolicyNumbersCollide(t *testing.T) {
	// Two texts with one FNV-1a hash.
	p := policies{index: map[string]int{"policy1629192": 0, "policy1032789": 1}, boxes: make([][]Grant, 2)}
	ids := p.number()
	if ids[0] != ids[1]+1 {
		t.Errorf("numbers %d and %d, want the second text in order right after the first", ids[0], ids[1])
	}
}

func TestSources(t *testing.T) {
	s := snapshot(nil, nil, nil)
	s.Peers[0].AllowedIPs = []netip.Prefix{
		netip.MustParsePrefix("192.168.51.0/24"), netip.MustParsePrefix("192.168.50.0/23"),
		netip.MustParsePrefix("192.168.50.128/25"), netip.MustParsePrefix("10.8.0.2/32"),
	}
	s.Peers[1].Addresses = append(s.Peers[1].Addresses, netip.MustParseAddr("fd00:8::2"))
	s.Gateway.IPv6.Enabled = true
	s.Gateway.Routing.Masquerade = true
	got := Build(Inputs{Snapshot: s}).Firewall
	none := policyOf(t, got, "10.8.0.2")
	want := Firewall{
		Interfaces: [2]string{"wg0", "wg0g"}, ListenPorts: [2]uint16{51820, 51821}, Masquerade: true, IPv6: true,
		Sources: []Source{
			{netip.MustParsePrefix("10.8.0.2/32"), none},
			{netip.MustParsePrefix("10.8.0.3/32"), none},
			{netip.MustParsePrefix("192.168.50.0/23"), none},
			{netip.MustParsePrefix("fd00:8::2/128"), none},
		},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("firewall (-want +got):\n%s", d)
	}
}

func TestByAddress(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, mask := range []uint64{0, 0xff << 32, 0xffff << 32, 0xff00ff << 32, 0xffffffff << 32} {
		for _, n := range []int{0, 1, 2, 1000} {
			numbers := make([]uint64, n)
			for i := range numbers {
				numbers[i] = 10<<56&^mask | random.Uint64()&mask | uint64(i)
			}
			want := slices.Sorted(slices.Values(numbers))
			if diff := cmp.Diff(want, byAddress(numbers), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%d that differ in %#x (-want +got):\n%s", n, mask, diff)
			}
		}
	}
}
