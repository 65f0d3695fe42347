package fleet

// A device that was made to call a peer goes on by itself: it repeats its initiation for
// 90 s. Where the peer is elsewhere by then, each one undoes what a sibling has with it.

// hush ends a call in vain: the device shall not go on calling by itself, where the
// peer may not be.
func (r *Replica) hush(id PeerID, e *Effects) {
	p, ok := r.peers[id]
	if s, _ := r.table.Newest(id); !ok || p.Site || r.isMine(s) {
		return
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
