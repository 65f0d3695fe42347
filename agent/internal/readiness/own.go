package readiness

import (
	"context"
	"slices"
	"time"
)

// own is what is known of this replica's Pod.
type own struct {
	next    time.Time
	uid     string // empty: its gate was never seen
	out     bool   // siblings have closed its gate
	trouble trouble
	refused string
	beat    beat
}

// beat is what is known of this replica's proofs of life.
type beat struct {
	at      time.Time // when the last one was tried
	value   time.Time
	trouble trouble
}

// changed has the replica look at its own Pod soon: who was cut off may have been
// marked in the meantime.
func (c *Controller) changed() {
	if soon := c.Now().Add(afterChange); soon.Before(c.own.next) {
		c.own.next = soon
	}
}

// keepOwn opens the gate of this replica's own Pod. For the first time it just
// does; but where siblings have closed it, only as one who may mark them: else a
// replica that is cut off would go on opening what the others close. Where they have
// done that for its silence alone, this is the answer.
func (c *Controller) keepOwn(ctx context.Context) {
	c.own.next = c.Now().Add(resync)
	pod, err := c.API.Pod(ctx, c.Self)
	if err == nil && pod.Gate == statusTrue {
		c.serves(pod)
		return
	}
	if err == nil && c.leaves() {
		return
	}
	if err == nil && pod.Gate != "" && pod.Reason != reasonSilent {
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
	c.serves(pod)
}

// serves notes that nothing is the matter with this replica's own Pod.
func (c *Controller) serves(pod Pod) {
	c.own.uid, c.own.out, c.own.refused, c.own.trouble = pod.UID, false, "", trouble{}
}

// nextBeat is when this replica owes a proof of life; zero: never. Nobody waits for
// that of one which is out of service.
func (c *Controller) nextBeat() time.Time {
	if c.own.uid == "" || c.own.out {
		return time.Time{}
	}
	return nextBeat(c.self(), c.siblings, c.own.beat.at, c.Now())
}

// keepBeating gives the proof of life that is due. The answer says whether siblings
// have closed the gate of this replica in the meantime.
func (c *Controller) keepBeating(ctx context.Context, now time.Time) {
	if t := c.nextBeat(); t.IsZero() || t.After(now) {
		return
	}
	b := &c.own.beat
	b.at = now
	// It is read for change alone, which it also has to be where the clock was set back.
	value := now.Truncate(beatFirst)
	if !value.After(b.value) {
		value = b.value.Add(beatFirst)
	}
	b.value = value
	pod, err := c.API.Beat(ctx, c.Self, c.own.uid, value)
	if err != nil {
		c.failed(ctx, &b.trouble, "show that this replica lives", c.Self, err)
		// The siblings may not have been able to, either: their silence begins anew.
		for i := range c.siblings {
			c.siblings[i].Same = 0
		}
		return
	}
	b.trouble = trouble{}
	if pod.Gate != statusTrue {
		c.keepOwn(ctx)
	}
}

// staysOut says why this replica must not open its gate again; empty where it may.
func (c *Controller) staysOut(ctx context.Context, q quorum) (string, error) {
	switch q {
	case minority:
		return refusedMinority, nil
	case half:
		return c.lacksLease(ctx)
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
