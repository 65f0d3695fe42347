package fleet

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Replica is what one replica knows, and what it makes of what it sees. It is pure:
// time is a parameter, and what is to be done is returned as [Effects]. It is for one
// goroutine at a time.
type Replica struct {
	self  ReplicaID
	table Table
	// inherited says that the device was taken over from a predecessor of the same
	// Pod, with its sessions: those that the table says are ours then are.
	inherited bool

	peers   map[PeerID]Peer
	members map[ReplicaID]Member // alive ones and draining ones, this one included
	started handshakes
	claims  *claims // those that lack WireGuard's proof
	// hints are handshakes that nobody has used yet, by the index, and hinted each peer's.
	hints  map[uint32]Session
	hinted map[PeerID]uint32
	// mine are the indices of sessions that the device has. Where a peer has one here,
	// its newest one is.
	mine map[uint32]own
	// calls are the peers that we are taking over.
	calls map[PeerID]*calling
	// loud are the peers that the device was made to call, and has no session with.
	loud map[PeerID]bool
	// elsewhere are the peers that a sibling serves.
	elsewhere map[PeerID]ReplicaID
	// yielded are the peers that went to a sibling a moment ago, and recalled when the
	// sibling was last told that their packets come here.
	yielded, recalled map[PeerID]time.Time
	// missed are the peers of ours whose packets come to a sibling, as it said last.
	missed map[PeerID]time.Time
	// begun are the siblings' last calls.
	begun map[PeerID]begun
	// passed are the peers that were being called when a sibling got a session with them.
	passed map[PeerID]time.Time
	// gone are the replicas that are no more; this one stands for the process before it in
	// the same Pod.
	gone map[ReplicaID]departure
	// unseen are sessions of the device that nobody may know of, and compared says that
	// siblings were asked.
	unseen   []Session
	compared bool
}

// departure is how a replica went.
type departure struct {
	at time.Time // zero: the next tick says
	// drained says that it had handed its peers over: none of them is with it.
	drained bool
	// back says that there is another one by its name, which does not know of all sessions
	// that the one before had.
	back bool
}

// Member is a replica as the others see it.
type Member struct {
	Name     string
	Draining bool
}

// Peer is a peer of the configuration.
type Peer struct {
	PublicKey key.Public
	// Site says that the gateway calls the peer, whose endpoint is configured. Of
	// many replicas one does.
	Site bool
}

// own is a session that the device has.
type own struct {
	peer PeerID
	// used says that the peer has sent something by it. To answer our handshake is less:
	// the peer forgets the session if another replica calls before it has heard from us.
	used bool
	// watched says that we are told of what the peer sends by it.
	watched bool
}

// Call asks for a handshake with a peer.
type Call struct {
	Peer key.Public
	// Port is the UDP port of ours that the peer sends to; 0: any.
	Port uint16
	// Endpoint is where its packets come from; zero: the configured one.
	Endpoint netip.AddrPort
	// Nudge asks for a packet by the session that there is, not for a handshake: the
	// peer has not seen that the handshake is over.
	Nudge bool
	// Silence ends a call: the device forgets the peer, and sends nothing.
	Silence bool
}

func (c Call) isHandshake() bool { return !c.Nudge && !c.Silence }

// Effects is what follows from an event.
type Effects struct {
	// Publish goes to all siblings at once: the peer may be with another one in a moment.
	Publish []Session
	// Tell goes to them, too, and not by gossip: calls are of no use later, and sessions were
	// published before.
	Tell []Session
	// PassOn was news from one sibling, and goes on to others.
	PassOn []Session
	Calls  []Call
	// Recall goes to the sessions' holders, each for [Replica.Recalled].
	Recall []Session
	// Reminders are to be given back to [Replica.Remind] in time.
	Reminders []Reminder
	// Elsewhere is true where [Replica.Elsewhere] has changed, or somebody is not called
	// any more; Calling where somebody is called, which may wait until the next change.
	Elsewhere, Calling bool
	// Strangers are the indices to be told of from now on, and Known those not to.
	Strangers, Known []uint32
	// Adopted are peers whose session with a sibling has become one with us, with
	// the name of the sibling; Yielded the other way round.
	Adopted, Yielded []Change
	// Refused counts the packets of sessions that were not taken over, by reason.
	Refused Refusal
}

// Change is a peer that has another holder now.
type Change struct {
	Peer    key.Public
	Sibling string // "" where it is not known any more
}

// Refusal says why a stranger's packet led to nothing.
type Refusal string

// The reasons.
const (
	NotRefused  Refusal = ""
	UnknownPeer Refusal = "unknown peer" // nobody published the index, or the peer is not configured
	Late        Refusal = "late"         // the peer has a newer session
	TooSoon     Refusal = "too soon"     // it was called a moment ago
)

// Refusals lists every reason, for metrics that must show zeros too.
func Refusals() []Refusal { return []Refusal{UnknownPeer, Late, TooSoon} }

const (
	// startedLifetime is how long a handshake of ours may take: REKEY_TIMEOUT (5 s)
	// after it began WireGuard begins another.
	startedLifetime = 10 * time.Second
)

// NewReplica returns a replica that knows of nothing but itself. inherited says that
// its device was a predecessor's.
func NewReplica(name string, inherited bool) *Replica {
	self := ReplicaIDOf(name)
	return &Replica{
		self: self, inherited: inherited,
		peers: map[PeerID]Peer{}, members: map[ReplicaID]Member{self: {Name: name}},
		started: newHandshakes(), claims: newClaims(), hints: map[uint32]Session{}, hinted: map[PeerID]uint32{},
		mine: map[uint32]own{}, calls: map[PeerID]*calling{}, loud: map[PeerID]bool{},
		elsewhere: map[PeerID]ReplicaID{}, yielded: map[PeerID]time.Time{}, recalled: map[PeerID]time.Time{},
		missed: map[PeerID]time.Time{}, begun: map[PeerID]begun{}, passed: map[PeerID]time.Time{}, gone: map[ReplicaID]departure{},
	}
}

// Configure sets the peers that there are.
func (r *Replica) Configure(peers []Peer) (e Effects) {
	r.peers = make(map[PeerID]Peer, len(peers))
	for _, p := range peers {
		r.peers[IDOf(p.PublicKey)] = p
	}
	maps.DeleteFunc(r.loud, func(id PeerID, _ bool) bool { _, ok := r.peers[id]; return !ok })
	r.placeAll(&e)
	return e
}

// SetMembers sets the replicas that are alive. Of those that are missing, sites are
// called by another one, and the peers wait to be taken over.
func (r *Replica) SetMembers(members []Member) (e Effects) {
	before := r.members
	r.members = make(map[ReplicaID]Member, len(members))
	for _, m := range members {
		id := ReplicaIDOf(m.Name)
		r.members[id] = m
		if d, was := r.gone[id]; was && id != r.self {
			d.back = true
			r.gone[id] = d
		}
	}
	for id, m := range before {
		if _, stays := r.members[id]; !stays {
			r.gone[id] = departure{drained: m.Draining}
		}
	}
	r.placeAll(&e)
	return e
}

// Started notes a handshake message of ours with an index of our choice in it. Its
// session gets its number now: of two that are made at once, the one that began later
// is the one that the peer uses, whichever is confirmed first.
// answer says that the peer began the handshake.
func (r *Replica) Started(index uint32, peer key.Public, answer bool, now time.Time) {
	id := IDOf(peer)
	newest, _ := r.table.Newest(id)
	r.started.put(index, started{peer: id, at: now, seq: newest.Seq + 1, answer: answer})
}

// undo notes that the device forgets a peer, and with it the handshakes that are not
// confirmed yet. What the peer answers to ours leads to nothing any more. But it will send
// by the session of one that it began itself, and it may do so by one that was complete
// just before.
func (r *Replica) undo(id PeerID) {
	for index := range r.started.with(id) {
		r.started.change(index, func(s *started) { s.undone = true })
	}
}

// Located notes where the peer of a handshake of ours is, and the port of ours that it
// sends to.
func (r *Replica) Located(index uint32, port uint16, endpoint netip.AddrPort) {
	r.started.change(index, func(s *started) { s.port, s.endpoint = port, endpoint })
}

// Began reports whether an index is that of a handshake of ours that is not
// confirmed yet.
func (r *Replica) Began(index uint32) bool {
	_, ok := r.started.byIndex[index]
	return ok
}

// Confirmed notes that the peer has used an index of ours: its session stands.
func (r *Replica) Confirmed(index uint32, now time.Time) (e Effects) {
	began, ok := r.started.byIndex[index]
	if !ok {
		return e
	}
	r.started.drop(index)
	if began.undone {
		return r.confirmedUndone(index, began, now)
	}
	delete(r.calls, began.peer)
	before, known := r.table.Newest(began.peer)
	s := r.sessionOf(index, began, now)
	if known && before.Holder != r.self && s.countsOn(before) {
		s.Seq = before.Seq + 1 // nobody knew that we had begun
	}
	r.mine[index] = own{peer: s.Peer, used: began.answer}
	if news, _ := r.add(s, &e); !news { // overtaken by others
		delete(r.mine, index)
		r.place(began.peer, &e)
		return e
	}
	e.Publish = []Session{s}
	p, isConfigured := r.peers[began.peer]
	newest, _ := r.table.Newest(began.peer)
	switch {
	case newest.Holder != r.self:
		r.giveUp(began.peer, before, newest, &e)
	case isConfigured && known && before.Holder != r.self:
		e.Adopted = []Change{{p.PublicKey, r.members[before.Holder].Name}}
		e.Reminders = remindersOf(s)
	}
	if newest.Holder == r.self {
		delete(r.loud, began.peer)
	}
	r.place(began.peer, &e)
	return e
}

// confirmedUndone notes that the peer has a session with us that we have lost: whoever
// gets its packets, we or a sibling, has to call it. Of a call of ours that is but a hint:
// the index stood in it in clear.
func (r *Replica) confirmedUndone(index uint32, began started, now time.Time) (e Effects) {
	if !began.answer {
		if c := r.calls[began.peer]; c != nil {
			c.lateAnswer = true
		}
		s := r.hintOf(index, began)
		e.Publish = []Session{s}
		r.hint(s, now, &e)
		return e
	}
	s := r.sessionOf(index, began, now)
	if news, _ := r.add(s, &e); news {
		e.Publish = []Session{s}
		e.Strangers = append(e.Strangers, index)
		r.place(began.peer, &e)
	}
	return e
}

// Heard merges sessions that a sibling told of. Those that were news are to be
// passed on.
func (r *Replica) Heard(sessions []Session, now time.Time) (e Effects) {
	for _, s := range sessions {
		if s.Seq == 0 {
			r.hint(s, now, &e)
			continue
		}
		r.reassert(s, now, &e)
		before, _ := r.table.Newest(s.Peer)
		if now.Sub(s.Since) >= sessionLifetime {
			if _, isConfigured := r.peers[s.Peer]; isConfigured {
				_, dropped := r.table.Over(s)
				r.dropped(dropped, &e)
				r.place(s.Peer, &e)
			}
			continue
		}
		news, over := r.add(s, &e)
		if !news {
			if over.Seq > 0 { // whoever tells of it has to count on
				e.PassOn = append(e.PassOn, over)
			}
			continue
		}
		e.PassOn = append(e.PassOn, s)
		switch {
		case r.isMine(s):
		case s.Holder == r.self && r.inherited:
			r.mine[s.Index] = own{peer: s.Peer, used: true}
		default: // a sibling's, or of this Pod's life before
			e.Strangers = append(e.Strangers, s.Index)
		}
		if newest, _ := r.table.Newest(s.Peer); newest.Holder != r.self {
			r.giveUp(s.Peer, before, newest, &e)
		}
		if newest, _ := r.table.Newest(s.Peer); newest.same(s) && s.Holder != r.self {
			c := r.calls[s.Peer]
			if c != nil && now.Sub(c.seen) < lateFor {
				r.passed[s.Peer] = now
			}
			// It has been reached, and what comes next is another move; but of two calls it
			// takes the one that began later, and that may be ours.
			if !r.isCalled(s.Peer) || !c.last.After(s.began()) {
				delete(r.calls, s.Peer)
			}
		}
		r.place(s.Peer, &e)
	}
	return e
}

// Compared takes all that a sibling knows. Everything is news to who has just come, and to
// nobody else.
func (r *Replica) Compared(sessions []Session, now time.Time) (e Effects) {
	isNew := len(r.table.peers) == 0
	if e = r.Heard(sessions, now); isNew {
		e.PassOn = nil
	}
	r.compared = true
	return e
}

func (r *Replica) isMine(s Session) bool {
	m, ok := r.mine[s.Index]
	return ok && m.peer == s.Peer && s.Holder == r.self
}

// add puts a session into the table, and forgets those that went for it. over is what
// stands against it, where that is not a session in use.
func (r *Replica) add(s Session, e *Effects) (news bool, over Session) {
	news, dropped := r.table.Add(s)
	r.dropped(dropped, e)
	if k := r.table.peers[s.Peer].over; !news && len(r.table.Sessions(s.Peer)) == 0 && s.Compare(k) < 0 {
		over = k
	}
	return news, over
}

// dropped forgets sessions that the table has forgotten.
func (r *Replica) dropped(sessions []Session, e *Effects) {
	for _, s := range sessions {
		if !r.isMine(s) || r.mine[s.Index].watched {
			e.Known = append(e.Known, s.Index)
		}
		if r.isMine(s) {
			delete(r.mine, s.Index)
		}
	}
}

// giveUp forgets our sessions of a peer that a sibling has a newer one with.
func (r *Replica) giveUp(id PeerID, before, newest Session, e *Effects) {
	had := r.lose(id, e)
	if had {
		r.yielded[id] = newest.Since
	}
	if p, ok := r.peers[id]; ok && had && before.Holder == r.self {
		e.Yielded = append(e.Yielded, Change{p.PublicKey, r.members[newest.Holder].Name})
	}
}

// Holds reports whether a peer's last session is one of ours.
func (r *Replica) Holds(k key.Public) bool {
	s, ok := r.table.Newest(IDOf(k))
	return ok && r.isMine(s)
}

// Tick forgets what is over.
func (r *Replica) Tick(now time.Time) (e Effects) {
	r.tickHints(now, &e)
	for id, c := range r.calls {
		if c.called && now.Sub(c.last) >= callingFor && !r.isAnswering(id) {
			c.called = false
			r.hush(id, c, now, &e)
		}
		if now.Sub(c.seen) >= 2*lastRetry && (c.unasked == 0 || now.Sub(c.last) >= orphanEvery) {
			delete(r.calls, id)
		}
	}
	r.claims.expire(now)
	maps.DeleteFunc(r.begun, func(_ PeerID, b begun) bool { return now.Sub(b.since) >= lateFor })
	r.tickUnseen(now, &e)
	r.tickUnheard(now, &e)
	for id := range r.loud {
		r.place(id, &e)
	}
	r.tickHandover(now, &e)
	over := map[PeerID]bool{}
	r.table.Expire(now, func(id PeerID) bool { _, ok := r.peers[id]; return ok }, func(s Session) {
		over[s.Peer] = true
		r.dropped([]Session{s}, &e)
	})
	for id := range over {
		r.place(id, &e)
	}
	return e
}

// Elsewhere returns the peers that a sibling serves, with its name.
func (r *Replica) Elsewhere() map[key.Public]string {
	out := make(map[key.Public]string, len(r.elsewhere))
	for id, to := range r.elsewhere {
		out[r.peers[id].PublicKey] = r.members[to].Name
	}
	return out
}

// Calling are the peers that are being called: the device must not forget the handshake
// that it has begun with them, wherever they are.
func (r *Replica) Calling() map[key.Public]bool {
	out := map[key.Public]bool{}
	for id, c := range r.calls {
		if p, ok := r.peers[id]; ok && c.called {
			out[p.PublicKey] = true
		}
	}
	return out
}

// Held counts the connected peers whose last session is ours.
func (r *Replica) Held(now time.Time) int { return r.table.Connected(now)[r.self] }

// Connected counts the connected peers of each replica that is alive, by name.
func (r *Replica) Connected(now time.Time) map[string]int {
	counts := r.table.Connected(now)
	out := make(map[string]int, len(r.members))
	for id, m := range r.members {
		out[m.Name] = counts[id]
	}
	return out
}

// State is everything that a replica that joins has to know.
func (r *Replica) State() []Session {
	return r.table.State()
}

// Strangers are all indices to be told of.
func (r *Replica) Strangers(now time.Time) []uint32 {
	all := map[uint32]bool{}
	r.table.Each(now, func(s Session) {
		if !r.isMine(s) || r.mine[s.Index].watched {
			all[s.Index] = true
		}
	})
	for index := range r.hints {
		all[index] = true
	}
	return slices.Sorted(maps.Keys(all))
}
