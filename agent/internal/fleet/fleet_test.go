package fleet

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// crew is some replicas on loopback.
type crew struct {
	t        *testing.T
	port     uint16
	snapshot *spec.Snapshot
	alice    key.Public
	calls    [][]byte // handshake messages of the gateway's to alice
}

func newCrew(t *testing.T) *crew {
	t.Helper()
	t.Cleanup(func() { // memberlist does not wait for what it has begun
		eventually(t, "nothing is left running", func() bool { return goleak.Find() == nil })
	})
	gateway, alice := newKey(t), newKey(t)
	c := &crew{t: t, alice: alice.Public(), snapshot: &spec.Snapshot{
		ServerKeys: []spec.ServerKey{{Key: gateway, Slot: key.Blue}},
		Peers:      []spec.Peer{{Name: "alice", PublicKey: alice.Public()}},
	}}
	c.snapshot.Gateway.Server.ListenPort = 51820
	c.calls, _ = handshake(t, gateway, alice)
	free, err := net.ListenPacket("udp4", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	c.port = netip.MustParseAddrPort(free.LocalAddr().String()).Port()
	free.Close()
	return c
}

// member is a replica, and what it asked its kernel for.
type member struct {
	*Fleet
	mu      sync.Mutex
	watched map[uint32]bool
	left    bool
}

func (c *crew) address(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(n + 2)}), c.port)
}

// start starts the n-th replica, which looks for all others.
func (c *crew) start(n int, s *spec.Snapshot) *member {
	c.t.Helper()
	m := &member{watched: map[uint32]bool{}}
	var join []string
	for i := range 8 {
		join = append(join, c.address(i).Addr().String())
	}
	f, err := Start(c.t.Context(), Options{
		Name: fmt.Sprintf("vpn-gateway-%d", n), Address: c.address(n), Join: join, Initial: s, Log: slog.New(slog.DiscardHandler),
		Watch: func(add, remove []uint32) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, i := range add {
				m.watched[i] = true
			}
			for _, i := range remove {
				delete(m.watched, i)
			}
			return nil
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	m.Fleet = f
	c.t.Cleanup(func() {
		if !m.left {
			f.Close()
		}
	})
	return m
}

func (m *member) watches(index uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.watched[index]
}

// shakeHands has the replica see a handshake with alice that it began.
func (c *crew) shakeHands(m *member) (index uint32) {
	at := netip.MustParseAddrPort("192.0.2.1:40000")
	index = binary.LittleEndian.Uint32(c.calls[0][4:])
	m.Heard(firewall.Message{Out: true, Type: 1, Index: index, Port: 51820, Remote: at, Bytes: c.calls[0]})
	m.Heard(response(false, at, index+1, index))
	m.Heard(firewall.Message{Out: true, Type: 4, Index: index + 1, Port: 51820, Remote: at})
	return index
}

// lately is a session that was made now.
func lately(index uint32, holder string) Session {
	s := session(index, 1, 1, holder, 0)
	s.Since = time.Now()
	return s
}

// die ends a replica without a goodbye.
func (m *member) die(t *testing.T) {
	t.Helper()
	m.left = true
	m.stop()
	m.done.Wait()
	if err := m.list.Shutdown(); err != nil {
		t.Fatal(err)
	}
}

func (m *member) states() map[string]MemberState {
	out := map[string]MemberState{}
	for _, o := range m.Members() {
		out[o.Name] = o.State
	}
	return out
}

// eventually waits for something that takes a moment. The time is long, so that a busy
// machine does not fail; who wants to know how long it takes reads the log.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Logf("%s: %s", what, time.Since(start).Round(time.Millisecond))
}

func TestFleet(t *testing.T) {
	c := newCrew(t)
	a, b := c.start(0, c.snapshot), c.start(1, c.snapshot)
	both := map[string]MemberState{"vpn-gateway-0": Alive, "vpn-gateway-1": Alive}
	eventually(t, "two know of each other", func() bool { return cmp.Equal(a.states(), both) && cmp.Equal(b.states(), both) })

	index := c.shakeHands(a)
	eventually(t, "a session arrives at a sibling", func() bool { return b.watches(index) })
	if d := cmp.Diff(map[key.Public]string{c.alice: "vpn-gateway-0"}, b.State().Elsewhere); d != "" {
		t.Errorf("elsewhere for the sibling (-want +got):\n%s", d)
	}
	if a.watches(index) || len(a.State().Elsewhere) > 0 || a.Held() != 1 || b.Held() != 0 {
		t.Error("the holder takes its own session for a stranger's")
	}

	late := c.start(2, c.snapshot)
	if !late.watches(index) {
		eventually(t, "who comes later knows everything", func() bool { return late.watches(index) })
	}
	from := netip.MustParseAddrPort("192.0.2.7:1234")
	late.Heard(firewall.Message{Type: 4, Index: index, Port: 51820, Remote: from})
	select {
	case call := <-late.Calls():
		if call.Peer != c.alice || call.Endpoint != from || call.Nudge {
			t.Errorf("call %+v", call)
		}
	default:
		t.Error("a stranger's packet led to no call")
	}

	others := []string{"vpn-gateway-0", "vpn-gateway-2"}
	eventually(t, "siblings answer", func() bool { return cmp.Equal(others, b.Answering(append(others, "nobody"))) })

	a.Drain()
	eventually(t, "siblings hear that one leaves", func() bool {
		return b.states()["vpn-gateway-0"] == Draining && late.states()["vpn-gateway-0"] == Draining
	})
	a.left = true
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "a goodbye", func() bool { return b.states()["vpn-gateway-0"] == Left && late.states()["vpn-gateway-0"] == Left })
	if len(b.State().Elsewhere) > 0 {
		t.Error("a peer is with a replica that has left")
	}
	late.die(t)
	if got := b.Answering(others); len(got) > 0 {
		t.Errorf("%v answer, and are gone", got)
	}
	eventually(t, "a death", func() bool { return b.states()["vpn-gateway-2"] == Dead })
	if !b.Alone() {
		t.Error("not alone")
	}
}

// TestFleetGossip loses every message that goes straight, and so has them go round.
func TestFleetGossip(t *testing.T) {
	c := newCrew(t)
	var all []*member
	for n := range 5 {
		all = append(all, c.start(n, c.snapshot))
	}
	for _, m := range all {
		eventually(t, "five know of each other", func() bool { return len(m.Members()) == 5 })
	}
	all[0].queue.QueueBroadcast(&broadcast{lately(7, "vpn-gateway-0")})
	for _, m := range all[1:] {
		eventually(t, "gossip arrives", func() bool { return m.watches(7) })
	}
}

// TestFleetKeyRotation changes the server key on one replica after the other.
func TestFleetKeyRotation(t *testing.T) {
	c := newCrew(t)
	old, next := c.snapshot.ServerKeys[0], spec.ServerKey{Key: newKey(t), Slot: key.Green, From: time.Now().Add(-time.Minute)}
	with := func(keys ...spec.ServerKey) *spec.Snapshot {
		s := *c.snapshot
		s.ServerKeys = keys
		s.Gateway.KeyRotation.Server.Overlap = time.Hour
		return &s
	}
	a, b := c.start(0, with(old)), c.start(1, with(old))
	met := func(x, y *member) bool {
		return x.states()[y.options.Name] == Alive && y.states()[x.options.Name] == Alive
	}
	eventually(t, "both have the old key", func() bool { return met(a, b) })
	a.Configure(with(old, next)) // and writes under the new one, which b does not have yet
	b.Configure(with(old, next))
	c.shakeHands(a)
	eventually(t, "both answer to both", func() bool { return b.State().Elsewhere[c.alice] != "" })
	fresh := c.start(2, with(next))
	eventually(t, "one has the new key alone", func() bool { return met(fresh, a) && met(fresh, b) })
	stranger := c.start(3, with(spec.ServerKey{Key: newKey(t), Slot: key.Blue}))
	if _, err := stranger.list.Join([]string{c.address(0).String()}); err == nil {
		t.Error("a replica of another gateway has joined")
	}
	if n := len(stranger.Members()); n != 1 {
		t.Errorf("it knows of %d replicas", n)
	}
	if n := a.Counts().RefusedMessages[refusedEncryption]; n == 0 {
		t.Error("what it sent was not counted")
	}
}

// seal encrypts as memberlist does.
func seal(t *testing.T, k key.Private, plain, header []byte) []byte {
	t.Helper()
	secret, err := messageKey(k)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	_, _ = rand.Read(nonce)
	return gcm.Seal(append([]byte{1}, nonce...), nonce, plain, header)
}

// stream is a sealed message as it goes by TCP.
func stream(t *testing.T, k key.Private, plain []byte) []byte {
	header := binary.BigEndian.AppendUint32([]byte{10}, uint32(1+12+len(plain)+16))
	return append(header, seal(t, k, plain, header)...)
}

// TestFleetRefuses sends what is not a sibling's, and counts.
func TestFleetRefuses(t *testing.T) {
	c := newCrew(t)
	m := c.start(0, c.snapshot)
	ours, other := c.snapshot.ServerKeys[0].Key, newKey(t)
	user := append([]byte{8}, encode([]Session{lately(7, "b")}, time.Now())...)
	good := seal(t, ours, user, nil)
	udp := func(b []byte) {
		conn, err := net.Dial("udp4", c.address(0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	tcp := func(b []byte) {
		conn, err := net.Dial("tcp4", c.address(0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Read(make([]byte, 1)) // until it is refused
	}
	sealed := func(plain ...byte) []byte { return seal(t, ours, plain, nil) }
	changed := slices.Clone(good)
	changed[20] ^= 1
	for _, tt := range []struct {
		name   string
		send   func([]byte)
		bytes  []byte
		reason string // "": not refused
	}{
		{"udp: plain text", udp, user, refusedEncryption},
		{"udp: another key", udp, seal(t, other, user, nil), refusedEncryption},
		{"udp: changed on the way", udp, changed, refusedEncryption},
		{"udp: truncated", udp, good[:len(good)-1], refusedEncryption},
		{"udp: truncated to next to nothing", udp, good[:5], refusedEncryption},
		{"udp: unknown version of encryption", udp, append([]byte{9}, good[1:]...), refusedEncryption},
		{"udp: noise", udp, []byte("GET / HTTP/1.1\r\n\r\n"), refusedEncryption},
		{"udp: label", udp, append([]byte{244, 1, 'x'}, good...), refusedMalformed},
		{"udp: truncated label", udp, []byte{244, 9}, refusedMalformed},
		{"udp: empty", udp, sealed(), refusedMalformed},
		{"udp: unknown type", udp, sealed(99), refusedMalformed},
		{"udp: ping that is none", udp, sealed(0, 0xc1), refusedMalformed},
		{"udp: compound that is none", udp, sealed(7), refusedMalformed},
		{"udp: compound, truncated", udp, sealed(7, 2, 0, 9, 0, 9), refusedMalformed},
		{"udp: alive that is none", udp, sealed(4, 0xc1), refusedMalformed},
		{"udp: compressed that is none", udp, sealed(9, 0xc1), refusedMalformed},
		{"udp: wrong checksum", udp, sealed(12, 0, 0, 0, 0, 8), refusedMalformed},
		{"udp: sessions, truncated", udp, sealed(user[:len(user)-1]...), refusedMalformed},
		{"udp: sessions of another version", udp, sealed(8, 99), refusedMalformed},
		{"tcp: plain text", tcp, user, refusedEncryption},
		{"tcp: another key", tcp, stream(t, other, user), refusedEncryption},
		{"tcp: unknown type", tcp, stream(t, ours, []byte{99}), refusedMalformed},
		{"tcp: ping that is none", tcp, stream(t, ours, []byte{0, 0xc1}), refusedMalformed},
		{"tcp: state that is none", tcp, stream(t, ours, []byte{6, 0xc1}), refusedMalformed},
		{"tcp: message that is none", tcp, stream(t, ours, []byte{8, 0xc1}), refusedMalformed},
		{"tcp: too long", tcp, []byte{10, 0xff, 0xff, 0xff, 0xff}, refusedMalformed},
		{"tcp: label", tcp, append([]byte{244, 1, 'x'}, stream(t, ours, user)...), refusedMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := m.Counts().RefusedMessages
			want[tt.reason]++
			tt.send(tt.bytes)
			eventually(t, "refused", func() bool { return m.Counts().RefusedMessages[tt.reason] >= want[tt.reason] })
			if d := cmp.Diff(want, m.Counts().RefusedMessages); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	m.Fleet.mu.Lock()
	known := len(m.replica.table.peers)
	m.Fleet.mu.Unlock()
	if m.watches(7) || known > 0 {
		t.Error("a session came in")
	}
	before := m.Counts().RefusedMessages
	udp(good)
	eventually(t, "what is good comes in", func() bool { return m.watches(7) })
	state := func() map[PeerID][]Session {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.Fleet.mu.Lock()
		defer m.Fleet.mu.Unlock()
		return contents(&m.replica.table)
	}
	was := state()
	for range 20 {
		udp(good) // replayed
	}
	udp(sealed(99)) // and after them something that is counted
	eventually(t, "replays are read", func() bool { return m.Counts().RefusedMessages[refusedMalformed] > before[refusedMalformed] })
	if d := cmp.Diff(was, state(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("a replay has changed the table:\n%s", d)
	}
}

func TestRefusalOf(t *testing.T) {
	for line, want := range map[string]string{
		"DEBUG|Stream connection from=1.2.3.4:5":                                      "",
		"ERR|Failed to send ack: x from=1.2.3.4:5":                                    "",
		"ERR|Push/Pull with b failed: remote error: cannot decrypt from=1.2.3.4:5":    "",
		"WARN|handler queue full, dropping message (8) from=1.2.3.4:5":                "",
		"WARN|Refuting a suspect message (from: b)":                                   "",
		"WARN|Got ping for unexpected node 'b' from=1.2.3.4:5":                        "",
		"ERR|Decrypt packet failed: no installed keys could decrypt from=1.2.3.4:5":   refusedEncryption,
		"WARN|Got invalid checksum for UDP packet: 1, 2":                              refusedMalformed,
		"WARN|Compound request had 2 truncated messages from=1.2.3.4:5":               refusedMalformed,
		"ERR|failed to receive: read tcp: i/o timeout from=1.2.3.4:5":                 refusedMalformed,
		"ERR|UDP packet too short (65536 bytes) from=1.2.3.4:5":                       refusedMalformed,
		"ERR|Failed push/pull merge: Node 'b' protocol version is wrong from=1.2.3.4": refusedMalformed,
	} {
		severity, text, _ := cutString(line)
		if got := refusalOf(severity, text); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func cutString(line string) (severity, text string, ok bool) {
	i := slices.Index([]byte(line), '|')
	return line[:i], line[i+1:], i >= 0
}
