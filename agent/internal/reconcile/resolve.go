package reconcile

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

const (
	resolveEvery   = time.Minute     // sites with dynamic addresses change theirs
	resolveRetry   = 5 * time.Second // for a name without an answer so far
	resolveTimeout = 5 * time.Second // for one query
	resolveAtOnce  = 8               // queries under way
)

// resolver keeps the addresses of endpoints that are written as names. A run
// never waits for DNS: it takes what is known, and an answer that changes
// anything schedules another run.
type resolver struct {
	query    func(ctx context.Context, host string) ([]netip.Addr, error)
	now      func() time.Time
	slots    chan struct{}
	resolved chan struct{} // receives after something has changed

	mu    sync.Mutex
	known map[spec.Endpoint]netip.AddrPort
	asked map[spec.Endpoint]time.Time // when last
}

func newResolver(query func(context.Context, string) ([]netip.Addr, error), now func() time.Time) *resolver {
	return &resolver{
		query: query, now: now,
		slots:    make(chan struct{}, resolveAtOnce),
		resolved: make(chan struct{}, 1),
		known:    map[spec.Endpoint]netip.AddrPort{},
		asked:    map[spec.Endpoint]time.Time{},
	}
}

// lookup returns what is known and asks anew for what is missing or old.
func (r *resolver) lookup(ctx context.Context, s *spec.Snapshot) map[spec.Endpoint]netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[spec.Endpoint]netip.AddrPort{}
	for i := range s.Peers {
		e := s.Peers[i].Endpoint
		if e.IsZero() {
			continue
		}
		if _, literal := e.AddrPort(); literal {
			continue
		}
		pause := resolveRetry
		if known, ok := r.known[e]; ok {
			out[e], pause = known, resolveEvery
		}
		if r.now().Sub(r.asked[e]) >= pause {
			r.asked[e] = r.now()
			go r.ask(ctx, e)
		}
	}
	return out
}

// ask looks one name up. An address that is still among the answers stays the
// one: names with several would move a live session with every query. A query
// that fails changes nothing.
func (r *resolver) ask(ctx context.Context, e spec.Endpoint) {
	r.slots <- struct{}{}
	defer func() { <-r.slots }()
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	answers, err := r.query(ctx, e.Host)
	if err != nil || len(answers) == 0 {
		return
	}
	for i := range answers {
		answers[i] = answers[i].Unmap()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(answers, r.known[e].Addr()) {
		return
	}
	r.known[e] = netip.AddrPortFrom(answers[0], e.Port)
	select {
	case r.resolved <- struct{}{}:
	default:
	}
}
