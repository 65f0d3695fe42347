// Package device is the gateway's WireGuard device: it makes or takes over the
// link, reads what it is like and changes what a plan says. Two data planes,
// the kernel's WireGuard and wireguard-go inside this process, differ in how
// the device comes and goes, and in that wireguard-go is asked directly, where the
// kernel is through wgctrl; both take wgctrl's configuration. Link, addresses, routes
// and forwarding of both go through rtnetlink.
//
// It needs CAP_NET_ADMIN in its network namespace, and for wireguard-go
// /dev/net/tun and a writable /var/run/wireguard. Nothing of /proc/sys is
// written.
package device

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// ErrLinkTaken says that a link of the device's name exists and is not of the
// data plane's own type, so it is somebody else's and stays untouched.
var ErrLinkTaken = errors.New("link exists already and is not ours")

// device is one open WireGuard device. Its methods may be called at the same
// time; those that change it wait for each other.
type device struct {
	name    string
	backend backend
	reason  string
	// answers says that the routes and rules of [state.Link.Answers] are this device's.
	answers bool

	peers atomic.Int64 // how many there were the last time that all were read

	mu     sync.Mutex // held by what changes the device
	closed atomic.Bool
	// found is the link while a plan is applied, nil where it was not looked for.
	found netlink.Link
}

// backend is where the data planes differ: how a device comes and goes, and
// how its UDP port is bound.
type backend interface {
	plane() spec.DataPlane
	// kind is the link's type, in netlink.Link's words.
	kind() string
	// outlives says whether a link outlives the process that made it.
	outlives() bool
	// open makes the device, or takes over what a predecessor left, unchanged.
	// It is called again after the link vanished. The text says what happened.
	open() (string, error)
	// read shows every peer to visit, as in [Tunnels.EachPeer], and returns the rest.
	read(visit func(*state.ObservedPeer)) (state.ObservedDevice, error)
	// write changes what a configuration names, and leaves the rest alone.
	write(c wgtypes.Config) error
	// call begins handshakes and sends nudges. Those that are lost WireGuard repeats, or
	// whoever asked for them.
	call(list []plan.Peer) error
	// vacant fails where port cannot be bound, and changes nothing.
	vacant(port uint16) error
	// bind makes sure that the device of a link that is up has its UDP port.
	bind() error
	// close lets go of the device.
	close() error
	// remove deletes the link, and with it its addresses and routes.
	remove() error
}

// openDevice makes the device's link, or takes over the one that a predecessor
// left, with keys, peers and sessions as they are. [spec.Auto] takes the kernel's
// WireGuard, and wireguard-go where there is none. The error names what each
// data plane lacks; it is [ErrLinkTaken] where the name is somebody else's.
func openDevice(name string, plane spec.DataPlane, log *slog.Logger) (*device, error) {
	candidates, err := backends(name, plane, log)
	if err != nil {
		return nil, err
	}
	d := &device{name: name}
	var failures []error
	for _, b := range candidates {
		what, err := b.open()
		if err == nil {
			d.backend, d.reason = b, reason(plane, what, failures)
			break
		}
		failures = append(failures, fmt.Errorf("data plane %s: %w", b.plane(), err))
		if errors.Is(err, ErrLinkTaken) {
			break // no other data plane could have the name either
		}
	}
	if d.backend == nil {
		return nil, fmt.Errorf("opening device %s: %w", name, errors.Join(failures...))
	}
	return d, nil
}

func backends(name string, plane spec.DataPlane, log *slog.Logger) ([]backend, error) {
	k := &kernel{name: name}
	u := &userspace{name: name, log: log}
	switch plane {
	case spec.Auto, "":
		return []backend{k, u}, nil
	case spec.Kernel:
		return []backend{k}, nil
	case spec.Userspace:
		return []backend{u}, nil
	}
	return nil, fmt.Errorf("data plane %q is unknown; use %s, %s or %s", plane, spec.Auto, spec.Kernel, spec.Userspace)
}

// reason is one line that says why a data plane is in force.
func reason(asked spec.DataPlane, what string, failures []error) string {
	switch {
	case asked == spec.Kernel || asked == spec.Userspace:
		return "asked for by server.dataPlane; " + what
	case len(failures) == 0:
		return what
	}
	return fmt.Sprintf("%s, as %v", what, failures[0])
}

// eachPeer calls visit for every peer, in no order. The memory that visit gets is
// used again for the next one, with the list of allowed IPs. The error may come
// after some of the peers; after Close it wraps [fs.ErrClosed].
func (d *device) eachPeer(visit func(*state.ObservedPeer)) error {
	_, err := d.each(visit)
	return err
}

func (d *device) each(visit func(*state.ObservedPeer)) (state.ObservedDevice, error) {
	o, err := state.ObservedDevice{}, fs.ErrClosed
	if !d.closed.Load() {
		o, err = d.backend.read(visit)
	}
	if err != nil {
		return o, fmt.Errorf("reading device %s: %w", d.name, err)
	}
	return o, nil
}

// read keeps what each shows.
func (d *device) read() (state.ObservedDevice, error) {
	c := newCollector(int(d.peers.Load()))
	o, err := d.each(c.add)
	if err != nil {
		return state.ObservedDevice{}, err
	}
	o.Peers = c.peers
	d.peers.Store(int64(len(o.Peers)))
	return o, nil
}

// close lets go of the device. A second call does nothing.
func (d *device) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.letGo()
}

func (d *device) letGo() error {
	if d.closed.Swap(true) {
		return nil
	}
	if err := d.backend.close(); err != nil {
		return fmt.Errorf("closing device %s: %w", d.name, err)
	}
	return nil
}

// remove deletes the link with its addresses and routes, and closes. Where the link
// cannot be deleted, the device is as before.
func (d *device) remove() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.backend.remove(); err != nil {
		return fmt.Errorf("removing device %s: %w", d.name, err)
	}
	return d.letGo()
}
