package plan

import (
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// wake is a keepalive interval for peers that have none: switching it on sends a
// packet at once, and without a session that is a handshake.
const wake = 25 * time.Second

// Calls plans handshakes with peers of desired, and nothing else. A peer is renewed
// for it: what is left of an older session would be used in place of a new one. Peers
// that are not known any more are left out.
func Calls(desired state.Desired, calls []state.Call) Plan {
	var p Plan
	for i := range desired.Tunnels {
		t := &desired.Tunnels[i]
		called := map[key.Public]state.Call{}
		for _, c := range calls {
			if before, twice := called[c.Peer]; c.Slot == t.Slot && (!twice || before.Nudge || !c.Nudge) {
				called[c.Peer] = c // a nudge is of no use before a handshake
			}
		}
		if len(called) == 0 {
			continue
		}
		// First all handshakes, which are waited for, then what puts things right again.
		var wakes, rests []Peer
		for j := range t.Device.Peers {
			want := &t.Device.Peers[j]
			if c, ok := called[want.PublicKey]; ok {
				first, rest := call(want, c)
				wakes, rests = append(wakes, first...), append(rests, rest...)
			}
		}
		p.add(Tunnel{Slot: t.Slot, Link: Link{Name: t.Link.Name}, Device: Device{Peers: append(wakes, rests...)}})
	}
	return p
}

// call wakes a peer, and then gives it the keepalive that it is to have.
func call(want *state.Peer, c state.Call) (first, rest []Peer) {
	keepalive := func(interval time.Duration) Peer {
		return Peer{Operation: Update, Name: want.Name, PublicKey: want.PublicKey, Keepalive: &interval}
	}
	on := want.Keepalive
	if on == 0 {
		on, rest = wake, []Peer{keepalive(0)}
	}
	if c.Nudge {
		off := keepalive(0)
		if c.Endpoint.IsValid() {
			off.Endpoint = &c.Endpoint
		}
		return []Peer{off, keepalive(on)}, rest
	}
	p := renew(*want)
	if c.Silence {
		p.Endpoint, p.Keepalive = nil, nil
		return []Peer{p}, nil
	}
	p.Keepalive = &on
	if c.Endpoint.IsValid() {
		p.Endpoint = &c.Endpoint
	}
	return []Peer{p}, rest
}
