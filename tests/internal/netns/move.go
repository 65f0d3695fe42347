package netns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
	flows := make([]netlink.CustomConntrackFilter, 0, len(to))
	for _, client := range slices.SortedFunc(maps.Keys(to), netip.Addr.Compare) {
		all = append(all, redirection{match: f.matches(f.source, netip.PrefixFrom(client, client.BitLen())), to: to[client]})
		flow, err := flowsOf(client, public.Port())
		if err != nil {
			return fmt.Errorf("the flows of %s: %w", client, err)
		}
		flows = append(flows, flow)
	}
	if err := t.redirect(public, all...); err != nil {
		return err
	}
	kind := netlink.InetFamily(unix.AF_INET)
	if !public.Addr().Is4() {
		kind = unix.AF_INET6
	}
	handle, err := netlink.NewHandleAt(t.Node.handle, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("connection tracking of the node: %w", err)
	}
	defer handle.Close()
	if _, err := handle.ConntrackDeleteFilters(netlink.ConntrackTable, kind, flows...); err != nil {
		return fmt.Errorf("forgetting the flows of %d clients: %w", len(to), err)
	}
	return nil
}

// flowsOf are the UDP flows of a client to a port.
func flowsOf(client netip.Addr, port uint16) (*netlink.ConntrackFilter, error) {
	flows := &netlink.ConntrackFilter{}
	for _, err := range []error{
		flows.AddProtocol(unix.IPPROTO_UDP),
		flows.AddIP(netlink.ConntrackOrigSrcIP, client.AsSlice()),
		flows.AddPort(netlink.ConntrackOrigDstPort, port),
	} {
		if err != nil {
			return nil, err
		}
	}
	return flows, nil
}

// redirection passes packets on to a Pod that match; nil matches all.
type redirection struct {
	match []expr.Any
	to    netip.AddrPort
}
