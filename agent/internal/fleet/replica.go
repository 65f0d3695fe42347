package fleet

import (
	"cmp"
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

	peers   map[PeerID]configured
	members map[ReplicaID]Member // alive ones and draining ones, this one included
	// started are our handshakes that are not confirmed, by index.
	started map[uint32]started
	// mine are the indices of sessions that the device has.
	mine map[uint32]bool
	// calls are the peers that we are taking over.
	calls map[PeerID]call
	// elsewhere are the peers that a sibling serves.
	elsewhere map[PeerID]ReplicaID
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

type configured struct {
	Peer
}

type started struct {
	peer PeerID
	at   time.Time
}

// call is a peer that is being taken over.
type call struct {
	times int
	last  time.Time
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
}

// Effects is what follows from an event.
type Effects struct {
	// Publish goes to all siblings: at once where Urgent is true, else in time.
	Publish []Session
	Urgent  bool
	Calls   []Call
	// Elsewhere is true where [Replica.Elsewhere] has changed.
	Elsewhere bool
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
	// firstRetry is when to call again a peer that still sends with its old session:
	// long against a round trip, short against REKEY_TIMEOUT. It doubles from call
	// to call up to lastRetry.
	firstRetry = 250 * time.Millisecond
	lastRetry  = 5 * time.Second
	// nudgeEvery bounds how often a peer that does not know of its session is told.
	nudgeEvery = 100 * time.Millisecond
)

// NewReplica returns a replica that knows of nothing but itself. inherited says that
// its device was a predecessor's.
func NewReplica(name string, inherited bool) *Replica {
	self := ReplicaIDOf(name)
	return &Replica{
		self: self, inherited: inherited,
		peers: map[PeerID]configured{}, members: map[ReplicaID]Member{self: {Name: name}},
		started: map[uint32]started{}, mine: map[uint32]bool{}, calls: map[PeerID]call{},
		elsewhere: map[PeerID]ReplicaID{},
	}
}

// Configure sets the peers that there are.
func (r *Replica) Configure(peers []Peer) (e Effects) {
	r.peers = make(map[PeerID]configured, len(peers))
	for _, p := range peers {
		r.peers[IDOf(p.PublicKey)] = configured{p}
	}
	r.placeAll(&e)
	return e
}

// SetMembers sets the replicas that are alive. Of those that are missing, sites are
// called by another one, and the peers wait to be taken over.
func (r *Replica) SetMembers(members []Member) (e Effects) {
	r.members = make(map[ReplicaID]Member, len(members))
	for _, m := range members {
		r.members[ReplicaIDOf(m.Name)] = m
	}
	r.placeAll(&e)
	return e
}

// Started notes a handshake message of ours with an index of our choice in it.
func (r *Replica) Started(index uint32, peer key.Public, now time.Time) {
	r.started[index] = started{IDOf(peer), now}
}

// Began reports whether an index is that of a handshake of ours that is not
// confirmed yet.
func (r *Replica) Began(index uint32) bool {
	_, ok := r.started[index]
	return ok
}

// Confirmed notes that the peer has used an index of ours: its session stands.
func (r *Replica) Confirmed(index uint32, now time.Time) (e Effects) {
	began, ok := r.started[index]
	if !ok {
		return e
	}
	delete(r.started, index)
	delete(r.calls, began.peer)
	before, known := r.table.Newest(began.peer)
	s := Session{Index: index, Peer: began.peer, Seq: before.Seq + 1, Holder: r.self, Since: now}
	r.mine[index] = true
	r.add(s, &e)
	e.Publish = []Session{s}
	e.Urgent = !known || before.Holder != r.self
	if p, ok := r.peers[began.peer]; ok && known && before.Holder != r.self {
		e.Adopted = []Change{{p.PublicKey, r.members[before.Holder].Name}}
	}
	r.place(began.peer, &e)
	return e
}

// Heard merges sessions that a sibling told of. Those that were news are to be
// passed on.
func (r *Replica) Heard(sessions []Session, now time.Time) (e Effects) {
	for _, s := range sessions {
		if now.Sub(s.Since) >= sessionLifetime {
			continue
		}
		before, _ := r.table.Newest(s.Peer)
		if !r.add(s, &e) {
			continue
		}
		e.Publish = append(e.Publish, s)
		switch {
		case s.Holder != r.self:
			e.Strangers = append(e.Strangers, s.Index)
		case r.inherited && !r.mine[s.Index]:
			r.mine[s.Index] = true
		case !r.mine[s.Index]: // of this Pod's life before
			e.Strangers = append(e.Strangers, s.Index)
		}
		newest, _ := r.table.Newest(s.Peer)
		if newest.Holder != r.self {
			r.giveUp(s.Peer, before, newest, &e)
		}
		r.place(s.Peer, &e)
	}
	return e
}

// add puts a session into the table, and forgets those that went for it.
func (r *Replica) add(s Session, e *Effects) (news bool) {
	news, dropped := r.table.Add(s)
	for _, index := range dropped {
		if r.mine[index] {
			delete(r.mine, index)
		} else {
			e.Known = append(e.Known, index)
		}
	}
	return news
}

// giveUp forgets our sessions of a peer that a sibling has a newer one with.
func (r *Replica) giveUp(id PeerID, before, newest Session, e *Effects) {
	had := false
	for _, s := range r.table.Sessions(id) {
		if r.mine[s.Index] {
			had = true
			delete(r.mine, s.Index)
			e.Strangers = append(e.Strangers, s.Index)
		}
	}
	if p, ok := r.peers[id]; ok && had && before.Holder == r.self {
		e.Yielded = append(e.Yielded, Change{p.PublicKey, r.members[newest.Holder].Name})
	}
}

// Stranger notes a packet of data for an index that is not of a session of ours, to a
// port of ours. The peer is called where that is its newest session: nobody else can
// answer to what it sends by this way. Older ones are of packets that were under way
// when the session changed.
func (r *Replica) Stranger(index uint32, port uint16, from netip.AddrPort, now time.Time) (e Effects) {
	s, ok := r.table.Find(index)
	p, isConfigured := r.peers[s.Peer]
	if !ok || !isConfigured || now.Sub(s.Since) >= sessionLifetime {
		e.Refused = UnknownPeer
		return e
	}
	if r.mine[index] {
		return e
	}
	newest, _ := r.table.Newest(s.Peer)
	if s.Seq < newest.Seq && !r.mine[newest.Index] {
		e.Refused = Late
		return e
	}
	before := r.calls[s.Peer]
	if s.Seq < newest.Seq {
		if now.Sub(before.last) < nudgeEvery {
			e.Refused = Late
			return e
		}
		r.calls[s.Peer] = call{last: now}
		e.Calls = []Call{{Peer: p.PublicKey, Port: port, Endpoint: from, Nudge: true}}
		return e
	}
	if before.times > 0 && now.Sub(before.last) < min(firstRetry<<(before.times-1), lastRetry) {
		e.Refused = TooSoon
		return e
	}
	r.calls[s.Peer] = call{times: min(before.times+1, 8), last: now}
	e.Calls = []Call{{Peer: p.PublicKey, Port: port, Endpoint: from}}
	return e
}

// Tick forgets what is over.
func (r *Replica) Tick(now time.Time) (e Effects) {
	for index, s := range r.started {
		if now.Sub(s.at) >= startedLifetime {
			delete(r.started, index)
		}
	}
	for id, c := range r.calls {
		if now.Sub(c.last) >= 2*lastRetry {
			delete(r.calls, id)
		}
	}
	over := map[PeerID]bool{}
	r.table.Expire(now, func(id PeerID) bool { _, ok := r.peers[id]; return ok }, func(s Session) {
		over[s.Peer] = true
		if r.mine[s.Index] {
			delete(r.mine, s.Index)
			return
		}
		e.Known = append(e.Known, s.Index)
	})
	for id := range over {
		r.place(id, &e)
	}
	return e
}

// placeAll finds out anew where every peer is.
func (r *Replica) placeAll(e *Effects) {
	for id := range r.elsewhere {
		if _, ok := r.peers[id]; !ok {
			delete(r.elsewhere, id)
			e.Elsewhere = true
		}
	}
	for id := range r.peers {
		r.place(id, e)
	}
}

// place finds out where a peer is.
func (r *Replica) place(id PeerID, e *Effects) {
	p, ok := r.peers[id]
	if !ok {
		return
	}
	to := r.serves(id, p.Site)
	was, wasElsewhere := r.elsewhere[id]
	switch {
	case to == r.self && wasElsewhere:
		delete(r.elsewhere, id)
	case to != r.self && (!wasElsewhere || was != to):
		r.elsewhere[id] = to
	default:
		return
	}
	e.Elsewhere = true
	if s, _ := r.table.Newest(id); to == r.self && p.Site && !r.mine[s.Index] {
		e.Calls = append(e.Calls, Call{Peer: p.PublicKey})
	}
}

// serves returns which replica serves a peer: who has its newest session. Without
// one it is whoever the peer comes to, and this replica is ready for it; a site comes
// to nobody, and one replica calls it.
func (r *Replica) serves(id PeerID, site bool) ReplicaID {
	holder := r.self
	if s, ok := r.table.Newest(id); ok {
		holder = s.Holder
	} else if site {
		return r.caller(id)
	}
	m, alive := r.members[holder]
	switch {
	case site && (!alive || m.Draining):
		return r.caller(id)
	case !alive:
		return r.self
	}
	return holder
}

// caller is the replica that calls a site: every one has the same chance, and few
// sites change hands when a replica comes or goes (rendezvous hashing).
func (r *Replica) caller(id PeerID) ReplicaID {
	best, found := r.self, false
	for _, draining := range []bool{false, true} {
		for m, member := range r.members {
			if member.Draining == draining && (!found || compareScores(id, m, best) > 0) {
				best, found = m, true
			}
		}
		if found {
			break
		}
	}
	return best
}

func compareScores(id PeerID, a, b ReplicaID) int {
	return cmp.Compare(score(id, a), score(id, b))
}

// Elsewhere returns the peers that a sibling serves, with its name.
func (r *Replica) Elsewhere() map[key.Public]string {
	out := make(map[key.Public]string, len(r.elsewhere))
	for id, to := range r.elsewhere {
		out[r.peers[id].PublicKey] = r.members[to].Name
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
func (r *Replica) State(now time.Time) []Session {
	var out []Session
	r.table.Each(now, func(s Session) { out = append(out, s) })
	return out
}

// Strangers are all indices to be told of.
func (r *Replica) Strangers(now time.Time) []uint32 {
	all := map[uint32]bool{}
	r.table.Each(now, func(s Session) {
		if !r.mine[s.Index] {
			all[s.Index] = true
		}
	})
	return slices.Sorted(maps.Keys(all))
}
