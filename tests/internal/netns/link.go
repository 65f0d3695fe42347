package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a link.
type End struct {
	NS        *NS
	Interface string         // at most 15 bytes
	Addresses []netip.Prefix // of the interface; may be empty
	Bridge    string         // to attach the interface to; "" for none
}

// Veth connects a and b with a cable. Both ends come up. mtu is in bytes; 0
// leaves the kernel's 1500.
func Veth(a, b End, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = a.Interface, mtu
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: b.Interface, PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(b.NS.Fd()),
	}
	if err := a.NS.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s–%s: %w", a.Interface, b.Interface, err)
	}
	for _, end := range []End{a, b} {
		if err := end.up(); err != nil {
			return err
		}
	}
	return nil
}

// up configures the end of a link that exists.
func (e End) up() error {
	for _, address := range e.Addresses {
		if err := e.NS.AddAddress(e.Interface, address); err != nil {
			return err
		}
	}
	if e.Bridge != "" {
		port, err := e.NS.links.LinkByName(e.Interface)
		if err != nil {
			return fmt.Errorf("interface %s: %w", e.Interface, err)
		}
		bridge, err := e.NS.links.LinkByName(e.Bridge)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", e.Bridge, err)
		}
		if err := e.NS.links.LinkSetMaster(port, bridge); err != nil {
			return fmt.Errorf("attaching %s to bridge %s: %w", e.Interface, e.Bridge, err)
		}
	}
	return e.NS.SetUp(e.Interface, true)
}

// AddBridge makes a bridge with the given addresses and brings it up. It has a hardware
// address of its own: else it has that of one of its ports, and another one when that port
// goes, and the others would talk to the old one for some ten seconds.
func (n *NS) AddBridge(name string, addresses ...netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if err := n.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	return End{NS: n, Interface: name, Addresses: addresses}.up()
}

// SetUp brings an interface up or down.
func (n *NS) SetUp(name string, up bool) error {
	link, err := n.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	set := n.links.LinkSetDown
	if up {
		set = n.links.LinkSetUp
	}
	if err := set(link); err != nil {
		return fmt.Errorf("setting interface %s up=%t: %w", name, up, err)
	}
	return nil
}

// AddAddress gives an interface an address with the length of its network. An
// IPv6 address is usable at once: duplicates are not looked for.
func (n *NS) AddAddress(name string, address netip.Prefix) error {
	return n.changeAddress("adding", n.links.AddrAdd, name, address)
}

// DeleteAddress takes an address away.
func (n *NS) DeleteAddress(name string, address netip.Prefix) error {
	return n.changeAddress("deleting", n.links.AddrDel, name, address)
}

func (n *NS) changeAddress(verb string, change func(netlink.Link, *netlink.Addr) error, name string, address netip.Prefix) error {
	link, err := n.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen()),
	}}
	if address.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := change(link, a); err != nil {
		return fmt.Errorf("%s address %s of %s: %w", verb, address, name, err)
	}
	return nil
}

// Route says how to reach a network.
type Route struct {
	To        netip.Prefix // 0.0.0.0/0 or ::/0 for the default route
	Via       netip.Addr   // gateway; the zero Addr means directly on Interface
	Interface string       // may be empty where Via says enough
	Table     int          // 0: the main table
}

// AddRoute adds r or replaces the route of the same network.
func (n *NS) AddRoute(r Route) error {
	route, err := n.route(r)
	if err == nil {
		err = n.links.RouteReplace(route)
	}
	if err != nil {
		return fmt.Errorf("route to %s: %w", r.To, err)
	}
	return nil
}

// AddRouteBy adds a route by a neighbour, or replaces the one of the same network: by who
// has a route to itself alone, as Pods have behind a CNI that wires each to its node.
func (n *NS) AddRouteBy(to netip.Prefix, neighbour netip.Addr) error {
	there, err := n.links.RouteGet(neighbour.AsSlice())
	if err == nil && len(there) == 0 {
		err = unix.ESRCH
	}
	if err != nil {
		return fmt.Errorf("route to %s: %w", neighbour, err)
	}
	route, err := n.route(Route{To: to, Via: neighbour})
	if err != nil {
		return fmt.Errorf("route to %s: %w", to, err)
	}
	route.LinkIndex, route.Flags = there[0].LinkIndex, int(netlink.FLAG_ONLINK)
	if err := n.links.RouteReplace(route); err != nil {
		return fmt.Errorf("route to %s by %s: %w", to, neighbour, err)
	}
	return nil
}

// DeleteRoute deletes r.
func (n *NS) DeleteRoute(r Route) error {
	route, err := n.route(r)
	if err == nil {
		err = n.links.RouteDel(route)
	}
	if err != nil {
		return fmt.Errorf("deleting route to %s: %w", r.To, err)
	}
	return nil
}

func (n *NS) route(r Route) (*netlink.Route, error) {
	to := r.To.Masked()
	route := &netlink.Route{
		Dst:   &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())},
		Table: r.Table,
	}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if r.Interface != "" {
		link, err := n.links.LinkByName(r.Interface)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", r.Interface, err)
		}
		route.LinkIndex = link.Attrs().Index
	}
	return route, nil
}

// DefaultRoute is the route to everything of via's family.
func DefaultRoute(via netip.Addr) Route {
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if via.Is6() {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return Route{To: everything, Via: via}
}

// SetSysctl writes a kernel parameter of the namespace, such as
// net.ipv4.ip_forward. Names are those of sysctl(8), dots for slashes.
func (n *NS) SetSysctl(name, value string) error {
	path := filepath.Join("/proc/sys", filepath.FromSlash(strings.ReplaceAll(name, ".", "/")))
	err := n.Do(func() error { return os.WriteFile(path, []byte(value), 0o644) })
	if err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

// Sysctl reads a kernel parameter of the namespace.
func (n *NS) Sysctl(name string) (value string, err error) {
	path := filepath.Join("/proc/sys", filepath.FromSlash(strings.ReplaceAll(name, ".", "/")))
	err = n.Do(func() error {
		text, err := os.ReadFile(path)
		value = strings.TrimSpace(string(text))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", name, err)
	}
	return value, nil
}

// Forward makes the namespace a router, of IPv6 as well if the kernel has it.
func (n *NS) Forward() error {
	if err := n.SetSysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	if _, err := n.Sysctl("net.ipv6.conf.all.forwarding"); err != nil {
		return nil // no IPv6 in this kernel
	}
	return n.SetSysctl("net.ipv6.conf.all.forwarding", "1")
}
