package readiness

import (
	"context"
	"errors"
	"time"
)

// leaseDuration is how long a Lease is held that is not renewed. It is renewed
// when a third of that is over.
const leaseDuration = 15 * time.Second

// Lease is a Lease of coordination.k8s.io as far as this package uses it.
type Lease struct {
	// Version is its resourceVersion.
	Version string
	// Holder is the name of the Pod that holds it; empty: nobody.
	Holder            string
	Acquired, Renewed time.Time
	// Transitions is how often it went from one holder to another.
	Transitions int
}

// lease is what is known of the Lease. Whether it has run out follows from how long
// it has been seen unchanged, as in client-go's leader election: its times are by
// its holder's clock.
type lease struct {
	read    Lease
	since   time.Time // when it was first seen so
	looked  time.Time
	until   time.Time // held by this replica at least so long; zero: not held
	next    time.Time // not to try before, after an error
	trouble trouble
}

// acquire takes the Lease, or renews it, and says whether this replica holds it
// now. The API server lets one of two win that try at once.
func (c *Controller) acquire(ctx context.Context) (bool, error) {
	now := c.Now()
	// What is done upon it takes one more request.
	if c.lease.until.Sub(now) > leaseDuration*2/3 {
		return true, nil
	}
	l, err := c.observe(ctx)
	if err != nil {
		return false, err
	}
	if l.Holder != c.Self && l.Holder != "" && now.Sub(c.lease.since) < leaseDuration {
		c.lease.until = time.Time{}
		return false, nil
	}
	if l.Holder != c.Self {
		l.Holder, l.Acquired = c.Self, now
		l.Transitions++
	}
	l.Renewed = now
	l, err = c.API.SetLease(ctx, l)
	if errors.Is(err, ErrConflict) {
		c.lease.until = time.Time{}
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c.lease.read, c.lease.since, c.lease.until = l, now, now.Add(leaseDuration)
	return true, nil
}

// observe reads the Lease.
func (c *Controller) observe(ctx context.Context) (Lease, error) {
	now := c.Now()
	l, err := c.API.Lease(ctx)
	if err != nil {
		return Lease{}, err
	}
	if c.lease.looked.IsZero() || l.Version != c.lease.read.Version {
		c.lease.read, c.lease.since = l, now
	}
	c.lease.looked = now
	return l, nil
}

// keepLease renews the Lease for as long as there is a dead sibling that might be
// alive and want it, and then gives it back. Who does not hold it looks at it now
// and then: a Lease whose holder died long ago is then known to have run out.
func (c *Controller) keepLease(ctx context.Context) {
	if t := c.nextLease(); t.IsZero() || t.After(c.Now()) {
		return
	}
	var err error
	switch {
	case c.lease.until.IsZero():
		_, err = c.observe(ctx)
	case c.contested():
		_, err = c.acquire(ctx)
	default:
		c.release(ctx)
		return
	}
	if err != nil {
		c.lease.next = c.failed(ctx, &c.lease.trouble, "keep the Lease", c.Self, err)
		return
	}
	c.lease.next, c.lease.trouble = time.Time{}, trouble{}
}

// nextLease is when there is something to do about the Lease; zero: never.
func (c *Controller) nextLease() time.Time {
	due := c.lease.looked.Add(resync)
	switch {
	case len(c.siblings) == 0 && c.lease.until.IsZero():
		return time.Time{}
	case c.lease.until.IsZero():
	case c.contested():
		due = c.lease.until.Add(-leaseDuration * 2 / 3)
	default:
		due = c.lease.until.Add(-leaseDuration)
	}
	if c.lease.next.After(due) {
		return c.lease.next
	}
	return due
}

// contested says whether there is a sibling that is dead, or is thought to be.
func (c *Controller) contested() bool {
	for _, s := range c.siblings {
		if s.State == Dead && s.Service != gone {
			return true
		}
	}
	return false
}

// release gives the Lease back, so that nobody need wait for it to run out.
func (c *Controller) release(ctx context.Context) {
	if c.lease.until.IsZero() {
		return
	}
	l := c.lease.read
	l.Holder, l.Renewed = "", c.Now()
	// Where that fails the Lease runs out.
	if l, err := c.API.SetLease(ctx, l); err == nil {
		c.lease.read, c.lease.since = l, c.Now()
	}
	c.lease.until = time.Time{}
}
