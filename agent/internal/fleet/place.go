package fleet

import "cmp"

// placeAll finds out anew where every peer is.
func (r *Replica) placeAll(e *Effects) {
	for id := range r.elsewhere {
		if _, ok := r.peers[id]; !ok {
			delete(r.elsewhere, id)
			e.Elsewhere = true
		}
	}
	for id := range r.peers {
		r.place(id, e)
	}
}

// place finds out where a peer is.
func (r *Replica) place(id PeerID, e *Effects) {
	p, ok := r.peers[id]
	if !ok {
		return
	}
	to := r.serves(id, p.Site)
	if to != r.self && r.loud[id] && !r.isCalled(id) {
		r.silence(id, e)
	}
	was, wasElsewhere := r.elsewhere[id]
	switch {
	case to == r.self && wasElsewhere:
		delete(r.elsewhere, id)
	case to != r.self && (!wasElsewhere || was != to):
		r.elsewhere[id] = to
		if !wasElsewhere && !r.isCalled(id) {
			r.undo(id) // the device falls silent
		}
	default:
		return
	}
	e.Elsewhere = true
	if s, _ := r.table.Newest(id); to == r.self && p.Site && !r.isMine(s) {
		e.Calls = append(e.Calls, Call{Peer: p.PublicKey})
	}
}

// serves returns which replica serves a peer: who has its newest session. Without
// one it is whoever the peer comes to, and this replica is ready for it; a site comes
// to nobody, and one replica calls it.
func (r *Replica) serves(id PeerID, site bool) ReplicaID {
	holder := r.self
	s, ok := r.table.Newest(id)
	if ok {
		holder = s.Holder
	} else if site {
		return r.caller(id)
	}
	m, alive := r.members[holder]
	switch {
	case site && ok && r.isMine(s):
		return r.self // until another one has called it, though this one may be leaving
	case site && (!alive || m.Draining):
		return r.caller(id)
	case !alive:
		return r.self
	}
	return holder
}

// caller is the replica that calls a site: every one has the same chance, and few
// sites change hands when a replica comes or goes (rendezvous hashing).
func (r *Replica) caller(id PeerID) ReplicaID {
	best, found := r.self, false
	for _, draining := range []bool{false, true} {
		for m, member := range r.members {
			if member.Draining == draining && (!found || compareScores(id, m, best) > 0) {
				best, found = m, true
			}
		}
		if found {
			break
		}
	}
	return best
}

func compareScores(id PeerID, a, b ReplicaID) int {
	return cmp.Compare(score(id, a), score(id, b))
}
