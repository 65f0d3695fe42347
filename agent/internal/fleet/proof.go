package fleet

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Whoever can see packets could make up all that comes in for a handshake of ours: our
// index stands in it in clear. WireGuard itself is not deceived, and so it is asked: it
// sends data by the index of the peer's that the handshake brought only once the
// handshake was true. As the one who called, it does so at once (the whitepaper, section
// 5.4.6: the first data confirms the key); as the one who was called, it answers what the
// peer sends, or a nudge.

// claims are handshakes that lack this proof.
type claims struct {
	byPeer map[uint32]claim // by the peer's index
	// proven are the indices of peers by which we send, since when: a made-up response
	// may name one of them, by which we send anyway.
	proven map[uint32]time.Time
}

// claim is what the data will prove.
type claim struct {
	index uint32 // ours
	// to is where the data has to go; zero: anywhere, since we have found the peer's
	// index in a message that WireGuard believed.
	to netip.AddrPort
	at time.Time
}

// nudgeUnproven is after how long a peer that uses a session which we have not sent by
// is sent something. Mostly it has got an answer by then.
const nudgeUnproven = 20 * time.Millisecond

func newClaims() *claims {
	return &claims{byPeer: map[uint32]claim{}, proven: map[uint32]time.Time{}}
}

// note takes the peer's index out of a response, ours or the peer's.
func (c *claims) note(m firewall.Message, now time.Time) {
	if m.Type != messageTypeResp || len(m.Bytes) < 12 {
		return
	}
	sender, receiver := binary.LittleEndian.Uint32(m.Bytes[4:]), binary.LittleEndian.Uint32(m.Bytes[8:])
	theirs, claimed := sender, claim{index: receiver, to: m.Remote, at: now}
	if m.Out {
		theirs, claimed = receiver, claim{index: sender, at: now}
	}
	if _, known := c.proven[theirs]; !known {
		c.byPeer[theirs] = claimed
	}
}

// prove returns our index of the handshake that data which we sent proves.
func (c *claims) prove(m firewall.Message, now time.Time) (index uint32, ok bool) {
	claimed, ok := c.byPeer[m.Index]
	if !ok || claimed.to.IsValid() && claimed.to != m.Remote {
		return 0, false
	}
	delete(c.byPeer, m.Index)
	c.proven[m.Index] = now
	return claimed.index, true
}

// expire forgets what leads to nothing any more.
func (c *claims) expire(now time.Time) {
	for theirs, claimed := range c.byPeer {
		if now.Sub(claimed.at) >= startedLifetime {
			delete(c.byPeer, theirs)
		}
	}
	for theirs, at := range c.proven {
		if now.Sub(at) >= sessionLifetime {
			delete(c.proven, theirs)
		}
	}
}

// Heard takes a message of WireGuard's that passed one of the gateway's ports.
func (f *Fleet) Heard(m firewall.Message) {
	f.do(func(now time.Time) Effects { return f.replica.Message(m, f.receivers.of, now) })
}

// Message takes a message of WireGuard's that passed one of the gateway's ports. peerOf
// tells for whom one of our handshake messages is.
func (r *Replica) Message(m firewall.Message, peerOf func(message []byte, to netip.AddrPort) (key.Public, bool), now time.Time) (e Effects) {
	switch {
	case m.Out && m.Type == messageTypeData:
		if index, ok := r.claims.prove(m, now); ok {
			return r.Confirmed(index, now)
		}
	case m.Out:
		if peer, ok := peerOf(m.Bytes, m.Remote); ok {
			r.Started(m.Index, peer, m.Type == messageTypeResp, now)
			r.Located(m.Index, m.Port, m.Remote)
			r.claims.note(m, now)
			if m.Type != messageTypeResp {
				return r.left(IDOf(peer), m.Port, m.Remote, now)
			}
			e.Reminders = []Reminder{{After: hintAfter, Peer: IDOf(peer), Index: m.Index, Handshake: true}}
		}
	case r.Began(m.Index) && m.Type == messageTypeResp:
		r.Answered(m.Index, now)
		r.claims.note(m, now)
		e.Reminders = []Reminder{{After: firstRetry, Peer: r.started.byIndex[m.Index].peer, Index: m.Index, Handshake: true}}
	case r.undone(m.Index):
		return r.Confirmed(m.Index, now) // the device has nothing to prove it by
	case r.Began(m.Index):
		// Whether or not it is the peer: what we send is for the peer alone.
		r.started.change(m.Index, func(s *started) { s.used = true })
		e.Reminders = []Reminder{{After: nudgeUnproven, Peer: r.started.byIndex[m.Index].peer, Index: m.Index, Handshake: true}}
	case m.Type == messageTypeData:
		return r.Stranger(m.Index, m.Port, m.Remote, now)
	}
	return e
}

// undone reports whether the device has forgotten a handshake of ours that the peer may
// still take for a session.
func (r *Replica) undone(index uint32) bool { return r.started.byIndex[index].undone }

// unproven takes care of a handshake that is still not confirmed.
func (r *Replica) unproven(m Reminder, now time.Time) (e Effects) {
	s, ok := r.started.byIndex[m.Index]
	p, isConfigured := r.peers[m.Peer]
	switch {
	case !ok || !isConfigured || s.peer != m.Peer || s.undone && !s.answer:
	case s.answer:
		if s.used && !s.undone { // it is given something to say
			e.Calls = []Call{{Peer: p.PublicKey, Port: s.port, Nudge: true}}
		}
		if now.Sub(s.at) >= hintAfter {
			e.Publish = []Session{r.hintOf(m.Index, s)}
		}
	case s.answered && r.isCalled(m.Peer):
		// The peer's own handshake has crossed our call, since each side has but one at a
		// time: what it answered leads to nothing.
		r.callAt(Session{Peer: s.peer, Port: s.port, Endpoint: s.endpoint}, now, &e)
	}
	return e
}
