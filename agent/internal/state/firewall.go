package state

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// Firewall is the content of the gateway's one nftables table. The rules
// follow from the scalar fields; peers are elements of sets only, so that a
// packet costs two look-ups however many peers there are.
type Firewall struct {
	// Interfaces are the tunnels' devices and ListenPorts WireGuard's own UDP ports,
	// those of both slots, whether there are two at the moment or not: a rotation
	// of the server key needs no other rules.
	Interfaces  [2]string
	ListenPorts [2]uint16
	// Handshakes has the kernel tell of every handshake that was completed.
	Handshakes bool
	// Interlink is the device between replicas, and InterlinkPort its UDP port; empty
	// and zero where there is none.
	Interlink     string
	InterlinkPort uint16
	// Entry are the addresses, one a family, that the cluster's packets for peers get
	// as their source; mostly there are none.
	Entry      []netip.Addr
	Masquerade bool
	PeerToPeer bool
	IPv6       bool
	// Sources are all prefixes of all peers, disjoint and sorted. A packet out
	// of the tunnel with another source, or one into the Pod from elsewhere
	// with such a source, is spoofed.
	Sources []Source
	// Grants are what the policies allow, disjoint and sorted.
	Grants []Grant
}

// Policy identifies a set of grants. Peers that may do the same share one. The
// number follows from the content, so that it stays the same when others come
// and go.
type Policy uint32

// Source ties a prefix to its peer's policy.
type Source struct {
	Prefix netip.Prefix
	Policy Policy
}

// Grant is a box of destinations that a policy allows: ranges, both ends
// included. Protocols are IP protocol numbers (IANA); ports are those of TCP
// and UDP and span everything for other protocols.
type Grant struct {
	Policy                      Policy
	First, Last                 netip.Addr
	FirstProtocol, LastProtocol uint8
	FirstPort, LastPort         uint16
}

// Last returns the highest address of the source's prefix.
func (s Source) Last() netip.Addr { return lastAddr(s.Prefix) }

// Compare orders sources by prefix.
func (s Source) Compare(o Source) int {
	if c := comparePrefixes(s.Prefix, o.Prefix); c != 0 {
		return c
	}
	return cmp.Compare(s.Policy, o.Policy)
}

// Compare orders grants by policy, address, protocol and port.
func (g Grant) Compare(o Grant) int {
	return cmp.Or(
		cmp.Compare(g.Policy, o.Policy), g.First.Compare(o.First), g.Last.Compare(o.Last),
		cmp.Compare(g.FirstProtocol, o.FirstProtocol), cmp.Compare(g.LastProtocol, o.LastProtocol),
		cmp.Compare(g.FirstPort, o.FirstPort), cmp.Compare(g.LastPort, o.LastPort))
}

// buildFirewall takes the peers' prefixes, sorted and unique, beside the
// snapshot, and leaves them as they are.
func buildFirewall(s *spec.Snapshot, allowed [][]netip.Prefix) Firewall {
	g, routing := &s.Gateway, s.Gateway.Routing
	fw := Firewall{
		Interfaces:  [2]string{g.Interface(key.Blue), g.Interface(key.Green)},
		ListenPorts: [2]uint16{g.ListenPort(key.Blue), g.ListenPort(key.Green)},
		Masquerade:  routing.Masquerade,
		PeerToPeer:  routing.PeerToPeer,
		IPv6:        g.IPv6.Enabled,
	}
	var p policies
	common := p.add(routing.AllowedDestinations)
	assigned := make([]int, len(s.Peers))
	for i := range s.Peers {
		assigned[i] = common
		if own := s.Peers[i].AllowedDestinations; own != nil {
			assigned[i] = p.add(own)
		}
	}
	ids := p.number()
	fw.Sources = make([]Source, 0, len(s.Peers))
	for i := range s.Peers {
		for j, prefix := range allowed[i] {
			// Sorted, what contains a prefix comes before it.
			if j > 0 && fw.Sources[len(fw.Sources)-1].Prefix.Contains(prefix.Addr()) {
				continue
			}
			fw.Sources = append(fw.Sources, Source{prefix, ids[assigned[i]]})
		}
	}
	for i, boxes := range p.boxes {
		for _, b := range boxes {
			b.Policy = ids[i]
			fw.Grants = append(fw.Grants, b)
		}
	}
	fw.Sources = sorted(fw.Sources)
	slices.SortFunc(fw.Grants, Grant.Compare)
	return fw
}

// sorted returns disjoint sources in the order of [Source.Compare]. For IPv4 it sorts
// numbers in their stead, an address with its place in the list each: of 10,000, that takes
// a tenth of the time.
func sorted(sources []Source) []Source {
	four := make([]uint64, 0, len(sources))
	var six []Source
	for i, s := range sources {
		if a := s.Prefix.Addr(); a.Is4() {
			bytes := a.As4()
			four = append(four, uint64(binary.BigEndian.Uint32(bytes[:]))<<32|uint64(i))
		} else {
			six = append(six, s)
		}
	}
	four = byAddress(four)
	out := make([]Source, 0, len(sources))
	for _, n := range four {
		out = append(out, sources[uint32(n)])
	}
	slices.SortFunc(six, Source.Compare)
	return append(out, six...)
}

// byAddress sorts numbers by their upper half, byte by byte (a radix sort): those of the
// addresses of one pool differ in one or two.
func byAddress(numbers []uint64) []uint64 {
	if len(numbers) == 0 {
		return nil
	}
	other := make([]uint64, len(numbers))
	for shift := 32; shift < 64; shift += 8 {
		var place [256]int // of the next number with this byte
		for _, n := range numbers {
			place[byte(n>>shift)]++
		}
		if place[byte(numbers[0]>>shift)] == len(numbers) {
			continue
		}
		next := 0
		for i, count := range place {
			place[i] = next
			next += count
		}
		for _, n := range numbers {
			to := &place[byte(n>>shift)]
			other[*to] = n
			*to++
		}
		numbers, other = other, numbers
	}
	return numbers
}

// policies collects distinct sets of grants.
type policies struct {
	index map[string]int // canonical text of the boxes → position
	boxes [][]Grant
}

func (p *policies) add(destinations []spec.Destination) int {
	boxes := disjoint(destinations)
	text := fmt.Sprint(boxes)
	if i, ok := p.index[text]; ok {
		return i
	}
	if p.index == nil {
		p.index = map[string]int{}
	}
	p.index[text] = len(p.boxes)
	p.boxes = append(p.boxes, boxes)
	return len(p.boxes) - 1
}

// number gives every policy a hash of its content; the rare collision moves on
// to the next free number, in the order of content.
func (p *policies) number() []Policy {
	ids := make([]Policy, len(p.boxes))
	taken := map[Policy]bool{}
	for _, text := range slices.Sorted(maps.Keys(p.index)) {
		h := fnv.New32a()
		_, _ = h.Write([]byte(text))
		id := Policy(h.Sum32())
		for taken[id] {
			id++
		}
		taken[id] = true
		ids[p.index[text]] = id
	}
	return ids
}

// disjoint turns destinations, which may overlap in any way, into boxes that
// do not: sets of concatenated ranges refuse overlapping elements. The result
// does not depend on the order of the destinations.
func disjoint(destinations []spec.Destination) []Grant {
	var boxes []Grant
	for _, d := range destinations {
		boxes = append(boxes, boxesOf(d)...)
	}
	// What contains another comes before it and swallows it whole; the other
	// way round it would be cut to pieces.
	slices.SortFunc(boxes, func(a, b Grant) int {
		return cmp.Or(
			cmp.Compare(b.LastProtocol-b.FirstProtocol, a.LastProtocol-a.FirstProtocol),
			cmp.Compare(b.LastPort-b.FirstPort, a.LastPort-a.FirstPort),
			a.First.Compare(b.First), b.Last.Compare(a.Last), a.Compare(b))
	})
	var out []Grant
	for _, box := range boxes {
		pieces := []Grant{box}
		for _, have := range out {
			if !have.overlaps(box) {
				continue
			}
			var rest []Grant
			for _, piece := range pieces {
				rest = append(rest, piece.minus(have)...)
			}
			pieces = rest
		}
		out = append(out, pieces...)
	}
	slices.SortFunc(out, Grant.Compare)
	return out
}

func boxesOf(d spec.Destination) []Grant {
	g := Grant{First: d.CIDR.Addr(), Last: lastAddr(d.CIDR), LastPort: 65535}
	switch d.Protocol {
	case spec.TCP:
		g.FirstProtocol, g.LastProtocol = 6, 6
	case spec.UDP:
		g.FirstProtocol, g.LastProtocol = 17, 17
	case spec.ICMP:
		g.FirstProtocol, g.LastProtocol = 1, 1
		if d.CIDR.Addr().Is6() {
			g.FirstProtocol, g.LastProtocol = 58, 58
		}
	default:
		g.LastProtocol = 255
	}
	if len(d.Ports) == 0 {
		return []Grant{g}
	}
	out := make([]Grant, 0, len(d.Ports))
	for _, r := range d.Ports {
		g.FirstPort, g.LastPort = r.First, r.Last
		out = append(out, g)
	}
	return out
}

// overlaps reports whether some flow is in both boxes. Policies do not matter.
func (g Grant) overlaps(b Grant) bool {
	return g.First.Is4() == b.First.Is4() &&
		!b.Last.Less(g.First) && !g.Last.Less(b.First) &&
		b.LastProtocol >= g.FirstProtocol && g.LastProtocol >= b.FirstProtocol &&
		b.LastPort >= g.FirstPort && g.LastPort >= b.FirstPort
}

// minus returns g without b as up to six disjoint boxes: what lies before and
// after b in each dimension in turn.
func (g Grant) minus(b Grant) []Grant {
	if !g.overlaps(b) {
		return []Grant{g}
	}
	var out []Grant
	if g.First.Less(b.First) {
		before := g
		before.Last = b.First.Prev()
		out, g.First = append(out, before), b.First
	}
	if b.Last.Less(g.Last) {
		after := g
		after.First = b.Last.Next()
		out, g.Last = append(out, after), b.Last
	}
	if g.FirstProtocol < b.FirstProtocol {
		before := g
		before.LastProtocol = b.FirstProtocol - 1
		out, g.FirstProtocol = append(out, before), b.FirstProtocol
	}
	if b.LastProtocol < g.LastProtocol {
		after := g
		after.FirstProtocol = b.LastProtocol + 1
		out, g.LastProtocol = append(out, after), b.LastProtocol
	}
	if g.FirstPort < b.FirstPort {
		before := g
		before.LastPort = b.FirstPort - 1
		out, g.FirstPort = append(out, before), b.FirstPort
	}
	if b.LastPort < g.LastPort {
		after := g
		after.FirstPort = b.LastPort + 1
		out = append(out, after)
	}
	return out
}

// lastAddr is the highest address of a masked prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		n := binary.BigEndian.Uint32(a[:]) | uint32(uint64(1)<<(32-p.Bits())-1)
		binary.BigEndian.PutUint32(a[:], n)
		return netip.AddrFrom4(a)
	}
	a := p.Addr().As16()
	for bit := p.Bits(); bit < 128; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom16(a)
}

// String is for people: 10.0.0.0-10.255.255.255 proto 6 port 443-443.
func (g Grant) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s-%s", g.First, g.Last)
	if g.FirstProtocol != 0 || g.LastProtocol != 255 {
		fmt.Fprintf(&b, " proto %d-%d", g.FirstProtocol, g.LastProtocol)
	}
	if g.FirstPort != 0 || g.LastPort != 65535 {
		fmt.Fprintf(&b, " port %d-%d", g.FirstPort, g.LastPort)
	}
	return b.String()
}
