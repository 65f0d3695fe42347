package state

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// SessionLifetime is how long a WireGuard session may be used after its
// handshake: REJECT_AFTER_TIME, section 6.1 of the WireGuard whitepaper.
const SessionLifetime = 180 * time.Second

// Activity tells peers apart by what is known of their session.
type Activity string

// The activities.
const (
	Never     Activity = "never"     // no handshake since the device exists
	Connected Activity = "connected" // a handshake within SessionLifetime
	Idle      Activity = "idle"      // session over, and the gateway has nothing to say either
	Dead      Activity = "dead"      // session over, while the gateway calls and gets no answer
	Elsewhere Activity = "elsewhere" // another replica has the session
)

// Activities lists every activity, for metrics that must show zeros too.
func Activities() []Activity { return []Activity{Connected, Idle, Dead, Never, Elsewhere} }

// Session is what is remembered of a peer between two observations.
type Session struct {
	Activity      Activity
	Endpoint      netip.AddrPort
	LastHandshake time.Time
	transmitted   int64
	// unanswered is when the gateway was first seen sending after the session
	// had ended; zero where it was not.
	unanswered time.Time
	look       uint64 // the last one that saw the peer
}

// deadAfter is how long calls must stay unanswered before a peer is called
// dead: REKEY_ATTEMPT_TIME is 90 s, and handshake initiations are at most
// KEEPALIVE+REKEY_TIMEOUT apart.
const deadAfter = 15 * time.Second

// Sessions is the memory of all peers. The zero value has seen nothing yet. It is
// for one goroutine at a time.
type Sessions struct {
	peers map[key.Public]Session
	looks uint64
}

// Of returns what is remembered of a peer; the zero Session of one that the last
// look did not see.
func (s *Sessions) Of(k key.Public) Session { return s.peers[k] }

// EventKind says what happened to a peer between two observations.
type EventKind string

// The kinds of events.
const (
	PeerConnected    EventKind = "peer connected"
	PeerDisconnected EventKind = "peer disconnected"
	PeerRoamed       EventKind = "peer roamed"
)

// Event is something that people want to read of in a log.
type Event struct {
	Kind      EventKind
	PublicKey key.Public
	// From and To are the peer's endpoints before and after; From is zero
	// unless the peer roamed.
	From, To netip.AddrPort
}

// Look takes an observation at time now, and returns what happened since the last
// one, in the order of public keys. A peer that left the device while connected is
// disconnected. The error is that of each, which calls its argument for every
// peer; those that it did not come to stay as they were.
//
// It works in place: 10,000 peers are looked at every few seconds.
func (s *Sessions) Look(each func(func(*ObservedPeer)) error, now time.Time) ([]Event, error) {
	if s.peers == nil {
		s.peers = map[key.Public]Session{}
	}
	s.looks++
	var events []Event
	err := each(func(p *ObservedPeer) {
		before := s.peers[p.PublicKey]
		after := before.next(p, now)
		after.look = s.looks
		s.peers[p.PublicKey] = after
		was, is := before.Activity == Connected, after.Activity == Connected
		switch {
		case is && !was:
			events = append(events, Event{Kind: PeerConnected, PublicKey: p.PublicKey, To: after.Endpoint})
		case was && !is:
			events = append(events, Event{Kind: PeerDisconnected, PublicKey: p.PublicKey, To: after.Endpoint})
		case is && before.Endpoint.IsValid() && before.Endpoint != after.Endpoint:
			events = append(events, Event{Kind: PeerRoamed, PublicKey: p.PublicKey, From: before.Endpoint, To: after.Endpoint})
		}
	})
	for k, before := range s.peers {
		if before.look == s.looks || err != nil {
			continue
		}
		delete(s.peers, k)
		if before.Activity == Connected {
			events = append(events, Event{Kind: PeerDisconnected, PublicKey: k, To: before.Endpoint})
		}
	}
	slices.SortFunc(events, func(a, b Event) int {
		return cmp.Or(a.PublicKey.Compare(b.PublicKey), cmp.Compare(a.Kind, b.Kind))
	})
	return events, err
}

// Each goes through observed peers, in no order, for [Sessions.Look]. The memory
// that visit gets is used again.
func Each(peers map[key.Public]ObservedPeer) func(visit func(*ObservedPeer)) error {
	return func(visit func(*ObservedPeer)) error {
		var p ObservedPeer // one for all, or every one would be garbage
		for _, p = range peers {
			visit(&p)
		}
		return nil
	}
}

func (s Session) next(p *ObservedPeer, now time.Time) Session {
	out := Session{Endpoint: p.Endpoint, LastHandshake: p.LastHandshake, transmitted: p.TransmitBytes}
	switch {
	case p.LastHandshake.IsZero():
		out.Activity = Never
		return out
	case now.Sub(p.LastHandshake) < SessionLifetime:
		out.Activity = Connected
		return out
	}
	out.unanswered = s.unanswered
	if p.TransmitBytes > s.transmitted && s.Activity != "" && s.Activity != Connected && out.unanswered.IsZero() {
		out.unanswered = now
	}
	if p.TransmitBytes == s.transmitted && now.Sub(out.unanswered) > SessionLifetime {
		out.unanswered = time.Time{} // it gave up long ago
	}
	out.Activity = Idle
	if !out.unanswered.IsZero() && now.Sub(out.unanswered) >= deadAfter {
		out.Activity = Dead
	}
	return out
}

// Count returns the number of peers by activity; every activity is present. f says which
// of them other replicas have.
func (s *Sessions) Count(f *Fleet) map[Activity]int {
	out := make(map[Activity]int, len(Activities()))
	for _, a := range Activities() {
		out[a] = 0
	}
	for k, session := range s.peers {
		if session.Activity != Connected && f.elsewhere(k) {
			session.Activity = Elsewhere
		}
		out[session.Activity]++
	}
	return out
}
