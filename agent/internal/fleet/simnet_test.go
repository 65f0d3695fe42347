package fleet

import (
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// world is a gateway's replicas, their clients and what is between them, in virtual
// time: what happens is decided by the seed alone.
type world struct {
	random     *rand.Rand
	now        time.Duration
	queue      schedule
	serial     uint64
	nodes      []*node // those that run
	born       int
	clients    []*client
	config     simConfig
	news       func(*node, []Session)
	noStraight bool // messages to all are lost
	noDevices  bool
	sent       map[string]int  // bytes by way
	dropped    map[uint32]bool // sessions that somebody was not told of, since a message was lost

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
		c.missed(m, false)
		return
	}
	to := c.target
	w.after(c.distance, func() {
		if to == nil || !to.deviceUp {
			c.missed(m, true)
			return
		}
		to.receive(c, m)
	})
}

func (w *world) toClient(c *client, m message) {
	if w.lost() {
		c.missed(m, false)
		return
	}
	w.after(c.distance, func() { c.receive(m) })
}

const (
	// packetOverhead of a message: IPv4 and UDP, memberlist's encryption, kind of message.
	packetOverhead = 28 + 29 + 1
	// gossipedSession in a compound message: its length, kind of message, version.
	gossipedSession = 2 + 1 + 1 + wireSession
)

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
	newborn  bool // in a partition
	replica  *Replica
	device   *simDevice

	seen      map[*node]Member // siblings that are alive, as far as it knows
	log       packetLog
	note      []Session           // for the next agent in this Pod
	silent    map[key.Public]bool // peers that are Elsewhere, as applied
	gossip    []gossiped
	ticking   bool
	following *Replica
}

type gossiped struct {
	session Session
	left    int
}

// start makes a replica, or the agent of one anew.
func (w *world) start(n *node, inherited bool) {
	n.up, n.deviceUp, n.draining = true, true, false
	n.replica = NewReplica(n.name, inherited)
	n.seen, n.log, n.silent, n.gossip = map[*node]Member{}, newPacketLog(), map[key.Public]bool{}, nil
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
	r := n.replica
	n.do(r.Remembered(n.note, w.clock()))
	if inherited {
		r.Unseen(n.device.sessions())
		w.after(2*time.Second, func() { // as cmd/vpn-agent does
			if n.up && n.replica == r {
				r.Unseen(n.device.sessions())
			}
		})
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
	n.newborn = w.split
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
		n.log.expire(w.now)
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
	w.sent["comparing"] += len(ofA) + len(ofB)
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
	w.after(w.in(w.config.detectLeast, w.config.detectMost), func() {
		if !n.up || w.hear(n, dead) {
			return
		}
		if _, known := n.seen[dead]; known {
			delete(n.seen, dead)
			n.membersChanged()
		}
		// A partition has two sides, and neither may say of the other that it is dead;
		// who has died is alone.
		if dead.ready && !dead.up {
			dead.ready = false
			w.balance(dead, 300*time.Millisecond)
		}
	})
}

// ask sends a sibling what is for it alone.
func (n *node) ask(o *node, kind byte, sessions []Session) {
	w := n.world
	b := encodeAs(kind, sessions, w.clock())
	w.after(w.in(500*time.Microsecond, 3*time.Millisecond), func() {
		sessions, err := decodeAs(kind, b, w.clock())
		switch {
		case err != nil:
			w.count("undecodable")
		case !w.hear(n, o):
		case kind == wireRecall:
			o.do(o.replica.Recalled(sessions, w.clock()))
		case kind == wireOffer:
			o.do(o.replica.Offered(sessions, w.clock()))
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
	take := n.replica.Heard
	if isAll {
		take = n.replica.Compared
	}
	e := take(sessions, n.world.clock())
	if n.world.news != nil {
		n.world.news(n, e.PassOn)
	}
	n.do(e)
}

// tell sends a message to a sibling. Now and then one is lost.
func (n *node) tell(o *node, sessions []Session, how string) {
	w := n.world
	if how == "straight" && w.noStraight {
		return
	}
	if w.random.IntN(1000) == 0 {
		for _, s := range sessions {
			w.dropped[s.Index] = true
		}
		return
	}
	b := encode(sessions, w.clock())
	w.sent[how] += packetOverhead + len(b) + 3*(len(sessions)-1) // each with its kind, type and length
	w.after(w.in(500*time.Microsecond, 3*time.Millisecond), func() {
		if o.up && (!w.split || n.side == o.side) { // who sent it may be dead by now
			o.hear(b, false)
		}
	})
}
