package fleet

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
)

// response is one as the packet log has it.
func response(out bool, remote netip.AddrPort, sender, receiver uint32) firewall.Message {
	m := firewall.Message{Out: out, Type: messageTypeResp, Index: receiver, Remote: remote, Bytes: make([]byte, responseLen)}
	if out {
		m.Index = sender
	}
	m.Bytes[0] = messageTypeResp
	binary.LittleEndian.PutUint32(m.Bytes[4:], sender)
	binary.LittleEndian.PutUint32(m.Bytes[8:], receiver)
	return m
}

func TestProof(t *testing.T) {
	const ours, theirs, another = 7, 70, 71
	alice, mallory := netip.MustParseAddrPort("192.0.2.1:4500"), netip.MustParseAddrPort("203.0.113.66:4500")
	data := func(to netip.AddrPort, index uint32) firewall.Message {
		return firewall.Message{Out: true, Type: messageTypeData, Index: index, Remote: to}
	}
	now := time.Now()
	for _, tt := range []struct {
		name  string
		heard []firewall.Message
		sent  firewall.Message
		want  bool
	}{
		{"we called, the peer answered, and we send", []firewall.Message{response(false, alice, theirs, ours)}, data(alice, theirs), true},
		{"the peer called, and we send, wherever it is by now", []firewall.Message{response(true, alice, ours, theirs)}, data(mallory, theirs), true},
		{"nobody answered", nil, data(alice, theirs), false},
		{"we send by another session", []firewall.Message{response(false, alice, theirs, ours)}, data(alice, another), false},
		{"made up, with an index of nobody's", []firewall.Message{response(false, alice, another, ours)}, data(alice, theirs), false},
		{"made up, with an index of another peer's", []firewall.Message{response(false, mallory, theirs, ours)}, data(alice, theirs), false},
		{"cut", []firewall.Message{{Type: messageTypeResp, Index: ours, Remote: alice, Bytes: make([]byte, 8)}}, data(alice, theirs), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newClaims()
			for _, m := range tt.heard {
				c.note(m, now)
			}
			index, ok := c.prove(tt.sent, now)
			if ok != tt.want || ok && index != ours {
				t.Errorf("proven: %t, index %d; want %t", ok, index, tt.want)
			}
			if _, again := c.prove(tt.sent, now); again {
				t.Error("proven twice")
			}
		})
	}

	// By an index that we send by already, nothing more is proven.
	c := newClaims()
	c.note(response(false, alice, theirs, ours), now)
	c.prove(data(alice, theirs), now)
	c.note(response(false, alice, theirs, 8), now)
	if index, ok := c.prove(data(alice, theirs), now); ok {
		t.Errorf("a made-up response with the index of a live session proves %d", index)
	}
	c.note(response(false, alice, another, 9), now)
	c.expire(now.Add(2 * sessionLifetime))
	if len(c.byPeer)+len(c.proven) != 0 {
		t.Errorf("left: %+v", c)
	}
}

// TestProofsAreForgotten: a replica's memory does not grow with the handshakes that it has
// had.
func TestProofsAreForgotten(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a")
	a := tr.all["a"]
	for i := range uint32(10) {
		ours, theirs := 100+i, 200+i
		tr.message("a", alice, firewall.Message{Out: true, Type: messageTypeInit, Index: ours, Remote: home})
		tr.message("a", alice, response(false, home, theirs, ours))
		tr.message("a", alice, response(true, home, 300+i, 400+i)) // never used
		e := tr.message("a", alice, firewall.Message{Out: true, Type: messageTypeData, Index: theirs, Remote: home})
		if len(e.Publish) != 1 || e.Publish[0].Index != ours {
			t.Fatalf("published is %+v, want %d", e.Publish, ours)
		}
	}
	tr.pass(sessionLifetime)
	a.Tick(tr.now)
	if n := len(a.claims.byPeer) + len(a.claims.proven) + len(a.started.byIndex) + len(a.mine); n != 0 {
		t.Errorf("%d handshakes and sessions are left", n)
	}
}
