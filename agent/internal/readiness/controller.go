package readiness

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// own is what is known of this replica's Pod.
type own struct {
	next    time.Time
	out     bool // siblings have closed its gate
	trouble trouble
	refused string
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

// changed has the replica look at its own Pod soon: who was cut off may have been
// marked in the meantime.
func (c *Controller) changed() {
	if soon := c.Now().Add(afterChange); soon.Before(c.own.next) {
		c.own.next = soon
	}
}

// step does what is due, and says when something is due again.
func (c *Controller) step(ctx context.Context) time.Time {
	c.siblings = follow(c.Self, c.Members(), c.siblings)
	c.ask()
	now := c.Now()
	for _, name := range c.decide(now).Look {
		c.look(ctx, c.sibling(name), now)
	}
	d := c.decide(now)
	for _, name := range d.Mark {
		c.mark(ctx, c.sibling(name), d.Quorum)
	}
	if !c.own.next.After(now) {
		c.keepOwn(ctx)
	}
	c.keepLease(ctx)

	next := c.own.next
	for _, t := range []time.Time{c.decide(now).Next, c.nextLease()} {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	return next
}

func (c *Controller) decide(now time.Time) decision {
	return decide(self{Name: c.Self, Out: c.own.out}, c.siblings, now)
}

func (c *Controller) sibling(name string) *sibling {
	return &c.siblings[slices.IndexFunc(c.siblings, func(s sibling) bool { return s.Name == name })]
}

// ask finds out who answers, where that may decide something: what the fleet knows is
// up to two seconds old.
func (c *Controller) ask() {
	var names, answering []string
	if c.own.out || slices.ContainsFunc(c.siblings, func(s sibling) bool {
		return s.State == Dead && s.Service != stopped && s.Service != gone
	}) {
		for i := range c.siblings {
			if s := &c.siblings[i]; s.State == Alive || s.State == Draining {
				names = append(names, s.Name)
			}
		}
	}
	if len(names) > 0 {
		answering = c.Answering(names)
	}
	for i := range c.siblings {
		s := &c.siblings[i]
		s.Mute = slices.Contains(names, s.Name) && !slices.Contains(answering, s.Name)
	}
}

// look asks the API server whether a dead sibling's Pod is still in service.
func (c *Controller) look(ctx context.Context, s *sibling, now time.Time) {
	pod, err := c.API.Pod(ctx, s.Name)
	switch {
	case errors.Is(err, ErrGone), err == nil && s.UID != "" && s.UID != pod.UID:
		s.Service = gone
	case err != nil:
		s.Next = c.failed(ctx, &s.trouble, "read the Pod of a dead replica", s.Name, err)
		return
	case pod.Ready == statusTrue && !pod.Leaving:
		s.Service = serving
	default:
		// It may come back into service before it comes back into the fleet.
		s.Service, s.Next = stopped, c.Now().Add(resync)
	}
	s.PodUID, s.Looked, s.trouble = pod.UID, now, trouble{}
}

// mark takes a dead sibling's Pod out of service, where that is for this replica
// to do.
func (c *Controller) mark(ctx context.Context, s *sibling, q quorum) {
	reason, err := c.refuses(ctx, q)
	if err == nil && reason == "" {
		message := fmt.Sprintf("marked by %s, which has not heard of it for %s and sees %s of the replicas",
			c.Self, c.Now().Sub(s.Since).Round(100*time.Millisecond), q)
		err = c.API.SetConditions(ctx, s.Name, s.PodUID, []Condition{
			{Type: GateType, Status: statusFalse, Reason: reasonMarked, Message: message, Since: c.Now()},
			{Type: typeReady, Status: statusFalse, Reason: reasonMarked, Message: message, Since: c.Now()},
		})
	}
	switch {
	case errors.Is(err, ErrGone):
		s.Service = gone
	case errors.Is(err, ErrConflict):
		s.Next = c.Now().Add(firstPause) // another Pod by now, or none: look
	case err != nil:
		s.Next = c.failed(ctx, &s.trouble, "mark a dead replica", s.Name, err)
	case reason != "":
		s.Next = c.Now().Add(again)
		if s.refused != reason {
			s.refused = reason
			c.Metrics.Refused(reason)
			c.Log.Warn("a dead replica is not taken out of service", "replica", s.Name, "reason", reason, "seen", q.String())
		}
	default:
		s.Service, s.Next, s.trouble, s.refused = stopped, c.Now().Add(resync), trouble{}, ""
		c.Metrics.Marked()
		c.Log.Warn("a dead replica is taken out of service", "replica", s.Name, "deadFor", c.Now().Sub(s.Since).String(), "seen", q.String())
	}
}

// Why a replica does not do what others might.
const (
	refusedMinority  = "minority"
	refusedLease     = "lease"
	refusedLastReady = "last_ready"
)

// refuses says why this replica must not mark another one; empty where it may.
func (c *Controller) refuses(ctx context.Context, q quorum) (string, error) {
	if q == minority {
		return refusedMinority, nil
	}
	// Better a Pod that may be dead than none. It is also what keeps a replica that
	// was marked itself from marking those that did it.
	remains, err := c.anyReady(ctx)
	switch {
	case err != nil:
		return "", err
	case !remains:
		return refusedLastReady, nil
	}
	if q == half {
		holds, err := c.acquire(ctx)
		switch {
		case err != nil:
			return "", err
		case !holds:
			return refusedLease, nil
		}
	}
	return "", nil
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

// keepOwn opens the gate of this replica's own Pod. For the first time it just
// does; but where siblings have closed it, only as one who may mark them: else a
// replica that is cut off would go on opening what the others close.
func (c *Controller) keepOwn(ctx context.Context) {
	c.own.next = c.Now().Add(resync)
	pod, err := c.API.Pod(ctx, c.Self)
	if err == nil && (pod.Gate == statusTrue || c.leaves()) {
		c.own = own{next: c.own.next}
		return
	}
	if err == nil && pod.Gate != "" {
		if !c.own.out {
			// Only now it is known that this replica does not decide like the others.
			c.own.out = true
			c.ask()
		}
		q := c.decide(c.Now()).Quorum
		var reason string
		if reason, err = c.staysOut(ctx, q); reason != "" {
			c.own.next = c.Now().Add(again)
			if c.own.refused != reason {
				c.own.refused = reason
				c.Metrics.Refused(reason)
				c.Log.Warn("siblings have taken this replica out of service, and it sees too few of them to come back", "reason", reason, "seen", q.String())
			}
			return
		}
	}
	if err == nil {
		err = c.API.SetConditions(ctx, c.Self, pod.UID, []Condition{
			{Type: GateType, Status: statusTrue, Reason: reasonAlive, Message: "set by the replica itself", Since: c.Now()},
		})
	}
	if err != nil {
		c.own.next = c.failed(ctx, &c.own.trouble, "open the readiness gate", c.Self, err)
		return
	}
	if pod.Gate == "" {
		c.Log.Info("the readiness gate is open")
	} else {
		c.Log.Warn("siblings had taken this replica out of service, it is back")
	}
	c.own = own{next: c.own.next}
}

// staysOut says why this replica must not open its gate again; empty where it may.
func (c *Controller) staysOut(ctx context.Context, q quorum) (string, error) {
	switch q {
	case minority:
		return refusedMinority, nil
	case half:
		holds, err := c.acquire(ctx)
		if err == nil && !holds {
			return refusedLease, nil
		}
		return "", err
	case majority:
	}
	return "", nil
}

// leaves says whether this replica is on its way out, and its Pod better not in
// service.
func (c *Controller) leaves() bool {
	return slices.ContainsFunc(c.Members(), func(m Member) bool {
		return m.Name == c.Self && (m.State == Draining || m.State == Left)
	})
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
		c.Metrics.Refused("error")
		c.Log.Warn("the API server does not do what it is asked", "to", what, "name", name, "error", err)
	}
	return c.Now().Add(t.pause)
}
