package fleet

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// do carries out what follows from an event, as Fleet and the loop do.
func (n *node) do(e Effects) {
	w := n.world
	for _, i := range e.Strangers {
		n.log.strangers[i] = &allowance{}
	}
	for _, i := range e.Known {
		delete(n.log.strangers, i)
	}
	w.counts["adopted"] += len(e.Adopted)
	w.counts["yielded"] += len(e.Yielded)
	if e.Refused != NotRefused {
		w.count("packets refused: " + string(e.Refused))
	}
	if w.traced != "" {
		for _, s := range e.Publish {
			w.traceSession(s, n.name+" publishes")
		}
	}
	if straight := slices.Concat(e.Publish, e.Tell); len(straight) > 0 {
		for _, o := range n.siblings() {
			n.tell(o, straight, "straight")
		}
	}
	news := slices.Concat(e.Publish, e.PassOn)
	slices.SortStableFunc(news, func(a, b Session) int { return cmp.Compare(a.Index, b.Index) }) // maps have no order, the simulation must
	for _, s := range news {
		n.gossip = append(n.gossip, gossiped{s, sessionRetransmits * int(math.Ceil(math.Log10(float64(len(n.seen)+2))))})
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
	for _, s := range e.Recall {
		for _, o := range n.siblings() {
			if o.replica.self == s.Holder {
				n.ask(o, wireRecall, []Session{s})
			}
		}
	}
	for _, m := range e.Reminders {
		w.after(m.After, func() {
			if n.up && n.replica == r {
				n.do(n.replica.Remind(m, w.clock()))
			}
		})
	}
	if e.Elsewhere && n.following != r && !w.noDevices { // once, whatever else changes until then
		n.following = r
		w.after(w.in(2*time.Millisecond, 15*time.Millisecond), func() {
			n.following = nil
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
			if n.gossip[i].left > 0 && len(sessions) < packetSize/gossipedSession {
				n.gossip[i].left--
				sessions = append(sessions, n.gossip[i].session)
			}
		}
		if len(sessions) > 0 {
			n.tell(o, sessions, "gossip")
		}
	}
	n.gossip = slices.DeleteFunc(n.gossip, func(g gossiped) bool { return g.left == 0 || len(to) == 0 })
	if len(n.gossip) > 0 {
		n.ticking = true
		n.world.after(gossipEvery, n.spread)
	}
}

func (n *node) String() string {
	if n == nil {
		return "nobody"
	}
	return n.name
}

// call is what the loop and the device make of a call.
func (n *node) call(call Call) {
	c := n.world.byKey(call.Peer)
	if n.replica.IsOver(call) {
		return // it has come by itself meanwhile
	}
	n.world.trace(c, "%s calls, nudge %t, at %s", n.name, call.Nudge, call.Endpoint)
	if call.Nudge {
		t := n.device.tunnel(c)
		t.knows = t.knows || call.Endpoint.IsValid()
		n.write(c, false, 0)
		return
	}
	if k := n.device.tunnel(c).current; k != nil && n.isCurrent(k) {
		n.world.count("sessions in use that were renewed")
	}
	n.device.renew(c)
	if call.Endpoint.IsValid() {
		n.device.tunnel(c).knows = true
		n.initiate(c, false)
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
	var forgotten []key.Public
	for k := range elsewhere {
		if !n.silent[k] {
			n.silent[k] = true
			n.world.trace(n.world.byKey(k), "%s falls silent", n.name)
			n.device.renew(n.world.byKey(k))
			forgotten = append(forgotten, k)
		}
	}
	if len(forgotten) > 0 {
		slices.SortFunc(forgotten, key.Public.Compare) // a seed plays the same again
		n.do(n.replica.Forgot(forgotten, n.world.clock()))
	}
	for k := range n.silent {
		if _, ok := elsewhere[k]; !ok {
			delete(n.silent, k)
		}
	}
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
		c.begins()
	}
	c.outage.moves++
	c.moved, c.outage.moved = w.now, w.now
	w.trace(c, "moves to %s", to.name)
	c.target = to
	w.count("moves")
	if c.every > 0 && w.running {
		w.stream(c)
	}
}
