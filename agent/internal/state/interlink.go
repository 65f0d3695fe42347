package state

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// Interlink is the slot of the device between replicas. No server key has it, and
// its peers are the siblings.
const Interlink key.Slot = "interlink"

// InterlinkName is the name of the device between replicas.
func InterlinkName(g *spec.Gateway) string { return g.Server.Interface + "l" }

// hosts are the addresses of a Pod as prefixes, sorted.
func hosts(addresses ...netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addresses {
		if a.IsValid() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(out, comparePrefixes)
	return out
}

// linked are the siblings that packets can be passed on to; nil without a link. Of
// two that say they have one address, as a Pod that is gone and its successor do for
// a moment, the device can have one.
func (f *Fleet) linked() []Sibling {
	if f == nil || f.Link == nil {
		return nil
	}
	taken := map[netip.Addr]bool{{}: true, f.Link.Address: true}
	var out []Sibling
	for _, s := range f.Siblings {
		if s.LinkKey.IsZero() || taken[s.Address] {
			continue
		}
		taken[s.Address] = true
		if s.Second.IsValid() && taken[s.Second] {
			s.Second = netip.Addr{}
		}
		taken[s.Second] = true
		out = append(out, s)
	}
	return out
}

// passing says which peers packets are passed on for. Its zero value has none.
type passing struct {
	elsewhere map[key.Public]string
	siblings  []Sibling
	places    map[string]int // of the siblings, by name
}

// passing has no peers of a sibling that cannot be reached: of those nothing is known
// but that it holds them, and they stay where they are.
func (f *Fleet) passing() passing {
	p := passing{siblings: f.linked()}
	if len(p.siblings) == 0 {
		return p
	}
	p.elsewhere, p.places = f.Elsewhere, make(map[string]int, len(p.siblings))
	for i := range p.siblings {
		p.places[p.siblings[i].Name] = i
	}
	return p
}

// to is the place of the sibling that holds a peer.
func (p *passing) to(k key.Public) (i int, ok bool) {
	name, ok := p.elsewhere[k]
	if ok {
		i, ok = p.places[name]
	}
	return i, ok
}

// interlink is the device between replicas, nil without siblings to reach. A
// packet for a peer goes to the sibling that holds it, and only from that one may
// packets with the peer's address come.
func (in Inputs) interlink(peers []Peer, passed *passing) *Tunnel {
	siblings := passed.siblings
	if len(siblings) == 0 {
		return nil
	}
	g, own := &in.Snapshot.Gateway, in.Fleet.Link
	t := &Tunnel{
		Slot: Interlink,
		Link: Link{
			Name: InterlinkName(g),
			// The packets inside are those of the tunnels, which are no longer.
			MTU: Uplink{MTU: in.Uplink.MTU, IPv6: own.Address.Is6()}.tunnelMTU(g.IPv6.Enabled),
			// The kernel wants one, see [singles]; the Pod's own is what siblings take
			// packets of the gateway itself from.
			Addresses:  singles(hosts(own.Address, own.Second)),
			AnswersFor: []string{g.Interface(key.Blue), g.Interface(key.Green)},
		},
		Device: Device{PrivateKey: own.PrivateKey, ListenPort: own.ListenPort, Peers: make([]Peer, len(siblings))},
	}
	slices.Sort(t.Link.AnswersFor)
	if len(t.Link.Addresses) == 0 {
		t.Link.Addresses = singles(slices.SortedFunc(slices.Values(g.Server.Addresses), netip.Prefix.Compare))
	}
	held := make([][]netip.Prefix, len(siblings))
	for i := range peers {
		if to, ok := passed.to(peers[i].PublicKey); ok {
			held[to] = append(held[to], peers[i].AllowedIPs...)
			t.Link.Routes = append(t.Link.Routes, peers[i].AllowedIPs...)
		}
	}
	t.Link.Routes = outermost(t.Link.Routes)
	for i := range siblings {
		s := &siblings[i]
		pod := hosts(s.Address, s.Second)
		t.Link.Answers = append(t.Link.Answers, pod...)
		t.Device.Peers[i] = Peer{
			Name: s.Name, PublicKey: s.LinkKey, Endpoint: netip.AddrPortFrom(s.Address, s.LinkPort),
			// Of two replicas that get to know each other, the first one calls in
			// vain; the other one's call comes at once then, not after 5 s.
			Keepalive:  callEvery,
			AllowedIPs: unique(append(held[i], pod...)),
		}
	}
	t.Link.Answers = unique(t.Link.Answers)
	slices.SortFunc(t.Device.Peers, func(a, b Peer) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.PublicKey.Compare(b.PublicKey))
	})
	return t
}

// entry are the addresses that the cluster's packets for peers get as their source,
// those of this Pod; none where no replica passes packets on. Every packet gets
// one, whether it is passed on or not: the peer may move while a flow is under way,
// and a flow keeps the source that it began with.
func (f *Fleet) entry() []netip.Addr {
	if f == nil || f.Link == nil {
		return nil
	}
	var out []netip.Addr
	for _, p := range hosts(f.Link.Address, f.Link.Second) {
		out = append(out, p.Addr())
	}
	return out
}
