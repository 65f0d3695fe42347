package fleet

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// started is a handshake of ours that is not confirmed.
type started struct {
	peer PeerID
	at   time.Time
	seq  uint32
	// answer says that the peer began it, answered that a response to ours came in.
	answer, answered bool
	// undone says that the device has forgotten it, used that data came by it.
	undone, used bool
	// port of ours, and where the peer is.
	port     uint16
	endpoint netip.AddrPort
}

// isUnanswered reports whether a message of ours has had no response for as long as a call
// is given.
func (s started) isUnanswered(now time.Time) bool {
	return !s.answer && !s.answered && !s.undone && now.Sub(s.at) >= callingFor
}

// handshakes are those that are not confirmed, by our index.
type handshakes struct {
	byIndex map[uint32]started
	indices map[PeerID][]uint32
}

func newHandshakes() handshakes {
	return handshakes{byIndex: map[uint32]started{}, indices: map[PeerID][]uint32{}}
}

// put sets what there is to an index.
func (h handshakes) put(index uint32, s started) {
	h.drop(index)
	h.byIndex[index] = s
	h.indices[s.peer] = append(h.indices[s.peer], index)
}

// change changes what there is to an index, if anything.
func (h handshakes) change(index uint32, change func(*started)) {
	if s, ok := h.byIndex[index]; ok {
		change(&s)
		h.byIndex[index] = s
	}
}

func (h handshakes) drop(index uint32) {
	s, ok := h.byIndex[index]
	if !ok {
		return
	}
	delete(h.byIndex, index)
	left := slices.DeleteFunc(h.indices[s.peer], func(i uint32) bool { return i == index })
	if h.indices[s.peer] = left; len(left) == 0 {
		delete(h.indices, s.peer)
	}
}

// has reports whether one with a peer that the device has not forgotten is such.
func (h handshakes) has(id PeerID, such func(started) bool) bool {
	for _, s := range h.with(id) {
		if !s.undone && such(s) {
			return true
		}
	}
	return false
}

// with goes through those with a peer. They may be changed and dropped on the way.
func (h handshakes) with(id PeerID) iter.Seq2[uint32, started] {
	return func(yield func(uint32, started) bool) {
		for _, index := range slices.Clone(h.indices[id]) {
			if !yield(index, h.byIndex[index]) {
				return
			}
		}
	}
}
