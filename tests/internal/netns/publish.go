package netns

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// natTable is the node's table, of family inet.
const natTable = "node"

// family is what differs between IPv4 and IPv6 headers.
type family struct {
	nfproto        byte
	source, target uint32 // offsets in the header, in bytes
	length         uint32 // of an address, in bytes
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return family{nfproto: unix.NFPROTO_IPV4, source: 12, target: 16, length: 4}
	}
	return family{nfproto: unix.NFPROTO_IPV6, source: 8, target: 24, length: 16}
}

// matches compares the packet's family and the address at offset.
func (f family) matches(offset uint32, network netip.Prefix) []expr.Any {
	mask := make([]byte, f.length)
	for bit := range network.Bits() {
		mask[bit/8] |= 1 << (7 - bit%8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nfproto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.length, Mask: mask, Xor: make([]byte, f.length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network.Masked().Addr().AsSlice()},
	}
}

// masquerade makes Pods leave the node towards the Internet with its address.
func (t *Topology) masquerade() error {
	c, err := nftables.New(nftables.WithNetNSFd(t.Node.Fd()))
	if err != nil {
		return fmt.Errorf("nftables of the node: %w", err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: natTable})
	post := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	for _, pods := range t.addresses("10.244.0.0/16", "fd00:244::/32") {
		f := familyOf(pods.Addr())
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, UplinkInterface)
		c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: append(f.matches(f.source, pods),
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
			&expr.Masq{},
		)})
	}
	c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("masquerading on the node (kernel without nf_tables nat?): %w", err)
	}
	return nil
}

// Publish makes the node pass UDP packets for public on to pod, keeping the
// client's address: a Service with externalTrafficPolicy Local. A second call
// for the same address replaces the first for new flows; flows that conntrack
// knows stay where they are.
func (t *Topology) Publish(public, pod netip.AddrPort) error {
	return t.redirect(public, redirection{to: pod})
}

// redirect makes the node pass UDP packets for public on, in one transaction.
func (t *Topology) redirect(public netip.AddrPort, all ...redirection) error {
	c, err := nftables.New(nftables.WithNetNSFd(t.Node.Fd()))
	if err != nil {
		return fmt.Errorf("nftables of the node: %w", err)
	}
	f := familyOf(public.Addr())
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: natTable}
	chain := &nftables.Chain{Name: "prerouting", Table: table}
	for _, r := range all {
		if f != familyOf(r.to.Addr()) {
			return fmt.Errorf("publishing %s as %s: not of one family", r.to, public)
		}
		exprs := slices.Concat(f.matches(f.target, netip.PrefixFrom(public.Addr(), public.Addr().BitLen())), r.match, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(public.Port())},
			&expr.Immediate{Register: 1, Data: r.to.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(r.to.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: 1, RegProtoMin: 2},
		})
		// The newest rule stands first and decides.
		c.InsertRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("publishing %s: %w", public, err)
	}
	return nil
}
