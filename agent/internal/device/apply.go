package device

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
)

// change carries out a plan's part for the tunnel but its routes, and makes the
// link again where it vanished. Where there is nothing but peers to change, the link is
// not looked at: that would take longer than all the rest, while a client waits.
func (d *device) change(p plan.Tunnel) error {
	if p.OnlyPeers() {
		return d.patch(p.Device)
	}
	return d.applying(func() error {
		link, err := d.link()
		if err != nil {
			return err
		}
		up := p.Link.Up || link.Attrs().Flags&net.FlagUp != 0
		var errs []error
		if err := d.configure(p.Device); err != nil {
			errs = append(errs, err)
			p.Link.Up, up = false, false // it would bind a port of chance
		}
		errs = append(errs, changeLink(link, p.Link))
		if up {
			if err := d.backend.bind(); err != nil {
				errs = append(errs, fmt.Errorf("binding the UDP port: %w", err))
			}
		}
		return errors.Join(errs...)
	})
}

// addRoutes and removeRoutes change the routes through the link.
func (d *device) addRoutes(list []netip.Prefix) error    { return d.changeRoutes(list, addRoutes) }
func (d *device) removeRoutes(list []netip.Prefix) error { return d.changeRoutes(list, removeRoutes) }

// removeAddresses comes after the adding: with a link's last address the kernel
// takes its routes, and with the first of a network the others, unless told
// otherwise.
func (d *device) removeAddresses(p plan.Link) error {
	if len(p.RemoveAddresses) == 0 {
		return nil
	}
	err := d.applying(func() error {
		link, err := d.link()
		if err != nil {
			return err
		}
		var errs []error
		if err := setIPv4(link, ipv4DevconfPromoteSecondaries, 1); err != nil {
			errs = append(errs, fmt.Errorf("keeping the addresses of a network: %w", err))
		}
		for _, a := range p.RemoveAddresses {
			errs = append(errs, removeAddress(link, a))
		}
		return errors.Join(errs...)
	})
	// The last address of a family took them.
	return errors.Join(err, d.addRoutes(p.AddRoutes))
}

// patch changes peers that are there.
func (d *device) patch(p plan.Device) error {
	if len(p.Peers) == 0 {
		return nil
	}
	return d.applying(func() error { return d.configure(p) })
}

func (d *device) changeRoutes(list []netip.Prefix, change func(netlink.Link, []netip.Prefix) error) error {
	if len(list) == 0 {
		return nil
	}
	return d.onLink(func(link netlink.Link) error { return change(link, list) })
}

// onLink runs f with the link while nobody else changes the device.
func (d *device) onLink(f func(netlink.Link) error) error {
	return d.applying(func() error {
		link, err := d.link()
		if err != nil {
			return err
		}
		return f(link)
	})
}

// applied ends a plan: the link may be another one by the next.
func (d *device) applied() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.found = nil
}

// applying runs f while nobody else changes the device.
func (d *device) applying(f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed.Load() {
		return fmt.Errorf("applying to device %s: %w", d.name, fs.ErrClosed)
	}
	if err := f(); err != nil {
		return fmt.Errorf("applying to device %s: %w", d.name, err)
	}
	return nil
}

// link returns our link, made anew where it vanished. While a plan is applied, it is
// looked for once.
func (d *device) link() (netlink.Link, error) {
	for range 2 {
		if d.found != nil {
			return d.found, nil
		}
		link, err := findLink(d.name, d.backend.kind())
		if err != nil || link != nil {
			d.found = link
			return link, err
		}
		if _, err := d.backend.open(); err != nil {
			return nil, fmt.Errorf("making the link that vanished: %w", err)
		}
	}
	return nil, errors.New("the link vanishes as soon as it is made")
}

// configure sends key, port and peers one after the other, so that one that
// fails does not keep the others from being applied.
func (d *device) configure(p plan.Device) error {
	var errs []error
	if p.PrivateKey != nil {
		k := wgtypes.Key(p.PrivateKey.Bytes())
		if err := d.backend.write(wgtypes.Config{PrivateKey: &k}); err != nil {
			errs = append(errs, fmt.Errorf("setting the private key: %w", err))
		}
	}
	if p.ListenPort != nil {
		if err := d.listen(*p.ListenPort); err != nil {
			errs = append(errs, fmt.Errorf("listening on UDP port %d: %w", *p.ListenPort, err))
		}
	}
	changes, calls := apart(p.Peers)
	if len(calls) > 0 { // first, since they are waited for
		if err := d.backend.call(calls); err != nil {
			errs = append(errs, fmt.Errorf("calling %d peers: %w", len(calls), err))
		}
	}
	if len(changes) > 0 {
		if err := d.backend.write(wgtypes.Config{Peers: peerConfigs(changes)}); err != nil {
			errs = append(errs, fmt.Errorf("changing %d peers: %w", len(changes), err))
		}
	}
	return errors.Join(errs...)
}

func (d *device) listen(port uint16) error {
	if err := d.backend.vacant(port); err != nil {
		return err
	}
	n := int(port)
	return d.backend.write(wgtypes.Config{ListenPort: &n})
}

func changeLink(link netlink.Link, p plan.Link) error {
	var errs []error
	if p.MTU != 0 {
		if err := netlink.LinkSetMTU(link, p.MTU); err != nil {
			errs = append(errs, fmt.Errorf("setting mtu %d: %w", p.MTU, err))
		}
	}
	for _, a := range p.AddAddresses {
		errs = append(errs, addAddress(link, a))
	}
	if p.Up {
		// WireGuard has checked whose a packet's source is. While there are two
		// tunnels, the way back may for a moment lead through the other one.
		if err := setIPv4(link, ipv4DevconfRPFilter, loose); err != nil {
			errs = append(errs, fmt.Errorf("filter of reverse paths: %w", err))
		}
		if err := netlink.LinkSetUp(link); err != nil {
			errs = append(errs, fmt.Errorf("bringing the link up: %w", err))
		}
	}
	return errors.Join(errs...)
}
