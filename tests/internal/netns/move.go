package netns

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
)

// Move sends the UDP packets of clients for public to these Pods from now on, all at one
// moment, and those of flows under way too: as when kube-proxy takes a Pod out of a
// Service and forgets its flows, or a load balancer changes its mind. It returns once the
// next packet takes the new way.
func (t *Topology) Move(public netip.AddrPort, to map[netip.Addr]netip.AddrPort) error {
	if len(to) == 0 {
		return nil
	}
	f := familyOf(public.Addr())
	var all []redirection
	for _, client := range slices.SortedFunc(maps.Keys(to), netip.Addr.Compare) {
		all = append(all, redirection{match: f.matches(f.source, netip.PrefixFrom(client, client.BitLen())), to: to[client]})
	}
	if err := t.redirect(public, all...); err != nil {
		return err
	}
	return t.forgetFlows(public, to)
}

// redirection passes packets on to a Pod that match; nil matches all.
type redirection struct {
	match []expr.Any
	to    netip.AddrPort
}
