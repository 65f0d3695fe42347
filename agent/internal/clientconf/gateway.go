package clientconf

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Keepalive in seconds that clients get unless told otherwise: below the 30 s
// after which the shortest-lived of common NATs forget a UDP flow; the number
// that wg(8) recommends.
const Keepalive = 25

// ForGateway returns a client, without keys and name, that knows everything
// that the gateway's files tell of the gateway. Addresses holds the first free
// one of each pool, and none for a pool that is full. Endpoint is zero where the
// files don't say it. Of several server keys it is the one in force now.
func ForGateway(s *spec.Snapshot, now time.Time) Client {
	server := s.Gateway.Server
	identity := state.InForce(state.Identities(s, now), now)
	c := Client{
		DNS:             s.Gateway.Routing.DNS,
		MTU:             server.MTU,
		ServerPublicKey: identity.Key.Public(),
		Endpoint:        s.Gateway.Endpoint(identity.Slot),
		AllowedIPs:      allowedIPs(s),
		Keepalive:       Keepalive,
	}
	taken := taken(s)
	for _, pool := range server.Addresses {
		if a := firstFree(pool.Masked(), taken); a.IsValid() {
			c.Addresses = append(c.Addresses, a)
		}
	}
	return c
}

// allowedIPs are what a client sends into the tunnel: routing.routes, or, where
// there are none, whatever the gateway lets it reach. With peerToPeer the other
// clients are among it.
func allowedIPs(s *spec.Snapshot) []netip.Prefix {
	r := s.Gateway.Routing
	out := slices.Clone(r.Routes)
	if len(out) == 0 {
		for _, d := range r.AllowedDestinations {
			out = append(out, d.CIDR)
		}
	}
	if r.PeerToPeer || len(out) == 0 {
		for _, pool := range s.Gateway.Server.Addresses {
			out = append(out, pool.Masked())
		}
	}
	return outermost(out)
}

// taken returns what is in use of the pools, outermost and sorted.
func taken(s *spec.Snapshot) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range s.Gateway.Server.Addresses {
		out = append(out, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
	}
	for _, p := range s.Peers {
		out = append(out, p.Prefixes()...)
	}
	return outermost(out)
}

// firstFree returns the lowest host address of a pool that is not taken, or the
// zero Addr. The lowest and, in IPv4, the highest address of a network name no
// host (RFC 1122 section 3.2.1.3; RFC 4291 section 2.6.1), except in networks of
// two or one (RFC 3021, RFC 6164).
func firstFree(pool netip.Prefix, taken []netip.Prefix) netip.Addr {
	candidate, small := pool.Addr(), pool.Bits() >= pool.Addr().BitLen()-1
	if !small {
		candidate = candidate.Next()
	}
	for _, t := range taken {
		if t.Contains(candidate) {
			candidate = last(t).Next()
		}
	}
	switch {
	case !candidate.IsValid(), !pool.Contains(candidate):
		return netip.Addr{}
	case candidate.Is4() && !small && candidate == last(pool):
		return netip.Addr{}
	}
	return candidate
}

// last is the highest address of a masked prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(b); bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b) // of 4 or 16 bytes
	return a
}

// outermost sorts in place and drops what another one contains.
func outermost(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	out := ps[:0]
	for _, p := range ps {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}
