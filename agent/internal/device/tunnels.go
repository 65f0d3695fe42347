package device

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Options say which devices the slots have.
type Options struct {
	// Names are those of the network interfaces, by slot; that of [state.Interlink]
	// may be missing. A link of such a name, of the data plane's own type, is ours,
	// whoever made it.
	Names map[key.Slot]string
	// First is the slot to open at once; the other one follows as a plan has it.
	First key.Slot
	// DataPlane asked for; empty means [spec.Auto]. The first slot decides.
	DataPlane spec.DataPlane
	// Log receives what wireguard-go says, at debug level. Nil discards it.
	Log *slog.Logger
}

// Tunnels are the devices of both slots, of which mostly one is open, and the one
// between replicas. Their methods may be called at the same time; Apply, Close and Remove wait for each
// other.
type Tunnels struct {
	options Options
	plane   spec.DataPlane
	reason  string

	changing sync.Mutex // held by what changes the devices
	// forwarded are the devices that Apply switched forwarding on for.
	forwarded []string

	mu      sync.Mutex // guards the map, never held for long
	devices map[key.Slot]*device
	closed  bool
}

// Open makes the link of the first slot's device, or takes over the one that a
// predecessor left, with keys, peers and sessions as they are; and so it does with
// the others, where they were left. [spec.Auto] takes the kernel's WireGuard, and
// wireguard-go where there is none. The error names what each data plane lacks; it
// is [ErrLinkTaken] where a name is somebody else's.
func Open(o Options) (*Tunnels, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	first, err := openDevice(o.Names[o.First], o.DataPlane, o.Log)
	if err != nil {
		return nil, err
	}
	t := &Tunnels{
		options: o, plane: first.backend.plane(), reason: first.reason,
		devices: map[key.Slot]*device{o.First: first},
	}
	for _, other := range slices.Sorted(maps.Keys(o.Names)) {
		if other == o.First || !first.backend.outlives() {
			continue
		}
		link, err := findLink(o.Names[other], first.backend.kind())
		if link != nil && err == nil {
			_, err = t.open(other)
		}
		if err != nil { // which matters once it is needed
			o.Log.Warn("cannot take over a device", "slot", string(other), "error", err)
		}
	}
	if _, passesOn := o.Names[state.Interlink]; passesOn && t.device(state.Interlink) == nil {
		if err := removeRules(); err != nil { // of a predecessor: they lead nowhere, and do no harm
			o.Log.Warn("cannot remove routing rules that a predecessor left", "error", err)
		}
	}
	return t, nil
}

// DataPlane returns the data plane in force, never [spec.Auto].
func (t *Tunnels) DataPlane() spec.DataPlane { return t.plane }

// Reason says in one line why this data plane is in force.
func (t *Tunnels) Reason() string { return t.reason }

// device returns a slot's, nil where it is not open.
func (t *Tunnels) device(s key.Slot) *device {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.devices[s]
}

// open returns a slot's device, opened where it is not.
func (t *Tunnels) open(s key.Slot) (*device, error) {
	if d := t.device(s); d != nil {
		return d, nil
	}
	d, err := openDevice(t.options.Names[s], t.plane, t.options.Log)
	if err != nil {
		return nil, err
	}
	d.answers = s == state.Interlink
	t.mu.Lock()
	defer t.mu.Unlock()
	t.devices[s] = d
	return d, nil
}

func (t *Tunnels) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// slots are those whose devices are open.
func (t *Tunnels) slots() []key.Slot {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.devices))
}

// Observe reads everything but FirewallInPlace. A missing link is no error. Those of
// a tunnel are [state.TunnelError], and [ErrLinkTaken] where its link was replaced
// by one of another type; it is then as if missing in what is returned.
func (t *Tunnels) Observe() (state.Observed, error) {
	o := state.Observed{Tunnels: map[key.Slot]state.ObservedTunnel{}}
	var errs []error
	for _, s := range t.slots() {
		d := t.device(s)
		if d == nil {
			continue // gone in the meantime
		}
		seen, err := d.observe()
		if err != nil {
			seen, errs = state.ObservedTunnel{}, append(errs, &state.TunnelError{Slot: s, Err: err})
		}
		o.Tunnels[s] = seen
	}
	var err error
	if o.Forwarding, err = forwarding(); err != nil {
		return o, errors.Join(append(errs, err)...)
	}
	if o.IPv6Forwarding, err = forwarding6(); err != nil {
		errs = append(errs, err)
	}
	return o, errors.Join(errs...)
}

// EachPeer calls visit for every peer of a slot's device, in no order. The memory
// that visit gets is used again for the next one, with the list of allowed IPs.
// There are none where the device is not open. The error may come after some of
// the peers; after Close it wraps [fs.ErrClosed].
func (t *Tunnels) EachPeer(s key.Slot, visit func(*state.ObservedPeer)) error {
	d := t.device(s)
	switch {
	case d != nil:
		return d.eachPeer(visit)
	case t.isClosed():
		return fmt.Errorf("reading the device of slot %s: %w", s, fs.ErrClosed)
	default:
		return nil
	}
}

// Apply carries out the plan's parts for tunnels and forwarding, and makes links
// again that vanished. It is not atomic: it does what it can, the error holds
// everything that failed, and the next observation shows what is left to do. What
// fails at one tunnel is a [state.TunnelError]. No peer that the plan does not name
// is touched.
//
// What comes is there on all devices before anything goes on any: a route that
// moves from one to the other, and so the packets that follow it, never have none;
// and a device that routes lead to knows whose the packets are for as long as they do.
func (t *Tunnels) Apply(p plan.Plan) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	if t.isClosed() {
		return fmt.Errorf("applying to the devices: %w", fs.ErrClosed)
	}
	var a applying
	defer a.end()
	for _, change := range p.Tunnels {
		if change.Remove {
			continue
		}
		d, err := t.open(change.Slot)
		if err == nil {
			now, later := change.Device, plan.Device{}
			if change.Slot == state.Interlink {
				now, later = now.Later()
			}
			a.changed = append(a.changed, changed{d, change, later})
			change.Device = now
			err = d.change(change)
		}
		a.note(change.Slot, err)
	}
	ready := a.ready()
	a.each(func(c changed) error { return c.addAnswers(c.Link) })
	a.each(func(c changed) error { return c.addRoutes(c.Link.AddRoutes) })
	for _, name := range p.Forward {
		if err := setForwarding(name, true); err != nil {
			a.errs = append(a.errs, err)
		} else if !slices.Contains(t.forwarded, name) {
			t.forwarded = append(t.forwarded, name)
		}
	}
	for _, change := range p.Tunnels {
		if !change.Remove {
			continue
		}
		if !ready && change.Slot != state.Interlink { // what would take its place is not there
			return a.join()
		}
		if err := t.remove(change.Slot); err != nil {
			a.note(change.Slot, err)
			return a.join()
		}
	}
	// Not before: where a tunnel takes over the pools of one that goes, the routes
	// to single peers lead past the route of the same pool that the other still has.
	a.each(func(c changed) error { return c.removeAddresses(c.Link) })
	a.each(func(c changed) error { return c.removeRoutes(c.Link.RemoveRoutes) })
	a.each(func(c changed) error { return c.removeAnswers(c.Link) })
	a.each(func(c changed) error { return c.patch(c.later) })
	return a.join()
}

// applying is a plan under way.
type applying struct {
	changed []changed
	errs    []error
}

type changed struct {
	*device
	plan.Tunnel
	later plan.Device
}

// note keeps an error of a tunnel.
func (a *applying) note(s key.Slot, err error) {
	if err != nil {
		a.errs = append(a.errs, &state.TunnelError{Slot: s, Err: err})
	}
}

func (a *applying) each(f func(changed) error) {
	for _, c := range a.changed {
		a.note(c.Slot, f(c))
	}
}

// end lets go of what was found out for this plan alone.
func (a *applying) end() {
	for _, c := range a.changed {
		c.applied()
	}
}

// ready says that the tunnels are as planned; they do not depend on the interlink.
func (a *applying) ready() bool {
	return len(a.errs) == 0 || state.OnlyOf(a.join(), state.Interlink)
}

func (a *applying) join() error { return errors.Join(a.errs...) }

// remove takes down a slot's device. One that cannot be taken down stays known.
func (t *Tunnels) remove(s key.Slot) error {
	d := t.device(s)
	if d == nil {
		return nil
	}
	if err := d.remove(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.devices, s)
	return d.forget()
}

// Close lets go of the devices. The kernel's stay up and serve on, for a
// successor to take over; wireguard-go's end with their links and sockets. A
// second call does nothing.
func (t *Tunnels) Close() error {
	t.changing.Lock()
	defer t.changing.Unlock()
	return t.leave((*device).close)
}

// Remove deletes the links with their addresses and routes, switches off what
// forwarding Apply switched on (not a predecessor's), and closes.
func (t *Tunnels) Remove() error {
	t.changing.Lock()
	defer t.changing.Unlock()
	var errs []error
	for _, name := range slices.Backward(t.forwarded) {
		errs = append(errs, setForwarding(name, false))
	}
	t.forwarded = nil
	return errors.Join(append(errs, t.leave(func(d *device) error { return errors.Join(d.remove(), d.close(), d.forget()) }))...)
}

func (t *Tunnels) leave(by func(*device) error) error {
	t.mu.Lock()
	devices := t.devices
	t.devices, t.closed = nil, true
	t.mu.Unlock()
	var errs []error
	for _, d := range devices {
		errs = append(errs, by(d))
	}
	return errors.Join(errs...)
}
