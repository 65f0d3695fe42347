package fleet

import "time"

// Two replicas may shake hands with a peer without knowledge of each other. This file
// finds out whose session the peer uses.

// sessionOf is what comes of a handshake of ours.
func (r *Replica) sessionOf(index uint32, began started, now time.Time) Session {
	took := min(now.Sub(began.at), mostTook).Truncate(wireAge) // all remember the same
	return Session{
		Index: index, Peer: began.peer, Seq: began.seq, Holder: r.self,
		Since: now, Took: took, Port: began.port, Endpoint: began.endpoint,
	}
}

// countsOn reports whether a session has to take a greater number, since another one has a
// greater one by now though its handshake began before.
func (s Session) countsOn(o Session) bool { return s.Compare(o) < 0 && s.began().After(o.began()) }

// reassert has a session of ours count on where one that began before has the greater
// number. Numbers tell nothing about sessions that were made without knowledge of each
// other, by two replicas that a peer came to within a moment or on the two sides of a
// partition. The peer uses the one that began later: it has one handshake at a time
// (section 5.4 of the whitepaper). What is compared are durations, so that clocks that are
// wrong do not matter; and since others' sessions never seem to have begun too early, no
// two replicas take each other's for older.
func (r *Replica) reassert(s Session, now time.Time, e *Effects) {
	ours, ok := r.table.Newest(s.Peer)
	if !ok || !r.isMine(ours) || s.same(ours) || !ours.countsOn(s) {
		return
	}
	ours.Seq = s.Seq + 1
	if news, _ := r.add(ours, e); news {
		e.Publish = append(e.Publish, ours)
	}
}
