package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sessionsRig plays WireGuard's messages on the gateway's loopback.
type sessionsRig struct {
	space
	sessions      *Sessions
	gateway, peer *net.UDPConn
	told          chan Message
	quiet         context.CancelFunc // ends the listening
}

func newSessionsRig(t *testing.T) *sessionsRig {
	t.Helper()
	need(t)
	r := &sessionsRig{space: newSpace(t), told: make(chan Message, 4096)}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	r.quiet = cancel
	r.do(t, func() (err error) {
		if r.sessions, err = NewSessions([]uint16{51820, 51821}, slog.New(slog.DiscardHandler)); err != nil {
			return err
		}
		if err := r.sessions.Listen(ctx, func(m Message) { r.told <- m }); err != nil {
			return err
		}
		var errs [2]error
		r.gateway, errs[0] = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 51820})
		r.peer, errs[1] = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4500})
		return errors.Join(errs[:]...)
	})
	t.Cleanup(func() { _, _ = r.gateway.Close(), r.peer.Close() })
	return r
}

// send plays a message with up to two indices.
func (r *sessionsRig) send(t *testing.T, from, to *net.UDPConn, kind byte, length int, indices ...uint32) {
	t.Helper()
	message := make([]byte, length)
	message[0] = kind
	for i, index := range indices {
		binary.LittleEndian.PutUint32(message[4+4*i:], index)
	}
	if _, err := from.WriteTo(message, to.LocalAddr()); err != nil {
		t.Fatal(err)
	}
}

// heard is what is told of within a moment, by type and index.
func (r *sessionsRig) heard(t *testing.T, n int) []Message {
	t.Helper()
	var out []Message
	deadline := time.After(10 * time.Second)
	for len(out) < n {
		select {
		case m := <-r.told:
			out = append(out, m)
		case <-deadline:
			t.Fatalf("told of %d messages, want %d: %+v", len(out), n, out)
		}
	}
	select {
	case m := <-r.told:
		t.Fatalf("told of one message too many: %+v", m)
	case <-time.After(200 * time.Millisecond):
	}
	for i := range out {
		if out[i].Remote != netip.MustParseAddrPort("127.0.0.1:4500") || out[i].Port != 51820 {
			t.Errorf("message %d is between %s and port %d", i, out[i].Remote, out[i].Port)
		}
		out[i].Remote, out[i].Port = netip.AddrPort{}, 0
		if want := map[byte]int{1: 148, 2: 92, 4: 8}[out[i].Type]; len(out[i].Bytes) != want {
			t.Errorf("message %d: %d bytes, want %d", i, len(out[i].Bytes), want)
		}
		out[i].Bytes = nil
	}
	return out
}

func TestSessions(t *testing.T) {
	r := newSessionsRig(t)
	const initiation = 1
	watch := func(add, remove []uint32) {
		t.Helper()
		r.do(t, func() error { return r.sessions.Watch(add, remove) })
	}
	for _, step := range []struct {
		name string
		play func()
		want []Message
	}{
		{"data of our own sessions, a client's call, an index that nobody knows", func() {
			r.send(t, r.peer, r.gateway, initiation, 148, 7)
			r.send(t, r.peer, r.gateway, messageData, 64, 7)
			r.send(t, r.gateway, r.peer, messageData, 64, 7)
		}, nil},
		{"we answer", func() { r.send(t, r.gateway, r.peer, messageResponse, 92, 8, 7) }, []Message{{Out: true, Type: 2, Index: 8}}},
		{"the peer confirms, once", func() {
			r.send(t, r.peer, r.gateway, messageData, 32, 8)
			r.send(t, r.peer, r.gateway, messageData, 64, 8)
		}, []Message{{Type: 4, Index: 8}}},
		{"we call, and the peer answers", func() {
			r.send(t, r.gateway, r.peer, initiation, 148, 9)
			r.send(t, r.peer, r.gateway, messageResponse, 92, 70, 90) // made up
			r.send(t, r.peer, r.gateway, messageResponse, 92, 70, 9)
		}, []Message{{Out: true, Type: 1, Index: 9}, {Type: 2, Index: 9}}},
		{"the peer uses the session, once", func() {
			r.send(t, r.peer, r.gateway, messageData, 64, 9)
			r.send(t, r.peer, r.gateway, messageData, 64, 9)
		}, []Message{{Type: 4, Index: 9}}},
		{"somebody else's session", func() {
			watch([]uint32{10, 11}, nil)
			r.send(t, r.peer, r.gateway, messageData, 64, 10)
		}, []Message{{Type: 4, Index: 10}}},
		{"not any more, and some that the kernel does not have", func() {
			watch(nil, []uint32{12, 10, 13})
			r.send(t, r.peer, r.gateway, messageData, 64, 10)
			r.send(t, r.peer, r.gateway, messageData, 64, 11)
		}, []Message{{Type: 4, Index: 11}}},
	} {
		step.play()
		if diff := cmp.Diff(step.want, r.heard(t, len(step.want)), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
	}
}

// TestSessionsFlood repeats one packet of somebody else's session and makes up
// thousands of indices: next to nothing of it is told of, and other strangers are.
func TestSessionsFlood(t *testing.T) {
	r := newSessionsRig(t)
	r.do(t, func() error { return r.sessions.Watch([]uint32{1, 2}, nil) })
	start := time.Now()
	const packets = 10_000
	for i := range uint32(packets) {
		r.send(t, r.peer, r.gateway, messageData, 64, 1)
		r.send(t, r.peer, r.gateway, messageData, 64, 1000+i)
	}
	took := time.Since(start)
	r.send(t, r.peer, r.gateway, messageData, 64, 2)
	told, other := 0, false
	for quiet := false; !quiet; {
		select {
		case m := <-r.told:
			told++
			other = other || m.Index == 2
		case <-time.After(300 * time.Millisecond):
			quiet = true
		}
	}
	most := toldEach*(2+int(took/time.Second)) + 1
	t.Logf("%d packets in %d ms: told of %d", 2*packets+1, took.Milliseconds(), told)
	if told > most {
		t.Errorf("told of %d packets, want %d at most", told, most)
	}
	if !other {
		t.Error("another stranger was not told of")
	}
}

func TestSessionsRepair(t *testing.T) {
	r := newSessionsRig(t)
	r.do(t, func() error {
		if made, err := r.sessions.Repair(); made || err != nil {
			t.Errorf("whole: made %t, %v", made, err)
		}
		if err := r.sessions.Remove(); err != nil {
			return err
		}
		if made, err := r.sessions.Repair(); !made || err != nil {
			t.Errorf("gone: made %t, %v", made, err)
		}
		return r.sessions.Watch([]uint32{3}, nil)
	})
	r.send(t, r.peer, r.gateway, messageData, 64, 3)
	r.heard(t, 1)
}

func TestParseMessage(t *testing.T) {
	for _, packet := range [][]byte{nil, {0x45}, make([]byte, 28), append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 0, 17}, make([]byte, 20)...), append([]byte{0x60, 0, 0, 0, 0, 0, 17}, make([]byte, 40)...), append([]byte{0x4f, 9: 17}, make([]byte, 20)...)} {
		if m, ok := parseMessage(packet, false); ok {
			t.Errorf("%d bytes: %+v", len(packet), m)
		}
	}
}
