package fleet

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

const (
	// firstRetry is when to call again a peer that still sends with its old session:
	// long against a round trip, short against REKEY_TIMEOUT. It doubles from call
	// to call up to lastRetry.
	firstRetry = 250 * time.Millisecond
	lastRetry  = 5 * time.Second
	// longestTurn is for how long at most a call has a peer for itself. Another one to
	// another address would undo what it began.
	longestTurn = time.Second
	// lateFor is for how long after a session was made packets of the one before it
	// may be under way to a replica where the peer was before. Who sends by it later than
	// that has not learnt of the new one; nor has who sends it to yet another replica,
	// because the load balancer has moved it before it heard from the one that called.
	lateFor = firstRetry
	// nudgeEvery bounds how often a peer that does not know of its session is told,
	// and nudges how often in vain.
	nudgeEvery = 100 * time.Millisecond
	nudges     = 5
	// callingFor is for how long the device is left alone after a call. Where nobody has
	// answered by then, it falls silent, before WireGuard begins another handshake by
	// itself (REKEY_TIMEOUT, 5 s): it might undo what a sibling has begun meanwhile.
	callingFor = 3500 * time.Millisecond
	// betweenCalls is how long to wait after a sibling has called a peer: of two
	// initiations within 20 ms it drops the second (INITIATIONS_PER_SECOND, section 6.1 of
	// the whitepaper), and what is on its way may be late.
	betweenCalls = 30 * time.Millisecond
	// reluctance is for how long a replica that leaves waits before it calls a peer, and
	// after a sibling has: the load balancer is about to move it on, or has, and where several
	// leave at once, those that stay have enough to do.
	reluctance = 50 * time.Millisecond
	// earlyAfter is when to call again where the last call is taken to be lost.
	earlyAfter = 50 * time.Millisecond
	// callersKept bounds the addresses that a peer is called at in turn.
	callersKept = 8
)

// calling is a peer that is being taken over. Anybody can repeat a packet of its, from
// any address, and what comes of it must not keep the peer itself from being called:
// each address has a back-off of its own, and they take turns.
type calling struct {
	callers []caller
	seen    time.Time // the last packet
	last    time.Time // the last call
	waits   bool      // and it has not left yet
	turn    time.Duration
	calls   int
	called  bool // and not given up
	// answered is when a response to the last call came in, the first one.
	answered time.Time
	unasked  int  // calls that no packet asked for
	unheard  bool // it had a session with us, and did not answer
	nudged   time.Time
	nudges   int
	// first is when the first packet came since the last call, and held when to look again
	// at one that came too soon.
	first, held time.Time
	// rival is when a sibling began to call it last, at the address of the last packet.
	rival time.Time
	early int // times that it was called again before its turn
	// lateAnswer says that it has answered to a call that we had undone by then.
	lateAnswer bool
}

// caller is an address that packets of a peer come from.
type caller struct {
	from  netip.AddrPort
	seen  time.Time // the last packet
	last  time.Time // the last call
	calls int
	// packets since the last call: who comes again and again is rather the peer than
	// somebody who makes up addresses.
	packets int
}

func (c *caller) due(now time.Time) bool {
	return c.calls == 0 || now.Sub(c.last) >= retry(c.calls)
}

// retry is how long to wait after so many calls.
func retry(calls int) time.Duration {
	return min(firstRetry<<min(calls-1, 8), lastRetry)
}

// isTurn reports whether to call an address that a packet came from, and notes that
// it is. Calls that no packet asked for are those of the zero address, and have a
// back-off of their own: who comes at last, after calls in vain, does not wait for it.
func (c *calling) isTurn(from netip.AddrPort, now time.Time) bool {
	i, ok := c.note(from, now)
	if !ok || c.isAnswered(now) || c.waits && now.Sub(c.last) < longestTurn {
		return false // two that leave at once would be too many
	}
	isEarly := c.isEarly(&c.callers[i], now)
	if !isEarly && (c.calls > 0 && now.Sub(c.last) < c.turn || !c.callers[i].due(now)) {
		return false
	}
	for j := range c.callers {
		o := &c.callers[j]
		if j != i && o.due(now) && now.Sub(o.seen) < firstRetry && before(o, &c.callers[i]) {
			return false
		}
	}
	me := &c.callers[i]
	if isEarly {
		c.early++
	}
	if !isEarly || me.calls == 0 { // else it is in the place of the last one
		me.calls++
		c.calls++
	}
	c.waits, c.lateAnswer = true, false
	me.packets, me.last, c.last, c.first = 0, now, now, time.Time{}
	c.turn = min(max(retry(me.calls), retry(1+c.calls/callersKept)), longestTurn)
	if !from.IsValid() {
		c.turn = firstRetry
	}
	return true
}

// isEarly reports whether the last call is taken to be lost. Ports can be made up, and
// messages be repeated: that counts once. But a call again, of a peer that was only slow to
// answer, undoes what that answer leads to, and may itself come too soon: once more, then.
func (c *calling) isEarly(o *caller, now time.Time) bool {
	since := now.Sub(c.last)
	switch {
	case c.waits || c.calls == 0:
		return false
	case c.lateAnswer && o.last.Equal(c.last):
		return c.early < 2 && since >= betweenCalls
	}
	return c.early == 0 && since >= earlyAfter && (o.last.Equal(c.last) && c.isContended() || c.isRemapped(o))
}

// isContended reports whether a sibling has called the peer so close to us that it has
// dropped one of the two initiations. It may be ours, though we waited: processors are
// busy, and what is told of may be late.
func (c *calling) isContended() bool { return c.last.Sub(c.rival).Abs() < 2*betweenCalls }

// isRemapped reports whether a NAT has given the peer another port since it was called, as
// happens where the load balancer forgets its flow just then: what was sent to the old one
// leads nowhere.
func (c *calling) isRemapped(o *caller) bool {
	if o.calls > 0 {
		return false
	}
	return slices.ContainsFunc(c.callers, func(called caller) bool {
		return called.from.Addr() == o.from.Addr() && called.calls > 0 && called.last.Equal(c.last) && !called.seen.After(c.last)
	})
}

// left notes that a handshake message of ours is on its way to a peer: the call that was
// asked for counts from now on, however long it waited for a processor. Where that was
// long, siblings are told once more.
func (r *Replica) left(id PeerID, port uint16, to netip.AddrPort, now time.Time) (e Effects) {
	c := r.calls[id]
	if c == nil || !c.waits {
		return e
	}
	if now.Sub(c.last) >= betweenCalls/2 {
		e.Tell = []Session{r.callHint(id, port, to, now)}
	}
	for i := range c.callers {
		if o := &c.callers[i]; o.last.Equal(c.last) {
			o.last = now
		}
	}
	c.last, c.waits = now, false
	return e
}

// isAnswered reports whether a response to the last call came in a moment ago. To call
// again now would undo what it leads to; where it was made up, it costs this moment.
func (c *calling) isAnswered(now time.Time) bool {
	return c.calls > 0 && !c.answered.Before(c.last) && now.Sub(c.answered) < firstRetry
}

// Answered notes that a response to a handshake of ours has come in.
func (r *Replica) Answered(index uint32, now time.Time) {
	s, ok := r.started.byIndex[index]
	if !ok || s.answer || s.undone {
		return
	}
	r.started.change(index, func(s *started) { s.answered = true })
	if c := r.calls[s.peer]; c != nil && c.answered.Before(c.last) {
		c.answered = now
	}
}

// before reports whether it is rather a's turn than b's.
func before(a, b *caller) bool {
	return cmp.Or(cmp.Compare(a.calls, b.calls), cmp.Compare(b.packets, a.packets)) < 0
}

// note counts a packet, and returns the number of the address that it came from; ok is
// false where there are too many. One that is quiet or had its turn makes room: a peer
// sends on, and so it gets a place soon, and keeps it.
func (c *calling) note(from netip.AddrPort, now time.Time) (i int, ok bool) {
	i = slices.IndexFunc(c.callers, func(o caller) bool { return o.from == from })
	if i < 0 && len(c.callers) < callersKept {
		i = len(c.callers)
		c.callers = append(c.callers, caller{from: from})
	}
	if i < 0 {
		for j := range c.callers {
			o := &c.callers[j]
			if (o.calls > 0 || now.Sub(o.seen) >= firstRetry) && (i < 0 || o.seen.Before(c.callers[i].seen)) {
				i = j
			}
		}
		if i < 0 {
			return 0, false
		}
		c.callers[i] = caller{from: from}
	}
	c.callers[i].seen = now
	c.callers[i].packets++
	return i, true
}

// isNudge reports whether to tell the peer of its session.
func (c *calling) isNudge(now time.Time) bool {
	if now.Sub(c.nudged) < nudgeEvery {
		return false
	}
	c.nudged = now
	c.nudges++
	return true
}

func (r *Replica) callingOf(id PeerID, now time.Time) *calling {
	c := r.calls[id]
	if c == nil {
		c = &calling{}
		r.calls[id] = c
	}
	c.seen = now
	return c
}

// Stranger notes a packet of data for an index that is not of a session of ours, to a
// port of ours. The peer is called where that is its newest session: nobody else can
// answer to what it sends by this way. (One of ours comes by here once, when the peer
// first uses a session that we began.) Older ones are of packets that were under way
// when the session changed, or of a peer that has not learnt of the new one.
//
// Nothing proves that the packet is the peer's. It leads to one handshake message, to
// where it came from, and the session that there is stays where it is until another
// one is confirmed. A peer that uses its newest session of ours is not called, which would
// end that, but where it has begun another one elsewhere since, as far as can be told.
func (r *Replica) Stranger(index uint32, port uint16, from netip.AddrPort, now time.Time) (e Effects) {
	s, ok := r.whose(index)
	p, isConfigured := r.peers[s.Peer]
	if !ok || !isConfigured || now.Sub(s.Since) >= sessionLifetime {
		e.Refused = UnknownPeer
		return e
	}
	packet := Reminder{Peer: s.Peer, Index: index, Port: port, From: from}
	call := Call{Peer: p.PublicKey, Port: port, Endpoint: from}
	if r.isMine(s) {
		r.use(s, call, packet, now, &e)
		return e
	}
	newest, _ := r.table.Newest(s.Peer)
	isHere := r.isMine(newest)
	if s.Seq == 0 && !r.counts(s, newest, from) {
		e.Refused = Late
		return e
	}
	if !isHere && r.isBehind(s, newest, now, &e) {
		return e
	}
	switch c := r.callingOf(s.Peer, now); {
	case isHere && s.Seq > 0 && (s.Seq < newest.Seq && r.mine[newest.Index].used || c.nudges < nudges):
		if !c.isNudge(now) {
			e.Refused = Late
			return e
		}
		// It may be elsewhere than a moment ago: whoever translates its address gives it
		// another port where we were quicker to send to the one that it had.
		e.Calls = []Call{r.nudge(newest.Index, call)}
	case r.takesUp(c, packet, now, &e):
		if isHere {
			// Two replicas have shaken hands with the peer at once, and it knows the other
			// one's session alone. It does not use ours: nothing is lost with it.
			r.giveUp(s.Peer, Session{}, s, &e)
		}
		r.call(s.Peer, call, &e)
	}
	return e
}

// use notes that a peer has sent by a session of ours, and calls it where that says that it
// does not know its newest one. That is told of once, like the first use of every session
// that we began; those from before are watched on.
func (r *Replica) use(s Session, call Call, packet Reminder, now time.Time, e *Effects) {
	m := r.mine[s.Index]
	m.used = true
	if newest, _ := r.table.Newest(s.Peer); m.watched && s.same(newest) {
		m.watched = false
		e.Known = append(e.Known, s.Index)
	}
	r.mine[s.Index] = m
	if r.isUnknown(s, packet.From, now) && r.takesUp(r.callingOf(s.Peer, now), packet, now, e) {
		r.lose(s.Peer, e)
		r.call(s.Peer, call, e)
	}
}

// takesUp reports whether to call a peer for a packet of its now, and tells siblings: the load
// balancer may move the peer on before it has answered.
func (r *Replica) takesUp(c *calling, packet Reminder, now time.Time, e *Effects) bool {
	c.rival = time.Time{}
	if b := r.begun[packet.Peer]; b.at == packet.From.Addr() {
		c.rival = b.since
	}
	if r.isHeld(c, packet, now, e) {
		return false
	}
	if !c.isTurn(packet.From, now) {
		e.Refused = TooSoon
		return false
	}
	e.Tell = []Session{r.callHint(packet.Peer, packet.Port, packet.From, now)}
	return true
}

// isHeld reports whether a packet has to wait, and has it looked at again.
func (r *Replica) isHeld(c *calling, packet Reminder, now time.Time, e *Effects) bool {
	if c.first.IsZero() {
		c.first = now
	}
	until := r.notBefore(c)
	if !now.Before(until) {
		return false
	}
	c.note(packet.From, now)
	if e.Refused = TooSoon; !now.Before(c.held) {
		c.held, packet.After = until, until.Sub(now)
		e.Reminders = []Reminder{packet}
	}
	return true
}

// notBefore is when a peer may be called that a sibling has called at the same address, or
// will have to. A message of a sibling's may be repeated by anybody: nobody waits for longer
// than for a replica that leaves, and after its call.
func (r *Replica) notBefore(c *calling) (until time.Time) {
	wait := betweenCalls
	if r.members[r.self].Draining {
		wait, until = reluctance, c.first.Add(reluctance)
	}
	if after := c.rival.Add(wait); !c.rival.IsZero() && after.After(until) {
		until = after
	}
	if most := c.first.Add(reluctance + wait); until.After(most) {
		return most
	}
	return until
}

// isBehind reports whether a packet by an older session than a sibling's is no reason to
// call the peer: it was under way, or drawn here by what we sent last.
func (r *Replica) isBehind(s, newest Session, now time.Time, e *Effects) bool {
	switch {
	case s.Seq >= newest.Seq:
		return false
	case now.Sub(newest.Since) < lateFor && r.wasHere(s.Peer, now):
		e.Refused = Late
	case r.isPulled(newest, now):
		r.recall(newest, now, e)
		e.Refused = TooSoon
	default:
		return false
	}
	return true
}

// wasHere reports whether a peer's packets came here before it went to a sibling: as to
// its holder, or while it was called.
func (r *Replica) wasHere(id PeerID, now time.Time) bool {
	_, held := r.yielded[id]
	return held || now.Sub(r.passed[id]) < lateFor
}

// nudge makes a call one for a packet by the session of ours that has an index. Once the
// peer has sent by that session, WireGuard knows better where it is.
func (r *Replica) nudge(index uint32, c Call) Call {
	c.Nudge = true
	if r.mine[index].used {
		c.Endpoint = netip.AddrPort{}
	}
	return c
}

// isCalled reports whether a peer is being called, and not given up.
func (r *Replica) isCalled(id PeerID) bool {
	c := r.calls[id]
	return c != nil && c.called
}

// call calls a peer, for which the device forgets what it knows of it.
func (r *Replica) call(id PeerID, c Call, e *Effects) {
	r.undo(id)
	r.calls[id].called, r.loud[id] = true, true
	e.Calling = true
	e.Calls = append(e.Calls, c)
}

// hush ends a call in vain: the device shall not go on calling by itself, where the
// peer may not be. If its packets come here, who has the session is told.
func (r *Replica) hush(id PeerID, c *calling, now time.Time, e *Effects) {
	e.Elsewhere = true // it is not called any more
	s, known := r.table.Newest(id)
	if r.isMine(s) {
		return
	}
	isHere := slices.ContainsFunc(c.callers, func(o caller) bool { return o.from.IsValid() && now.Sub(o.seen) < 2*callingFor })
	if _, alive := r.members[s.Holder]; known && alive && isHere && s.Holder != r.self {
		e.Recall = append(e.Recall, s)
	}
	r.silence(id, e)
}

// silence makes the device fall silent towards a peer that it was made to call. That a
// sibling has the peer does not do it: that was so before the call, and to the device
// nothing changes.
func (r *Replica) silence(id PeerID, e *Effects) {
	p, ok := r.peers[id]
	if !ok || p.Site && r.serves(id, true) == r.self { // which we call until it answers
		return
	}
	if r.isAnswering(id) { // it may be here after all: as of a later tick
		return
	}
	r.undo(id)
	delete(r.loud, id)
	e.Calls = append(e.Calls, Call{Peer: p.PublicKey, Silence: true})
}

// isAnswering reports whether we have answered to a handshake that the peer began, and
// that it may be about to use: the device must not lose it.
func (r *Replica) isAnswering(id PeerID) bool {
	return r.started.has(id, func(s started) bool { return s.answer })
}

// IsOver reports whether a call must not be made any more: it was given up meanwhile, or
// the peer has come by itself, or is about to, and has what would be lost with it.
func (r *Replica) IsOver(c Call) bool {
	if c.Nudge {
		return false
	}
	id := IDOf(c.Peer)
	if c.Endpoint.IsValid() && !r.isCalled(id) {
		return true
	}
	// Answers from before the call was asked for are undone.
	return r.isAnswering(id) || r.Holds(c.Peer)
}
