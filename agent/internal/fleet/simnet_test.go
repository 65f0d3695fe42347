package fleet

import (
	"bytes"
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// world is a gateway's replicas, their clients and what is between them, in virtual
// time: what happens is decided by the seed alone.
type world struct {
	random  *rand.Rand
	now     time.Duration
	queue   schedule
	serial  uint64
	nodes   []*node // those that run
	born    int
	clients []*client
	config  simConfig

	split                bool // replicas of different sides do not hear each other
	healed               time.Duration
	counts               map[string]int
	outages              []outage
	faults               []string
	doubles              map[*client]int
	t                    *testing.T
	traced               string
	tracedFrom, tracedTo time.Duration
	running              bool // events at random
	peers                []Peer
}

type simConfig struct {
	// detection is how long siblings take to call a replica dead, at least and at most.
	detectLeast, detectMost time.Duration
	skew                    time.Duration // of a replica's clock, at most
	loss                    float64       // of a message between client and gateway
}

type event struct {
	at     time.Duration
	serial uint64
	do     func()
}

type schedule []event

func (q schedule) Len() int { return len(q) }
func (q schedule) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].serial < q[j].serial
}
func (q schedule) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *schedule) Push(x any)   { *q = append(*q, x.(event)) }
func (q *schedule) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1].do = nil
	*q = old[:len(old)-1]
	return e
}

func (w *world) after(d time.Duration, do func()) {
	w.serial++
	heap.Push(&w.queue, event{w.now + d, w.serial, do})
}

// run lets time pass.
func (w *world) run(until time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= until {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	w.now = until
}

func (w *world) clock() time.Time { return epoch.Add(w.now) }
func (w *world) upTo(d time.Duration) time.Duration {
	return time.Duration(w.random.Int64N(int64(d) + 1))
}
func (w *world) in(a, b time.Duration) time.Duration { return a + w.upTo(b-a) }
func (w *world) index() uint32                       { return 1 + w.random.Uint32N(1<<32-1) }
func (w *world) count(what string)                   { w.counts[what]++ }
func (w *world) hear(a, b *node) bool                { return a.up && b.up && (!w.split || a.side == b.side) }
func pick[T any](random *rand.Rand, all []T) (one T) { return all[random.IntN(len(all))] }
func (w *world) lost() bool                          { return w.random.Float64() < w.config.loss }
func (w *world) toGateway(c *client, m message) {
	if w.lost() {
		c.outage.lost++
		return
	}
	to := c.target
	w.after(c.distance, func() {
		if to == nil || !to.deviceUp {
			c.outage.dead++
			c.outage.cold = c.outage.cold || m.kind == messageTypeInit
			return
		}
		to.receive(c, m)
	})
}

func (w *world) toClient(n *node, c *client, m message) {
	if w.lost() {
		c.outage.lost++
		return
	}
	w.after(c.distance, func() { c.receive(m) })
}

// node is a replica: a Pod with its device and its agent.
type node struct {
	world    *world
	name     string
	side     int
	skew     time.Duration
	up       bool // the agent
	deviceUp bool
	ready    bool
	draining bool
	replica  *Replica
	device   *simDevice

	seen        map[*node]Member // siblings that are alive, as far as it knows
	strangers   map[uint32]*allowance
	unconfirmed map[uint32]bool
	silent      map[key.Public]bool // peers that are Elsewhere, as applied
	gossip      []gossiped
	ticking     bool
}

// allowance is what the packet log tells of one index.
type allowance struct {
	tokens float64
	at     time.Duration
}

type gossiped struct {
	session Session
	left    int
}

// start makes a replica, or the agent of one anew.
func (w *world) start(n *node, inherited bool) {
	n.up, n.deviceUp, n.draining = true, true, false
	n.replica = NewReplica(n.name, inherited)
	n.seen, n.strangers, n.silent, n.gossip, n.unconfirmed = map[*node]Member{}, map[uint32]*allowance{}, map[key.Public]bool{}, nil, map[uint32]bool{}
	if n.device == nil {
		n.device = newSimDevice()
	}
	n.do(n.replica.Configure(w.peers))
	w.tick(n, n.replica)
	// It joins one that it finds, and hears of the others from it.
	for _, o := range w.nodes {
		if o != n && w.hear(n, o) {
			w.meet(n, o, w.upTo(20*time.Millisecond))
		}
	}
	w.after(w.in(50*time.Millisecond, 100*time.Millisecond), func() {
		if n.up && !n.draining {
			n.ready = true
		}
	})
}

func (w *world) newNode() *node {
	w.born++
	n := &node{world: w, name: fmt.Sprintf("vpn-gateway-%04d", w.born), side: w.random.IntN(2)}
	n.skew = w.in(-w.config.skew, w.config.skew)
	w.nodes = append(w.nodes, n)
	w.start(n, false)
	return n
}

// tick does once a second what a replica does.
func (w *world) tick(n *node, r *Replica) {
	w.after(time.Second, func() {
		if !n.up || n.replica != r {
			return
		}
		n.do(r.Tick(w.clock()))
		if w.random.IntN(30) == 0 && len(n.seen) > 0 { // compareEvery
			w.exchange(n, pick(w.random, n.siblings()))
		}
		w.tick(n, r)
	})
}

func (n *node) siblings() []*node {
	return slices.SortedFunc(maps.Keys(n.seen), func(a, b *node) int { return compareNames(a, b) })
}

func compareNames(a, b *node) int {
	switch {
	case a.name < b.name:
		return -1
	case a.name > b.name:
		return 1
	}
	return 0
}

// meet makes two replicas know of each other and of all that the other knows.
func (w *world) meet(a, b *node, in time.Duration) {
	w.after(in, func() {
		if !w.hear(a, b) {
			return
		}
		a.seen[b], b.seen[a] = Member{b.name, b.draining}, Member{a.name, a.draining}
		a.membersChanged()
		b.membersChanged()
		w.exchange(a, b)
	})
}

// exchange compares everything.
func (w *world) exchange(a, b *node) {
	if !w.hear(a, b) {
		return
	}
	ofA, ofB := encode(a.replica.State(), w.clock()), encode(b.replica.State(), w.clock())
	a.hear(ofB, true)
	b.hear(ofA, true)
}

func (n *node) membersChanged() {
	members := []Member{{n.name, n.draining}}
	for _, m := range n.seen {
		members = append(members, m)
	}
	n.do(n.replica.SetMembers(members))
}

// lose has a replica take another one for dead after a while.
func (w *world) lose(n, dead *node) {
	r := n.replica
	w.after(w.in(w.config.detectLeast, w.config.detectMost), func() {
		if _, known := n.seen[dead]; !known || !n.up || n.replica != r || w.hear(n, dead) {
			return
		}
		delete(n.seen, dead)
		n.membersChanged()
		// A partition has two sides, and neither may say of the other that it is dead;
		// who has died is alone.
		if dead.ready && !dead.up {
			dead.ready = false
			w.balance(dead, 300*time.Millisecond)
		}
	})
}

// hear takes a message of a sibling.
func (n *node) hear(b []byte, isAll bool) {
	sessions, err := decode(b, n.world.clock())
	if err != nil {
		n.world.count("undecodable")
		return
	}
	isNew := isAll && n.replica.KnowsNothing()
	e := n.replica.Heard(sessions, n.world.clock())
	if isNew {
		e.PassOn = nil
	}
	n.do(e)
}

// tell sends a message to a sibling. Now and then one is lost.
func (n *node) tell(o *node, sessions []Session) {
	w := n.world
	if w.random.IntN(1000) == 0 {
		return
	}
	b := encode(sessions, w.clock())
	w.after(w.in(500*time.Microsecond, 3*time.Millisecond), func() {
		if w.hear(n, o) {
			o.hear(b, false)
		}
	})
}

// do carries out what follows from an event, as Fleet and the loop do.
func (n *node) do(e Effects) {
	w := n.world
	for _, i := range e.Strangers {
		n.strangers[i] = &allowance{}
	}
	for _, i := range e.Known {
		delete(n.strangers, i)
	}
	w.counts["adopted"] += len(e.Adopted)
	w.counts["yielded"] += len(e.Yielded)
	if e.Refused != NotRefused {
		w.count("packets refused: " + string(e.Refused))
	}
	if len(e.Publish) > 0 {
		for _, o := range n.siblings() {
			n.tell(o, e.Publish)
		}
	}
	news := slices.Concat(e.Publish, e.PassOn)
	slices.SortStableFunc(news, func(a, b Session) int { return cmp.Compare(a.Index, b.Index) }) // maps have no order, the simulation must
	for _, s := range news {
		n.gossip = append(n.gossip, gossiped{s, retransmits * 1})
	}
	if len(n.gossip) > 0 && !n.ticking {
		n.ticking = true
		w.after(w.upTo(gossipEvery), n.spread)
	}
	r := n.replica
	slices.SortFunc(e.Calls, func(a, b Call) int { return bytes.Compare(a.Peer[:], b.Peer[:]) })
	for _, c := range e.Calls {
		w.after(w.in(2*time.Millisecond, 15*time.Millisecond), func() {
			if n.up && n.replica == r {
				n.call(c)
			}
		})
	}
	for _, m := range e.Reminders {
		w.after(m.After, func() {
			if n.up && n.replica == r {
				n.do(n.replica.Remind(m))
			}
		})
	}
	if e.Elsewhere {
		w.after(w.in(2*time.Millisecond, 15*time.Millisecond), func() {
			if n.up && n.replica == r {
				n.follow()
			}
		})
	}
}

// spread is one round of gossip.
func (n *node) spread() {
	n.ticking = false
	if !n.up || len(n.gossip) == 0 {
		return
	}
	to := n.siblings()
	n.world.random.Shuffle(len(to), func(i, j int) { to[i], to[j] = to[j], to[i] })
	for _, o := range to[:min(gossipTo, len(to))] {
		var sessions []Session
		for i := range n.gossip {
			if n.gossip[i].left > 0 && len(sessions) < packetSize/30 {
				n.gossip[i].left--
				sessions = append(sessions, n.gossip[i].session)
			}
		}
		if len(sessions) > 0 {
			n.tell(o, sessions)
		}
	}
	n.gossip = slices.DeleteFunc(n.gossip, func(g gossiped) bool { return g.left == 0 || len(to) == 0 })
	if len(n.gossip) > 0 {
		n.ticking = true
		n.world.after(gossipEvery, n.spread)
	}
}

// call is what the loop and the device make of a call.
func (n *node) call(call Call) {
	c := n.world.byKey(call.Peer)
	n.world.trace(c, "%s calls %+v", n.name, call)
	if call.Nudge {
		n.write(c, false, 0)
		return
	}
	if k := n.device.tunnel(c).current; k != nil && n.isCurrent(k) {
		n.world.count("sessions in use that were renewed")
	}
	n.device.renew(c)
	if call.Endpoint.IsValid() {
		n.device.tunnel(c).knows = true
		n.initiate(c)
	}
}

// isCurrent reports whether a session is what its client uses.
func (n *node) isCurrent(k *keypair) bool { return k.client.current == k && k.client.target == n }

// follow makes the device silent towards peers that are elsewhere.
func (n *node) follow() {
	elsewhere := n.replica.Elsewhere()
	for k := range n.replica.Calling() {
		delete(elsewhere, k)
	}
	for k := range elsewhere {
		if !n.silent[k] {
			n.silent[k] = true
			n.world.trace(n.world.byKey(k), "%s falls silent", n.name)
			n.device.renew(n.world.byKey(k))
		}
	}
	for k := range n.silent {
		if _, ok := elsewhere[k]; !ok {
			delete(n.silent, k)
		}
	}
}

// heardOut is what the packet log tells of our messages.
func (n *node) heardOut(index uint32, c *client, answer bool) {
	if n.up {
		n.replica.Started(index, c.public, answer, n.world.clock())
		n.replica.Located(index, 51820, c.address)
		n.unconfirmed[index] = true
		n.world.after(startedLifetime, func() { delete(n.unconfirmed, index) })
	}
}

func (t *Table) knows(index uint32) bool { _, ok := t.Find(index); return ok }

// heardIn is what it tells of those that come.
func (n *node) heardIn(m message, index uint32) {
	w := n.world
	if !n.up {
		m.keys.unseen = m.keys.unseen || !n.replica.table.knows(index)
		m.keys.client.outage.unseen++
		return
	}
	if n.replica.Began(index) {
		if m.kind == messageTypeData {
			delete(n.unconfirmed, index)
		}
		n.do(n.replica.Confirmed(index, w.clock()))
		return
	}
	c := m.keys.client
	isFirst := n.unconfirmed[index] && m.kind == messageTypeData
	if isFirst {
		delete(n.unconfirmed, index)
		n.do(n.replica.Stranger(index, 51820, c.address, w.clock()))
	}
	a := n.strangers[index]
	if a == nil {
		if n.device.indices[index] != m.keys {
			c.outage.unknown++
			if m.keys.unseen {
				c.outage.unseen++
			}
		}
		return
	}
	a.tokens, a.at = min(8, a.tokens+8*(w.now-a.at).Seconds()), w.now // strangersEach
	if a.tokens < 1 {
		return
	}
	a.tokens--
	w.trace(c, "stranger at %s", n.name)
	n.do(n.replica.Stranger(index, 51820, netip.AddrPortFrom(c.address.Addr(), c.address.Port()), w.clock()))
}

func (w *world) byKey(k key.Public) *client { return w.clients[int(k[0])|int(k[1])<<8] }

// balance sends the clients of a replica elsewhere within a while.
func (w *world) balance(from *node, within time.Duration) {
	for _, c := range w.clients {
		if c.target == from {
			w.after(w.upTo(within), func() {
				if c.target == from && (!from.ready || !from.deviceUp) {
					w.move(c, w.anyReady(from))
				}
			})
		}
	}
}

// anyReady is a replica that the load balancer may choose.
func (w *world) anyReady(but *node) *node {
	var ready []*node
	for _, n := range w.nodes {
		if n.ready && n != but {
			ready = append(ready, n)
		}
	}
	if len(ready) == 0 {
		return but
	}
	return pick(w.random, ready)
}

// move has the load balancer send a client's packets to another replica.
func (w *world) move(c *client, to *node) {
	if to == nil || to == c.target {
		return
	}
	if !c.burst {
		c.outage = outage{}
	}
	c.outage.moves++
	if w.parted() {
		c.outage.parted++
	}
	if c.current != nil && w.now-c.current.born < 100*time.Millisecond || c.pending != 0 {
		c.outage.fresh++
	}
	w.trace(c, "moves to %s", to.name)
	c.target = to
	w.count("moves")
	if c.every > 0 && w.running {
		w.stream(c)
	}
}
