package state

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// Bytes that WireGuard adds to a packet: outer IP header (20 or 40), UDP (8),
// and the data message's header and tag (16+16); see section 5.4.6 of the
// WireGuard whitepaper.
const (
	overhead4 = 60
	overhead6 = 80
)

// fallbackMTU is what wg-quick(8) takes on Ethernet; for a Pod without a route
// to the Internet.
const fallbackMTU = 1420

// Inputs is everything that a desired state follows from.
type Inputs struct {
	Snapshot *spec.Snapshot
	// Now decides which keys are in force.
	Now time.Time
	// Moved are the peers of the second tunnel; see [Moved].
	Moved map[key.Public]bool
	// Resolved maps endpoints with a DNS name to what the name stands for now.
	// A name that is missing leaves its peer without endpoint.
	Resolved map[spec.Endpoint]netip.AddrPort
	Uplink   Uplink
	// Fleet is nil where there are no other replicas.
	Fleet *Fleet
}

// Same reports whether both lead to the same desired state, being the same
// snapshot and the same in all else, with no key's time in between. o is the
// earlier one; where the clock was set back, they are never the same.
func (in Inputs) Same(o Inputs) bool {
	if in.Snapshot != o.Snapshot || in.Uplink != o.Uplink || in.Fleet != o.Fleet || in.Now.Before(o.Now) ||
		!maps.Equal(in.Resolved, o.Resolved) || !maps.Equal(in.Moved, o.Moved) {
		return false
	}
	next := NextChange(o.Snapshot, o.Now)
	return next.IsZero() || in.Now.Before(next)
}

// Uplink is the Pod's way to the Internet.
type Uplink struct {
	// MTU of the route in bytes; 0 where there is none.
	MTU int
	// IPv6 is true where encrypted packets may travel over IPv6.
	IPv6 bool
}

// Build computes the desired state. It is a pure function and cannot fail: the
// snapshot was validated as a whole.
func Build(in Inputs) Desired {
	s := in.Snapshot
	allowed := allowedIPs(s.Peers)
	var firewall Firewall
	var building sync.WaitGroup
	// Half of the work: with 10,000 peers it is a millisecond that a reload waits.
	building.Go(func() { firewall = buildFirewall(s, allowed) })
	peers := in.peers(allowed)
	building.Wait()
	ids := Identities(s, in.Now)
	if len(ids) == 0 {
		ids = []Identity{{Slot: key.Blue}}
	}
	d := Desired{Tunnels: make([]Tunnel, len(ids)), Firewall: firewall}
	d.Firewall.Handshakes = len(ids) > 1
	d.Firewall.Entry = in.Fleet.entry()
	passed := in.Fleet.passing()
	if d.Interlink = in.interlink(peers, &passed); d.Interlink != nil {
		d.Firewall.Interlink, d.Firewall.InterlinkPort = d.Interlink.Link.Name, d.Interlink.Device.ListenPort
	}
	for i, id := range ids {
		d.Tunnels[i] = Tunnel{
			Slot: id.Slot,
			Link: Link{
				Name: s.Gateway.Interface(id.Slot),
				MTU:  cmp.Or(s.Gateway.Server.MTU, in.Uplink.tunnelMTU(s.Gateway.IPv6.Enabled)),
			},
			Device: Device{PrivateKey: id.Key, ListenPort: s.Gateway.ListenPort(id.Slot), Peers: peers},
		}
	}
	first := &d.Tunnels[0].Link
	first.Addresses = slices.SortedFunc(slices.Values(s.Gateway.Server.Addresses), netip.Prefix.Compare)
	if len(ids) == 1 {
		first.Routes = routes(s, &passed, nil)
		return d
	}
	first.Routes = routes(s, &passed, in.Moved)
	second := &d.Tunnels[1]
	second.Link.Addresses = singles(first.Addresses)
	second.Link.Routes = routesOf(peers, in.Moved, &passed)
	second.Device.Peers = calling(peers, s)
	return d
}

// callEvery is how often the second tunnel calls peers that do not call by
// themselves; the interval that wg(8) recommends.
const callEvery = 25 * time.Second

// calling are the peers with a keepalive for those that the gateway has to call,
// and that have none. No packet goes by a second tunnel before the peer has shaken
// hands with it, and without a packet the gateway would never call.
func calling(peers []Peer, s *spec.Snapshot) []Peer {
	passive := map[key.Public]bool{}
	for i := range s.Peers {
		if p := &s.Peers[i]; !p.Endpoint.IsZero() && p.PersistentKeepalive == 0 {
			passive[p.PublicKey] = true
		}
	}
	if len(passive) == 0 {
		return peers
	}
	out := slices.Clone(peers)
	for i := range out {
		if passive[out[i].PublicKey] && !out[i].Elsewhere {
			out[i].Keepalive = callEvery
		}
	}
	return out
}

// singles are the IPv4 addresses without their pools, to which a second tunnel
// must not lead. It needs an address all the same: from a device that has none,
// the kernel takes no packet whose way back is another one, even where the filter
// of reverse paths is loose (__fib_validate_source, net/ipv4/fib_frontend.c). IPv6
// has no such filter, and would not let the pool join the address later.
func singles(addresses []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addresses {
		if a.Addr().Is4() {
			out = append(out, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
		}
	}
	return out
}

// peers are the same on all tunnels, sorted by name.
func (in Inputs) peers(allowed [][]netip.Prefix) []Peer {
	out := make([]Peer, len(in.Snapshot.Peers))
	for i := range in.Snapshot.Peers {
		p, o := &in.Snapshot.Peers[i], &out[i] // in place: ten thousand copies are felt
		o.Name, o.PublicKey, o.PresharedKey, o.AllowedIPs = p.Name, p.PublicKey, PresharedKey(p, in.Now), allowed[i]
		if in.Fleet.elsewhere(p.PublicKey) {
			o.Elsewhere = true
			continue
		}
		o.Endpoint, o.Keepalive = in.endpoint(p), time.Duration(p.PersistentKeepalive)*time.Second
	}
	slices.SortFunc(out, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// allowedIPs returns what each peer may send from, sorted and unique. The lists
// lie in one piece of memory: there are thousands, mostly of one element.
func allowedIPs(peers []spec.Peer) [][]netip.Prefix {
	n := 0
	for i := range peers {
		n += len(peers[i].Addresses) + len(peers[i].AllowedIPs)
	}
	all := make([]netip.Prefix, 0, n)
	out := make([][]netip.Prefix, len(peers))
	for i := range peers {
		first := len(all)
		all = peers[i].AppendPrefixes(all)
		out[i] = unique(all[first:len(all):len(all)])
	}
	return out
}

func (in Inputs) endpoint(p *spec.Peer) netip.AddrPort {
	if p.Endpoint.IsZero() {
		return netip.AddrPort{}
	}
	if ap, literal := p.Endpoint.AddrPort(); literal {
		return ap
	}
	return in.Resolved[p.Endpoint]
}

// tunnelMTU is what fits into the uplink's packets.
func (u Uplink) tunnelMTU(innerIPv6 bool) int {
	if u.MTU == 0 {
		return fallbackMTU
	}
	mtu := u.MTU - overhead4
	if u.IPv6 {
		mtu = u.MTU - overhead6
	}
	if innerIPv6 {
		return max(mtu, 1280) // RFC 8200 section 5
	}
	return max(mtu, 576) // RFC 791
}

// routes are the networks that the pools' own routes do not cover, of all peers
// but some, and those that packets are passed on for.
func routes(s *spec.Snapshot, passed *passing, but map[key.Public]bool) []netip.Prefix {
	var out []netip.Prefix
	for i := range s.Peers {
		k := s.Peers[i].PublicKey
		if len(s.Peers[i].AllowedIPs) == 0 || but[k] {
			continue
		}
		if _, elsewhere := passed.to(k); elsewhere {
			continue
		}
		for _, n := range s.Peers[i].AllowedIPs {
			inPool := slices.ContainsFunc(s.Gateway.Server.Addresses, func(pool netip.Prefix) bool {
				return pool.Bits() <= n.Bits() && pool.Contains(n.Addr())
			})
			if !inPool {
				out = append(out, n)
			}
		}
	}
	return outermost(out)
}

// routesOf are all prefixes of some peers, but of those that packets are passed on for.
func routesOf(peers []Peer, of map[key.Public]bool, passed *passing) []netip.Prefix {
	if len(of) == 0 {
		return nil
	}
	var out []netip.Prefix
	for i := range peers {
		if !of[peers[i].PublicKey] {
			continue
		}
		if _, elsewhere := passed.to(peers[i].PublicKey); !elsewhere {
			out = append(out, peers[i].AllowedIPs...)
		}
	}
	return outermost(out)
}

// unique sorts in place and drops repetitions.
func unique(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, comparePrefixes)
	return slices.Compact(ps)
}

// comparePrefixes orders masked prefixes as netip.Prefix.Compare does, which
// would mask them again.
func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return cmp.Compare(a.Bits(), b.Bits())
}

// outermost sorts in place and drops what another one contains.
func outermost(ps []netip.Prefix) []netip.Prefix {
	ps = unique(ps)
	out := ps[:0]
	for _, p := range ps {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}
