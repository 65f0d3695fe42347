package state

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

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
	// Resolved maps endpoints with a DNS name to what the name stands for now.
	// A name that is missing leaves its peer without endpoint.
	Resolved map[spec.Endpoint]netip.AddrPort
	Uplink   Uplink
}

// Same reports whether both lead to the same desired state, being the same
// snapshot and the same in all else.
func (in Inputs) Same(o Inputs) bool {
	return in.Snapshot == o.Snapshot && in.Uplink == o.Uplink && maps.Equal(in.Resolved, o.Resolved)
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
	server := s.Gateway.Server
	d := Desired{
		Link: Link{
			Name:      server.Interface,
			MTU:       cmp.Or(server.MTU, in.Uplink.tunnelMTU(s.Gateway.IPv6.Enabled)),
			Addresses: slices.SortedFunc(slices.Values(server.Addresses), netip.Prefix.Compare),
		},
		Device: Device{
			PrivateKey: s.PrivateKey,
			ListenPort: server.ListenPort,
			Peers:      make([]Peer, len(s.Peers)),
		},
	}
	allowed := allowedIPs(s.Peers)
	for i := range s.Peers {
		p := &s.Peers[i]
		d.Device.Peers[i] = Peer{
			Name:         p.Name,
			PublicKey:    p.PublicKey,
			PresharedKey: p.PresharedKey,
			Endpoint:     in.endpoint(p),
			Keepalive:    time.Duration(p.PersistentKeepalive) * time.Second,
			AllowedIPs:   allowed[i],
		}
	}
	slices.SortFunc(d.Device.Peers, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	d.Link.Routes = routes(s)
	d.Firewall = buildFirewall(s, allowed)
	return d
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

// routes are the peers' networks that the pools' own routes do not cover.
func routes(s *spec.Snapshot) []netip.Prefix {
	var out []netip.Prefix
	for i := range s.Peers {
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
