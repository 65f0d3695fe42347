package fleet

import (
	"hash/fnv"
	"slices"
	"time"
)

// Table is what a replica knows of sessions, its own and its siblings'. It holds at
// most three for each peer. The zero value knows of none; it is for one goroutine at
// a time.
//
// Tables that have seen the same sessions are equal, in whatever order they saw them
// and however often: it is a join semilattice, and so replicas need neither order nor
// reliability of their messages.
type Table struct {
	peers   map[PeerID][]Session // the newest first
	indices map[uint32]PeerID
}

// Add notes a session, and reports whether that was news: it is not for one that is
// known, or older than those that are kept. dropped are the indices that went for it.
func (t *Table) Add(s Session) (news bool, dropped []uint32) {
	if t.peers == nil {
		t.peers, t.indices = map[PeerID][]Session{}, map[uint32]PeerID{}
	}
	known := t.peers[s.Peer]
	at, _ := slices.BinarySearchFunc(known, s, func(a, b Session) int { return b.Compare(a) })
	if at == sessionsKept || at < len(known) && known[at].Compare(s) == 0 {
		return false, nil
	}
	known = slices.Insert(known, at, s)
	if len(known) > sessionsKept {
		t.forget(known[sessionsKept])
		dropped = append(dropped, known[sessionsKept].Index)
		known = known[:sessionsKept]
	}
	t.peers[s.Peer] = known
	t.indices[s.Index] = s.Peer
	return true, dropped
}

// forget takes a session out of the index, unless another peer's has its number.
func (t *Table) forget(s Session) {
	if t.indices[s.Index] == s.Peer {
		delete(t.indices, s.Index)
	}
}

// Find returns the session of an index.
func (t *Table) Find(index uint32) (s Session, ok bool) {
	for _, s := range t.peers[t.indices[index]] {
		if s.Index == index {
			return s, true
		}
	}
	return Session{}, false
}

// Newest returns a peer's last session; ok is false where none is known.
func (t *Table) Newest(p PeerID) (s Session, ok bool) {
	if known := t.peers[p]; len(known) > 0 {
		return known[0], true
	}
	return Session{}, false
}

// Sessions are those of a peer, the newest first. The slice is the table's own.
func (t *Table) Sessions(p PeerID) []Session { return t.peers[p] }

// Each calls visit for every session that is not over.
func (t *Table) Each(now time.Time, visit func(Session)) {
	for _, known := range t.peers {
		for _, s := range known {
			if now.Sub(s.Since) < sessionLifetime {
				visit(s)
			}
		}
	}
}

// Expire forgets the sessions that are over, and passes each to visit. Of every peer
// that stays the newest is kept all the same: its number must not be given again, or
// an old message that somebody repeats would count as news.
func (t *Table) Expire(now time.Time, stays func(PeerID) bool, visit func(Session)) {
	for id, known := range t.peers {
		kept := known[:0]
		for i, s := range known {
			switch {
			case now.Sub(s.Since) < sessionLifetime:
				kept = append(kept, s)
			case i == 0 && stays(id):
				if _, indexed := t.indices[s.Index]; indexed {
					visit(s)
				}
				t.forget(s)
				kept = append(kept, s)
			default:
				t.forget(s)
				visit(s)
			}
		}
		if len(kept) == 0 {
			delete(t.peers, id)
			continue
		}
		t.peers[id] = kept
	}
}

// Connected counts the peers with a handshake within [connectedFor], by holder.
func (t *Table) Connected(now time.Time) map[ReplicaID]int {
	out := map[ReplicaID]int{}
	for _, known := range t.peers {
		if now.Sub(known[0].Since) < connectedFor {
			out[known[0].Holder]++
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
