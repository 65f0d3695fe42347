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

// passedOn are the peers that packets are passed on for, nil for none. Of a sibling
// that cannot be reached, nothing is known but that it holds them: they stay where
// they are.
func (f *Fleet) passedOn(to []Sibling) map[key.Public]bool {
	if len(to) == 0 {
		return nil
	}
	reachable := places(to)
	out := make(map[key.Public]bool, len(f.Elsewhere))
	for k, name := range f.Elsewhere {
		if _, ok := reachable[name]; ok {
			out[k] = true
		}
	}
	return out
}

// places finds siblings in a list by name.
func places(list []Sibling) map[string]int {
	out := make(map[string]int, len(list))
	for i := range list {
		out[list[i].Name] = i
	}
	return out
}

// interlink is the device between replicas, nil without siblings to reach. A
// packet for a peer goes to the sibling that holds it, and only from that one may
// packets with the peer's address come.
func (in Inputs) interlink(peers []Peer, siblings []Sibling, passed map[key.Public]bool) *Tunnel {
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
	t.Link.Routes = routesOf(peers, passed, nil)
	held, place := make([][]netip.Prefix, len(siblings)), places(siblings)
	for i := range peers {
		if k := peers[i].PublicKey; passed[k] {
			to := place[in.Fleet.Elsewhere[k]]
			held[to] = append(held[to], peers[i].AllowedIPs...)
		}
	}
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
