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
	rekeyAfter       = 120 * time.Second
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
	unseen       bool // made while no agent looked
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
	address   netip.AddrPort
	distance  time.Duration // one way
	keepalive time.Duration // 0: none
	every     time.Duration // between packets of the program; 0: it sends none
	target    *node         // where the load balancer sends its packets

	keyring
	stamp, consumed time.Duration // of the gateway's last initiation
	pending         uint32        // index of a handshake of ours; 0: none
	began, attempts time.Duration
	unanswered      time.Duration // since when data waits for any answer; 0: none does
	lastSent        time.Duration
	staged          bool

	outage     outage
	burst      bool
	moved      time.Duration // last
	overtaken  time.Duration
	answeredAt time.Duration
}

// send sends what a program writes, or a keepalive.
func (c *client) send(isData bool) {
	w := c.world
	k := c.current
	if k == nil || w.now-k.born >= rejectAfter {
		if isData || c.keepalive > 0 {
			c.staged = true
			c.initiate()
		}
		return
	}
	if isData && c.unanswered == 0 {
		c.unanswered = w.now
		since := w.now
		w.after(keepaliveTimeout+rekeyTimeout+w.upTo(333*time.Millisecond), func() {
			if c.unanswered == since {
				c.unanswered = 0
				c.initiate()
			}
		})
	}
	c.lastSent = w.now
	w.toGateway(c, message{kind: messageTypeData, keys: k, index: k.index, isData: isData, sent: w.now})
	if k.byClient && w.now-k.born >= rekeyAfter {
		c.initiate()
	}
}

// initiate begins a handshake unless there is one, and repeats it until it is answered.
func (c *client) initiate() {
	w := c.world
	if c.pending != 0 && w.now-c.began < rekeyTimeout {
		return
	}
	if c.pending == 0 {
		c.attempts = w.now
	}
	c.pending, c.began = w.index(), w.now
	w.toGateway(c, message{kind: messageTypeInit, index: c.pending, stamp: w.now, sent: w.now})
	mine := c.pending
	w.after(rekeyTimeout+w.upTo(333*time.Millisecond), func() {
		if c.pending != mine {
			return
		}
		if w.now-c.attempts > rekeyAttempt {
			c.pending = 0
			return
		}
		c.initiate()
	})
}

// receive takes what comes from the gateway.
func (c *client) receive(m message) {
	w := c.world
	if w.traced != "" {
		w.trace(c, "gets type %d isData %t of session %v from %v", m.kind, m.isData, m.keys, m.from)
	}
	switch m.kind {
	case messageTypeInit:
		stamp := m.stamp / stampStep * stampStep
		if stamp <= c.stamp {
			c.outage.replayed++
			w.count("initiations refused by their time")
			return
		}
		if w.now-c.consumed < floodStep {
			c.outage.replayed++
			return
		}
		c.stamp, c.consumed, c.unanswered = stamp, w.now, 0
		k := &keypair{index: m.index, born: w.now, client: c, node: m.from, clientsIndex: w.index()}
		if c.next != nil && c.next.node != k.node {
			c.outage.overtaken++
			c.overtaken = w.now
		}
		c.answered(k)
		w.toGateway(c, message{kind: messageTypeResp, keys: k})
	case messageTypeResp:
		if c.pending == 0 || m.keys.clientsIndex != c.pending {
			return
		}
		c.pending, c.unanswered = 0, 0
		c.begun(m.keys)
		c.send(c.staged && c.every > 0)
		c.staged = false
	case messageTypeData:
		if !c.received(m.keys, w.now) {
			return
		}
		c.unanswered = 0
		if k := c.current; k.byClient && w.now-k.born >= rejectAfter-keepaliveTimeout-rekeyTimeout {
			c.initiate()
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
	knows      bool // where the peer is
	pending    uint32
	attempts   time.Duration
	unanswered time.Duration
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

// initiate begins a handshake with a client.
func (n *node) initiate(c *client) {
	t := n.device.tunnel(c)
	index := n.world.index()
	if t.pending == 0 {
		t.attempts = n.world.now
	}
	t.pending = index
	n.heardOut(index, c, false)
	n.world.toClient(n, c, message{kind: messageTypeInit, index: index, stamp: n.world.now + n.skew, from: n})
	n.world.after(rekeyTimeout+n.world.upTo(333*time.Millisecond), func() {
		switch {
		case !n.deviceUp || t.pending != index || n.device.tunnels[c] != t:
		case n.world.now-t.attempts > rekeyAttempt:
			t.pending = 0
		default:
			n.initiate(c)
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
		if t.pending == 0 {
			n.initiate(c)
		}
		return
	}
	w.toClient(n, c, message{kind: messageTypeData, keys: k, isData: isData, sent: sent})
	if !k.byClient && w.now-k.born >= rekeyAfter && t.pending == 0 {
		n.initiate(c)
	}
	if isData && t.unanswered == 0 {
		t.unanswered = w.now
		since := w.now
		w.after(keepaliveTimeout+rekeyTimeout, func() {
			if n.deviceUp && t.unanswered == since && n.device.tunnels[c] == t && t.knows && t.pending == 0 {
				t.unanswered = 0
				n.initiate(c)
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
		t.knows, t.unanswered = true, 0
		n.heardOut(k.index, c, true)
		w.toClient(n, c, message{kind: messageTypeResp, keys: k})
	case messageTypeResp:
		n.heardIn(m, m.keys.index)
		if t.pending != m.keys.index {
			return
		}
		t.pending, t.unanswered, t.knows = 0, 0, true
		n.device.indices[m.keys.index] = m.keys
		t.begun(m.keys)
		n.write(c, false, 0)
	case messageTypeData:
		n.heardIn(m, m.index)
		if n.device.indices[m.index] != m.keys || !t.received(m.keys, w.now) {
			return
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
