package state

import (
	"maps"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// Identity is a server key that the gateway answers to.
type Identity struct {
	Key  key.Private
	Slot key.Slot
	// From is when it comes in force, the zero time since ever.
	From time.Time
	// Retires is when the gateway stops answering to it; zero while no other key
	// follows it.
	Retires time.Time
}

// Identities are the keys that the gateway answers to at a time, the oldest
// first: one, or two while a newer key takes over. There is one in each slot at
// most.
//
// A key is answered to from the moment it is known, before its time comes: the
// clock of a client that takes it up may be ahead. It retires when the one that
// follows it has been in force for keyRotation.server.overlap.
func Identities(s *spec.Snapshot, now time.Time) []Identity {
	var out []Identity
	for i, k := range s.ServerKeys {
		id := Identity{Key: k.Key, Slot: k.Slot, From: k.From}
		if i+1 < len(s.ServerKeys) {
			id.Retires = s.ServerKeys[i+1].From.Add(s.Gateway.KeyRotation.Server.Overlap)
			if !now.Before(id.Retires) {
				continue
			}
		}
		out = inSlot(out, id, now)
	}
	return out
}

// inSlot adds an identity that is newer than the others. Where one has the slot,
// it stays until the new one's time has come.
func inSlot(ids []Identity, id Identity, now time.Time) []Identity {
	for i := range ids {
		if ids[i].Slot != id.Slot {
			continue
		}
		if now.Before(id.From) {
			return ids
		}
		return append(append(ids[:i:i], ids[i+1:]...), id)
	}
	return append(ids, id)
}

// InForce is the identity that new clients get at a time: the newest whose time
// has come; where there is none, the first one to come. It is the zero one where
// there are none at all.
func InForce(ids []Identity, now time.Time) Identity {
	var out Identity
	for i, id := range ids {
		if i == 0 || !now.Before(id.From) {
			out = id
		}
	}
	return out
}

// NextChange is when [Build] next gives another answer with all else the same;
// the zero time is never.
func NextChange(s *spec.Snapshot, now time.Time) time.Time {
	var next time.Time
	consider := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for i, k := range s.ServerKeys {
		consider(k.From)
		if i > 0 {
			consider(k.From.Add(s.Gateway.KeyRotation.Server.Overlap))
		}
	}
	for i := range s.Peers {
		for _, k := range s.Peers[i].Scheduled {
			consider(k.From)
		}
	}
	return next
}

// PresharedKey is the newest of a peer whose time has come; zero where there is
// none.
func PresharedKey(p *spec.Peer, now time.Time) key.Preshared {
	out := p.PresharedKey
	for _, k := range p.Scheduled {
		if now.Before(k.From) {
			break
		}
		out = k.Key
	}
	return out
}

// Moved returns the peers that shook hands with the second of two tunnels last,
// nil where there are none: they know the newer server key, and packets for them
// have to be encrypted there. now is a time after both were read.
func Moved(first, second map[key.Public]ObservedPeer, now time.Time) map[key.Public]bool {
	var out map[key.Public]bool
	for k, p := range second {
		if later(p.LastHandshake, first[k].LastHandshake, now) {
			if out == nil {
				out = map[key.Public]bool{}
			}
			out[k] = true
		}
	}
	return out
}

// later reports whether handshake a was after b. A time that lies ahead is from
// before the clock was set back, and so the earlier one.
func later(a, b, now time.Time) bool {
	if ahead := a.After(now); ahead != b.After(now) && !a.IsZero() && !b.IsZero() {
		return !ahead
	}
	return a.After(b)
}

// Latest joins what two tunnels know of the same peers: the endpoint and the
// handshake where that was last, and the bytes of both.
func Latest(first, second map[key.Public]ObservedPeer, now time.Time) map[key.Public]ObservedPeer {
	out := make(map[key.Public]ObservedPeer, max(len(first), len(second))) // of a tunnel that vanished, nil is known
	maps.Copy(out, first)
	for k, p := range second {
		other := first[k]
		if !later(p.LastHandshake, other.LastHandshake, now) && !other.PublicKey.IsZero() {
			p, other = other, p
		}
		p.ReceiveBytes += other.ReceiveBytes
		p.TransmitBytes += other.TransmitBytes
		out[k] = p
	}
	return out
}
