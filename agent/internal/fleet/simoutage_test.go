package fleet

import "time"

// What an outage may last. A client whose tunnel is in question sends every streamEvery:
// milliseconds of virtual time are cheap.
const (
	streamEvery = 20 * time.Millisecond
	maxMove     = 150 * time.Millisecond
	maxKill     = 3 * time.Second // until the load balancer knows
	// A packet of one index is told of at least so often, and so is a call repeated as
	// soon as it is due.
	maxTold = time.Second / toldEach
	// reminded is for how long a replica tells a client that has come of its session.
	reminded = 250 * time.Millisecond
	// rekeyLate is when WireGuard repeats an initiation, with its jitter; native is when it
	// begins a handshake by itself where nothing comes back.
	rekeyLate = rekeyTimeout + 333*time.Millisecond
	native    = keepaliveTimeout + rekeyLate
	// maxRestart is for how long an agent is away that is killed alone.
	maxRestart = 5 * time.Second
	// holders is how many replicas at most call a client from where it cannot answer: those
	// of the other side of a partition that had it, or were asked to take it over, and the
	// one of its own side that calls those of replicas that are gone.
	holders = 3
	// converges is when the replicas of a fleet agree after a partition: they look for
	// each other every 10 s, and compare everything when they meet.
	converges = joinEvery + 2*time.Second
)

// outage is a time in which what a client sent was not answered, and what happened.
type outage struct {
	client        string
	since, lasted time.Duration
	moves         int
	// lost are packets of data that the network lost. Of calls, lost are those of which
	// one message was, refused those that the client took for old ones, and astray those
	// that it answered while its packets went to another replica, or while its own handshake
	// crossed the call.
	lost, callsLost, refused, astray int
	ownLost                          int // messages of handshakes that the client began
	// overtaken are calls that the client answered before it had heard from another replica
	// that had called it: it forgets the session with that one.
	overtaken int
	// dead is what a dead replica got, deaf what one got whose agent is dead.
	dead, deaf int
	// unheard is when the client began a handshake last that nobody heard of, and without
	// which it has no session: it was lost, got to a dead replica, or had to wait because the client
	// had answered a call.
	unheard time.Duration
	// parted says that replicas could not hear each other; untold are packets of sessions
	// that were made while no agent looked, unknown those of others that the replica
	// did not know of, dropped where a message between replicas was lost.
	parted                   bool
	untold, unknown, dropped int
	// newborn says that a replica called that was born in the partition, or that the packets
	// went to such a one meanwhile.
	newborn bool
	// moved is when the client was moved last: WireGuard's own time begins anew.
	moved time.Duration
	// held is when the client answered a call last that led to nothing, and vain when any
	// call did.
	held, vain time.Duration
}

// begins begins to note what happens to a client. Who was called in vain a moment ago, before
// it went away and came back, waits until it is called again; and so does who has sent
// nothing since.
func (c *client) begins() {
	o := outage{}
	lately := lastRetry
	if c.world.parted() { // nor does one side know that it was forgotten for the other
		lately = native
	}
	if c.outage.vain > 0 && (c.world.now-c.outage.vain < lately || c.answeredAt < c.outage.vain) {
		o.callsLost, o.refused, o.astray, o.vain = c.outage.callsLost, c.outage.refused, c.outage.astray, c.outage.vain
		o.overtaken, o.held, o.newborn = c.outage.overtaken, c.outage.held, c.outage.newborn
	}
	if !c.hasSession() && c.world.now-c.outage.unheard < rekeyLate {
		o.unheard = c.outage.unheard
	}
	c.outage = o
}

// inVain counts a call that led to nothing.
func (c *client) inVain(calls *int) {
	*calls++
	c.outage.vain = c.world.now
}

// kind is the reason, the one that takes the longest first.
func (o outage) kind() string {
	switch {
	case o.parted && o.lasted > o.soon() && (o.unknown > 0 || o.held > 0):
		return "session unknown, or client called from the other side (partition)"
	case o.dropped > 0:
		return "moved with a session of which the replica was not told, since a message was lost"
	case o.untold > 0:
		return "moved with a session made while no agent looked"
	case o.unheard > 0:
		return "the client's own handshake without a session was not heard"
	case o.dead+o.deaf > 0:
		return "replica dead"
	case o.callsLost > 0:
		return "moved, and a message of the handshake lost"
	case o.refused > 0:
		return "moved to a clock that is behind"
	case o.astray > 0:
		return "moved away and back while it was called"
	}
	return "moved"
}

// soon is what the replicas take, where they know of the client's session.
func (o outage) soon() time.Duration {
	moves := max(1, o.moves)
	most := (maxMove+streamEvery)*time.Duration(moves) + (nudgeEvery+maxTold)*time.Duration(o.lost)
	if o.dead+o.deaf > 0 {
		most += maxKill - maxMove
	}
	first := 1
	if o.parted { // it may have been called in vain before
		first++
	}
	for call := range o.callsLost + min(o.astray, moves) {
		most += retry(first+call) + maxTold
	}
	if o.overtaken > 0 { // it does not know of the session that it is told of
		most += nudges * maxTold
	}
	return most
}

// most is how long it may last. What is more than soon is WireGuard's own time.
func (o outage) most(c simConfig) time.Duration {
	most, last := o.soon(), max(o.held-o.since, 0)
	if o.refused > 0 {
		// Until the clock of who calls has caught up, and then as long again at most, since the time
		// between two calls doubles; or until the client begins by itself, which the call of
		// a former holder may put off once, and its last reminder, which the client
		// hears after it has left, by a moment.
		caughtUp := 2*c.skew + max(firstRetry, 2*c.skew) + maxTold
		most += min(caughtUp, min(last, native)+native+reminded)
	}
	if o.unheard > 0 {
		most = max(most, o.unheard-o.since+rekeyLate+maxMove+streamEvery)
	}
	if o.untold > 0 { // its agent comes back, and calls it where it has been
		most = max(most, min(last, maxRestart+maxMove)+native+o.soon())
	}
	if o.parted && o.unknown+o.dropped+o.untold+o.astray+o.overtaken > 0 {
		putOff := holders * native
		if o.newborn { // who called knows of nobody who is gone, and leaves its device alone
			putOff += rekeyAttempt
		}
		most = max(most, min(max(last, o.moved-o.since), putOff)+native+o.soon())
	}
	if o.dropped > 0 { // until everything is compared, or the client begins by itself
		most = max(most, native+o.soon())
	}
	if o.ownLost > 0 && most > native {
		most += rekeyLate
	}
	return most
}

// stream has a client send without a pause until it is answered.
func (w *world) stream(c *client) {
	if c.burst {
		return
	}
	c.burst, c.outage.since = true, w.now
	var send func()
	send = func() {
		if !c.burst {
			return
		}
		c.outage.parted = c.outage.parted || w.parted()
		c.send(true)
		w.after(streamEvery, send)
	}
	send()
}

// answered notes that what a client sent at a time has come to the gateway and back.
func (w *world) answered(c *client, sent time.Duration) {
	c.answeredAt = sent
	if !c.burst || sent < max(c.outage.since, c.moved) {
		return
	}
	c.burst = false
	if c.outage.lasted = sent - c.outage.since; c.outage.lasted > 0 {
		c.outage.client = c.name
		w.outages = append(w.outages, c.outage)
		if most := c.outage.most(w.config); c.outage.lasted > most {
			w.fault("%s: no tunnel for %s, want %s at most: %+v", c.name, c.outage.lasted, most, c.outage)
		}
	}
}

// parted reports whether replicas cannot hear each other, or have not met since.
func (w *world) parted() bool { return w.split || w.healed > 0 && w.now-w.healed < converges }
