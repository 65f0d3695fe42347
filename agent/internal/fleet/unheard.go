package fleet

import (
	"maps"
	"slices"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// A peer may be elsewhere without our knowledge: with a replica behind a partition, or with
// one that it refuses to answer, whose clock is behind. It comes back by itself, 15 s after
// it was last answered (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT), unless somebody holds it up:
// with each initiation that it gets its timers begin anew, and a device that has a session
// with it, and gets no answer to what it sends, repeats initiations for 90 s. This file finds such
// devices, and makes them fall silent.

// missedFor is for how long what a sibling says of a peer's packets counts: our device calls
// 15 s after the peer went there.
const missedFor = 30 * time.Second

// unseenAfter is how much later than the last session that is known of one must have been
// made to be another one: WireGuard makes none within REKEY_TIMEOUT (5 s) of the one before.
const unseenAfter = time.Second

// hush ends a call in vain: the device shall not go on calling by itself, where the
// peer may not be. If its packets come here, who has the session is told.
func (r *Replica) hush(id PeerID, c *calling, e *Effects) {
	p, ok := r.peers[id]
	s, known := r.table.Newest(id)
	if !ok || p.Site || r.isMine(s) {
		return
	}
	isHere := slices.ContainsFunc(c.callers, func(o caller) bool { return o.from.IsValid() })
	if _, alive := r.members[s.Holder]; known && alive && isHere && s.Holder != r.self {
		e.Recall = append(e.Recall, s)
	}
	e.Elsewhere = true
	r.silence(id, e)
}

// silence makes the device fall silent towards a peer that it was made to call, by a call
// at no address. That a sibling has the peer does not do it: that was so before the call,
// and to the device nothing changes.
func (r *Replica) silence(id PeerID, e *Effects) {
	p, ok := r.peers[id]
	if !ok || p.Site { // which is called at the configured one
		return
	}
	r.undo(id)
	delete(r.loud, id)
	e.Calls = append(e.Calls, Call{Peer: p.PublicKey})
}

// IsOver reports whether a call must not be made any more: the peer has come by itself, or
// is about to, and has what would be lost with it.
func (r *Replica) IsOver(c Call) bool {
	if c.Nudge {
		return false
	}
	id := IDOf(c.Peer)
	for _, s := range r.started {
		if s.peer == id && s.answer && !s.undone {
			return true // those from before the call was asked for are undone
		}
	}
	return r.Holds(c.Peer)
}

// tickUnheard makes the device fall silent towards peers that do not answer it and may
// be elsewhere. They are called as those of a replica that is gone, from time to time.
func (r *Replica) tickUnheard(now time.Time, e *Effects) {
	maps.DeleteFunc(r.missed, func(_ PeerID, at time.Time) bool { return now.Sub(at) >= missedFor })
	for _, s := range r.started {
		newest, _ := r.table.Newest(s.peer)
		p, ok := r.peers[s.peer]
		_, isMissed := r.missed[s.peer]
		switch {
		case s.answer || s.answered || now.Sub(s.at) < callingFor || !isMissed && !r.isBereaved():
		case !ok || p.Site || !r.isMine(newest) || newest.Since.After(s.at):
		default:
			r.lose(s.peer, e)
			c := r.callingOf(s.peer, now)
			c.unheard, c.unasked, c.last = true, orphanCalls, now
			r.silence(s.peer, e)
		}
	}
	for id, c := range r.calls {
		if s, _ := r.table.Newest(id); c.unheard && s.Holder == r.self && !r.isMine(s) && now.Sub(s.Since) < connectedFor {
			r.callAt(s, now, e)
		}
	}
}

// isBereaved reports whether a sibling is gone: its peers may be anywhere.
func (r *Replica) isBereaved() bool {
	for id := range r.gone {
		if id != r.self {
			return true
		}
	}
	return false
}

// lose notes that the device has lost its sessions with a peer. isNewest says that the
// peer's last one was among them.
func (r *Replica) lose(id PeerID, e *Effects) (isNewest bool) {
	for i, s := range r.table.Sessions(id) {
		if r.isMine(s) {
			delete(r.mine, s.Index)
			e.Strangers = append(e.Strangers, s.Index)
			isNewest = isNewest || i == 0
		}
	}
	return isNewest
}

// Forgot notes that the device was made to forget peers, to fall silent towards them, by
// what was known a moment ago. One may have come since: what it has with us is lost, and
// it is called.
func (r *Replica) Forgot(peers []key.Public, now time.Time) (e Effects) {
	for _, k := range peers {
		id := IDOf(k)
		r.undo(id)
		delete(r.loud, id)
		isNewest := r.lose(id, &e)
		if _, isConfigured := r.peers[id]; isConfigured && isNewest {
			s, _ := r.table.Newest(id)
			r.callAt(s, now, &e)
		}
	}
	return e
}

// Unseen calls peers with whom the device has a session that nobody knows of: made while
// no agent looked. Whoever they went to with it could not tell whose packets these are.
// made are the device's last sessions, without their indices, which it does not tell.
func (r *Replica) Unseen(made []Session, now time.Time) (e Effects) {
	if len(r.members) == 1 {
		return e // there is nobody to go to
	}
	for _, s := range made {
		newest, ok := r.table.Newest(s.Peer)
		_, isConfigured := r.peers[s.Peer]
		if isConfigured && now.Sub(s.Since) < connectedFor && (!ok || s.Since.Sub(newest.Since) >= unseenAfter) {
			r.lose(s.Peer, &e)
			r.callAt(s, now, &e)
		}
	}
	return e
}

// Recalled takes sessions of ours whose packets come to a sibling. Peers that have come
// here a moment ago are drawn back; others may have gone there, where nobody answers yet.
func (r *Replica) Recalled(sessions []Session, now time.Time) (e Effects) {
	for _, s := range sessions {
		ours, ok := r.table.Newest(s.Peer)
		switch {
		case !ok || !ours.same(s) || !r.isMine(ours):
		case now.Sub(ours.Since) >= 2*pulledWhileLeave:
			r.missed[s.Peer] = now
		default:
			e.Calls = append(e.Calls, r.Remind(Reminder{Peer: s.Peer, Index: s.Index}, now).Calls...)
		}
	}
	return e
}
