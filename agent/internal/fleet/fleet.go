package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// Options of a [Fleet].
type Options struct {
	// Name of this replica, that of its Pod.
	Name string
	// Address is where siblings reach it: the Pod's.
	Address netip.AddrPort
	// Join are names and addresses at which siblings may be found, with or without
	// a port. Names are looked up again and again.
	Join []string
	// Initial is the configuration that the gateway starts with.
	Initial *spec.Snapshot
	// Inherited are the sessions that the device was taken over with, one of each peer: who
	// it is with, when it was made, the port and the peer's address. The index is not known.
	Inherited []Session
	// Link is this replica's end of the link to its siblings; nil: none.
	Link *state.LinkConfig
	// Memory is a file for what the next process in this Pod should know; "": none.
	Memory string
	// Watch changes the indices to be told of.
	Watch func(add, remove []uint32) error
	// Moving is called when peers move between replicas, or are about to, as often as that
	// is; nil: nobody wants to know.
	Moving func()
	Log    *slog.Logger
}

// Fleet is a replica among its siblings. Its methods may be called from several
// goroutines.
type Fleet struct {
	options Options
	ring    *memberlist.Keyring
	list    *memberlist.Memberlist
	queue   *memberlist.TransmitLimitedQueue

	mu        sync.Mutex
	replica   *Replica
	receivers *receivers
	slots     map[uint16]key.Slot // by port
	snapshot  *spec.Snapshot
	keys      []key.Private // in the ring, the one in use last
	siblings  map[string]sibling
	draining  bool
	view      *state.Fleet    // nil: to be made anew
	add       []uint32        // for Watch
	drop      map[uint32]bool // likewise, when there is time
	names     map[key.Public]string

	changed chan struct{}
	came    chan struct{} // peers, here
	moved   chan struct{} // members came or went
	watch   chan struct{}
	made    chan struct{} // sessions of ours
	calls   chan state.Call
	outbox  chan []Session

	adopted, yielded, called        atomic.Uint64
	refusedPackets, refusedMessages refusals
	done                            sync.WaitGroup
	stop                            context.CancelFunc
}

// sibling is another replica, alive or lately gone.
type sibling struct {
	node  *memberlist.Node
	meta  meta
	state MemberState
	since time.Time
}

// MemberState says how a replica is.
type MemberState string

// The states.
const (
	Alive    MemberState = "alive"
	Draining MemberState = "draining" // serves on, and is about to leave
	Dead     MemberState = "dead"     // does not answer
	Left     MemberState = "left"     // said goodbye
)

const (
	// remembered is for how long those that are gone are shown.
	remembered = time.Minute
	// joinEvery is how often to look for siblings, and joinAlone where none is known.
	joinEvery, joinAlone = 10 * time.Second, time.Second
	tickEvery            = time.Second
	// callsQueued are waiting for the loop; more are dropped, since packets of the
	// same peers ask for them again.
	callsQueued = 16384
	// keyLasts is for how long siblings are understood by a server key that clients may
	// not use any more: their clocks may be behind.
	keyLasts = time.Minute
	// sendRest is how long to wait with the next message after one: where many peers come
	// at once, one message tells of several. Short against betweenCalls.
	sendRest = 5 * time.Millisecond
	// leaveWithin is how long to take for a goodbye.
	leaveWithin = time.Second
	// gossipMost bounds the sessions that wait to be gossiped: what a second or two can
	// carry. All siblings were told of them directly, too.
	gossipMost = 4096
)

// Start joins the fleet, or founds it where nobody is there. It looks for siblings
// once before it returns, so that what they know is known from the first packet on.
func Start(ctx context.Context, o Options) (*Fleet, error) {
	ctx, stop := context.WithCancel(ctx)
	f := &Fleet{
		options: o, replica: NewReplica(o.Name, len(o.Inherited) > 0), siblings: map[string]sibling{}, drop: map[uint32]bool{},
		changed: make(chan struct{}, 1), came: make(chan struct{}, 1), moved: make(chan struct{}, 1), watch: make(chan struct{}, 1), made: make(chan struct{}, 1), calls: make(chan state.Call, callsQueued),
		outbox: make(chan []Session, 1024), stop: stop,
	}
	var err error
	if f.ring, err = memberlist.NewKeyring(nil, nil); err != nil {
		stop()
		return nil, err
	}
	f.Unseen(o.Inherited)
	f.options.Inherited = nil // it is large
	f.Configure(o.Initial)
	f.remember()
	f.queue = &memberlist.TransmitLimitedQueue{NumNodes: f.replicas, RetransmitMult: sessionRetransmits}
	network, err := listenAt(o.Address)
	if err != nil {
		stop()
		return nil, fmt.Errorf("fleet: listening on %s: %w", o.Address, err)
	}
	if f.list, err = memberlist.Create(f.config(network)); err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("fleet: %w", err), network.Shutdown())
	}
	first, cancel := context.WithTimeout(ctx, joinWithin)
	_ = f.join(first) // again and again, see keepJoining
	cancel()
	f.done.Go(func() { f.keepJoining(ctx) })
	f.done.Go(func() { f.tick(ctx) })
	f.done.Go(func() { f.watchStrangers(ctx) })
	f.done.Go(func() { f.send(ctx) })
	if o.Memory != "" {
		f.done.Go(func() { f.keepMemory(ctx) })
	}
	return f, nil
}

// Close leaves the fleet: siblings take it for gone at once, and not for dead.
func (f *Fleet) Close() error {
	err := f.list.Leave(leaveWithin)
	f.stop()
	f.done.Wait()
	return errors.Join(err, f.list.Shutdown())
}

// Unseen takes the sessions of a device that was taken over once more, as in
// [Options.Inherited]: handshakes were under way then.
func (f *Fleet) Unseen(made []Session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replica.Unseen(made)
}

// Configure takes up a configuration: peers and server keys.
func (f *Fleet) Configure(s *spec.Snapshot) {
	keys := make([]key.Public, len(s.Peers))
	peers := make([]Peer, len(s.Peers))
	names := make(map[key.Public]string, len(s.Peers))
	for i := range s.Peers {
		p := &s.Peers[i]
		keys[i], names[p.PublicKey] = p.PublicKey, p.Name
		peers[i] = Peer{PublicKey: p.PublicKey, Site: !p.Endpoint.IsZero()}
	}
	known := newReceivers(keys)
	f.do(func(now time.Time) Effects {
		f.snapshot, f.receivers, f.names = s, known, names
		f.slots = map[uint16]key.Slot{s.Gateway.ListenPort(key.Green): key.Green, s.Gateway.ListenPort(key.Blue): key.Blue}
		f.useKeys(now)
		return f.replica.Configure(peers)
	})
}

// useKeys puts the keys of the snapshot into the ring, where they have changed: clocks are
// apart, and so a sibling may write with a key that we do not answer to yet, or no more.
func (f *Fleet) useKeys(now time.Time) {
	keys, overlap := f.snapshot.ServerKeys, f.snapshot.Gateway.KeyRotation.Server.Overlap
	all := make([]key.Private, 0, len(keys)+1)
	for i, k := range keys {
		if next := i + 1; next == len(keys) || now.Before(keys[next].From.Add(overlap+keyLasts)) {
			all = append(all, k.Key)
		}
	}
	use := state.InForce(state.Identities(f.snapshot, now), now).Key
	all = append(all, use)
	if slices.Equal(all, f.keys) {
		return
	}
	if err := setKeys(f.ring, all, use); err != nil {
		f.options.Log.Error("cannot use the server key for messages of the fleet", "error", err)
		return
	}
	f.keys = all
}

// do runs an event through the replica and carries out what follows.
func (f *Fleet) do(event func(now time.Time) Effects) {
	now := time.Now()
	f.mu.Lock()
	e := event(now)
	if e.Elsewhere || e.Calling {
		f.view = nil
	}
	f.add = append(f.add, e.Strangers...)
	for _, index := range e.Known {
		f.drop[index] = true
	}
	for _, index := range e.Strangers {
		delete(f.drop, index)
	}
	f.ask(e.Calls)
	names := f.names
	f.mu.Unlock()

	if e.Elsewhere {
		wake(f.changed)
	}
	if len(e.Adopted) > 0 {
		wake(f.came)
	}
	if len(e.Strangers) > 0 {
		wake(f.watch) // what is known can wait for the next tick
	}
	if len(e.Publish)+len(e.Yielded) > 0 {
		wake(f.made)
	}
	if len(e.Adopted)+len(e.Yielded) > 0 || slices.ContainsFunc(e.Calls, Call.isHandshake) {
		f.moving()
	}
	for _, m := range e.Reminders {
		time.AfterFunc(m.After, func() { f.do(func(now time.Time) Effects { return f.replica.Remind(m, now) }) })
	}
	f.publish(e)
	f.recall(e.Recall)
	f.refusedPackets.count(string(e.Refused))
	for _, c := range e.Adopted {
		f.adopted.Add(1)
		f.options.Log.Info("peer adopted", "peer", names[c.Peer], "from", c.Sibling)
	}
	for _, c := range e.Yielded {
		f.yielded.Add(1)
		f.options.Log.Info("peer went to another replica", "peer", names[c.Peer], "to", c.Sibling)
	}
}

// ask has calls made. The lock is held, so that they are in the order of events: to fall
// silent before the call that is meant would be to call for good.
func (f *Fleet) ask(calls []Call) {
	for _, c := range calls {
		f.receivers.expect(c.Peer, c.Endpoint)
		for _, one := range f.callOf(c) {
			select {
			case f.calls <- one:
				if c.isHandshake() {
					f.called.Add(1)
				}
			default:
			}
		}
	}
}

// callOf is a call by all slots that it is for.
func (f *Fleet) callOf(c Call) []state.Call {
	call := state.Call{Peer: c.Peer, Endpoint: c.Endpoint, Nudge: c.Nudge, Silence: c.Silence}
	if c.Port != 0 {
		slot, ok := f.slots[c.Port]
		if !ok {
			return nil
		}
		call.Slot = slot
		return []state.Call{call}
	}
	var out []state.Call
	for _, id := range state.Identities(f.snapshot, time.Now()) {
		call.Slot = id.Slot
		out = append(out, call)
	}
	return out
}

func (f *Fleet) moving() {
	if f.options.Moving != nil {
		f.options.Moving()
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it was said already, and not heard yet
	}
}

// pause waits, and reports whether ctx is still good after that.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Changed says that [Fleet.State] is another one.
func (f *Fleet) Changed() <-chan struct{} { return f.changed }

// Came says that peers have come here, which Changed says, too.
func (f *Fleet) Came() <-chan struct{} { return f.came }

// MembersChanged says that [Fleet.Members] are others, or in another state.
func (f *Fleet) MembersChanged() <-chan struct{} { return f.moved }

// Calls are the handshakes to be made.
func (f *Fleet) Calls() <-chan state.Call { return f.calls }

// State is what the tunnels follow from: the same pointer until something changes.
func (f *Fleet) State() *state.Fleet {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		f.view = &state.Fleet{Elsewhere: f.replica.Elsewhere(), Calling: f.replica.Calling(), Siblings: f.linked(), Link: f.options.Link}
	}
	return f.view
}

// Drain tells the siblings that this replica is about to leave.
func (f *Fleet) Drain() {
	f.mu.Lock()
	f.draining = true
	f.mu.Unlock()
	f.moving()
	f.membersChanged()
	if err := f.list.UpdateNode(leaveWithin); err != nil {
		f.options.Log.Warn("siblings were not told that this replica leaves", "error", err)
	}
}

// Forgot says that the device was made to forget peers, to fall silent towards them.
func (f *Fleet) Forgot(peers []key.Public) {
	f.do(func(now time.Time) Effects { return f.replica.Forgot(peers, now) })
}

// IsOver reports whether the peer of a call has come by itself meanwhile: to call it now
// would end its session.
func (f *Fleet) IsOver(c state.Call) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.replica.IsOver(Call{Peer: c.Peer, Endpoint: c.Endpoint, Nudge: c.Nudge})
}

// HandOver asks the siblings to call the connected peers that are still here: those
// that send nothing, and those that no load balancer moves.
func (f *Fleet) HandOver() {
	now := time.Now()
	f.mu.Lock()
	offers := f.replica.Offers(now)
	to := make(map[string]*memberlist.Node, len(offers))
	for name := range offers {
		to[name] = f.siblings[name].node
	}
	f.mu.Unlock()
	for name, sessions := range offers {
		if to[name] == nil {
			continue
		}
		if err := f.list.SendReliable(to[name], encodeAs(wireOffer, sessions, now)); err != nil {
			f.options.Log.Warn("cannot hand peers over", "replica", name, "peers", len(sessions), "error", err)
			continue
		}
		f.options.Log.Info("peers handed over", "replica", name, "peers", len(sessions))
	}
}

// Held is the number of connected peers that have their session here.
func (f *Fleet) Held() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.replica.Held(time.Now())
}

// Alone reports whether there is no sibling that could take peers over.
func (f *Fleet) Alone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.siblings {
		if s.state == Alive {
			return false
		}
	}
	return true
}

// tick forgets what is over, once a second.
func (f *Fleet) tick(ctx context.Context) {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		f.prune()
		f.do(func(now time.Time) Effects {
			f.useKeys(now)
			for name, s := range f.siblings {
				if gone := s.state == Dead || s.state == Left; gone && now.Sub(s.since) > remembered {
					delete(f.siblings, name)
				}
			}
			if len(f.drop) > 0 {
				wake(f.watch)
			}
			e := f.replica.Tick(now)
			e.Known = nil // those that are over: the kernel forgets them by itself
			return e
		})
	}
}

// Counts are for metrics.
func (f *Fleet) Counts() telemetry.FleetCounts {
	packets := f.refusedPackets.of()
	for _, r := range Refusals() {
		packets[string(r)] += 0
	}
	messages := f.refusedMessages.of()
	for _, r := range []string{refusedEncryption, refusedMalformed} {
		messages[r] += 0
	}
	return telemetry.FleetCounts{
		Adopted: f.adopted.Load(), Yielded: f.yielded.Load(), Calls: f.called.Load(),
		RefusedPackets: packets, RefusedMessages: messages,
	}
}
