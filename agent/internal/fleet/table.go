package fleet

import (
	"hash/fnv"
	"slices"
	"time"
)

// Table is what a replica knows of sessions, its own and its siblings'. It holds at
// most three for each peer, and the last one that is over. The zero value knows of
// none; it is for one goroutine at a time.
//
// Tables that have seen the same sessions are equal, in whatever order they saw them
// and however often: it is a join semilattice, and so replicas need neither order nor
// reliability of their messages. A message that somebody repeats changes nothing.
type Table struct {
	peers   map[PeerID]known
	indices map[uint32]PeerID
}

// known is what is known of a peer.
type known struct {
	sessions []Session // the newest first
	// over is the greatest of the sessions that are over; Seq 0: there was none. No
	// session up to it is news: its number must not be given again, or an old message
	// that somebody repeats would count.
	over Session
}

// Add notes a session, and reports whether that was news: it is not for one that is
// known, that is over, or that is older than those that are kept. dropped are those
// that went for it.
func (t *Table) Add(s Session) (news bool, dropped []Session) {
	k := t.known(s.Peer)
	if s.Compare(k.over) <= 0 {
		return false, nil
	}
	if i := slices.IndexFunc(k.sessions, s.same); i >= 0 {
		if k.sessions[i].Seq >= s.Seq {
			return false, nil
		}
		k.sessions = slices.Delete(k.sessions, i, i+1) // it counted on
	}
	at, _ := slices.BinarySearchFunc(k.sessions, s, func(a, b Session) int { return b.Compare(a) })
	if at == sessionsKept {
		return false, nil
	}
	k.sessions = slices.Insert(k.sessions, at, s)
	if len(k.sessions) > sessionsKept {
		dropped = append(dropped, k.sessions[sessionsKept])
		t.forget(k.sessions[sessionsKept])
		k.sessions = k.sessions[:sessionsKept]
	}
	t.peers[s.Peer] = k
	t.indices[s.Index] = s.Peer
	return true, dropped
}

// Over notes a session that is over, by which those before it are, too. dropped are
// those that were kept.
func (t *Table) Over(s Session) (news bool, dropped []Session) {
	k := t.known(s.Peer)
	if s.Compare(k.over) <= 0 {
		return false, nil
	}
	k.over = s
	for n := len(k.sessions); n > 0 && k.sessions[n-1].Compare(s) <= 0; n-- {
		dropped = append(dropped, k.sessions[n-1])
		t.forget(k.sessions[n-1])
		k.sessions = k.sessions[:n-1]
	}
	t.peers[s.Peer] = k
	return true, dropped
}

// known is what is known of a peer, which may be nothing yet.
func (t *Table) known(p PeerID) known {
	if t.peers == nil {
		t.peers, t.indices = map[PeerID]known{}, map[uint32]PeerID{}
	}
	return t.peers[p]
}

// forget takes a session out of the index, unless another peer's has its number.
func (t *Table) forget(s Session) {
	if t.indices[s.Index] == s.Peer {
		delete(t.indices, s.Index)
	}
}

// Find returns the session of an index that is not over. Of two peers' sessions with
// one index, made by different replicas by chance (one in four billion for each pair),
// it is the one that was added last.
func (t *Table) Find(index uint32) (s Session, ok bool) {
	for _, s := range t.peers[t.indices[index]].sessions {
		if s.Index == index {
			return s, true
		}
	}
	return Session{}, false
}

// Newest returns a peer's last session, which may be over; ok is false where none is
// known.
func (t *Table) Newest(p PeerID) (s Session, ok bool) {
	k := t.peers[p]
	if len(k.sessions) > 0 {
		return k.sessions[0], true
	}
	return k.over, k.over.Seq > 0
}

// Sessions are those of a peer that are not over, the newest first. The slice is the
// table's own.
func (t *Table) Sessions(p PeerID) []Session { return t.peers[p].sessions }

// Each calls visit for every session that is not over.
func (t *Table) Each(now time.Time, visit func(Session)) {
	for _, k := range t.peers {
		for _, s := range k.sessions {
			if now.Sub(s.Since) < sessionLifetime {
				visit(s)
			}
		}
	}
}

// State is all that somebody needs to know who knows nothing: what is not over, and
// the last session of those that have no other.
func (t *Table) State() []Session {
	out := make([]Session, 0, len(t.indices))
	for _, k := range t.peers {
		if len(k.sessions) == 0 {
			out = append(out, k.over)
		}
		out = append(out, k.sessions...)
	}
	return out
}

// Expire forgets the sessions that are over, and passes each to visit, and what else is
// known of peers that do not stay.
func (t *Table) Expire(now time.Time, stays func(PeerID) bool, visit func(Session)) {
	for id, k := range t.peers {
		for _, s := range k.sessions { // the newest first: what is older goes with it
			if now.Sub(s.Since) < sessionLifetime {
				continue
			}
			_, dropped := t.Over(s)
			for _, d := range dropped {
				visit(d)
			}
			break
		}
		if len(t.peers[id].sessions) == 0 && !stays(id) {
			delete(t.peers, id)
		}
	}
}

// Connected counts the peers with a handshake within [connectedFor], by holder.
func (t *Table) Connected(now time.Time) map[ReplicaID]int {
	out := map[ReplicaID]int{}
	for _, k := range t.peers {
		if len(k.sessions) > 0 && now.Sub(k.sessions[0].Since) < connectedFor {
			out[k.sessions[0].Holder]++
		}
	}
	return out
}

// score is the weight of a replica for a peer (rendezvous hashing).
func score(p PeerID, r ReplicaID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(p[:])
	_, _ = h.Write(r[:])
	// FNV alone hardly moves the upper bits for what differs at the end.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd // the finaliser of MurmurHash3
	return x ^ x>>33
}
