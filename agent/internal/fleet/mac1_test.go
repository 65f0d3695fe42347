package fleet

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// newKey makes a private key, and notes it for the search for leaked keys
// (tests/leakcheck).
func newKey(t testing.TB) key.Private {
	t.Helper()
	k := key.GeneratePrivate()
	path := os.Getenv("VPN_GATEWAY_SECRETS_FILE")
	if path == "" {
		return k
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, k.Reveal()); err != nil {
		t.Fatal(err)
	}
	return k
}

// tap keeps what a device sends.
type tap struct {
	conn.Bind
	mu   sync.Mutex
	sent [][]byte
}

func (b *tap) Send(packets [][]byte, to conn.Endpoint) error {
	b.mu.Lock()
	for _, p := range packets {
		b.sent = append(b.sent, append([]byte(nil), p...))
	}
	b.mu.Unlock()
	return b.Bind.Send(packets, to)
}

// handshake has two devices of WireGuard's own library shake hands, and returns what
// each of them sent.
func handshake(t *testing.T, caller, called key.Private) (fromCaller, fromCalled [][]byte) {
	t.Helper()
	binds := bindtest.NewChannelBinds()
	var devices [2]*device.Device
	var taps [2]*tap
	for i, k := range []key.Private{caller, called} {
		taps[i] = &tap{Bind: binds[i]}
		devices[i] = device.NewDevice(tuntest.NewChannelTUN().TUN(), taps[i], device.NewLogger(device.LogLevelSilent, ""))
		defer devices[i].Close()
		secret, other := k.Bytes(), [...]key.Private{called, caller}[i].Public()
		config := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=127.0.0.1:%d\n", hex.EncodeToString(secret[:]), hex.EncodeToString(other[:]), i+1)
		if err := devices[i].IpcSet(config); err != nil {
			t.Fatal(err)
		}
	}
	for i := range devices {
		if err := devices[1-i].Up(); err != nil { // who is called first
			t.Fatal(err)
		}
	}
	other := called.Public()
	if err := devices[0].IpcSet("public_key=" + hex.EncodeToString(other[:]) + "\npersistent_keepalive_interval=1\n"); err != nil {
		t.Fatal(err)
	}
	all := func(i int) [][]byte {
		taps[i].mu.Lock()
		defer taps[i].mu.Unlock()
		return taps[i].sent
	}
	for deadline := time.Now().Add(10 * time.Second); len(all(0)) < 2 || len(all(1)) < 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no handshake: %d and %d messages", len(all(0)), len(all(1)))
		}
	}
	return all(0), all(1)
}

// TestReceivers ascribes what WireGuard itself sends.
func TestReceivers(t *testing.T) {
	defer goleak.VerifyNone(t)
	gateway, alice := newKey(t), newKey(t)
	peers := []key.Public{newKey(t).Public(), alice.Public(), newKey(t).Public()}
	at, elsewhere := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
	gatewayCalls, aliceAnswers := handshake(t, gateway, alice)
	aliceCalls, gatewayAnswers := handshake(t, alice, gateway)
	spoilt := append([]byte(nil), gatewayCalls[0]...)
	spoilt[20] ^= 1
	for _, tt := range []struct {
		name    string
		message []byte
		typ     byte
		to      netip.AddrPort
		want    bool
	}{
		{"initiation", gatewayCalls[0], messageTypeInit, at, true},
		{"again", gatewayCalls[0], messageTypeInit, at, true},
		{"response", gatewayAnswers[0], messageTypeResp, at, true},
		{"to another address", gatewayAnswers[0], messageTypeResp, elsewhere, true},
		{"data", gatewayCalls[1], messageTypeData, at, false},
		{"to the gateway", aliceCalls[0], messageTypeInit, at, false},
		{"response to the gateway", aliceAnswers[0], messageTypeResp, at, false},
		{"changed on the way", spoilt, messageTypeInit, at, false},
		{"truncated", gatewayCalls[0][:147], messageTypeInit, at, false},
		{"too short", gatewayCalls[0][:3], messageTypeInit, at, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.message[0] != tt.typ {
				t.Fatalf("message of type %d, want %d", tt.message[0], tt.typ)
			}
			r := newReceivers(peers)
			r.last[at] = 0 // somebody else was there
			for range 2 {
				got, ok := r.of(tt.message, tt.to)
				if ok != tt.want || ok && got != alice.Public() {
					t.Errorf("for %s, %t; want %t", got, ok, tt.want)
				}
			}
		})
	}
}

// TestReceiversForgetAddresses moves a peer about.
func TestReceiversForgetAddresses(t *testing.T) {
	gateway, alice := newKey(t), newKey(t)
	calls, _ := handshake(t, gateway, alice)
	r := newReceivers([]key.Public{alice.Public()})
	for port := range uint16(100) {
		if _, ok := r.of(calls[0], netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)); !ok {
			t.Fatalf("not ascribed at port %d", port)
		}
	}
	if len(r.last) > 4 {
		t.Errorf("%d addresses remembered of one peer", len(r.last))
	}
}

func BenchmarkReceivers(b *testing.B) {
	peers := make([]key.Public, 10_000)
	for i := range peers {
		peers[i] = key.Public{byte(i), byte(i >> 8), 1}
	}
	r := newReceivers(peers)
	message := make([]byte, initiationLen)
	message[0] = messageTypeInit
	for b.Loop() { // for nobody: all are tried
		r.of(message, netip.AddrPort{})
	}
}

// TestReceiversExpect: whoever is called is not looked for among all peers.
func TestReceiversExpect(t *testing.T) {
	gateway, alice := newKey(t), newKey(t)
	at := netip.MustParseAddrPort("192.0.2.1:1")
	r := newReceivers([]key.Public{newKey(t).Public(), alice.Public()})
	r.expect(newKey(t).Public(), at)
	r.expect(alice.Public(), netip.AddrPort{})
	if len(r.last) != 0 {
		t.Errorf("%d addresses remembered, of a stranger or of none", len(r.last))
	}
	r.expect(alice.Public(), at)
	calls, _ := handshake(t, gateway, alice)
	if i, ok := r.last[at]; !ok || !r.peers[i].received(calls[0], initiationMac1) {
		t.Error("somebody else is expected")
	}
}
