package readiness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Controller holds the gate of this replica's Pod open, and closes those of dead
// siblings.
type Controller struct {
	Options
	siblings []sibling
	own      own
	lease    lease
}

// New returns a controller that has not done anything yet.
func New(o Options) *Controller { return &Controller{Options: o} }

// Run works until ctx is done, and gives the Lease back then.
func (c *Controller) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			c.release(context.WithoutCancel(ctx))
			return
		case <-c.Changes:
			c.changed()
		case <-timer.C:
		}
		timer.Reset(c.step(ctx).Sub(c.Now()))
	}
}

// step does what is due, and says when something is due again.
func (c *Controller) step(ctx context.Context) time.Time {
	c.siblings = follow(c.Self, c.Members(), c.siblings)
	now := c.Now() // what takes its time here must not add to the time between looks
	c.ask()
	c.keepBeating(ctx, now)
	for _, name := range c.decide(now).Look {
		c.look(ctx, c.sibling(name), now)
	}
	d := c.decide(now)
	c.mark(ctx, d.Mark, d.Quorum)
	for i := range c.siblings {
		if s := &c.siblings[i]; d.Refused != "" && s.State == Dead && s.Service == serving {
			c.refused(s, d.Refused, d.Quorum)
			if d.Refused == refusedAlive || c.own.out { // there is no hurry any more
				s.Next = now.Add(lookEvery(beatFirstFor))
			}
		}
	}
	if !c.own.next.After(c.Now()) {
		c.keepOwn(ctx)
	}
	c.keepBeating(ctx, now)
	c.keepLease(ctx)

	next := c.own.next
	for _, t := range []time.Time{c.decide(now).Next, c.nextBeat(), c.nextLease()} {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	return next
}

func (c *Controller) decide(now time.Time) decision {
	return decide(c.self(), c.siblings, now)
}

func (c *Controller) self() self { return self{Name: c.Self, Out: c.own.out} }

func (c *Controller) sibling(name string) *sibling {
	return &c.siblings[slices.IndexFunc(c.siblings, func(s sibling) bool { return s.Name == name })]
}

// ask finds out who answers, where that may decide something: what the fleet knows is
// up to two seconds old. Who does not is suspected from then on. A minority asks those
// that it takes for dead, too; a majority does not wait for them.
func (c *Controller) ask() {
	doubts := quorumOf(c.self(), c.siblings) == minority
	isOpen := c.own.out
	var names, answering []string
	for i := range c.siblings {
		s := &c.siblings[i]
		isContested := s.State == Dead && (s.Service == serving || s.Service == unknown)
		isOpen = isOpen || isContested
		if s.State == Alive || s.State == Draining || isContested && doubts {
			names = append(names, s.Name)
		}
	}
	if isOpen && len(names) > 0 {
		answering = c.Answering(names)
	}
	for i := range c.siblings {
		s := &c.siblings[i]
		answers := slices.Contains(answering, s.Name)
		switch {
		case s.State == Dead && answers:
			s.Same = 0
		case s.State == Dead:
		case isOpen && !answers && s.State != Left:
			s.Mute = true
		default:
			*s = sibling{Member: s.Member}
		}
	}
}

// look asks the API server whether a dead sibling's Pod is still in service, and for
// its proof of life.
func (c *Controller) look(ctx context.Context, s *sibling, now time.Time) {
	pod, err := c.API.Pod(ctx, s.Name)
	switch {
	case errors.Is(err, ErrGone), err == nil && s.UID != "" && s.UID != pod.UID:
		s.Service = gone
	case err != nil:
		s.Next, s.Same = c.failed(ctx, &s.trouble, "read the Pod of a dead replica", s.Name, err), 0
		return
	case pod.Ready == statusTrue && !pod.Leaving:
		s.Lives = s.Lives || s.Service == stopped // a kubelet has found it ready anew
		s.Service, s.Next = serving, now.Add(lookEvery(s.age(now)))
	default:
		// It may come back into service before it comes back into the fleet.
		s.Service, s.Next = stopped, c.Now().Add(resync)
	}
	s.observe(pod.Beat)
	s.Silenced = pod.Reason == reasonSilent && !pod.Leaving
	s.PodUID, s.Looked, s.trouble = pod.UID, now, trouble{}
}

// mark takes dead siblings' Pods out of service, where that is for this replica to do:
// all at once, since kube-proxy takes up what it hears at one moment, and what comes a
// moment later not before another second has passed (minSyncPeriod).
func (c *Controller) mark(ctx context.Context, names []string, q quorum) {
	if len(names) == 0 {
		return
	}
	reason, err := c.refuses(ctx, q)
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		if errs[i] = err; err == nil && reason == "" {
			s := *c.sibling(name)
			all.Go(func() { errs[i] = c.closeGate(ctx, s, q) })
		}
	}
	all.Wait()
	for i, name := range names {
		c.marked(ctx, c.sibling(name), q, reason, errs[i])
	}
}

// closeGate takes one Pod out of service.
func (c *Controller) closeGate(ctx context.Context, s sibling, q quorum) error {
	why, silence := reasonMarked, ""
	if q == minority {
		why, silence = reasonSilent, ", and no sign of life from the others"
	}
	message := fmt.Sprintf("marked by %s, which has not heard of it for %s and sees %s of the replicas%s",
		c.Self, c.Now().Sub(s.Since).Round(100*time.Millisecond), q, silence)
	return c.API.SetConditions(ctx, s.Name, s.PodUID, []Condition{
		{Type: GateType, Status: statusFalse, Reason: why, Message: message, Since: c.Now()},
		{Type: typeReady, Status: statusFalse, Reason: why, Message: message, Since: c.Now()},
	})
}

// marked notes what became of it; reason is why it was not asked for.
func (c *Controller) marked(ctx context.Context, s *sibling, q quorum, reason string, err error) {
	switch {
	case errors.Is(err, ErrGone):
		s.Service = gone
	case errors.Is(err, ErrConflict):
		s.Next, s.Same = c.Now().Add(firstPause), 0 // another Pod by now, or none: look
	case err != nil:
		s.Next, s.Same = c.failed(ctx, &s.trouble, "mark a dead replica", s.Name, err), 0
	case reason != "":
		s.Next = c.Now().Add(again)
		c.refused(s, reason, q)
	default:
		s.Service, s.Next, s.trouble, s.refused = stopped, c.Now().Add(resync), trouble{}, ""
		s.Silenced = q == minority
		c.Metrics.Marked()
		c.Log.Warn("a dead replica is taken out of service", "replica", s.Name, "deadFor", c.Now().Sub(s.Since).String(), "seen", q.String())
	}
}

// refused notes why a sibling is not marked, once.
func (c *Controller) refused(s *sibling, reason string, q quorum) {
	if s.refused != reason {
		s.refused = reason
		c.Metrics.Refused(reason)
		c.Log.Warn("a dead replica is not taken out of service", "replica", s.Name, "reason", reason, "seen", q.String())
	}
}

// Why a replica does not do what others might.
const (
	refusedMinority  = "minority"
	refusedAlive     = "alive"
	refusedLease     = "lease"
	refusedLastReady = "last_ready"
	refusedError     = "error"
)

// Refusals lists every reason, for metrics that must show zeros too.
func Refusals() []string {
	return []string{refusedMinority, refusedAlive, refusedLease, refusedLastReady, refusedError}
}

// refuses says why this replica must not mark another one; empty where it may.
func (c *Controller) refuses(ctx context.Context, q quorum) (string, error) {
	// Better a Pod that may be dead than none. It is also what keeps a replica that
	// was marked itself from marking those that did it.
	if q == minority {
		pod, err := c.API.Pod(ctx, c.Self)
		switch {
		case err != nil:
			return "", err
		case pod.Gate != statusTrue || pod.Ready != statusTrue || pod.Leaving:
			c.own.next = c.Now() // siblings may have closed its gate
			return refusedMinority, nil
		}
	} else {
		remains, err := c.anyReady(ctx)
		switch {
		case err != nil:
			return "", err
		case !remains:
			return refusedLastReady, nil
		}
	}
	if q != majority {
		return c.lacksLease(ctx)
	}
	return "", nil
}

// lacksLease says that another replica holds the Lease; empty where this one does.
func (c *Controller) lacksLease(ctx context.Context) (string, error) {
	holds, err := c.acquire(ctx)
	if err == nil && !holds {
		return refusedLease, nil
	}
	return "", err
}

// anyReady says whether a replica that is alive is in service: this one, or else
// another one.
func (c *Controller) anyReady(ctx context.Context) (bool, error) {
	names := []string{c.Self}
	for _, s := range c.siblings {
		if s.State == Alive && !s.Mute {
			names = append(names, s.Name)
		}
	}
	for _, name := range names {
		pod, err := c.API.Pod(ctx, name)
		if err == nil && pod.Ready == statusTrue {
			return true, nil
		}
		if err != nil && !errors.Is(err, ErrGone) {
			return false, err
		}
	}
	return false, nil
}

// trouble remembers what went wrong, so that it is logged once and tried again
// less and less often.
type trouble struct {
	text  string
	pause time.Duration
}

// The pause after the first error, and the longest one.
const (
	firstPause   = 250 * time.Millisecond
	longestPause = 5 * time.Second
)

// failed notes an error, and says when to try again.
func (c *Controller) failed(ctx context.Context, t *trouble, what, name string, err error) time.Time {
	t.pause = min(max(2*t.pause, firstPause), longestPause)
	if text := err.Error(); t.text != text && ctx.Err() == nil {
		t.text = text
		c.Metrics.Refused(refusedError)
		c.Log.Warn("the API server does not do what it is asked", "to", what, "name", name, "error", err)
	}
	return c.Now().Add(t.pause)
}
