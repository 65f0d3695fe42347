package reconcile

import (
	"context"
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

const (
	resolveEvery   = time.Minute     // sites with dynamic addresses change theirs
	resolveTimeout = 5 * time.Second // for one name
)

// resolver keeps the addresses of endpoints that are written as names. A run
// never waits for DNS: it takes what is known, and an answer that changes
// anything schedules another run.
type resolver struct {
	query    func(ctx context.Context, host string) (netip.Addr, error)
	now      func() time.Time
	known    map[spec.Endpoint]netip.AddrPort
	answers  chan map[spec.Endpoint]netip.AddrPort
	resolved chan struct{}
	busy     bool
	last     time.Time
}

func newResolver(query func(context.Context, string) (netip.Addr, error), now func() time.Time) *resolver {
	return &resolver{
		query: query, now: now,
		known:    map[spec.Endpoint]netip.AddrPort{},
		answers:  make(chan map[spec.Endpoint]netip.AddrPort, 1),
		resolved: make(chan struct{}, 1),
	}
}

// lookup returns what is known and asks anew for what is missing or old.
func (r *resolver) lookup(ctx context.Context, s *spec.Snapshot) map[spec.Endpoint]netip.AddrPort {
	select {
	case answers := <-r.answers:
		r.busy = false
		for e, a := range answers {
			r.known[e] = a // a failed look-up keeps the last answer
		}
	default:
	}
	var names []spec.Endpoint
	missing := false
	for _, p := range s.Peers {
		if _, literal := p.Endpoint.AddrPort(); literal || p.Endpoint.IsZero() {
			continue
		}
		names = append(names, p.Endpoint)
		_, known := r.known[p.Endpoint]
		missing = missing || !known
	}
	old := r.now().Sub(r.last) >= resolveEvery
	if len(names) > 0 && !r.busy && (old || missing && r.now().Sub(r.last) >= resolveTimeout) {
		r.busy, r.last = true, r.now()
		go r.ask(ctx, names)
	}
	return r.known
}

func (r *resolver) ask(ctx context.Context, names []spec.Endpoint) {
	answers := make(map[spec.Endpoint]netip.AddrPort, len(names))
	for _, e := range names {
		one, cancel := context.WithTimeout(ctx, resolveTimeout)
		if a, err := r.query(one, e.Host); err == nil {
			answers[e] = netip.AddrPortFrom(a.Unmap(), e.Port)
		}
		cancel()
	}
	r.answers <- answers
	select {
	case r.resolved <- struct{}{}:
	default:
	}
}
