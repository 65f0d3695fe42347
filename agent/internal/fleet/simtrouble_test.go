package fleet

import (
	"iter"
	"maps"
	"slices"
	"time"
)

func mapKeys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// fewest and most replicas at a time.
const fewest, most = 3, 8

// trouble makes something happen, and again after a while.
func (w *world) trouble() {
	if !w.running {
		return
	}
	up, what := w.upNodes(), w.random.IntN(8)
	if w.split && what >= 3 && what <= 5 { // who dies in a partition, nobody notices
		what = 1
	}
	switch what {
	case 0:
		if len(up) > fewest {
			w.count("scale in")
			w.drain(pick(w.random, up), false)
		}
	case 1:
		if len(up) < most {
			w.count("scale out")
			w.newNode()
		}
	case 2:
		w.count("drain, and a new Pod")
		w.drain(pick(w.random, up), true)
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
		w.count("rolling upgrade")
		for i, n := range up {
			w.after(time.Duration(i)*8*time.Second, func() {
				if n.up && !n.draining {
					w.drain(n, true)
				}
			})
		}
	}
	w.after(w.in(10*time.Second, 4*time.Minute), w.trouble)
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
	case 0:
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
					c.outage = outage{}
				}
				w.stream(c)
			}
		}
	}
	w.after(time.Minute, func() {
		if !n.up {
			w.nodes = slices.DeleteFunc(w.nodes, func(o *node) bool { return o == n })
		}
	})
}

// restart kills a replica's agent, which comes back in the same Pod.
func (w *world) restart(n *node, deviceStays bool) {
	w.kill(n, deviceStays)
	w.after(w.in(500*time.Millisecond, 5*time.Second), func() { w.start(n, deviceStays) })
}

// drain ends a replica by SIGTERM.
func (w *world) drain(n *node, replace bool) {
	n.draining, n.ready = true, false
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
	w.after(w.in(100*time.Millisecond, time.Second), func() { w.balance(n, time.Second) })
	start, empty := w.now, w.now
	r := n.replica
	var look func()
	look = func() {
		if !n.up || n.replica != r {
			return
		}
		if r.Held(w.clock()) > 0 {
			empty = w.now
		}
		if over := w.now-start >= 3*time.Second && w.now-empty >= time.Second; !over && w.now-start < 25*time.Second {
			w.after(100*time.Millisecond, look)
			return
		}
		w.leave(n)
	}
	look()
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
