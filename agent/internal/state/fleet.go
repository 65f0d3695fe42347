package state

import (
	"net/netip"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Fleet is what this replica knows of the others, as far as its tunnels follow from
// it. It never changes once made: a new one takes its place.
type Fleet struct {
	// Elsewhere maps the peers that a sibling serves to that sibling's name.
	Elsewhere map[key.Public]string
	// Calling are peers that this replica is calling: whoever serves them, the device
	// is not to forget them meanwhile.
	Calling map[key.Public]bool
	// Siblings are those that are alive, by name.
	Siblings []Sibling
	// Link is this replica's end of the link to its siblings; nil: there is none.
	Link *LinkConfig
}

// Sibling is another replica of the same gateway.
type Sibling struct {
	Name string
	// Address of its Pod, and Second that of the other family in a Pod that has two,
	// else zero.
	Address, Second netip.Addr
	// LinkKey and LinkPort are of its end of the link; without a key it has none, and
	// gets no packets passed on.
	LinkKey  key.Public
	LinkPort uint16
}

// LinkConfig is an end of the link by which replicas pass packets on.
type LinkConfig struct {
	PrivateKey key.Private
	ListenPort uint16
	// Address of this Pod, and Second that of the other family, or zero.
	Address, Second netip.Addr
}

// elsewhere reports whether a sibling serves the peer, and nothing is to be sent to it.
func (f *Fleet) elsewhere(k key.Public) bool {
	if f == nil || len(f.Elsewhere) == 0 || f.Calling[k] {
		return false
	}
	_, ok := f.Elsewhere[k]
	return ok
}

// Call asks for a handshake with a peer, at once.
type Call struct {
	Slot key.Slot
	Peer key.Public
	// Endpoint is where the peer's packets came from; zero: the configured one.
	Endpoint netip.AddrPort
	// Nudge asks for a packet by the session that there is, instead, and Silence for
	// nothing any more: the device forgets the peer and where it is.
	Nudge, Silence bool
}
