package firewall

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/florianl/go-nflog/v2"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// While two tunnels take each other's place, the route to a peer follows the one
// that it shook hands with last. WireGuard tells nobody of a handshake, but it can
// be seen from outside, by the messages of section 5.4 of the WireGuard whitepaper:
//
//   - the peer called: our response goes out, with an index of our choice in it,
//     and is complete when the first packet of data for that index comes in;
//   - we called: it is complete when a response comes in.
//
// The kernel keeps the indices by itself and tells us, by its packet log, of no
// more than the moment.

// handshakeGroup is the number of the log (NFLOG); WireGuard's usual port, since
// nobody has a claim to any number.
const handshakeGroup = 51820

// Types of WireGuard's messages, and offsets in bytes behind the start of the UDP
// header, which has eight.
const (
	messageResponse = 2
	messageData     = 4

	messageType  = 8  // a byte, with three of zero after it
	messageIndex = 12 // the sender's index of a response, the receiver's of data
)

// dynsetDelete is NFT_DYNSET_OP_DELETE (linux/netfilter/nf_tables.h).
const dynsetDelete = 2

// responseLifetime is how long a peer may take to say something after our
// response: REKEY_TIMEOUT after that it calls anew.
const responseLifetime = 10 * time.Second

// handshakesPerSecond bounds what the log costs: whoever sends us responses that
// are none is in it, too.
const handshakesPerSecond = 100

// responses is the set of indices that we handed out and that were not used yet.
func (at edition) responses() *nftables.Set {
	return &nftables.Set{
		Table: table(), ID: 8, Name: "responses" + string(at), KeyType: nftables.TypeMark,
		Dynamic: true, HasTimeout: true, Timeout: responseLifetime, Size: 65536,
	}
}

// responsesOut remembers the indices of responses that leave.
func (s switches) responsesOut(at edition) chain {
	c := chain{
		name: "responses_out", kind: nftables.ChainTypeFilter,
		hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityFilter,
	}
	for _, port := range s.ports {
		c.add("handshakes to be completed", seq(udpFrom(port), isMessage(messageResponse), []expr.Any{
			transport(messageIndex, 4),
			&expr.Dynset{SrcRegKey: register, SetName: at.responses().Name, Operation: unix.NFT_DYNSET_OP_ADD},
		}))
	}
	return c
}

// handshakesIn logs what completes a handshake.
func (s switches) handshakesIn(at edition) chain {
	c := chain{
		name: "handshakes_in", kind: nftables.ChainTypeFilter,
		hook: nftables.ChainHookInput, priority: nftables.ChainPriorityFilter,
	}
	for _, port := range s.ports {
		c.add("the peer called", seq(udpTo(port), isMessage(messageData), []expr.Any{
			transport(messageIndex, 4),
			&expr.Lookup{SourceRegister: register, SetName: at.responses().Name},
			&expr.Dynset{SrcRegKey: register, SetName: at.responses().Name, Operation: dynsetDelete},
		}, tell()))
		c.add("we called", seq(udpTo(port), isMessage(messageResponse), tell()))
	}
	return c
}

func isMessage(kind byte) []expr.Any {
	return compare(transport(messageType, 1), expr.CmpOpEq, []byte{kind})
}

// tell logs a packet's headers.
func tell() []expr.Any { return logTo(handshakeGroup, 64, handshakesPerSecond) }

// logTo logs the first bytes of a packet, at once: by itself the log waits for up to a
// second for more.
func logTo(group uint16, bytes, aSecond uint32) []expr.Any {
	return []expr.Any{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(aSecond), Unit: expr.LimitTimeSecond, Burst: aSecond},
		&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_QTHRESHOLD,
			Group: group, Snaplen: bytes, QThreshold: 1,
		},
	}
}

// Handshakes returns a channel on which it is said that some handshake was
// completed, while a table with [state.Firewall.Handshakes] is in place, and until
// ctx ends. It is said as the packet comes in: the device knows a moment later.
// The error says that the kernel has no such log.
func Handshakes(ctx context.Context, log *slog.Logger) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	err := packetLog{
		Config: nflog.Config{Group: handshakeGroup, Copymode: nflog.CopyMeta, QThresh: 1},
		heard: func(nflog.Attribute) {
			select {
			case out <- struct{}{}:
			default: // it was said already, and not heard yet
			}
		},
		ended: func(_ *nflog.Nflog, err error) {
			log.Warn("cannot see handshakes any more, looking for them instead", "error", err)
		},
	}.listen(ctx)
	if err != nil {
		return nil, fmt.Errorf("packet log of handshakes: %w", err)
	}
	return out, nil
}
