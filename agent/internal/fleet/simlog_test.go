package fleet

import (
	"maps"
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// packetLog is what the kernel tells a replica's agent of: the rules of the nftables table
// inet vpn_gateway_sessions.
type packetLog struct {
	strangers map[uint32]*allowance
	// unconfirmed are our indices that nobody has used yet, proofs those of clients that we
	// have not sent by; until when.
	unconfirmed, proofs map[uint32]time.Duration
}

// allowance is how much is told of one index.
type allowance struct {
	tokens float64
	at     time.Duration
}

const (
	toldEach         = 16 // a second, see package firewall
	toldAtOnce       = 4
	responseLifetime = 10 * time.Second
)

func newPacketLog() packetLog {
	return packetLog{strangers: map[uint32]*allowance{}, unconfirmed: map[uint32]time.Duration{}, proofs: map[uint32]time.Duration{}}
}

func (l *packetLog) expire(now time.Duration) {
	over := func(_ uint32, until time.Duration) bool { return now >= until }
	maps.DeleteFunc(l.unconfirmed, over)
	maps.DeleteFunc(l.proofs, over)
}

// tells reports whether the agent is told of a stranger's packet.
func (l *packetLog) tells(index uint32, now time.Duration) bool {
	a := l.strangers[index]
	if a == nil {
		return false
	}
	a.tokens, a.at = min(toldAtOnce, a.tokens+toldEach*(now-a.at).Seconds()), now
	if a.tokens < 1 {
		return false
	}
	a.tokens--
	return true
}

// called notes an initiation of the device's.
func (n *node) called(index uint32, c *client) {
	n.log.unconfirmed[index] = n.world.now + responseLifetime
	n.logged(nil, c, firewall.Message{Out: true, Type: messageTypeInit, Index: index})
}

// answered notes a response of the device's.
func (n *node) answered(k *keypair) {
	n.log.unconfirmed[k.index] = n.world.now + responseLifetime
	n.log.proofs[k.clientsIndex] = n.world.now + responseLifetime
	n.logged(k, k.client, response(true, netip.AddrPort{}, k.index, k.clientsIndex))
}

// wrote notes data of the device's.
func (n *node) wrote(k *keypair) {
	if n.log.proofs[k.clientsIndex] > n.world.now {
		if n.up {
			delete(n.log.proofs, k.clientsIndex)
		}
		n.logged(k, k.client, firewall.Message{Out: true, Type: messageTypeData, Index: k.clientsIndex})
	}
}

// got notes what comes from a client.
func (n *node) got(m message, index uint32) {
	w, k := n.world, m.keys
	c := k.client
	if !n.up {
		c.outage.deaf++
	}
	if m.kind == messageTypeResp {
		if n.log.unconfirmed[index] > w.now {
			n.log.proofs[k.clientsIndex] = w.now + responseLifetime
			n.logged(k, c, response(false, netip.AddrPort{}, k.clientsIndex, index))
		}
		return
	}
	data := firewall.Message{Type: messageTypeData, Index: index}
	if n.log.tells(index, w.now) {
		n.logged(k, c, data)
	}
	if n.log.unconfirmed[index] > w.now {
		delete(n.log.unconfirmed, index)
		n.logged(k, c, data)
	}
	if n.log.strangers[index] == nil && n.device.indices[index] != k && n.up {
		switch {
		case !k.told:
			c.outage.untold++
		case w.dropped[index]:
			c.outage.dropped++
		default:
			c.outage.unknown++
		}
	}
}

// logged tells the agent of a message, where there is one.
func (n *node) logged(k *keypair, c *client, m firewall.Message) {
	if !n.up {
		return
	}
	m.Port, m.Remote = 51820, c.address
	e := n.replica.Message(m, func([]byte, netip.AddrPort) (key.Public, bool) { return c.public, true }, n.world.clock())
	if n.world.traced != "" {
		n.world.trace(c, "%s is told: out %t type %d index %d; refused %q, recall %t", n.name, m.Out, m.Type, m.Index, e.Refused, len(e.Recall) > 0)
	}
	n.do(e)
	if k != nil && !k.told {
		_, k.told = n.replica.table.Find(k.index)
	}
}
