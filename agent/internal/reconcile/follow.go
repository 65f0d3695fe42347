package reconcile

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// While a newer server key takes over there are two tunnels, and the routes to a
// peer follow the one that it shook hands with last. This file finds out which
// that is.

// followDelays are when to look at the tunnels after a packet that completes a
// handshake was seen: WireGuard takes a moment to know of it, and on a busy
// machine a longer one.
func followDelays() []time.Duration {
	return []time.Duration{3 * time.Millisecond, 30 * time.Millisecond, 300 * time.Millisecond}
}

// followShare bounds what looking costs: for each look, four times as long is
// spent without. With thousands of peers there is always one that shakes hands.
const followShare = 5

// follower says when to look. Its zero value has nothing to look for.
type follower struct {
	timer *time.Timer
	left  []time.Duration // after the one that is due
	rest  time.Time       // not to look before
}

// C is nil while there is nothing to look for.
func (f *follower) C() <-chan time.Time {
	if f.timer == nil {
		return nil
	}
	return f.timer.C
}

// seen notes a handshake.
func (f *follower) seen() {
	delays := followDelays()
	f.arm(delays[0], delays[1:])
}

// looked notes that it was looked, and what that took.
func (f *follower) looked(took time.Duration) {
	f.rest = time.Now().Add((followShare - 1) * took)
	f.timer = nil
	if len(f.left) > 0 {
		f.arm(f.left[0], f.left[1:])
	}
}

func (f *follower) arm(delay time.Duration, left []time.Duration) {
	f.left = left
	if f.timer != nil {
		return // a look is due already, and the others follow it
	}
	f.timer = time.NewTimer(max(delay, time.Until(f.rest)))
}

// watchSessions looks at the peers between two runs, and runs where one has moved
// to the other tunnel.
func (r *Reconciler) watchSessions(ctx context.Context) {
	if err := r.lookAtPeers(); err != nil {
		r.Log.Error("cannot read the device", "error", err)
		return
	}
	if !maps.Equal(r.moved, r.inputs.Moved) {
		r.follow(ctx)
	}
	r.publish()
}

// follow moves the routes to peers that have moved, and looks at nothing else: a
// whole run takes many times as long, and where many clients move at once, all of
// them wait for it. Where that does not do, a whole run does.
func (r *Reconciler) follow(ctx context.Context) {
	inputs := r.inputs
	inputs.Now, inputs.Moved = r.Now(), r.moved
	before := len(r.inputs.Moved)
	r.inputs, r.desired = inputs, state.Build(inputs)
	p := plan.Changes(r.desired, *r.applied)
	if r.runError != nil || r.tableInDoubt || r.apply(p) != nil {
		r.run(ctx, "peers moved")
		return
	}
	r.Log.Debug("peers moved to the other server key", "moved", len(r.moved), "before", before)
}

// lookAtPeers notes the peers' sessions, and which tunnel they use.
func (r *Reconciler) lookAtPeers() error {
	if tunnels := r.desired.Tunnels; len(tunnels) != 2 {
		return r.look(func(visit func(*state.ObservedPeer)) error { return r.Device.EachPeer(tunnels[0].Slot, visit) })
	}
	return r.lookAtSlots(r.desired.Tunnels[0].Slot, r.desired.Tunnels[1].Slot)
}

// lookAtSlots does so for two tunnels, the older one first.
func (r *Reconciler) lookAtSlots(slots ...key.Slot) error {
	var both [2]map[key.Public]state.ObservedPeer
	for i, slot := range slots {
		both[i] = map[key.Public]state.ObservedPeer{}
		err := r.Device.EachPeer(slot, func(p *state.ObservedPeer) {
			both[i][p.PublicKey] = state.ObservedPeer{
				Peer:          state.Peer{PublicKey: p.PublicKey, Endpoint: p.Endpoint},
				LastHandshake: p.LastHandshake, ReceiveBytes: p.ReceiveBytes, TransmitBytes: p.TransmitBytes,
			}
		})
		if err != nil {
			return err
		}
	}
	return r.lookAtBoth(both[0], both[1])
}

// takeOver notes what a predecessor left: the kernel's tunnels outlive an agent,
// and routes that peers have moved to must not be taken for somebody else's doing.
func (r *Reconciler) takeOver() error {
	ids := state.Identities(r.snapshot, r.Now())
	if r.applied != nil || len(ids) != 2 {
		return nil
	}
	return r.lookAtSlots(ids[0].Slot, ids[1].Slot)
}

func (r *Reconciler) lookAtBoth(first, second map[key.Public]state.ObservedPeer) error {
	r.moved = state.Moved(first, second)
	return r.look(state.Each(state.Latest(first, second)))
}

// observe reads the system. Whatever cannot be seen does not count as there.
func (r *Reconciler) observe() error {
	r.observed = state.Observed{}
	o, err := r.Device.Observe()
	if err != nil {
		return fmt.Errorf("observe the device: %w", err)
	}
	o.FirewallInPlace, err = r.Firewall.InPlace(r.desired.Firewall)
	if err != nil {
		return fmt.Errorf("observe the firewall: %w", err)
	}
	if tunnels := r.desired.Tunnels; len(tunnels) == 2 {
		err = r.lookAtBoth(o.Tunnels[tunnels[0].Slot].Device.Peers, o.Tunnels[tunnels[1].Slot].Device.Peers)
	} else {
		r.moved = nil
		err = r.look(state.Each(o.Tunnels[tunnels[0].Slot].Device.Peers))
	}
	if err != nil {
		return err
	}
	for _, t := range o.Tunnels {
		for k, p := range t.Device.Peers {
			if r.sessions.Of(k).Activity == state.Dead {
				p.Lost = true
				t.Device.Peers[k] = p
			}
		}
	}
	r.observed = o
	return nil
}
