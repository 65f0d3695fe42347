package fleet

import (
	"maps"
	"net/netip"
	"time"
)

// A peer answers to where the last packet came from. Once the load balancer has
// forgotten a flow, what its former replica still sends leaves with another source
// address, of its node, and a peer that no NAT shields follows it there: off the load
// balancer, and for as long as that replica lives. This file brings such peers back,
// and finds those that were left behind.

const (
	// pulledFor is for how long after a peer went to a sibling its packets are taken
	// for drawn away by what was under way. Longer than the reminders take, by which
	// the sibling draws it back; and a replica that leaves has reason to be patient.
	pulledFor        = 300 * time.Millisecond
	pulledWhileLeave = 1500 * time.Millisecond
	// settled is when nothing draws a peer away any more that has come here: later than
	// siblings say that they are pulled, sooner than they give a call up.
	settled = 2 * pulledWhileLeave
	// orphanedAfter is when the peers of a replica that is gone are called, where they
	// have not come by themselves: not before the load balancer had its time. It is
	// tried for as long as the session lasts.
	orphanedAfter = 2 * time.Second
	// orphanCalls is how often. Who is there answers; who is with a replica that we do not
	// hear from must not be held up (unheard.go). So after the first few, there is time
	// between two calls, four times over: there may be others who call, at other moments.
	orphanCalls = 3
	orphanEvery = 60 * time.Second
)

// Reminder asks to look at a session that a peer has made with us a moment ago, at a
// handshake that is not proven yet, or at a packet that had to wait.
type Reminder struct {
	After time.Duration
	Peer  PeerID
	Index uint32
	// Handshake says that it is of a handshake: nothing, where the peer uses it by then.
	Handshake bool
	// Port and From are those of a packet.
	Port uint16
	From netip.AddrPort
}

// lastReminder is when siblings are told of an adopted peer again: the message to its former
// holder may have been lost, and of six replicas gossip misses one now and then.
const lastReminder = 250 * time.Millisecond

// remindersOf are sent until whatever the former holder had under way has arrived.
func remindersOf(s Session) []Reminder {
	var out []Reminder
	for _, after := range []time.Duration{30 * time.Millisecond, 100 * time.Millisecond, lastReminder} {
		out = append(out, Reminder{After: after, Peer: s.Peer, Index: s.Index})
	}
	return out
}

// Remind carries a reminder out, unless the peer has another session by now.
func (r *Replica) Remind(m Reminder, now time.Time) (e Effects) {
	switch {
	case m.From.IsValid():
		if r.calls[m.Peer] == nil { // a sibling has it
			return e
		}
		return r.Stranger(m.Index, m.Port, m.From, now)
	case !m.Handshake:
	case r.Began(m.Index):
		return r.unproven(m, now)
	case r.mine[m.Index].used: // what confirms our call may have been lost
		return e
	}
	s, ok := r.table.Newest(m.Peer)
	p, isConfigured := r.peers[m.Peer]
	if !ok || !isConfigured || s.Index != m.Index || !r.isMine(s) {
		return e
	}
	// To where it answered, whatever came from elsewhere meanwhile.
	e.Calls = []Call{r.nudge(s.Index, Call{Peer: p.PublicKey, Port: s.Port, Endpoint: s.Endpoint})}
	switch {
	case m.Handshake:
		r.watchOwn(s.Peer, &e)
	case m.After == lastReminder:
		e.Tell = []Session{s}
	}
	return e
}

// recallEvery bounds how often a sibling is told of a peer's packets that come here.
const recallEvery = 10 * time.Millisecond

// recall has the sibling that a peer went to draw it back, since its packets come here.
func (r *Replica) recall(newest Session, now time.Time, e *Effects) {
	if at := r.recalled[newest.Peer]; now.Sub(at) < recallEvery {
		return
	}
	r.recalled[newest.Peer] = now
	e.Recall = append(e.Recall, newest)
}

// Recalled takes sessions of ours whose packets come to a sibling. Peers that have come
// here a moment ago are drawn back; others may have gone there, where nobody answers yet.
func (r *Replica) Recalled(sessions []Session, now time.Time) (e Effects) {
	for _, s := range sessions {
		ours, ok := r.table.Newest(s.Peer)
		switch {
		case !ok || !ours.same(s) || !r.isMine(ours):
		case now.Sub(ours.Since) >= settled:
			r.missed[s.Peer] = now
		default:
			e.Calls = append(e.Calls, r.Remind(Reminder{Peer: s.Peer, Index: s.Index}, now).Calls...)
		}
	}
	return e
}

// isPulled reports whether packets of a sibling's session come here because of what
// we sent last.
func (r *Replica) isPulled(newest Session, now time.Time) bool {
	at, ok := r.yielded[newest.Peer]
	if _, alive := r.members[newest.Holder]; !ok || !alive || newest.Holder == r.self {
		return false
	}
	patience := pulledFor
	if r.members[r.self].Draining {
		patience = pulledWhileLeave
	}
	return now.Sub(at) < patience
}

// tickHandover calls peers whose replica is gone, those that nobody has taken over.
func (r *Replica) tickHandover(now time.Time, e *Effects) {
	for id, at := range r.yielded {
		if now.Sub(at) >= pulledWhileLeave {
			delete(r.yielded, id)
			delete(r.recalled, id)
		}
	}
	maps.DeleteFunc(r.passed, func(_ PeerID, at time.Time) bool { return now.Sub(at) >= lateFor })
	for id, d := range r.gone {
		switch {
		case d.at.IsZero():
			d.at = now
			r.gone[id] = d
		case now.Sub(d.at) >= connectedFor:
			delete(r.gone, id)
		}
	}
	if len(r.gone) == 0 {
		return
	}
	for id, p := range r.peers {
		s, ok := r.table.Newest(id)
		if !ok || p.Site || r.isMine(s) || now.Sub(s.Since) >= connectedFor {
			continue
		}
		isOurs := s.Holder == r.self || r.caller(id) == r.self // nobody else knows that we began anew
		if d, gone := r.gone[s.Holder]; gone && !d.back && isOurs && now.Sub(d.at) >= orphanedAfter {
			r.callAt(s, now, e)
		}
	}
}

// callAt calls a peer where it was last seen.
func (r *Replica) callAt(s Session, now time.Time, e *Effects) {
	p, ok := r.peers[s.Peer]
	if !ok {
		return
	}
	c := r.callingOf(s.Peer, now)
	since := now.Sub(c.last)
	if c.unasked > 0 && since < orphanEvery && (c.unasked >= orphanCalls || since >= lastRetry) {
		return
	}
	if s.Endpoint == (netip.AddrPort{}) || !c.isTurn(netip.AddrPort{}, now) {
		return
	}
	c.unasked++
	r.call(s.Peer, Call{Peer: p.PublicKey, Port: s.Port, Endpoint: s.Endpoint}, e)
}

// Offers are the connected peers that a replica that leaves still has, for the
// siblings that shall call them, by name.
func (r *Replica) Offers(now time.Time) map[string][]Session {
	out := map[string][]Session{}
	for id := range r.peers {
		s, ok := r.table.Newest(id)
		if to := r.caller(id); ok && r.isMine(s) && to != r.self && now.Sub(s.Since) < connectedFor {
			out[r.members[to].Name] = append(out[r.members[to].Name], s)
		}
	}
	return out
}

// Offered calls peers that a sibling cannot keep.
func (r *Replica) Offered(sessions []Session, now time.Time) (e Effects) {
	for _, s := range sessions {
		newest, ok := r.table.Newest(s.Peer)
		if _, isConfigured := r.peers[s.Peer]; ok && isConfigured && newest.same(s) && !r.isMine(s) {
			r.callAt(s, now, &e)
		}
	}
	return e
}
