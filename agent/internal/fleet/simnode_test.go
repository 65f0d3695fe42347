package fleet

import (
	"bytes"
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

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
			n.tell(o, e.Publish, "straight")
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

// call is what the loop and the device make of a call.
func (n *node) call(call Call) {
	c := n.world.byKey(call.Peer)
	n.world.trace(c, "%s calls %+v", n.name, call)
	if call.Nudge {
		n.write(c, false, 0)
		return
	}
	if n.replica.IsOver(call) {
		return // it has come by itself meanwhile
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
	if c.moved > 0 && w.now-c.moved < time.Second {
		c.outage.again++
	}
	c.moved = w.now
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
