package plan

import (
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Calls plans handshakes with peers of desired, nudges and silences, and nothing else. Of
// several calls of one peer the last handshake counts, whatever nudges come; who is nudged
// has a session, and waits for those who have none. Peers that are not known any more are
// left out.
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
		var peers, nudged []Peer
		for j := range t.Device.Peers {
			want := &t.Device.Peers[j]
			switch c, ok := called[want.PublicKey]; {
			case !ok:
			case c.Nudge:
				nudged = append(nudged, call(want, c))
			default:
				peers = append(peers, call(want, c))
			}
		}
		p.add(Tunnel{Slot: t.Slot, Link: Link{Name: t.Link.Name}, Device: Device{Peers: append(peers, nudged...)}})
	}
	return p
}

// call has all that the peer shall have: a data plane may have to make it anew.
func call(want *state.Peer, c state.Call) Peer {
	if c.Silence {
		p := renew(*want)
		p.Endpoint, p.Keepalive = nil, nil
		return p
	}
	p := add(*want)
	p.Operation = Call
	if c.Nudge {
		p = Peer{Operation: Nudge, Name: want.Name, PublicKey: want.PublicKey, Keepalive: p.Keepalive}
	}
	if c.Endpoint.IsValid() {
		p.Endpoint = &c.Endpoint
	}
	return p
}
