package device

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Addresses that stand for the Internet: they are looked up in the routing
// tables (RTM_GETROUTE, as `ip route get` does) and nothing is sent to them.
// Any public address does; these are one of each family, and public for good
// (RFC 6890 lists what is not).
const (
	internet4 = "1.1.1.1"
	internet6 = "2606:4700:4700::1111"
)

// Uplink looks at the routes to the Internet, with all rules and tables that
// apply. MTU is the smaller one of both families', each that of the route where
// it has one (RTAX_MTU) and else of its link; it is zero where there is no
// route, or only ours into the tunnel. IPv6 is true where there is a route and
// an address of more than link scope to send from.
func Uplink() (state.Uplink, error) {
	mtu4, err := uplink4()
	if err != nil {
		return state.Uplink{}, err
	}
	mtu6, err := uplink6()
	if err != nil {
		return state.Uplink{}, err
	}
	u := state.Uplink{MTU: cmp.Or(mtu4, mtu6), IPv6: mtu6 != 0}
	if u.IPv6 {
		u.MTU = min(u.MTU, mtu6)
	}
	return u, nil
}

// uplink4 returns 0 where there is no way.
func uplink4() (int, error) {
	// The table's entry rather than the answer made from it: it has the
	// protocol, and no MTU that was learnt on the way to just this address.
	list, err := lookUp(internet4, &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil || len(list) == 0 || list[0].Protocol == routeProtocol {
		return 0, err
	}
	return routeMTU(list[0])
}

func uplink6() (int, error) {
	list, err := lookUp(internet6, &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil || len(list) == 0 || list[0].Protocol == routeProtocol {
		return 0, err
	}
	// Which address it would be sent from only the made-up answer tells.
	answer, err := lookUp(internet6, nil)
	if err != nil || len(answer) == 0 {
		return 0, err
	}
	src, ok := netip.AddrFromSlice(answer[0].Src)
	if !ok || !src.IsGlobalUnicast() {
		return 0, nil
	}
	return routeMTU(list[0])
}

func lookUp(address string, o *netlink.RouteGetOptions) ([]netlink.Route, error) {
	list, err := netlink.RouteGetWithOptions(net.ParseIP(address), o)
	for _, none := range []error{
		unix.ENETUNREACH, unix.EHOSTUNREACH, // no route, or of type unreachable
		unix.EACCES, unix.EINVAL, // of type prohibit, blackhole
		unix.EAFNOSUPPORT, unix.EOPNOTSUPP, // no IPv6 at all
	} {
		if errors.Is(err, none) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("looking up the route to the Internet (%s): %w", address, err)
	}
	return list, nil
}

func routeMTU(r netlink.Route) (int, error) {
	if r.MTU != 0 {
		return r.MTU, nil
	}
	indices := []int{r.LinkIndex}
	for _, hop := range r.MultiPath {
		indices = append(indices, hop.LinkIndex)
	}
	mtu := 0
	for _, index := range indices {
		if index == 0 {
			continue
		}
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return 0, fmt.Errorf("looking up the link of the route to the Internet: %w", err)
		}
		if mtu == 0 || link.Attrs().MTU < mtu {
			mtu = link.Attrs().MTU
		}
	}
	return mtu, nil
}
