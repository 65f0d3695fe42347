package netns

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Move sends the UDP packets of a client for public to pod from now on, those of flows
// under way too: as when kube-proxy takes a Pod out of a Service and forgets its flows,
// or a load balancer changes its mind. It returns once the next packet takes the new way.
func (t *Topology) Move(client netip.Addr, public, pod netip.AddrPort) error {
	c, err := nftables.New(nftables.WithNetNSFd(t.Node.Fd()))
	if err != nil {
		return fmt.Errorf("nftables of the node: %w", err)
	}
	f := familyOf(public.Addr())
	exprs := append(f.matches(f.target, netip.PrefixFrom(public.Addr(), public.Addr().BitLen())),
		f.matches(f.source, netip.PrefixFrom(client, client.BitLen()))...)
	exprs = append(exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(public.Port())},
		&expr.Immediate{Register: 1, Data: pod.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(pod.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: 1, RegProtoMin: 2},
	)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: natTable}
	// The newest rule stands first and decides.
	c.InsertRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: "prerouting", Table: table}, Exprs: exprs})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("moving %s to %s: %w", client, pod, err)
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
