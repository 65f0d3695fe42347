package device

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// routeProtocol marks our routes (rtm_protocol, linux/rtnetlink.h): the low
// byte of WireGuard's usual port 51820, which no routing daemon in iproute2's
// rt_protos has. Routes of any other protocol are neither seen nor touched.
const routeProtocol netlink.RouteProtocol = 51820 & 0xff

// Attributes inside IFLA_AF_SPEC that change a device's IPv4 settings.
const (
	iflaInetConf                  = 1  // IFLA_INET_CONF, linux/if_link.h
	ipv4DevconfForwarding         = 1  // IPV4_DEVCONF_FORWARDING, linux/ip.h
	ipv4DevconfRPFilter           = 8  // IPV4_DEVCONF_RP_FILTER
	ipv4DevconfPromoteSecondaries = 20 // IPV4_DEVCONF_PROMOTE_SECONDARIES
)

// loose lets a packet in whose source can be reached by whatever way (RFC 3704
// section 2.4). It also wins over a strict filter of the namespace: the kernel
// takes the higher number of both.
const loose = 2

// procNet is where the kernel shows the settings of a network namespace.
const procNet = "/proc/sys/net"

// findLink returns the link of that name, nil where there is none. The error is
// [ErrLinkTaken] where it is not of that type.
func findLink(name, kind string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if isLinkNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for link %s: %w", name, err)
	}
	if link.Type() != kind {
		return nil, taken(link)
	}
	return link, nil
}

func isLinkNotFound(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none)
}

func taken(link netlink.Link) error {
	return fmt.Errorf("%w: link %s is of type %s; delete it or choose another server.interface", ErrLinkTaken, link.Attrs().Name, link.Type())
}

// whole repeats a dump that a change in the middle made inconsistent.
func whole[T any](dump func() ([]T, error)) ([]T, error) {
	for range 9 {
		if list, err := dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return dump()
}

// addresses lists the link's addresses of global scope with their lengths,
// sorted; link-local ones are the kernel's.
func addresses(link netlink.Link) ([]netip.Prefix, error) {
	list, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses of %s: %w", link.Attrs().Name, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if p, ok := prefixOf(a.IPNet); ok && netlink.Scope(a.Scope) == netlink.SCOPE_UNIVERSE {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out, nil
}

// addAddress does nothing where the link has the address.
func addAddress(link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNetOf(p), Broadcast: net.IPv4zero} // none, as for a link without broadcasts
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // nobody there to have a duplicate
	}
	if err := netlink.AddrReplace(link, a); err != nil {
		return fmt.Errorf("adding address %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

// removeAddress does nothing where the link lacks the address.
func removeAddress(link netlink.Link, p netip.Prefix) error {
	if err := netlink.AddrDel(link, &netlink.Addr{IPNet: ipNetOf(p)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("removing address %s from %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

// routes lists our routes through the link, masked and sorted.
func routes(link netlink.Link) ([]netip.Prefix, error) { return routesIn(unix.RT_TABLE_MAIN, link) }

func routesIn(table int, link netlink.Link) ([]netip.Prefix, error) {
	filter := &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: routeProtocol, Table: table}
	list, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes through %s: %w", link.Attrs().Name, err)
	}
	var out []netip.Prefix
	for _, r := range list {
		if p, ok := prefixOf(r.Dst); ok {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out, nil
}

func route(link netlink.Link, p netip.Prefix) *netlink.Route {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNetOf(p), Protocol: routeProtocol}
	if p.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// addRoutes takes routes over from our other devices, each in one step. The same
// route through any other link is somebody else's, and is not replaced. It does
// nothing where we have a route.
func addRoutes(link netlink.Link, list []netip.Prefix) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE) // one socket for all: there may be thousands
	if err != nil {
		return fmt.Errorf("adding routes through %s: %w", link.Attrs().Name, err)
	}
	defer h.Close()
	var errs []error
	var taken []netip.Prefix
	for _, p := range list {
		err := h.RouteAdd(route(link, p))
		if errors.Is(err, unix.EEXIST) {
			taken = append(taken, p)
		} else if err != nil {
			errs = append(errs, addingRoute(link, p, err))
		}
	}
	if len(taken) == 0 {
		return errors.Join(errs...)
	}
	holders, err := holders()
	for _, p := range taken {
		holder, ours := holders[p]
		switch {
		case err != nil:
			errs = append(errs, addingRoute(link, p, err))
		case !ours:
			errs = append(errs, addingRoute(link, p, fmt.Errorf("%w: another link has that route, so the network cannot be a peer's", unix.EEXIST)))
		case holder != link.Attrs().Index:
			if err := h.RouteReplace(route(link, p)); err != nil {
				errs = append(errs, addingRoute(link, p, err))
			}
		}
	}
	return errors.Join(errs...)
}

func addingRoute(link netlink.Link, p netip.Prefix, err error) error {
	return fmt.Errorf("adding route %s through %s: %w", p, link.Attrs().Name, err)
}

// holders are the indices of the links that our routes lead through.
func holders() (map[netip.Prefix]int, error) {
	filter := &netlink.Route{Protocol: routeProtocol}
	list, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_PROTOCOL)
	})
	out := make(map[netip.Prefix]int, len(list))
	for _, r := range list {
		if p, ok := prefixOf(r.Dst); ok {
			out[p.Masked()] = r.LinkIndex
		}
	}
	return out, err
}

// removeRoutes does nothing where we lack a route.
func removeRoutes(link netlink.Link, list []netip.Prefix) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("removing routes through %s: %w", link.Attrs().Name, err)
	}
	defer h.Close()
	var errs []error
	for _, p := range list {
		if err := h.RouteDel(route(link, p)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("removing route %s through %s: %w", p, link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// setForwarding says whether IPv4 packets that come in by the device may be
// forwarded. A device that vanished is no error.
func setForwarding(name string, on bool) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = setIPv4(link, ipv4DevconfForwarding, flagValue(on))
	}
	if err != nil && !isLinkNotFound(err) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("forwarding for %s: %w", name, err)
	}
	return nil
}

func flagValue(on bool) uint32 {
	if on {
		return 1
	}
	return 0
}

// setIPv4 changes one of the device's settings (IPV4_DEVCONF_*, linux/ip.h).
// The message needs CAP_NET_ADMIN where the sysctl of the same name would need
// a writable /proc/sys.
func setIPv4(link netlink.Link, setting int, value uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	families.AddRtAttr(unix.AF_INET, nil).
		AddRtAttr(iflaInetConf, nil).
		AddRtAttr(setting, nl.Uint32Attr(value))
	req.AddData(families)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// forwarding reads IPv4 forwarding of every device but loopback.
func forwarding() (map[string]bool, error) {
	dir := filepath.Join(procNet, "ipv4", "conf")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading forwarding: %w", err)
	}
	out := make(map[string]bool, len(entries))
	for _, e := range entries {
		switch name := e.Name(); name {
		case "all", "default", "lo":
		default:
			on, err := flag(filepath.Join(dir, name, "forwarding"))
			if errors.Is(err, os.ErrNotExist) {
				continue // the device vanished
			}
			if err != nil {
				return nil, fmt.Errorf("reading forwarding: %w", err)
			}
			out[name] = on
		}
	}
	return out, nil
}

// forwarding6 reads net.ipv6.conf.all.forwarding; false without IPv6.
func forwarding6() (bool, error) {
	on, err := flag(filepath.Join(procNet, "ipv6", "conf", "all", "forwarding"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("reading IPv6 forwarding: %w", err)
	}
	return on, nil
}

func flag(path string) (bool, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)) == "1", err
}
