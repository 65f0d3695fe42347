package netns

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Move sends the UDP packets of a client for public to pod from now on, those of flows
// under way too: as when kube-proxy takes a Pod out of a Service and forgets its flows,
// or a load balancer changes its mind. It returns once the next packet takes the new way.
func (t *Topology) Move(client netip.Addr, public, pod netip.AddrPort) error {
	f := familyOf(public.Addr())
	if err := t.redirect(f.matches(f.source, netip.PrefixFrom(client, client.BitLen())), public, pod); err != nil {
		return fmt.Errorf("moving %s: %w", client, err)
	}
	flows := &netlink.ConntrackFilter{}
	for _, err := range []error{
		flows.AddProtocol(unix.IPPROTO_UDP),
		flows.AddIP(netlink.ConntrackOrigSrcIP, client.AsSlice()),
		flows.AddPort(netlink.ConntrackOrigDstPort, public.Port()),
	} {
		if err != nil {
			return err
		}
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
	if _, err := handle.ConntrackDeleteFilters(netlink.ConntrackTable, kind, flows); err != nil {
		return fmt.Errorf("forgetting the flows of %s: %w", client, err)
	}
	return nil
}
