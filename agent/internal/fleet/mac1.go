package fleet

import (
	"crypto/subtle"
	"net/netip"

	"golang.org/x/crypto/blake2s"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// A handshake message that the gateway sends says for whom it is: its field mac1 is
// keyed with the receiver's public key (section 5.4.4 of the WireGuard whitepaper).
// So the index in it can be ascribed to a peer by looking at packets alone, whoever
// encrypts, and whatever addresses are translated on the way.

// Lengths of handshake messages, and of what mac1 covers.
const (
	initiationLen   = 148
	initiationMac1  = 116
	responseLen     = 92
	responseMac1    = 60
	macLen          = 16
	messageTypeInit = 1
	messageTypeResp = 2
	messageTypeData = 4
)

// receivers tells for whom a handshake message is.
type receivers struct {
	peers  []receiver
	places map[key.Public]int // in peers
	// last is who was at an address when it was last looked, the first to try.
	last map[netip.AddrPort]int
}

type receiver struct {
	peer key.Public
	mac1 [blake2s.Size]byte // key of mac1
}

func newReceivers(peers []key.Public) *receivers {
	r := &receivers{peers: make([]receiver, len(peers)), places: make(map[key.Public]int, len(peers)), last: map[netip.AddrPort]int{}}
	for i, p := range peers {
		r.peers[i] = receiver{peer: p, mac1: blake2s.Sum256(append([]byte("mac1----"), p[:]...))}
		r.places[p] = i
	}
	return r
}

// of returns the peer that a handshake message to an address is for. Among thousands
// it takes milliseconds the first time that an address is seen, and then microseconds.
func (r *receivers) of(message []byte, to netip.AddrPort) (key.Public, bool) {
	if len(message) < 4 {
		return key.Public{}, false
	}
	covered := 0
	switch {
	case message[0] == messageTypeInit && len(message) == initiationLen:
		covered = initiationMac1
	case message[0] == messageTypeResp && len(message) == responseLen:
		covered = responseMac1
	default:
		return key.Public{}, false
	}
	if i, ok := r.last[to]; ok && r.peers[i].received(message, covered) {
		return r.peers[i].peer, true
	}
	for i := range r.peers {
		if r.peers[i].received(message, covered) {
			r.note(to, i)
			return r.peers[i].peer, true
		}
	}
	return key.Public{}, false
}

// expect notes that a peer is about to be called at an address. Where a replica dies, all
// of its peers are called within a moment: the log would overflow while each of them is
// looked for among thousands.
func (r *receivers) expect(peer key.Public, at netip.AddrPort) {
	if i, ok := r.places[peer]; ok && at.IsValid() {
		r.note(at, i)
	}
}

func (r *receivers) note(at netip.AddrPort, i int) {
	if len(r.last) > 2*len(r.peers) {
		clear(r.last) // addresses come and go
	}
	r.last[at] = i
}

func (r *receiver) received(message []byte, covered int) bool {
	h, err := blake2s.New128(r.mac1[:])
	if err != nil {
		return false // a key of 32 bytes is none too many
	}
	_, _ = h.Write(message[:covered])
	var sum [macLen]byte
	return subtle.ConstantTimeCompare(h.Sum(sum[:0]), message[covered:covered+macLen]) == 1
}
