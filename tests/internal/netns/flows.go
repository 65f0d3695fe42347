package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The node's connection tracking has a client's flow stay with its Pod. To list all flows
// the kernel walks a table of the whole machine, of hundreds of thousands of places: 20 ms
// of a processor, which everybody feels who is measured meanwhile. To forget a flow by its
// name takes microseconds.

// KnowFlows looks by which ports clients send UDP packets to public, so that [Topology.Move]
// need not. Who comes by another one later stays where it was: it is for clients that keep
// their sockets.
func (t *Topology) KnowFlows(public netip.AddrPort) (err error) {
	t.known, err = t.ports(public)
	return err
}

// forgetFlows forgets clients' UDP flows to public that lead elsewhere than to their Pods.
func (t *Topology) forgetFlows(public netip.AddrPort, to map[netip.Addr]netip.AddrPort) error {
	ports := t.known
	for client := range to {
		if t.known[client] != nil {
			continue
		}
		var err error
		if ports, err = t.ports(public); err != nil {
			return err
		}
		break
	}
	flows := map[netip.AddrPort]netip.AddrPort{}
	for client, pod := range to {
		for _, port := range ports[client] {
			flows[netip.AddrPortFrom(client, port)] = pod
		}
	}
	if err := t.forget(public, flows); err != nil {
		return fmt.Errorf("forgetting the flows of %d clients: %w", len(to), err)
	}
	return nil
}

// ports are those by which clients send UDP packets to public.
func (t *Topology) ports(public netip.AddrPort) (map[netip.Addr][]uint16, error) {
	handle, err := netlink.NewHandleAt(t.Node.handle, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("connection tracking of the node: %w", err)
	}
	defer handle.Close()
	all, err := handle.ConntrackTableList(netlink.ConntrackTable, conntrackFamily(public.Addr()))
	if err != nil {
		return nil, fmt.Errorf("listing the node's flows: %w", err)
	}
	out := map[netip.Addr][]uint16{}
	for _, flow := range all {
		if client, ok := netip.AddrFromSlice(flow.Forward.SrcIP); ok && flow.Forward.DstPort == public.Port() && flow.Forward.Protocol == unix.IPPROTO_UDP {
			out[client.Unmap()] = append(out[client.Unmap()], flow.Forward.SrcPort)
		}
	}
	return out, nil
}

// forget forgets the UDP flows to public that lead elsewhere than to these Pods, by client.
// Those that have found the new one stay, as with kube-proxy.
func (t *Topology) forget(public netip.AddrPort, to map[netip.AddrPort]netip.AddrPort) error {
	socket, err := nl.GetNetlinkSocketAt(t.Node.handle, vnetns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer socket.Close()
	sockets := map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: socket}}
	ask := func(client netip.AddrPort, what int) ([][]byte, error) {
		request := nl.NewNetlinkRequest(int(netlink.ConntrackTable)<<8|what, unix.NLM_F_ACK)
		request.Sockets = sockets
		request.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(conntrackFamily(public.Addr())), Version: nl.NFNETLINK_V0})
		request.AddData(tuple(client, public))
		return request.Execute(unix.NETLINK_NETFILTER, 0)
	}
	var errs []error
	for client, pod := range to {
		flow, err := ask(client, nl.IPCTNL_MSG_CT_GET)
		if err == nil && len(flow) > 0 && answers(flow[0]) != pod {
			_, err = ask(client, nl.IPCTNL_MSG_CT_DELETE)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("the flow from %s: %w", client, err))
		}
	}
	return errors.Join(errs...)
}

// answers is who answers in a flow, as the kernel describes it; the zero value where it does
// not say.
func answers(flow []byte) netip.AddrPort {
	reply := attribute(flow[min(len(flow), nl.SizeofNfgenmsg):], nl.CTA_TUPLE_REPLY)
	addresses, port := attribute(reply, nl.CTA_TUPLE_IP), attribute(attribute(reply, nl.CTA_TUPLE_PROTO), nl.CTA_PROTO_SRC_PORT)
	for _, source := range []uint16{nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC} {
		if a, ok := netip.AddrFromSlice(attribute(addresses, source)); ok && len(port) == 2 {
			return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
		}
	}
	return netip.AddrPort{}
}

// attribute returns the value of an attribute, nil where there is none of that kind.
func attribute(list []byte, kind uint16) []byte {
	all, _ := nl.ParseRouteAttr(list) // up to what cannot be read
	for _, a := range all {
		if a.Attr.Type&^unix.NLA_F_NESTED == kind {
			return a.Value
		}
	}
	return nil
}

// tuple names a UDP flow (CTA_TUPLE_ORIG, linux/netfilter/nfnetlink_conntrack.h).
func tuple(from, to netip.AddrPort) *nl.RtAttr {
	source, target := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if !from.Addr().Is4() {
		source, target = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	port := func(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
	out := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	addresses := out.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	addresses.AddRtAttr(source, from.Addr().AsSlice())
	addresses.AddRtAttr(target, to.Addr().AsSlice())
	protocol := out.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	protocol.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP})
	protocol.AddRtAttr(nl.CTA_PROTO_SRC_PORT, port(from.Port()))
	protocol.AddRtAttr(nl.CTA_PROTO_DST_PORT, port(to.Port()))
	return out
}

func conntrackFamily(a netip.Addr) netlink.InetFamily {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
