package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/florianl/go-nflog/v2"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// SessionsTable is a table beside [Table], of family inet: with it the kernel watches
// WireGuard's sessions for a gateway of several replicas. It stops nothing. It is a
// table of its own because its sets are memory, which replacing the rules must not
// lose.
//
//	strangers     indices of sessions that another replica holds: whoever sends by
//	              them has come to the wrong one
//	unconfirmed   indices that we handed out and that were not used yet
//	proofs        indices of peers with whom a handshake is under way: when we send by
//	              one of them, WireGuard has found the handshake to be true
//	heard         those that were told of a moment ago
const SessionsTable = "vpn_gateway_sessions"

// sessionsGroup is the number of the log that [Sessions] listens to.
const sessionsGroup = 51821

const (
	messageInitiation = 1
	messageReceiver   = 16 // the receiver's index of a response; see messageIndex

	// strangerLifetime is for how long the keys of a session are good, and a little
	// more; see REJECT_AFTER_TIME in section 6.1 of the WireGuard whitepaper.
	strangerLifetime = 200 * time.Second
	strangersMost    = 1 << 18 // elements; 10,000 peers have 30,000

	// Limits of what is told of, a second. Whoever repeats a packet of somebody else's
	// makes no more of it than toldEach for its index, toldAtOnce of them in a burst, and
	// strangersAll in total. A peer is called for the first packet; the others say that it
	// is still there, and a sign every 60 ms will do.
	toldEach       = 16 // a second
	toldAtOnce     = 4
	strangersAll   = 1000
	handshakesMost = 1000
	heardLifetime  = 10 * time.Second

	// sessionSnap is what is told of a packet: IPv6 header (40), UDP's (8) and the
	// longest message of a handshake (148), and some room for options.
	sessionSnap = 256
	// sessionsBuffer holds what is told of while somebody looks: where a replica dies,
	// thousands of peers come within a moment, and what is lost here is a session that
	// nobody knows of.
	sessionsBuffer = 4 << 20
	// listenAgain is when to listen again where that ended.
	listenAgain = time.Second
)

// Sessions is the table and its log, in the network namespace that [NewSessions] was
// called in. Its methods may be called from several goroutines.
type Sessions struct {
	ports []uint16
	log   *slog.Logger
	mu    sync.Mutex
}

// NewSessions makes the table for WireGuard's UDP ports of ours, anew where there is
// one. The error says what the kernel lacks.
func NewSessions(ports []uint16, log *slog.Logger) (*Sessions, error) {
	s := &Sessions{ports: ports, log: log}
	if err := s.make(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Sessions) make() error {
	err := commit(func(c *nftables.Conn) error {
		c.AddTable(sessionsTable()) // makes the deletion of a missing table no error
		c.DelTable(sessionsTable())
		c.AddTable(sessionsTable())
		for _, set := range []*nftables.Set{strangers(), unconfirmed(), heard(), proofs()} {
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
		}
		for _, ch := range []chain{s.dataOut(), s.in(), s.out()} {
			at := ch.nftables(sessionsTable())
			c.AddChain(at)
			for _, r := range ch.rules {
				c.AddRule(commented(&nftables.Rule{Table: at.Table, Chain: at, Exprs: r.exprs}, r.comment))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("nftables table %s: %w", SessionsTable, err)
	}
	return nil
}

func sessionsTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: SessionsTable}
}

func strangers() *nftables.Set {
	return &nftables.Set{
		Table: sessionsTable(), ID: 1, Name: "strangers", KeyType: nftables.TypeMark,
		HasTimeout: true, Timeout: strangerLifetime, Size: strangersMost,
	}
}

func unconfirmed() *nftables.Set {
	return &nftables.Set{
		Table: sessionsTable(), ID: 2, Name: "unconfirmed", KeyType: nftables.TypeMark,
		Dynamic: true, HasTimeout: true, Timeout: responseLifetime, Size: 65536,
	}
}

func proofs() *nftables.Set {
	return &nftables.Set{
		Table: sessionsTable(), ID: 4, Name: "proofs", KeyType: nftables.TypeMark,
		Dynamic: true, HasTimeout: true, Timeout: responseLifetime, Size: 65536,
	}
}

func heard() *nftables.Set {
	return &nftables.Set{
		Table: sessionsTable(), ID: 3, Name: "heard", KeyType: nftables.TypeMark,
		Dynamic: true, HasTimeout: true, Timeout: heardLifetime, Size: 65536,
	}
}

// in tells of what completes a handshake of ours, and of strangers.
func (s *Sessions) in() chain {
	c := chain{
		name: "in", kind: nftables.ChainTypeFilter,
		hook: nftables.ChainHookInput, priority: nftables.ChainPriorityFilter,
	}
	for _, port := range s.ports {
		data := seq(udpTo(port), isMessage(messageData), []expr.Any{transport(messageIndex, 4)})
		c.add("somebody else's session", seq(data, []expr.Any{
			&expr.Lookup{SourceRegister: register, SetName: strangers().Name},
		}, notOften(), tellWhole(strangersAll)))
		c.add("first use of a session", seq(data, []expr.Any{
			&expr.Lookup{SourceRegister: register, SetName: unconfirmed().Name},
		}, tellOnce(unconfirmed())))
		// Only to what we began: anybody can make up responses, and they would take the
		// place of the others in the log.
		c.add("we called", seq(udpTo(port), isMessage(messageResponse), []expr.Any{
			transport(messageReceiver, 4),
			&expr.Lookup{SourceRegister: register, SetName: unconfirmed().Name},
		}, awaitProof(messageIndex), tellWhole(handshakesMost)))
	}
	return c
}

// awaitProof notes the peer's index, which stands at an offset of a response.
func awaitProof(offset uint32) []expr.Any {
	return []expr.Any{
		transport(offset, 4),
		&expr.Dynset{SrcRegKey: register, SetName: proofs().Name, Operation: unix.NFT_DYNSET_OP_ADD},
	}
}

// notOften bounds how often an index is told of.
func notOften() []expr.Any {
	return []expr.Any{&expr.Dynset{
		SrcRegKey: register, SetName: heard().Name, Operation: unix.NFT_DYNSET_OP_UPDATE,
		Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: toldEach, Unit: expr.LimitTimeSecond, Burst: toldAtOnce}},
	}}
}

// dataOut tells of the first data that we send by a session: that we send it is proof
// that the peer has the keys. Whoever can see packets could make up all that comes in.
func (s *Sessions) dataOut() chain {
	c := chain{name: "data_out"}
	c.add("a handshake was true", seq([]expr.Any{
		transport(messageIndex, 4),
		&expr.Lookup{SourceRegister: register, SetName: proofs().Name},
	}, notOften(), tellOnce(proofs())))
	return c
}

// out tells of the indices that leave.
func (s *Sessions) out() chain {
	c := chain{
		name: "out", kind: nftables.ChainTypeFilter,
		hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityFilter,
	}
	for _, port := range s.ports {
		c.add("", seq(udpFrom(port), isMessage(messageData), goTo(s.dataOut().name)))
	}
	for _, port := range s.ports {
		wait := []expr.Any{
			transport(messageIndex, 4),
			&expr.Dynset{SrcRegKey: register, SetName: unconfirmed().Name, Operation: unix.NFT_DYNSET_OP_ADD},
		}
		c.add("we call", seq(udpFrom(port), isMessage(messageInitiation), wait, tellWhole(handshakesMost)))
		c.add("we answer", seq(udpFrom(port), isMessage(messageResponse), wait, awaitProof(messageReceiver), tellWhole(handshakesMost)))
	}
	return c
}

// tellOnce tells of a packet of a handshake, whose index leaves the set then: not where
// there is too much to tell, so that the next packet is told of.
func tellOnce(set *nftables.Set) []expr.Any {
	told := tellWhole(handshakesMost)
	forget := &expr.Dynset{SrcRegKey: register, SetName: set.Name, Operation: dynsetDelete}
	return slices.Insert(told, len(told)-1, expr.Any(forget))
}

// tellWhole logs a packet with the message in it.
func tellWhole(aSecond uint32) []expr.Any { return logTo(sessionsGroup, sessionSnap, aSecond) }

// Watch changes the set of strangers, by the indices of their sessions. Those that
// the kernel forgot by itself may be taken away, too.
func (s *Sessions) Watch(add, remove []uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(add) > 0 {
		n := min(len(add), chunk)
		if err := commit(func(c *nftables.Conn) error { return c.SetAddElements(strangers(), indices(add[:n])) }); err != nil {
			return fmt.Errorf("nftables set strangers (+%d): %w", n, err)
		}
		add = add[n:]
	}
	for len(remove) > 0 {
		n := min(len(remove), chunk)
		if err := forget(remove[:n]); err != nil {
			return fmt.Errorf("nftables set strangers (-%d): %w", n, err)
		}
		remove = remove[n:]
	}
	return nil
}

// forget takes indices out of the set of strangers. A transaction fails as a whole where
// one element is gone; the others are taken out one by one then.
func forget(list []uint32) error {
	err := commit(func(c *nftables.Conn) error { return c.SetDeleteElements(strangers(), indices(list)) })
	switch {
	case !errors.Is(err, unix.ENOENT):
		return err
	case len(list) == 1:
		return nil
	}
	for i := range list {
		if err := forget(list[i : i+1]); err != nil {
			return err
		}
	}
	return nil
}

// Repair makes the table anew where it is gone, and reports whether it did: then all
// strangers have to be told again.
func (s *Sessions) Repair() (made bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := dial()
	if err != nil {
		return false, fmt.Errorf("nftables table %s: %w", SessionsTable, err)
	}
	chains, err := chainDump().names(c, SessionsTable)
	_ = c.Close()
	if err != nil {
		return false, fmt.Errorf("nftables table %s: %w", SessionsTable, err)
	}
	if len(chains) == 3 {
		return false, nil
	}
	return true, s.make()
}

// Remove deletes the table. It is no error if there is none.
func (s *Sessions) Remove() error {
	err := commit(func(c *nftables.Conn) error {
		c.AddTable(sessionsTable())
		c.DelTable(sessionsTable())
		return nil
	})
	if err != nil {
		return fmt.Errorf("nftables table %s: %w", SessionsTable, err)
	}
	return nil
}

// indices are set elements. WireGuard's numbers are little-endian, and the set
// compares bytes as they are in packets.
func indices(list []uint32) []nftables.SetElement {
	out := make([]nftables.SetElement, len(list))
	for i, index := range list {
		out[i].Key = binary.LittleEndian.AppendUint32(nil, index)
	}
	return out
}

// Listen calls heard for every message that the table tells of, one after the other,
// until ctx ends. heard must be quick; what comes in the meantime waits in the kernel.
func (s *Sessions) Listen(ctx context.Context, heard func(Message)) error {
	err := packetLog{
		Config: nflog.Config{Group: sessionsGroup, Copymode: nflog.CopyPacket, QThresh: 1, Bufsize: 4096},
		prepare: func(n *nflog.Nflog) {
			if err := n.Con.SetReadBuffer(sessionsBuffer); err != nil {
				s.log.Warn("the packet log of sessions has little room", "error", err)
			}
		},
		heard: func(a nflog.Attribute) {
			if a.Payload == nil || a.Hook == nil {
				return
			}
			if m, ok := parseMessage(*a.Payload, *a.Hook == unix.NF_INET_LOCAL_OUT); ok {
				heard(m)
			}
		},
		ended: func(n *nflog.Nflog, err error) {
			s.log.Error("cannot see sessions: peers that come from other replicas wait for WireGuard's own timers; trying again", "error", err)
			time.AfterFunc(listenAgain, func() {
				_ = n.Close() // the log has one listener
				s.listenAgain(ctx, heard)
			})
		},
	}.listen(ctx)
	if err != nil {
		return fmt.Errorf("packet log of sessions: %w", err)
	}
	return nil
}

// listenAgain is [Sessions.Listen] until it succeeds.
func (s *Sessions) listenAgain(ctx context.Context, heard func(Message)) {
	if ctx.Err() != nil {
		return
	}
	if err := s.Listen(ctx, heard); err != nil {
		s.log.Error("cannot see sessions, trying again", "error", err)
		time.AfterFunc(listenAgain, func() { s.listenAgain(ctx, heard) })
	}
}
