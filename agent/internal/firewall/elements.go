package firewall

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// chunk is how many elements go into one message. Their list is one netlink
// attribute, whose length has 16 bits; the largest element, a grant of IPv6,
// takes 76 bytes.
const chunk = 500

// edition tells two generations of the sets apart, of which rules look at one. The
// other is there while the table is made anew: see [Firewall.replace].
type edition string

// The editions.
const (
	editionA edition = "a"
	editionB edition = "b"
)

func (at edition) other() edition {
	if at == editionA {
		return editionB
	}
	return editionA
}

// family is what differs between IPv4 and IPv6.
type family struct {
	number       byte   // NFPROTO_* (linux/netfilter.h)
	bytes        uint32 // of an address
	sourceOffset uint32 // in the header; the destination follows
	icmp, echo   byte   // protocol number, and its type of an echo request
	suffix       string // of the names of sets
	address      nftables.SetDatatype
	id           uint32 // of the first set, within a transaction
}

func ipv4() family {
	return family{unix.NFPROTO_IPV4, 4, 12, unix.IPPROTO_ICMP, 8, "4", nftables.TypeIPAddr, 1} // RFC 791, RFC 792
}

func ipv6() family {
	return family{unix.NFPROTO_IPV6, 16, 8, unix.IPPROTO_ICMPV6, 128, "6", nftables.TypeIP6Addr, 4} // RFC 8200, RFC 4443
}

func bothFamilies() []family { return []family{ipv4(), ipv6()} }

// hosts is the map from a peer's single address to its policy: a hash, in which
// a change costs the same among any number. Most peers need nothing else.
func (f family) hosts(at edition) *nftables.Set {
	return &nftables.Set{
		Table: table(), ID: f.id, Name: "hosts" + f.suffix + string(at),
		KeyType: f.address, IsMap: true, DataType: nftables.TypeMark, KeyByteOrder: binaryutil.BigEndian,
	}
}

// networks is the map from a network behind a peer to the peer's policy.
func (f family) networks(at edition) *nftables.Set {
	return &nftables.Set{
		Table: table(), ID: f.id + 1, Name: "networks" + f.suffix + string(at),
		KeyType: f.address, IsMap: true, DataType: nftables.TypeMark, Interval: true,
	}
}

// grants is the set of what policies allow.
func (f family) grants(at edition) *nftables.Set {
	return &nftables.Set{
		Table: table(), ID: f.id + 2, Name: "grants" + f.suffix + string(at),
		KeyType:  nftables.MustConcatSetType(nftables.TypeMark, f.address, nftables.TypeInetProto, nftables.TypeInetService),
		Interval: true, Concatenation: true,
	}
}

// tunnels is the set of the tunnels' devices.
func (at edition) tunnels() *nftables.Set {
	return &nftables.Set{
		Table: table(), ID: 7, Name: "tunnels" + string(at),
		KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian, // as nft(8) has names
	}
}

func deviceElements(names [2]string) []nftables.SetElement {
	var out []nftables.SetElement
	for _, name := range names {
		out = append(out, nftables.SetElement{Key: deviceName(name)})
	}
	return out
}

func sets(at edition) []*nftables.Set {
	out := []*nftables.Set{at.tunnels(), at.responses()}
	for _, f := range bothFamilies() {
		out = append(out, f.hosts(at), f.networks(at), f.grants(at))
	}
	return out
}

// elementChange is a batch's worth of changes to the elements of the sets.
type elementChange struct {
	addSources, removeSources []state.Source
	addGrants, removeGrants   []state.Grant
}

func (e elementChange) empty() bool {
	return len(e.addSources)+len(e.removeSources)+len(e.addGrants)+len(e.removeGrants) == 0
}

// inOrder splits a plan's element changes into transactions. The kernel
// switches one set after the other, even within a transaction; packets that look
// into both must never find a policy without its grants. So policies come before
// the peers that have them, and go after them. A policy's number follows from
// its grants: what comes and goes is not in use meanwhile.
func inOrder(p plan.Firewall) []elementChange {
	return []elementChange{
		{addGrants: p.AddGrants},
		{addSources: p.AddSources, removeSources: p.RemoveSources},
		{removeGrants: p.RemoveGrants},
	}
}

// put puts the changes into the connection's batch, removals first: they make
// room for additions in the same place.
func (e elementChange) put(c *nftables.Conn, at edition) error {
	for _, f := range bothFamilies() {
		for _, change := range []struct {
			send     func(*nftables.Set, []nftables.SetElement) error
			set      *nftables.Set
			elements [][]nftables.SetElement
		}{
			{c.SetDeleteElements, f.hosts(at), f.hostElements(e.removeSources)},
			{c.SetDeleteElements, f.networks(at), f.networkElements(e.removeSources)},
			{c.SetDeleteElements, f.grants(at), f.grantElements(e.removeGrants)},
			{c.SetAddElements, f.hosts(at), f.hostElements(e.addSources)},
			{c.SetAddElements, f.networks(at), f.networkElements(e.addSources)},
			{c.SetAddElements, f.grants(at), f.grantElements(e.addGrants)},
		} {
			if err := inChunks(change.elements, func(e []nftables.SetElement) error { return change.send(change.set, e) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// inChunks sends elements by the message. Those that belong together stay so.
func inChunks(elements [][]nftables.SetElement, send func([]nftables.SetElement) error) error {
	var message []nftables.SetElement
	for i, e := range elements {
		message = append(message, e...)
		if len(message) >= chunk || i == len(elements)-1 {
			if err := send(message); err != nil {
				return err
			}
			message = nil
		}
	}
	return nil
}

// hostElements returns the element of each source of this family that is a
// single address.
func (f family) hostElements(sources []state.Source) [][]nftables.SetElement {
	var out [][]nftables.SetElement
	for _, s := range sources {
		if f.has(s.Prefix.Addr()) && s.Prefix.IsSingleIP() {
			out = append(out, []nftables.SetElement{{Key: s.Prefix.Addr().AsSlice(), Val: mark(s.Policy)}})
		}
	}
	return out
}

// networkElements returns the elements of each source of this family that is
// more than an address.
func (f family) networkElements(sources []state.Source) [][]nftables.SetElement {
	var out [][]nftables.SetElement
	for _, s := range sources {
		if !f.has(s.Prefix.Addr()) || s.Prefix.IsSingleIP() {
			continue
		}
		// An interval is its first address, and the first one after it with a
		// sign on it; there is none after the last address of all.
		elements := []nftables.SetElement{{Key: s.Prefix.Addr().AsSlice(), Val: mark(s.Policy)}}
		if next := s.Last().Next(); next.IsValid() {
			elements = append(elements, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
		out = append(out, elements)
	}
	return out
}

// grantElements returns the element of each grant of this family.
func (f family) grantElements(grants []state.Grant) [][]nftables.SetElement {
	var out [][]nftables.SetElement
	for _, g := range grants {
		if f.has(g.First) {
			out = append(out, []nftables.SetElement{{
				Key:    grantKey(g.Policy, g.First, g.FirstProtocol, g.FirstPort),
				KeyEnd: grantKey(g.Policy, g.Last, g.LastProtocol, g.LastPort),
			}})
		}
	}
	return out
}

func (f family) has(a netip.Addr) bool { return uint32(a.BitLen()) == 8*f.bytes }

// grantKey is a corner of a grant's box; each field is padded to four bytes.
func grantKey(p state.Policy, a netip.Addr, protocol uint8, port uint16) []byte {
	out := append(mark(p), a.AsSlice()...)
	out = append(out, protocol, 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(out, port), 0, 0)
}

// mark is a policy as it stands in sets and in packets' marks. The order of
// bytes is the one in which nft(8) lists the keys of interval sets.
func mark(p state.Policy) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(p))
}
