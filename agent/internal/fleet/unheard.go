package fleet

import (
	"maps"
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// A peer may be elsewhere without our knowledge: with a replica behind a partition, or with
// one that it refuses to answer, whose clock is behind. It comes back by itself, 15 s after
// it was last answered (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT), unless somebody holds it up:
// with each initiation that it gets its timers begin anew (section 6.5 of the whitepaper),
// and a device that has a session with it, and gets no answer to what it sends, repeats
// initiations for 90 s. This file finds such devices, and makes them fall silent; and it
// finds sessions that siblings do not know of.

// missedFor is for how long what a sibling says of a peer's packets counts: our device calls
// 15 s after the peer went there.
const missedFor = 30 * time.Second

// rekeyAfter is when WireGuard renews a session that it began (REKEY_AFTER_TIME).
const rekeyAfter = 120 * time.Second

// unseenAfter is how much later than the last session that is known of one must have been
// made to be another one: WireGuard makes none within REKEY_TIMEOUT (5 s) of the one before.
const unseenAfter = time.Second

// tickUnheard makes the device fall silent towards peers that do not answer it and may
// be elsewhere. They are called as those of a replica that is gone, from time to time.
func (r *Replica) tickUnheard(now time.Time, e *Effects) {
	maps.DeleteFunc(r.missed, func(_ PeerID, at time.Time) bool { return now.Sub(at) >= missedFor })
	for _, s := range r.started.byIndex {
		if s.isUnanswered(now) && r.isUnheard(s, now) {
			r.lose(s.peer, e)
			c := r.callingOf(s.peer, now)
			c.unheard, c.unasked, c.last = true, orphanCalls, now // so that it has time
			r.silence(s.peer, e)
		}
	}
	for id, c := range r.calls {
		if !c.unheard {
			continue
		}
		if s, _ := r.table.Newest(id); s.Holder == r.self && !r.isMine(s) && now.Sub(s.Since) < connectedFor {
			r.callAt(s, now, e)
		}
	}
}

// isUnheard reports whether a handshake that was not answered is a sign that the peer is
// elsewhere.
func (r *Replica) isUnheard(s started, now time.Time) bool {
	newest, _ := r.table.Newest(s.peer)
	p, ok := r.peers[s.peer]
	_, isMissed := r.missed[s.peer]
	switch {
	case !ok || p.Site || !r.isMine(newest) || newest.Since.After(s.at):
		return false
	case !isMissed && !r.isBereaved():
		return false
	case s.at.Sub(newest.Since) < rekeyAfter:
		return true
	}
	// Sessions are renewed when nothing is amiss too, and one message may be lost.
	unanswered := 0
	for _, o := range r.started.with(s.peer) {
		if o.isUnanswered(now) {
			unanswered++
		}
	}
	return unanswered > 1
}

// isBereaved reports whether a sibling is gone without a goodbye: peers may be with it, or
// anywhere.
func (r *Replica) isBereaved() bool {
	for id, d := range r.gone {
		if id != r.self && !d.drained {
			return true
		}
	}
	return false
}

// lose notes that the device has lost its sessions with a peer, if it had any.
func (r *Replica) lose(id PeerID, e *Effects) (had bool) {
	for _, s := range r.table.Sessions(id) {
		if r.isMine(s) {
			had = true
			delete(r.mine, s.Index)
			e.Strangers = append(e.Strangers, s.Index)
		}
	}
	return had
}

// unusedFor is how long a session of ours has to stand unused before packets by the one before
// it say that the peer does not know of it: what confirms it was repeated by then, and has
// gone around the world.
const unusedFor = time.Second

// watchOwn asks to be told of what a peer sends by our sessions. By one from before its newest
// it does if it does not know of that: it has lost it where somebody else called it before
// it had heard from us, as who does not hear from us may do.
func (r *Replica) watchOwn(id PeerID, e *Effects) {
	for _, s := range r.table.Sessions(id) {
		if m := r.mine[s.Index]; r.isMine(s) && !m.watched {
			m.watched = true
			r.mine[s.Index] = m
			e.Strangers = append(e.Strangers, s.Index)
		}
	}
}

// isUnknown reports whether a packet by a session of ours says that the peer does not know of
// its newest one. Anybody can repeat a packet: so it has to come from where the peer is, and
// the peer is called there, which costs one that does know of it no more than a handshake.
func (r *Replica) isUnknown(s Session, from netip.AddrPort, now time.Time) bool {
	newest, _ := r.table.Newest(s.Peer)
	return !s.same(newest) && r.isMine(newest) && !r.mine[newest.Index].used && now.Sub(newest.Since) >= unusedFor &&
		(from == s.Endpoint || from == newest.Endpoint)
}

// Forgot notes that the device was made to forget peers, to fall silent towards them, by
// what was known a moment ago. One may have come since: what it has with us is lost, and
// it is called.
func (r *Replica) Forgot(peers []key.Public, now time.Time) (e Effects) {
	for _, k := range peers {
		id := IDOf(k)
		r.undo(id)
		if !r.isCalled(id) { // a call may have been asked for since
			delete(r.loud, id)
		}
		s, _ := r.table.Newest(id)
		isHere := r.isMine(s)
		if r.lose(id, &e); isHere {
			r.callAt(s, now, &e)
		}
	}
	return e
}

// Unseen takes the device's last sessions, where it was taken over: one of each peer, made
// while no agent looked, perhaps. Their indices are missing, which the device does not tell.
// A handshake may be under way meanwhile: so it is to be said again, a moment later.
func (r *Replica) Unseen(made []Session) { r.unseen = made }

// tickUnseen calls peers with whom the device has a session that nobody knows of: whoever
// they went to with it could not tell whose packets these are.
func (r *Replica) tickUnseen(now time.Time, e *Effects) {
	if len(r.members) == 1 || !r.compared {
		return // there is nobody to go to, or to know of them, yet
	}
	for _, s := range r.unseen {
		newest, ok := r.table.Newest(s.Peer)
		if now.Sub(s.Since) < connectedFor && (!ok || s.Since.Sub(newest.Since) >= unseenAfter) && !r.isMaking(s.Peer) {
			r.lose(s.Peer, e)
			r.callAt(s, now, e)
		}
	}
	r.unseen = nil
}

// isMaking reports whether a handshake was seen that was answered, and will be confirmed: the
// device has its session already.
func (r *Replica) isMaking(id PeerID) bool {
	return r.started.has(id, func(s started) bool { return s.answer || s.answered })
}
