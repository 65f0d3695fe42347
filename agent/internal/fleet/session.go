// Package fleet makes one gateway of several replicas: they share one private key and
// the same peers, and each WireGuard session lives in the memory of one of them. What
// they tell each other is small and soft: which session, by its receiver index, is
// whose, and who holds it. A replica that gets packets of a session that it does not
// hold takes the peer over, by shaking hands itself.
//
// [Table] and [Replica] are pure: they have neither clock nor network, so that a day of
// failures can be played in seconds. [Fleet] ties them to the network, by
// hashicorp/memberlist (SWIM).
package fleet

import (
	"cmp"
	"crypto/sha256"
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// PeerID stands for a peer's public key in messages: all replicas have the same
// peers, so that eight bytes tell them apart.
type PeerID [8]byte

// IDOf is the identifier of a peer.
func IDOf(k key.Public) PeerID {
	sum := sha256.Sum256(k[:])
	return PeerID(sum[:8])
}

// ReplicaID stands for a replica's name, likewise.
type ReplicaID [8]byte

// ReplicaIDOf is the identifier of a replica. Names are those of Pods, which are not
// used twice.
func ReplicaIDOf(name string) ReplicaID {
	sum := sha256.Sum256([]byte(name))
	return ReplicaID(sum[:8])
}

// Session is a WireGuard session between the gateway and a peer.
type Session struct {
	// Index is what the peer writes into its packets for the holder to find the
	// session by: the holder's sender index in the handshake, the receiver index of
	// data (section 5.4 of the WireGuard whitepaper). It survives every translation
	// of addresses on the way.
	Index uint32
	Peer  PeerID
	// Seq orders the sessions of one peer, whoever held them: who makes one counts
	// on from the greatest that it knows of (a Lamport clock). No two machines'
	// clocks are ever compared. A session's number grows where its holder finds that
	// one which began before has the same or a greater one; see [Replica.Heard].
	Seq    uint32
	Holder ReplicaID
	// Since is when the session was confirmed, by the clock of whoever remembers it, and
	// Took how long the handshake took until then, in steps of [wireAge] up to mostTook.
	Since time.Time
	Took  time.Duration
	// Port is the UDP port of the gateway's that the peer sends to, and Endpoint where
	// it was when the session was confirmed: where to look for it when its holder is
	// gone. They may be zero.
	Port     uint16
	Endpoint netip.AddrPort
}

// Compare orders sessions of a peer by age, the older one first. Two that were made
// at the same time, by replicas that did not know of each other's, are in the same
// order everywhere.
func (s Session) Compare(o Session) int {
	return cmp.Or(cmp.Compare(s.Seq, o.Seq), compareIDs(s.Holder, o.Holder), cmp.Compare(s.Index, o.Index))
}

// same reports whether o is the same session, whatever its number.
func (s Session) same(o Session) bool { return s.Index == o.Index && s.Holder == o.Holder }

// began is when its handshake began, as far as who remembers it knows: of a sibling's
// session never too early, since messages take time and what they tell is rounded down.
func (s Session) began() time.Time { return s.Since.Add(-s.Took) }

// Equal is for cmp.Diff, which does not look into unexported fields.
func (s Session) Equal(o Session) bool {
	since := s.Since.Equal(o.Since)
	s.Since, o.Since = time.Time{}, time.Time{}
	return since && s == o
}

func compareIDs(a, b ReplicaID) int { return cmp.Compare(string(a[:]), string(b[:])) }

const (
	// sessionLifetime is for how long a peer may send with a session's keys
	// (REJECT_AFTER_TIME, section 6.1 of the whitepaper), and a little more for what
	// is on its way.
	sessionLifetime = 200 * time.Second
	// connectedFor is for how long after a handshake a peer counts as connected.
	connectedFor = 180 * time.Second
	// sessionsKept bounds what is remembered of a peer: the session in use, the one
	// before it, whose packets may be on their way, and one to spare.
	sessionsKept = 3
)
