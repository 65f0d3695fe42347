package fleet

import (
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// WireGuard as far as it decides who can talk to whom (sections 5 and 6 of the
// whitepaper, and wireguard-go where that is silent): which keys a side has and uses,
// when it begins a handshake, and which messages it refuses.
const (
	rejectAfter      = 180 * time.Second
	rekeyTimeout     = 5 * time.Second
	rekeyAttempt     = 90 * time.Second
	keepaliveTimeout = 10 * time.Second
	stampStep        = 1 << 24 * time.Nanosecond // to which times in initiations are cut
	floodStep        = 20 * time.Millisecond     // initiations that come faster are ignored
)

// keypair is a session's keys, which both of its ends have.
type keypair struct {
	index        uint32 // the gateway's
	born         time.Duration
	byClient     bool // who began the handshake rekeys
	client       *client
	node         *node
	clientsIndex uint32
	told         bool // an agent has seen it made, and told of it
}

// keyring is one side's keys with the other.
type keyring struct{ current, previous, next *keypair }

// begun takes up the keys of a handshake that this side began.
func (r *keyring) begun(k *keypair) {
	if r.next != nil {
		r.previous, r.next = r.next, nil
	} else {
		r.previous = r.current
	}
	r.current = k
}

// answered takes up those of one that the other side began, to be used when it does.
func (r *keyring) answered(k *keypair) { r.next, r.previous = k, nil }

// received reports whether what was encrypted with k can be read.
func (r *keyring) received(k *keypair, now time.Duration) bool {
	if k == nil || now-k.born >= rejectAfter || k != r.current && k != r.previous && k != r.next {
		return false
	}
	if k == r.next {
		r.previous, r.current, r.next = r.current, k, nil
	}
	return true
}

// handshaking is how far one side is with handshakes that it began.
type handshaking struct {
	pending    uint32        // index of the one that is repeated until there is a session; 0: none
	waits      uint32        // index that a response is taken for; 0: none, or another handshake has come between
	attempts   time.Duration // since when it is repeated
	last       time.Duration // when an initiation or a response was sent
	unanswered time.Duration // since when data waits for any answer; 0: none does
}

// mayBegin reports whether a handshake may be begun, and notes that it is. Where one side
// has sent an initiation or a response, it begins none for REKEY_TIMEOUT, and one that was
// to be repeated then is not.
func (h *handshaking) mayBegin(w *world, isRetry bool) bool {
	if !isRetry {
		h.attempts = w.now
	}
	if h.last > 0 && w.now-h.last < rekeyTimeout || w.now-h.attempts > rekeyAttempt {
		if isRetry {
			h.pending = 0
		}
		return false
	}
	h.pending, h.last = w.index(), w.now
	h.waits = h.pending
	return true
}

// consumed notes an initiation of the other side's, which is answered: one has one
// handshake at a time, and a response to ours finds nothing any more.
func (h *handshaking) consumed(now time.Duration) {
	h.waits, h.last, h.unanswered = 0, now, 0
}

// message is a packet between a client and a gateway.
type message struct {
	kind   byte
	keys   *keypair      // of data and responses
	index  uint32        // of initiations, the sender's; of data, the gateway's
	stamp  time.Duration // of initiations, by the sender's wall clock
	isData bool          // and not a keepalive
	sent   time.Duration // when the client sent what this answers to
	from   *node
}

// client is a stock WireGuard client and a program that uses it.
type client struct {
	world     *world
	name      string
	public    key.Public
	id        PeerID
	address   netip.AddrPort
	distance  time.Duration // one way
	keepalive time.Duration // 0: none
	every     time.Duration // between packets of the program; 0: it sends none
	target    *node         // where the load balancer sends its packets

	keyring
	stamp, flooded time.Duration // of the gateway's last initiation
	handshaking
	lastSent time.Duration
	staged   bool

	outage     outage
	burst      bool
	moved      time.Duration // last
	answeredAt time.Duration
}

func (c *client) hasSession() bool {
	return c.current != nil && c.world.now-c.current.born < rejectAfter
}

// missed notes a message that the network lost, or that got to a dead replica.
func (c *client) missed(m message, isDead bool) {
	isOwn := m.kind == messageTypeInit && m.from == nil || m.kind == messageTypeResp && m.keys.byClient
	if isOwn && !c.hasSession() {
		c.outage.unheard = c.last
	}
	switch {
	case isDead:
		c.outage.dead++
	case m.kind == messageTypeData:
		c.outage.lost++
	case isOwn:
		c.outage.ownLost++
	default:
		c.inVain(&c.outage.callsLost)
		if m.kind == messageTypeResp { // it takes itself for answered
			c.outage.held = c.world.now
		}
	}
}

// send sends what a program writes, or a keepalive.
func (c *client) send(isData bool) {
	w := c.world
	k := c.current
	if !c.hasSession() {
		if isData || c.keepalive > 0 {
			c.staged = true
			c.initiate(false)
		}
		return
	}
	if isData && c.unanswered == 0 {
		c.unanswered = w.now
		since := w.now
		w.after(keepaliveTimeout+rekeyTimeout+w.upTo(333*time.Millisecond), func() {
			if c.unanswered == since {
				c.unanswered = 0
				c.initiate(false)
			}
		})
	}
	c.lastSent = w.now
	w.toGateway(c, message{kind: messageTypeData, keys: k, index: k.index, isData: isData, sent: w.now})
	if k.byClient && w.now-k.born >= rekeyAfter {
		c.initiate(false)
	}
}

// initiate begins a handshake unless there is one, and repeats it until it is answered.
func (c *client) initiate(isRetry bool) {
	w := c.world
	if !c.mayBegin(w, isRetry) {
		if c.waits == 0 && !c.hasSession() {
			c.outage.unheard = c.last
		}
		return
	}
	w.toGateway(c, message{kind: messageTypeInit, index: c.pending, stamp: w.now, sent: w.now})
	mine := c.pending
	w.after(rekeyTimeout+w.upTo(333*time.Millisecond), func() {
		if c.pending == mine {
			c.initiate(true)
		}
	})
}

// receive takes what comes from the gateway.
func (c *client) receive(m message) {
	w := c.world
	if w.traced != "" {
		index, from := m.index, m.from
		if m.keys != nil {
			index, from = m.keys.index, m.keys.node
		}
		w.trace(c, "gets type %d isData %t index %d of %v, while at %v", m.kind, m.isData, index, from, c.target)
	}
	switch m.kind {
	case messageTypeInit:
		stamp := m.stamp / stampStep * stampStep
		if stamp <= c.stamp {
			c.inVain(&c.outage.refused)
			w.count("initiations refused by their time")
			return
		}
		if w.now-c.flooded < floodStep {
			c.inVain(&c.outage.refused)
			return
		}
		c.stamp, c.flooded = stamp, w.now
		c.consumed(w.now)
		k := &keypair{index: m.index, born: w.now, client: c, node: m.from, clientsIndex: w.index()}
		if c.next != nil && c.next.node != k.node {
			c.inVain(&c.outage.overtaken)
		}
		c.answered(k)
		w.toGateway(c, message{kind: messageTypeResp, keys: k})
	case messageTypeResp:
		if c.waits == 0 || m.keys.clientsIndex != c.waits {
			return
		}
		c.pending, c.waits, c.unanswered = 0, 0, 0
		c.begun(m.keys)
		c.send(c.staged && c.every > 0)
		c.staged = false
	case messageTypeData:
		isNext := m.keys == c.next
		if !c.received(m.keys, w.now) {
			return
		}
		c.unanswered = 0
		if isNext { // the handshake is over
			c.pending = 0
			if c.staged {
				c.staged = false
				c.send(c.every > 0)
			}
		}
		if k := c.current; k.byClient && w.now-k.born >= rejectAfter-keepaliveTimeout-rekeyTimeout {
			c.initiate(false)
		}
		if m.isData {
			w.answered(c, m.sent)
		}
		if m.isData && w.now-c.lastSent > keepaliveTimeout {
			since := c.lastSent
			w.after(keepaliveTimeout, func() {
				if c.lastSent == since {
					c.send(false)
				}
			})
		}
	}
}

// tunnel is a replica's WireGuard device, as far as one peer is concerned.
type tunnel struct {
	keyring
	handshaking
	knows bool // where the peer is
}

// simDevice is a replica's. It outlives the agent where that is killed alone.
type simDevice struct {
	tunnels map[*client]*tunnel
	indices map[uint32]*keypair
}

func newSimDevice() *simDevice {
	return &simDevice{tunnels: map[*client]*tunnel{}, indices: map[uint32]*keypair{}}
}

func (d *simDevice) tunnel(c *client) *tunnel {
	t := d.tunnels[c]
	if t == nil {
		t = &tunnel{}
		d.tunnels[c] = t
	}
	return t
}

// sessions are what an agent that finds the device learns of its sessions.
func (d *simDevice) sessions() (out []Session) {
	for c, t := range d.tunnels {
		if t.current != nil {
			out = append(out, Session{Peer: c.id, Since: epoch.Add(t.current.born), Port: 51820, Endpoint: c.address})
		}
	}
	return out
}

// renew removes a peer and adds it again.
func (d *simDevice) renew(c *client) {
	t := d.tunnel(c)
	for _, k := range []*keypair{t.current, t.previous, t.next} {
		if k != nil {
			delete(d.indices, k.index)
		}
	}
	*t = tunnel{}
}

// initiate begins a handshake with a client, likewise.
func (n *node) initiate(c *client, isRetry bool) {
	t, w := n.device.tunnel(c), n.world
	if !t.mayBegin(w, isRetry) {
		return
	}
	index := t.pending
	n.called(index, c)
	w.toClient(c, message{kind: messageTypeInit, index: index, stamp: w.now + n.skew, from: n})
	w.after(rekeyTimeout+w.upTo(333*time.Millisecond), func() {
		if n.deviceUp && n.device.tunnels[c] == t && t.pending == index {
			n.initiate(c, true)
		}
	})
}

// write sends data or a keepalive to a client.
func (n *node) write(c *client, isData bool, sent time.Duration) {
	t, w := n.device.tunnel(c), n.world
	if !t.knows {
		return
	}
	k := t.current
	if k == nil || w.now-k.born >= rejectAfter {
		n.initiate(c, false)
		return
	}
	n.wrote(k)
	w.toClient(c, message{kind: messageTypeData, keys: k, isData: isData, sent: sent})
	if !k.byClient && w.now-k.born >= rekeyAfter {
		n.initiate(c, false)
	}
	if isData && t.unanswered == 0 {
		t.unanswered = w.now
		since := w.now
		w.after(keepaliveTimeout+rekeyTimeout+w.upTo(333*time.Millisecond), func() {
			if n.deviceUp && t.unanswered == since && n.device.tunnels[c] == t && t.knows {
				t.unanswered = 0
				n.initiate(c, false)
			}
		})
	}
}

// receive takes what comes from a client.
func (n *node) receive(c *client, m message) {
	t, w := n.device.tunnel(c), n.world
	if w.traced != "" {
		w.trace(c, "%s gets type %d index %d", n.name, m.kind, m.index)
	}
	switch m.kind {
	case messageTypeInit:
		k := &keypair{index: w.index(), born: w.now, byClient: true, client: c, node: n, clientsIndex: m.index}
		n.device.indices[k.index] = k
		t.answered(k)
		t.knows = true
		t.consumed(w.now)
		n.answered(k)
		w.toClient(c, message{kind: messageTypeResp, keys: k})
	case messageTypeResp:
		n.got(m, m.keys.index)
		if t.waits == 0 || t.waits != m.keys.index {
			c.inVain(&c.outage.astray)
			c.outage.held = w.now
			c.outage.newborn = c.outage.newborn || m.keys.node.newborn || n.newborn
			return
		}
		t.pending, t.waits, t.unanswered, t.knows = 0, 0, 0, true
		n.device.indices[m.keys.index] = m.keys
		t.begun(m.keys)
		n.write(c, false, 0)
	case messageTypeData:
		n.got(m, m.index)
		isNext := m.keys == t.next
		if n.device.indices[m.index] != m.keys || !t.received(m.keys, w.now) {
			return
		}
		if isNext {
			t.pending = 0
		}
		t.unanswered, t.knows = 0, true
		if m.isData {
			w.after(time.Millisecond, func() {
				if n.deviceUp {
					n.write(c, true, m.sent)
				}
			})
		}
	}
}
