package fleet

import (
	"cmp"
	"slices"
	"time"
)

// fewest and most replicas at a time.
const fewest, most = 3, 8

const drainFor = 30 * time.Second // server.drain

// trouble makes something happen, and again after a while.
func (w *world) trouble() {
	if !w.running {
		return
	}
	up, what := w.upNodes(), w.random.IntN(9)
	if w.split && what >= 3 && what <= 5 { // who dies in a partition, nobody notices
		what = 1
	}
	switch what {
	case 0:
		if len(up) > fewest {
			w.count("scale in")
			w.leaves(pick(w.random, up), false)
		}
	case 1:
		if len(up) < most {
			w.count("scale out")
			w.newNode()
		}
	case 2:
		w.count("drain, and a new Pod")
		w.leaves(pick(w.random, up), true)
	case 3:
		w.count("node gone, and a new Pod")
		w.kill(pick(w.random, up), false)
		w.after(w.in(5*time.Second, 30*time.Second), func() { w.newNode() })
	case 4:
		w.count("agent killed, device stays")
		w.restart(pick(w.random, up), true)
	case 5:
		w.count("agent and device killed")
		w.restart(pick(w.random, up), false)
	case 6:
		if !w.split {
			w.part()
		}
	case 7:
		w.scaleIn(up)
	case 8:
		w.count("rolling upgrade")
		for i, n := range up {
			w.after(time.Duration(i)*8*time.Second, func() {
				if n.up && !n.draining {
					w.leaves(n, true)
				}
			})
		}
	}
	w.after(w.in(10*time.Second, 4*time.Minute), w.trouble)
}

// leaves drains a replica that leaves alone.
func (w *world) leaves(n *node, replace bool) {
	w.drain(n, replace, w.in(100*time.Millisecond, time.Second), time.Second)
}

// scaleIn has all but two replicas leave at once. The load balancer takes them out one
// after the other, so that who is moved may be moved again at once.
func (w *world) scaleIn(up []*node) {
	if len(up) < 4 {
		return
	}
	w.count("scale in to two")
	w.random.Shuffle(len(up), func(i, j int) { up[i], up[j] = up[j], up[i] })
	after := time.Duration(0)
	for _, n := range up[2:] {
		after += w.in(10*time.Millisecond, 100*time.Millisecond)
		w.drain(n, false, after, 50*time.Millisecond)
		w.after(w.in(30*time.Second, time.Minute), func() {
			if len(w.upNodes()) < fewest+1 {
				w.newNode()
			}
		})
	}
}

// upNodes are those that run and are to go on, of which there are some always.
func (w *world) upNodes() []*node {
	var up []*node
	for _, n := range w.nodes {
		if n.up && !n.draining && n.ready {
			up = append(up, n)
		}
	}
	if len(up) == 0 {
		up = append(up, w.newNode())
	}
	return up
}

// rebalance moves those that a move found no replica for.
func (w *world) rebalance() {
	for _, c := range w.clients {
		if c.target != nil && !c.target.ready {
			w.move(c, w.anyReady(c.target))
		}
	}
	if w.running {
		w.after(5*time.Second, w.rebalance)
	}
}

// moveSomebody has the load balancer change its mind, once or every 3 s for a while.
func (w *world) moveSomebody() {
	if !w.running {
		return
	}
	c := pick(w.random, w.clients)
	switch w.random.IntN(10) {
	case 0, 1:
		w.count("clients moved twice or three times at once")
		after := time.Duration(0)
		for range w.random.IntN(2) + 2 {
			w.after(after, func() {
				if w.running {
					w.move(c, w.anyReady(c.target))
				}
			})
			after += w.in(10*time.Millisecond, 100*time.Millisecond)
		}
	case 2:
		w.count("flapping clients")
		a, b := c.target, w.anyReady(c.target)
		for i := range 10 {
			w.after(time.Duration(i)*3*time.Second, func() {
				to := b
				if i%2 == 1 {
					to = a
				}
				if w.running && to != nil && to.ready && to.deviceUp {
					w.move(c, to)
				}
			})
		}
	default:
		w.move(c, w.anyReady(c.target))
	}
	w.after(w.in(time.Second, 20*time.Second), w.moveSomebody)
}

// kill ends a replica without a word.
func (w *world) kill(n *node, deviceStays bool) {
	n.note = n.replica.Own()
	n.up, n.deviceUp = false, deviceStays
	for _, o := range w.nodes {
		if o != n && o.up {
			w.lose(o, n)
		}
	}
	if !deviceStays {
		n.device = nil
		for _, c := range w.clients {
			if c.target == n && c.every > 0 && w.running {
				if !c.burst {
					c.begins()
				}
				w.stream(c)
			}
		}
	}
	dead := n.replica
	w.after(time.Minute, func() {
		if !n.up && n.replica == dead { // and not dead once more, for a moment
			w.nodes = slices.DeleteFunc(w.nodes, func(o *node) bool { return o == n })
		}
	})
}

// restart kills a replica's agent, which comes back in the same Pod.
func (w *world) restart(n *node, deviceStays bool) {
	w.kill(n, deviceStays)
	w.after(w.in(500*time.Millisecond, 5*time.Second), func() { w.start(n, deviceStays) })
}

// drain ends a replica by SIGTERM, which the load balancer notices after a while and
// takes some time to act on.
func (w *world) drain(n *node, replace bool, after, within time.Duration) {
	n.draining = true
	n.membersChanged()
	for _, o := range n.siblings() {
		w.after(w.in(10*time.Millisecond, 100*time.Millisecond), func() {
			if _, known := o.seen[n]; known && w.hear(o, n) {
				o.seen[n] = Member{n.name, true}
				o.membersChanged()
			}
		})
	}
	if replace {
		w.after(w.in(0, 3*time.Second), func() { w.newNode() })
	}
	w.after(after, func() {
		n.ready = false
		w.balance(n, within)
	})
	start, r, leaving := w.now, n.replica, NewLeaving(w.clock(), drainFor)
	var look func()
	look = func() {
		if !n.up || n.replica != r {
			return
		}
		handOver, gone := leaving.Look(w.clock(), r.Held(w.clock()) > 0, len(n.seen) == 0)
		if handOver {
			n.handOver()
		}
		if !gone && w.now-start < drainFor {
			w.after(LeaveLook, look)
			return
		}
		w.leave(n)
	}
	look()
}

// handOver asks siblings to call the clients that are still here.
func (n *node) handOver() {
	offers := n.replica.Offers(n.world.clock())
	for _, o := range n.siblings() {
		if sessions := offers[o.name]; len(sessions) > 0 {
			slices.SortFunc(sessions, func(a, b Session) int { return cmp.Compare(a.Index, b.Index) })
			n.ask(o, wireOffer, sessions)
		}
	}
}

// leave is a goodbye.
func (w *world) leave(n *node) {
	for _, o := range w.nodes {
		if o == n || !o.up {
			continue
		}
		if !w.hear(o, n) {
			w.lose(o, n)
			continue
		}
		w.after(w.in(10*time.Millisecond, 100*time.Millisecond), func() {
			delete(o.seen, n)
			if o.up {
				o.membersChanged()
			}
		})
	}
	n.up, n.deviceUp = false, false
	w.nodes = slices.DeleteFunc(slices.Clone(w.nodes), func(o *node) bool { return o == n })
	w.balance(n, 100*time.Millisecond) // who was left behind
}

// part keeps the replicas of two sides from hearing each other. Half of the times the
// load balancer cannot reach the smaller one either.
func (w *world) part() {
	var sides [2][]*node
	for _, n := range w.nodes {
		n.side = w.random.IntN(2)
		if n.up {
			sides[n.side] = append(sides[n.side], n)
		}
	}
	if len(sides[0]) == 0 || len(sides[1]) == 0 {
		return
	}
	w.split = true
	w.count("partitions")
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if a.up && a.side != b.side {
				w.lose(a, b)
			}
		}
	}
	smaller := sides[0]
	if len(sides[1]) < len(sides[0]) {
		smaller = sides[1]
	}
	cut := w.random.IntN(2) == 0
	if cut {
		w.count("partitions that the load balancer is on one side of")
		for _, n := range smaller {
			if n.ready {
				n.ready = false
				w.balance(n, 2*time.Second)
			}
		}
	}
	w.after(w.in(3*time.Second, 3*time.Minute), func() {
		w.split, w.healed = false, w.now
		for _, n := range smaller {
			if cut && n.up && !n.draining {
				n.ready = true
			}
		}
		for _, a := range w.nodes {
			for _, b := range w.nodes {
				if _, known := a.seen[b]; a.side < b.side && a.up && b.up && !known {
					w.meet(a, b, w.upTo(joinEvery))
				}
			}
		}
	})
}
