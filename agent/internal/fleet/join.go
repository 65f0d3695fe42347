package fleet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

const (
	// lookUpWithin is for a name's addresses, joinWithin for the first round of all.
	lookUpWithin = 2 * time.Second
	joinWithin   = time.Second
	// warnAfter is for how long siblings may be out of reach without a warning: Pods start
	// and die, and the cluster's DNS hears of it later.
	warnAfter = 30 * time.Second
)

// join looks for siblings once. It returns when all that were found have answered, or
// will not, or when ctx ends. The error says whom it has not found.
func (f *Fleet) join(ctx context.Context) error {
	known := map[netip.Addr]bool{f.options.Address.Addr(): true}
	f.mu.Lock()
	for _, s := range f.siblings {
		if s.state == Alive || s.state == Draining {
			known[addressOf(s.node)] = true
		}
	}
	f.mu.Unlock()
	var all sync.WaitGroup
	failures := make(chan error, 1)
	fail := func(err error) {
		select {
		case failures <- err:
		default: // one is enough to be told of
		}
	}
	for _, where := range f.options.Join {
		all.Go(func() {
			addresses, err := f.lookUp(ctx, where)
			if err != nil {
				fail(fmt.Errorf("looking up %s: %w", where, err))
			}
			for _, address := range addresses {
				if known[address.Addr()] {
					continue
				}
				// Each by itself: who has just died must not keep others from answering.
				all.Go(func() {
					if _, err := f.list.Join([]string{address.String()}); err != nil {
						fail(fmt.Errorf("joining %s: %w", address, err))
					}
				})
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

// lookUp returns the addresses of one of [Options.Join].
func (f *Fleet) lookUp(ctx context.Context, where string) ([]netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(where)
	number, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil {
		host, number = where, uint64(f.options.Address.Port())
	}
	ctx, cancel := context.WithTimeout(ctx, lookUpWithin)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	out := make([]netip.AddrPort, len(addresses))
	for i, a := range addresses {
		out[i] = netip.AddrPortFrom(a.Unmap(), uint16(number))
	}
	return out, err
}

// keepJoining looks for siblings again and again. Where that goes wrong for long, replicas
// may be ready that do not know each other, which nothing else tells: there is a warning.
func (f *Fleet) keepJoining(ctx context.Context) {
	var failing trouble
	for {
		every := joinEvery
		if f.replicas() == 1 {
			every = joinAlone
		}
		if !pause(ctx, every) {
			return
		}
		err := f.join(ctx)
		if ctx.Err() != nil {
			return
		}
		switch failing.note(err, time.Now()) {
		case lasts:
			f.options.Log.Warn("replicas of this gateway are out of reach: do NetworkPolicies allow the cluster's DNS and the fleet's port between them?", "error", err)
		case over:
			f.options.Log.Info("no replica of this gateway is out of reach any more")
		case unremarkable:
			if err != nil {
				f.options.Log.Debug("replica out of reach", "error", err)
			}
		}
	}
}

// trouble is something that fails again and again.
type trouble struct {
	since time.Time // the first failure; zero: none
	told  bool
}

// turn is what there is to say about a trouble.
type turn int

const (
	unremarkable turn = iota
	lasts             // for [warnAfter], which is said once
	over              // that was told of
)

// note takes how the last attempt ended.
func (t *trouble) note(err error, now time.Time) turn {
	switch {
	case err == nil:
		wasTold := t.told
		*t = trouble{}
		if wasTold {
			return over
		}
	case t.since.IsZero():
		t.since = now
	case !t.told && now.Sub(t.since) >= warnAfter:
		t.told = true
		return lasts
	}
	return unremarkable
}
