// Package network wires the machines together: a bridge in the control plane's
// network namespace is the switch, every node and the outside client hang on
// it by a veth pair. No namespace has a link or a route out of this machine.
package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

const (
	bridge = "br0"
	uplink = "eth0" // a machine's end of its veth pair
)

// Up makes the control plane's namespace with the switch and the routes to the
// nodes' Pods (the API server calls webhooks by them), and the client's.
func Up(t topology.Topology) error {
	cp := topology.Netns(topology.ControlPlane)
	if err := netns.Create(cp); err != nil {
		return err
	}
	h, err := open(cp)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.up("lo"); err != nil {
		return err
	}
	// An address of its own: else it has that of one of its ports, and another one when that
	// port's machine crashes, and the others would talk to the old one for some ten seconds.
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge, MTU: topology.MTU, HardwareAddr: bridgeAddress()}}
	if err := h.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: add bridge %s: %w", cp, bridge, err)
	}
	if err := h.address(bridge, netip.PrefixFrom(t.ControlPlaneIP(), t.Link.Bits())); err != nil {
		return err
	}
	if err := switchOnly(cp); err != nil {
		return err
	}
	for _, n := range t.Nodes {
		if err := h.route(n.Pods, n.IP); err != nil {
			return err
		}
	}
	return attach(topology.Client, netip.PrefixFrom(t.ClientIP(), t.Link.Bits()))
}

// bridgeAddress is one that is administered locally (IEEE 802).
func bridgeAddress() net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, 1} }

// switchOnly lets the bridge pass frames without showing them to netfilter,
// where the host has br_netfilter: a switch does not filter.
func switchOnly(cp string) error {
	return netns.Do(cp, func() error {
		const knob = "/proc/sys/net/bridge/bridge-nf-call-iptables"
		if err := os.WriteFile(knob, []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", cp, err)
		}
		return nil
	})
}

// Attach makes a node's namespace, plugs it into the switch and gives it
// routes: to the Pods of every other node, and to all else by the control
// plane, where it ends.
func Attach(t topology.Topology, node topology.Node) error {
	if err := attach(node.Name, netip.PrefixFrom(node.IP, t.Link.Bits())); err != nil {
		return err
	}
	h, err := open(topology.Netns(node.Name))
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.route(netip.PrefixFrom(netip.IPv4Unspecified(), 0), t.ControlPlaneIP()); err != nil {
		return err
	}
	for _, other := range t.Nodes {
		if other.Name == node.Name {
			continue
		}
		if err := h.route(other.Pods, other.IP); err != nil {
			return err
		}
	}
	return nil
}

// attach makes the machine's namespace with lo and eth0, the latter plugged
// into the switch.
func attach(machine string, addr netip.Prefix) error {
	ns := topology.Netns(machine)
	if err := netns.Create(ns); err != nil {
		return err
	}
	cp, err := open(topology.Netns(topology.ControlPlane))
	if err != nil {
		return err
	}
	defer cp.Close()
	peer, err := netns.Open(ns)
	if err != nil {
		return err
	}
	defer peer.Close()
	br, err := cp.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("%s: %w", bridge, err)
	}
	port := port(machine)
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: port, MTU: topology.MTU, MasterIndex: br.Attrs().Index},
		PeerName:      uplink,
		PeerMTU:       topology.MTU,
		PeerNamespace: netlink.NsFd(peer),
	}
	if err := cp.LinkAdd(veth); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("connect %s: %w", ns, err)
	}
	if err := cp.up(port); err != nil {
		return err
	}
	h, err := open(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.up("lo"); err != nil {
		return err
	}
	return h.address(uplink, addr)
}

// Detach unplugs a machine, at once and even while its processes linger, and
// removes its namespace.
func Detach(machine string) error {
	if cp := topology.Netns(topology.ControlPlane); netns.Exists(cp) {
		h, err := open(cp)
		if err != nil {
			return err
		}
		defer h.Close()
		if link, err := h.LinkByName(port(machine)); err == nil {
			if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("unplug %s: %w", machine, err)
			}
		}
	}
	return netns.Delete(topology.Netns(machine))
}

// RouteClient makes the client reach addr, a load balancer's, by the given
// node: it plays the provider's network. A former route is replaced.
func RouteClient(addr, node netip.Addr) error {
	h, err := open(topology.Netns(topology.Client))
	if err != nil {
		return err
	}
	defer h.Close()
	return h.route(netip.PrefixFrom(addr, addr.BitLen()), node)
}

// port is the switch's end of a machine's veth pair.
func port(machine string) string { return "port-" + machine }

// handle is rtnetlink inside one namespace.
type handle struct {
	*netlink.Handle
	ns string
}

func open(ns string) (handle, error) {
	fd, err := netns.Open(ns)
	if err != nil {
		return handle{}, err
	}
	defer fd.Close()
	h, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		return handle{}, fmt.Errorf("network namespace %s: netlink: %w", ns, err)
	}
	return handle{Handle: h, ns: ns}, nil
}

func (h handle) up(name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", h.ns, name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: set %s up: %w", h.ns, name, err)
	}
	return nil
}

func (h handle) address(name string, addr netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", h.ns, name, err)
	}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipnet(addr)}); err != nil {
		return fmt.Errorf("%s: address %s on %s: %w", h.ns, addr, name, err)
	}
	return h.up(name)
}

func (h handle) route(dst netip.Prefix, via netip.Addr) error {
	err := h.RouteReplace(&netlink.Route{Dst: ipnet(dst), Gw: via.AsSlice()})
	if err != nil {
		return fmt.Errorf("%s: route %s via %s: %w", h.ns, dst, via, err)
	}
	return nil
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
