package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"
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

// followRest is how long to leave the tunnels alone after peers have moved to or from
// other replicas. Where a replica leaves, hundreds move within a moment, and to take up
// many at once costs hardly more than one: time that those who wait for a handshake need.
// Those that have come here wait for a route, too; the others are served elsewhere.
func followRest(took time.Duration) (came, others time.Duration) {
	rest := (followShare - 1) * took
	return min(max(rest, 15*time.Millisecond), 25*time.Millisecond), min(max(rest, 60*time.Millisecond), 100*time.Millisecond)
}

// followReplicas takes up who has moved to or from other replicas. It reports whether that
// took a whole run.
func (r *Reconciler) followReplicas(ctx context.Context, e *events) (ran bool) {
	for _, said := range []<-chan struct{}{r.Fleet.Came(), r.Fleet.Changed()} {
		select {
		case <-said:
		default:
		}
	}
	start := time.Now()
	followed := r.follow()
	came, others := followRest(time.Since(start))
	e.came, e.resumeCame = nil, time.After(came)
	e.replicas, e.resumeReplicas = nil, time.After(others)
	if !followed {
		r.run(ctx, "replicas")
	}
	return !followed
}

// follower says when to look. Its zero value has nothing to look for.
type follower struct {
	timer *time.Timer
	due   time.Time
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

// arm plans a look and those after it. One that is due before stays.
func (f *follower) arm(delay time.Duration, left []time.Duration) {
	f.left = left
	due := time.Now().Add(max(delay, time.Until(f.rest)))
	if f.timer != nil {
		if !due.Before(f.due) {
			return
		}
		f.timer.Stop()
	}
	f.due, f.timer = due, time.NewTimer(time.Until(due))
}

// watchSessions looks at the peers between two runs, and moves routes to those that
// have moved to the other tunnel. It reports whether that took a whole run.
func (r *Reconciler) watchSessions(ctx context.Context) (ran bool) {
	if !r.sameSlots() {
		r.run(ctx, "keys")
		return true
	}
	if err := r.lookAtPeers(); err != nil {
		r.Log.Error("cannot read the device", "error", err)
		return false
	}
	if !maps.Equal(r.moved, r.inputs.Moved) && !r.follow() {
		r.run(ctx, "peers moved")
		return true
	}
	r.publish()
	return false
}

// follow takes up which peers have moved, to the other tunnel or to another replica, and
// looks at nothing else: a whole run takes many times as long, and where many clients move
// at once, all of them wait for it. Where it returns false, a whole run is to do it.
func (r *Reconciler) follow() bool {
	if r.applied == nil || r.runError != nil || r.secondError != nil || r.tableInDoubt {
		return false
	}
	r.inputs.Now, r.inputs.Moved, r.inputs.Fleet = r.Now(), r.moved, r.fleet()
	r.desired = state.Build(r.inputs)
	noLink := r.interlinkError != nil // and is being tried again
	if err := r.apply(r.withoutFault(plan.Changes(r.desired, *r.applied))); err != nil {
		r.Log.Warn("cannot move routes alone, comparing everything", "error", err)
		return false
	}
	return r.secondError == nil && (noLink || r.interlinkError == nil)
}

// fleet is what the other replicas do.
func (r *Reconciler) fleet() *state.Fleet {
	if r.Fleet == nil {
		return nil
	}
	return r.Fleet.State()
}

// callsAtOnce bounds how many calls are made before it is looked who else waits.
const callsAtOnce = 16

// call begins handshakes: that which is asked for, and what else is waiting.
func (r *Reconciler) call(first state.Call, waiting <-chan state.Call) {
	calls := []state.Call{first}
	for more := true; more && len(calls) < callsAtOnce; {
		select {
		case c := <-waiting:
			calls = append(calls, c)
		default:
			more = false
		}
	}
	calls = slices.DeleteFunc(calls, r.Fleet.IsOver)
	if err := r.Device.Apply(plan.Calls(r.desired, calls)); err != nil {
		r.Log.Warn("cannot call peers, which try again by themselves", "peers", len(calls), "error", err)
	}
}

// sameSlots reports whether the server keys that are answered to are in the slots
// that they were in when the desired state was built: who has moved is said of the
// second of two.
func (r *Reconciler) sameSlots() bool {
	return slices.EqualFunc(state.Identities(r.snapshot, r.Now()), r.desired.Tunnels,
		func(id state.Identity, t state.Tunnel) bool { return id.Slot == t.Slot })
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
		if err != nil && i == 0 {
			return err
		}
		if err != nil {
			both[i] = nil // a run says what is wrong with it
		}
	}
	return r.lookAtBoth(both[0], both[1])
}

// lookAnew finds out who has moved where there are other slots than before, or where
// a predecessor left two tunnels, as the kernel's are: routes that peers have moved
// to must not be taken for somebody else's doing.
func (r *Reconciler) lookAnew() error {
	ids := state.Identities(r.snapshot, r.Now())
	switch {
	case len(ids) != 2:
		r.moved = nil
		return nil
	case r.applied != nil && r.sameSlots():
		return nil
	}
	return r.lookAtSlots(ids[0].Slot, ids[1].Slot)
}

func (r *Reconciler) lookAtBoth(first, second map[key.Public]state.ObservedPeer) error {
	now := r.Now() // after the reading
	r.moved = state.Moved(first, second, now)
	return r.look(state.Each(state.Latest(first, second, now)))
}

// second is the slot of the newer of two server keys.
func (r *Reconciler) second() (s key.Slot, ok bool) {
	if len(r.desired.Tunnels) != 2 {
		return "", false
	}
	return r.desired.Tunnels[1].Slot, true
}

// observe reads the system. Whatever cannot be seen does not count as there.
func (r *Reconciler) observe() error {
	r.observed = state.Observed{}
	o, err := r.Device.Observe()
	if err := r.spare(err); err != nil {
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
