// Package reconcile is the loop that keeps the device equal to the files. An
// event says only 'something may have changed'; a run always does the whole
// flow: read, load, build, observe, diff, apply, observe again.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// Device is the tunnels; package device has the real ones. What fails at one of them
// is a [state.TunnelError].
type Device interface {
	Observe() (state.Observed, error)
	// EachPeer calls visit for every peer of a tunnel, in memory that is used again.
	EachPeer(tunnel key.Slot, visit func(*state.ObservedPeer)) error
	Apply(plan.Plan) error
}

// Firewall is the nftables table; package firewall has the real one.
type Firewall interface {
	InPlace(state.Firewall) (bool, error)
	Apply(plan.Firewall) error
}

// Fleet is the other replicas; package fleet has the real one.
type Fleet interface {
	// Configure takes up a snapshot that the gateway converges to.
	Configure(*spec.Snapshot)
	// State returns the same pointer until something changes, which Changed says.
	State() *state.Fleet
	Changed() <-chan struct{}
	// Came says that peers have come here, and wait for a route.
	Came() <-chan struct{}
	// Calls are handshakes to be made at once.
	Calls() <-chan state.Call
	// IsOver says of a call that it must not be made any more.
	IsOver(state.Call) bool
	// Forgot says whose sessions are gone with what was just applied.
	Forgot([]key.Public)
}

// Options of a [Reconciler].
type Options struct {
	// Initial is the snapshot that the device was opened for, of Files.
	Initial *spec.Snapshot
	Files   spec.Files
	// Read returns the files as they are now, and Load parses them.
	Read     func() (spec.Files, error)
	Load     func(spec.Files) (*spec.Snapshot, error)
	Device   Device
	Firewall Firewall
	// Uplink tells the way to the Internet, for the MTU.
	Uplink func() (state.Uplink, error)
	// Resolve looks up the name of a peer's endpoint, the best address first.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)

	// Resync is how often to run without an event; Sessions how often to look
	// at the peers' handshakes in between.
	Resync, Sessions time.Duration
	// Handshakes says that some peer has shaken hands; nil where nothing says so.
	Handshakes <-chan struct{}
	// Fleet is what the other replicas do; nil where there are none.
	Fleet       Fleet
	Now         func() time.Time
	Log         *slog.Logger
	Instruments *telemetry.Instruments
	// Base holds what does not change: version, interface, data plane.
	Base telemetry.Status
	// Published, where not nil, is called after every new status.
	Published func(telemetry.Status)
	// Reloading, where not nil, is called before files are parsed and put in
	// force, and what it returns after that: it makes much more garbage than what
	// stays of it.
	Reloading func() (done func())
}

// Reconciler owns all state between two runs. Only [Reconciler.Status] and
// [Reconciler.Drain] may be called from another goroutine than Run's.
type Reconciler struct {
	Options

	opened    spec.Gateway   // what the device was opened for
	snapshot  *spec.Snapshot // the last good one
	peerNames map[key.Public]string
	// formerNames are those that the snapshot before had and this one has not.
	formerNames map[key.Public]string
	inForce     fingerprint    // of the snapshot's files
	files       fingerprint    // of the last reading, good or bad
	pending     bool           // the snapshot has not been applied in full yet
	generation  uint64         // snapshots applied
	applied     *state.Desired // the last one applied in full, nil before the first
	// tableInDoubt is set while an apply is under way, and after one failed.
	tableInDoubt bool
	uplink       state.Uplink   // the last one that there was
	observed     state.Observed // after the last run
	inputs       state.Inputs   // of desired
	desired      state.Desired
	sessions     state.Sessions
	// moved are the peers that use the second tunnel.
	moved    map[key.Public]bool
	reloads  telemetry.Reloads
	runError error
	// secondError is why the second of two tunnels is not as it should be. The first
	// serves on, and so this is no error of the run.
	secondError  error
	toldOfSecond string // the last such error that was logged
	// interlinkError is why packets are not passed on to other replicas.
	interlinkError  error
	toldOfInterlink string
	// announced is the public key that was last said to be in force.
	announced key.Public
	resolver  *resolver
	// stages of the run under way, and when its current one began.
	stages     []telemetry.Stage
	stageStart time.Time
	// reloaded is called at the end of the run under way, where not nil.
	reloaded func()

	draining atomic.Bool
	drain    atomic.Int64 // nanoseconds
	lastRun  atomic.Int64 // UNIX nanoseconds of its end
	status   atomic.Pointer[telemetry.Status]
	// publishing keeps an older status from being published after a newer one.
	publishing sync.Mutex
}

// New returns a reconciler that has not run yet.
func New(o Options) *Reconciler {
	r := &Reconciler{Options: o, opened: o.Initial.Gateway, resolver: newResolver(o.Resolve, o.Now)}
	r.files = fingerprintOf(o.Files)
	r.adopt(o.Initial, r.files)
	r.Initial, r.Files = nil, nil // megabytes, where there are many peers
	r.lastRun.Store(o.Now().UnixNano())
	r.publish()
	return r
}

// Run runs at once, then after every event and every Resync, until ctx is
// done. A failed run is tried again, first after a second, later less often.
// The error is that of the first run: without it there is nothing to keep.
func (r *Reconciler) Run(ctx context.Context, changed <-chan struct{}) error {
	r.run(ctx, "start")
	if r.runError != nil {
		return fmt.Errorf("first run: %w", r.runError)
	}
	e := r.events(changed)
	defer e.stop()
	backoff := newBackoff(time.Second, r.Resync)
	for {
		ran := r.next(ctx, e)
		if ctx.Err() != nil {
			return nil
		}
		if !ran {
			continue
		}
		if !maps.Equal(r.moved, r.inputs.Moved) {
			r.run(ctx, "peers moved")
		}
		e.keys.Reset(r.untilNextKey())
		e.retry = nil
		if r.runError != nil || r.secondError != nil || r.interlinkError != nil {
			e.retry = time.After(backoff.next())
		} else {
			backoff.reset()
		}
	}
}

// events are what the loop waits for.
type events struct {
	changed          <-chan struct{}
	resync, sessions *time.Ticker
	keys             *time.Timer
	retry            <-chan time.Time
	follow           follower
	// Of the fleet; nil where there is none, and replicas and came while they rest.
	calls                      <-chan state.Call
	replicas, came             <-chan struct{}
	resumeReplicas, resumeCame <-chan time.Time
}

func (r *Reconciler) events(changed <-chan struct{}) *events {
	e := &events{
		changed: changed, resync: time.NewTicker(r.Resync), sessions: time.NewTicker(r.Sessions),
		keys: time.NewTimer(r.untilNextKey()),
	}
	if r.Fleet != nil {
		e.replicas, e.came, e.calls = r.Fleet.Changed(), r.Fleet.Came(), r.Fleet.Calls()
	}
	return e
}

func (e *events) stop() {
	e.resync.Stop()
	e.sessions.Stop()
	e.keys.Stop()
}

// next waits for an event and does what it asks for. It reports whether that took a
// whole run.
func (r *Reconciler) next(ctx context.Context, e *events) (ran bool) {
	select { // a client waits for a route
	case <-e.resumeCame:
		e.came = r.Fleet.Came()
		return false
	case <-e.came:
		return r.followReplicas(ctx, e)
	default:
	}
	select { // a client waits for a handshake
	case c := <-e.calls:
		r.call(c, e.calls)
		return false
	default:
	}
	reason := ""
	select {
	case <-ctx.Done():
		return false
	case c := <-e.calls:
		r.call(c, e.calls)
		return false
	case <-e.resumeCame:
		e.came = r.Fleet.Came()
		return false
	case <-e.resumeReplicas:
		e.replicas = r.Fleet.Changed()
		return false
	case <-e.came:
		return r.followReplicas(ctx, e)
	case <-e.replicas:
		return r.followReplicas(ctx, e)
	case <-e.sessions.C:
		return r.watchSessions(ctx)
	case <-r.Handshakes:
		e.follow.seen()
		return false
	case <-e.follow.C():
		start := time.Now()
		ran = r.watchSessions(ctx)
		e.follow.looked(time.Since(start))
		return ran
	case <-e.keys.C:
		reason = "keys"
	case <-e.changed:
		reason = "files"
	case <-r.resolver.resolved:
		reason = "endpoints"
	case <-e.resync.C:
		reason = "resync"
	case <-e.retry:
		reason = "retry"
	}
	r.run(ctx, reason)
	return true
}

// Drain makes the gateway unready from now on, while everything else goes on,
// and returns for how long to serve still (server.drain).
func (r *Reconciler) Drain() time.Duration {
	r.draining.Store(true)
	r.announce()
	return time.Duration(r.drain.Load())
}

// untilNextKey is the time until some key's time comes, by the clock as it goes
// now. Where it is set forward meanwhile, the next resync notices.
func (r *Reconciler) untilNextKey() time.Duration {
	now := r.Now()
	next := state.NextChange(r.snapshot, now)
	if next.IsZero() {
		return 24 * time.Hour
	}
	return next.Sub(now)
}

// look logs what peers did since the last look.
func (r *Reconciler) look(each func(func(*state.ObservedPeer)) error) error {
	events, err := r.sessions.Look(each, r.Now())
	if len(events) == 0 {
		return err
	}
	r.Instruments.CountEvents(events)
	names := r.peerNames
	if len(r.formerNames) > 0 {
		names = maps.Clone(names)
		maps.Copy(names, r.formerNames)
	}
	telemetry.LogEvents(r.Log, events, names)
	return err
}

// backoff doubles a delay up to a limit.
type backoff struct{ first, most, current time.Duration }

func newBackoff(first, most time.Duration) *backoff { return &backoff{first: first, most: most} }

func (b *backoff) next() time.Duration {
	b.current = min(max(b.first, 2*b.current), b.most)
	return b.current
}

func (b *backoff) reset() { b.current = 0 }
