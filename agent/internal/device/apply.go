package device

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"regexp"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
)

// Apply carries out the plan's parts for link, device and forwarding, and
// makes the link again where it vanished. It is not atomic: it does what it
// can, the error holds everything that failed, and the next observation shows
// what is left to do. No peer that the plan does not name is touched.
func (d *Device) Apply(p plan.Plan) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed.Load() {
		return fmt.Errorf("applying to device %s: %w", d.name, fs.ErrClosed)
	}
	link, err := d.link()
	if err != nil {
		return fmt.Errorf("applying to device %s: %w", d.name, err)
	}
	up := p.Link.Up || link.Attrs().Flags&net.FlagUp != 0
	var errs []error
	if err := d.configure(p.Device); err != nil {
		errs = append(errs, err)
		p.Link.Up, up = false, false // it would bind a port of chance
	}
	errs = append(errs, d.changeLink(link, p.Link))
	if up {
		if err := d.backend.bind(); err != nil {
			errs = append(errs, fmt.Errorf("binding the UDP port: %w", err))
		}
	}
	for _, name := range p.Forward {
		err := setForwarding(name, true)
		if err == nil && !slices.Contains(d.forwarded, name) {
			d.forwarded = append(d.forwarded, name)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("applying to device %s: %w", d.name, err)
	}
	return nil
}

// link returns our link, made anew where it vanished.
func (d *Device) link() (netlink.Link, error) {
	for range 2 {
		link, err := findLink(d.name, d.backend.kind())
		if err != nil || link != nil {
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
func (d *Device) configure(p plan.Device) error {
	var errs []error
	if p.PrivateKey != nil {
		k := wgtypes.Key(p.PrivateKey.Bytes())
		if err := d.send(wgtypes.Config{PrivateKey: &k}); err != nil {
			errs = append(errs, fmt.Errorf("setting the private key: %w", err))
		}
	}
	if p.ListenPort != nil {
		if err := d.listen(*p.ListenPort); err != nil {
			errs = append(errs, fmt.Errorf("listening on UDP port %d: %w", *p.ListenPort, err))
		}
	}
	if len(p.Peers) > 0 {
		if err := d.send(wgtypes.Config{Peers: peerConfigs(p.Peers)}); err != nil {
			errs = append(errs, fmt.Errorf("changing %d peers: %w", len(p.Peers), err))
		}
	}
	return errors.Join(errs...)
}

func (d *Device) listen(port uint16) error {
	if err := d.backend.vacant(port); err != nil {
		return err
	}
	n := int(port)
	return d.send(wgtypes.Config{ListenPort: &n})
}

func (d *Device) send(c wgtypes.Config) error {
	return explain(d.control.ConfigureDevice(d.name, c))
}

// explain names the errno that wgctrl leaves as a number in the text of a
// userspace device's answer.
func explain(err error) error {
	if err == nil {
		return nil
	}
	m := regexp.MustCompile(`errno=-?(\d+)$`).FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	n, atoiErr := strconv.Atoi(m[1])
	if atoiErr != nil {
		return err
	}
	return unix.Errno(n)
}

func (d *Device) changeLink(link netlink.Link, p plan.Link) error {
	var errs []error
	if p.MTU != 0 {
		if err := netlink.LinkSetMTU(link, p.MTU); err != nil {
			errs = append(errs, fmt.Errorf("setting mtu %d: %w", p.MTU, err))
		}
	}
	// First add, then remove: with a link's last address the kernel takes its
	// routes, and with the first of a network the others, unless told otherwise.
	for _, a := range p.AddAddresses {
		errs = append(errs, addAddress(link, a))
	}
	if len(p.RemoveAddresses) > 0 {
		if err := setIPv4(link, ipv4DevconfPromoteSecondaries, true); err != nil {
			errs = append(errs, fmt.Errorf("keeping the addresses of a network: %w", err))
		}
	}
	for _, a := range p.RemoveAddresses {
		errs = append(errs, removeAddress(link, a))
	}
	if p.Up {
		if err := netlink.LinkSetUp(link); err != nil {
			errs = append(errs, fmt.Errorf("bringing the link up: %w", err))
		}
	}
	for _, r := range p.RemoveRoutes {
		errs = append(errs, removeRoute(link, r))
	}
	for _, r := range p.AddRoutes {
		errs = append(errs, addRoute(link, r))
	}
	return errors.Join(errs...)
}
