package fleet

import (
	"net/netip"
	"time"
)

// A peer that has begun a handshake itself uses the session from the moment at which our
// response reaches it. Where the load balancer moves it just then, or its first packet is
// lost, nobody has seen the session used, and so nobody knows whose it is. This file tells
// the siblings of such indices. A hint has the number 0: it is no session and
// orders nothing, since who has recorded an initiation can have it answered elsewhere. It
// only says whose packets these are: of a peer to be called where it is.

// hintAfter is after how long without a sign of the peer siblings are told: mostly it has
// used the session by then, and all is said by that.
const hintAfter = 60 * time.Millisecond

// hintOf is what there is to say of an answer of ours that nobody has used yet.
func (r *Replica) hintOf(index uint32, s started) Session {
	return Session{Index: index, Peer: s.peer, Holder: r.self, Since: s.at, Port: s.port, Endpoint: s.endpoint}
}

// callHint is a hint without an index: it says that we call the peer, and where.
func (r *Replica) callHint(id PeerID, port uint16, at netip.AddrPort, now time.Time) Session {
	return Session{Peer: id, Holder: r.self, Since: now, Port: port, Endpoint: at}
}

// begun is a sibling's call.
type begun struct {
	since time.Time
	at    netip.Addr
}

// hint takes a hint. Of each peer there is one: who has recorded many initiations, or
// begins many handshakes, must not fill what others need.
func (r *Replica) hint(s Session, now time.Time, e *Effects) {
	_, isConfigured := r.peers[s.Peer]
	if s.Index == 0 && isConfigured {
		r.begun[s.Peer] = begun{s.Since, s.Endpoint.Addr()}
		return
	}
	_, isHinted := r.hints[s.Index]
	if _, known := r.table.Find(s.Index); known || isHinted || !isConfigured || r.Began(s.Index) || now.Sub(s.Since) >= sessionLifetime {
		return
	}
	if before, ok := r.hinted[s.Peer]; ok {
		r.unhint(before, e)
	}
	r.hints[s.Index], r.hinted[s.Peer] = s, s.Index
	e.Strangers = append(e.Strangers, s.Index)
}

// counts reports whether to call the peer for a packet by a hint. That proves nothing, and so
// nobody is called but where the handshake was answered to. Where the newest session is ours, the
// peer does not use that any more if it has begun a handshake with a sibling since, and come
// back before anybody had seen it used. Anybody can make that up: so the packet has to come
// from where the peer is, and the peer is called there, which costs it no more than a handshake.
func (r *Replica) counts(hint, newest Session, from netip.AddrPort) bool {
	if from.Addr() != hint.Endpoint.Addr() {
		return false
	}
	return !r.isMine(newest) || hint.Since.After(newest.Since) && from == newest.Endpoint
}

// unhint forgets a hint.
func (r *Replica) unhint(index uint32, e *Effects) {
	if _, known := r.table.Find(index); !known {
		e.Known = append(e.Known, index)
	}
	delete(r.hinted, r.hints[index].Peer)
	delete(r.hints, index)
}

// whose returns the session of an index, or what was hinted of it.
func (r *Replica) whose(index uint32) (s Session, ok bool) {
	if s, ok = r.table.Find(index); ok {
		return s, ok
	}
	s, ok = r.hints[index]
	return s, ok
}

// tickHints ends handshakes that nobody has used in time: answers of ours it keeps in mind.
// It forgets hints that are over.
func (r *Replica) tickHints(now time.Time, e *Effects) {
	for index, s := range r.started.byIndex {
		if now.Sub(s.at) < startedLifetime {
			continue
		}
		if r.started.drop(index); s.answer && !s.undone {
			r.hint(r.hintOf(index, s), now, e)
		}
	}
	for index, s := range r.hints {
		if _, known := r.table.Find(index); known || now.Sub(s.Since) >= sessionLifetime {
			r.unhint(index, e)
		}
	}
}
