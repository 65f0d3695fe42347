package fleet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// What replicas send each other is a list of sessions, in messages and in the state
// that they exchange in full now and then:
//
//	0       kind: 1 says that the sessions are there, 2 asks to take them over, 3 that
//	        their packets come to the sender instead of the holder
//	1…      sessions of 47 bytes each: index (4), 0 in a hint that a sibling calls the
//	        peer; peer (8), sequence number (4), which is 0 for a hint (hint.go);
//	        holder (8), age in 1/256 s (2), which for the greatest number is that or more
//	        and the session over; how long the handshake took, likewise (1); the
//	        gateway's port (2), the peer's address (16, of IPv4 as RFC 4291, section
//	        2.5.5.2, has it) and port (2), or zeros; numbers in network byte order
//
// memberlist encrypts it (AES-GCM) and says from whom it comes.
const (
	wireVersion  = 1
	wireOffer    = 2
	wireRecall   = 3
	wireSession  = 47
	wireAge      = time.Second / 256
	mostTook     = math.MaxUint8 * wireAge
	mostSessions = 1 << 17 // of a state: 10,000 peers have 30,000
)

var errMalformed = errors.New("malformed message")

// encode writes sessions for others to [decode].
func encode(sessions []Session, now time.Time) []byte {
	return encodeAs(wireVersion, sessions, now)
}

func encodeAs(kind byte, sessions []Session, now time.Time) []byte {
	out := make([]byte, 1, 1+len(sessions)*wireSession)
	out[0] = kind
	for _, s := range sessions {
		age := min(max(now.Sub(s.Since)/wireAge, 0), math.MaxUint16)
		out = binary.BigEndian.AppendUint32(out, s.Index)
		out = append(out, s.Peer[:]...)
		out = binary.BigEndian.AppendUint32(out, s.Seq)
		out = append(out, s.Holder[:]...)
		out = binary.BigEndian.AppendUint16(out, uint16(age)) //nolint:gosec // bounded above
		out = append(out, byte(min(max(s.Took, 0), mostTook)/wireAge))
		out = binary.BigEndian.AppendUint16(out, s.Port)
		var address [16]byte
		if s.Endpoint.IsValid() {
			address = s.Endpoint.Addr().As16()
		}
		out = append(out, address[:]...)
		out = binary.BigEndian.AppendUint16(out, s.Endpoint.Port())
	}
	return out
}

// decode reads a whole message or nothing of it. A later version than ours is no
// fault of the sender's: the error says so, and a rolling upgrade goes on.
func decode(b []byte, now time.Time) ([]Session, error) {
	return decodeAs(wireVersion, b, now)
}

func decodeAs(kind byte, b []byte, now time.Time) ([]Session, error) {
	switch {
	case len(b) == 0:
		return nil, fmt.Errorf("%w: empty", errMalformed)
	case b[0] != kind:
		return nil, fmt.Errorf("%w: version %d, ours is %d", errMalformed, b[0], wireVersion)
	case (len(b)-1)%wireSession != 0:
		return nil, fmt.Errorf("%w: %d bytes are no whole sessions", errMalformed, len(b))
	case len(b) > 1+mostSessions*wireSession:
		return nil, fmt.Errorf("%w: %d bytes are too many", errMalformed, len(b))
	}
	out := make([]Session, 0, len(b)/wireSession)
	for rest := b[1:]; len(rest) > 0; rest = rest[wireSession:] {
		age := time.Duration(binary.BigEndian.Uint16(rest[24:])) * wireAge
		out = append(out, Session{
			Index: binary.BigEndian.Uint32(rest), Peer: PeerID(rest[4:12]), Seq: binary.BigEndian.Uint32(rest[12:]),
			Holder: ReplicaID(rest[16:24]), Since: now.Add(-age),
			Took: time.Duration(rest[26]) * wireAge,
			Port: binary.BigEndian.Uint16(rest[27:]), Endpoint: endpointOf(rest[29:47]),
		})
	}
	return out, nil
}

// kindOf tells what a message asks for; what is none counts as sessions, which it is
// refused as.
func kindOf(b []byte) byte {
	if len(b) > 0 && (b[0] == wireOffer || b[0] == wireRecall) {
		return b[0]
	}
	return wireVersion
}

// endpointOf reads an address and a port; all zeros are none.
func endpointOf(b []byte) netip.AddrPort {
	address, port := netip.AddrFrom16([16]byte(b)), binary.BigEndian.Uint16(b[16:])
	if address == netip.IPv6Unspecified() && port == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(address.Unmap(), port)
}
