package wgclient

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgdevice"
)

func newKeys(t *testing.T) (Secret, Secret) {
	t.Helper()
	private, err := NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	psk, err := NewPresharedKey()
	if err != nil {
		t.Fatal(err)
	}
	return private, psk
}

func TestParse(t *testing.T) {
	private, psk := newKeys(t)
	_, _ = newKeys(t)
	text := fmt.Sprintf(`# alice
[Interface]
PrivateKey = %s
Address = 10.8.0.2/24, fd00::2
DNS = 10.96.0.10
MTU = 1380

[Peer] # the gateway
PublicKey = %s
PresharedKey=%s
Endpoint = [2001:db8::1]:51820
AllowedIPs = 10.0.0.0/8,0.0.0.0/0
PersistentKeepalive = 25
`, private.Reveal(), private.Public(), psk.Reveal())
	got, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		PrivateKey: private, MTU: 1380,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24"), netip.MustParsePrefix("fd00::2/128")},
		DNS:       []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Peers: []Peer{{
			PublicKey: private.Public(), PresharedKey: psk, Endpoint: "[2001:db8::1]:51820", PersistentKeepalive: 25,
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/0")},
		}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b Secret) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s"} {
		if text := fmt.Sprintf(verb, got); strings.Contains(text, private.Reveal()) || !strings.Contains(text, "[redacted]") {
			t.Errorf("%s shows a key, or hides that there is one", verb)
		}
	}
	for bad, want := range map[string]string{
		"[Interface]\nPrivateKey = " + private.Reveal()[:40]: "client file, line 2: [interface] PrivateKey: not 32 bytes in base64",
		"[Interface]\nPostUp = reboot":                       "client file, line 2: [interface] PostUp: unknown setting",
		"PrivateKey = x":                                     "client file, line 1:  PrivateKey: unknown section",
	} {
		if _, err := Parse(bad); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// TestTwoStockClients connects two of them, sends everything of one through the
// other, and changes the pre-shared key under a stream.
func TestTwoStockClients(t *testing.T) {
	testenv.Need(t, testenv.Root(), testenv.NetNS(), testenv.TUN(), Tools())
	topology := netns.TopologyForTest(t, netns.Plan{Clients: 2})
	aKey, psk := newKeys(t)
	bKey, nextPSK := newKeys(t)
	behind := netip.MustParseAddr("10.99.0.1")
	if err := topology.Clients[1].AddAddress("lo", netip.PrefixFrom(behind, 32)); err != nil {
		t.Fatal(err)
	}
	ForTest(t, Config{
		PrivateKey: bKey, ListenPort: 51820, Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.1/24")},
		Peers: []Peer{{PublicKey: aKey.Public(), PresharedKey: psk, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/32")}}},
	}, Options{NS: topology.Clients[1]})
	// The one above is not kept in a variable: t ends it.
	a := ForTest(t, Config{
		PrivateKey: aKey, Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")},
		Peers: []Peer{{
			PublicKey: bKey.Public(), PresharedKey: psk, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
			Endpoint: netip.AddrPortFrom(topology.ClientIP(1), 51820).String(),
		}},
	}, Options{NS: topology.Clients[0]})

	echo, err := stream.ListenEcho(topology.Clients[1], netip.AddrPortFrom(behind, 7))
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	s, err := stream.Start(stream.Options{From: a.NS(), To: echo.Addr(), Rate: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop(0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Await(ctx, 20); err != nil {
		t.Fatal(err)
	}
	if err := a.SetPresharedKey(bKey.Public(), nextPSK); err != nil {
		t.Fatal(err)
	}
	if err := s.Await(ctx, 20); err != nil {
		t.Fatal(err)
	}
	if r := s.Stop(time.Minute); r.Lost != 0 {
		t.Errorf("stream: %s", r)
	}
	for sender := range echo.Senders() {
		if sender.Addr() != netip.MustParseAddr("10.8.0.2") {
			t.Errorf("the packets came from %s, want from inside the tunnel", sender)
		}
	}
	if at, err := a.LatestHandshake(bKey.Public()); err != nil || at.IsZero() {
		t.Errorf("latest handshake: %s, %v", at, err)
	}

	socket := socketDir + "/" + a.Interface() + ".sock"
	device, err := wgdevice.Userspace(socket)
	if err != nil {
		t.Fatal(err)
	}
	peer := device.Peers[bKey.Public()]
	if wgdevice.Base64(device.PrivateKey) != aKey.Reveal() || wgdevice.Base64(peer.PresharedKey) != nextPSK.Reveal() {
		t.Error("the device does not hold the keys that were set")
	}
	if peer.Endpoint != netip.AddrPortFrom(topology.ClientIP(1), 51820) || peer.LastHandshake.IsZero() || peer.Received == 0 || peer.Sent == 0 || len(device.Peers) != 1 {
		t.Errorf("device = %+v, want one peer with a session", device)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket after Close: %v, want none", err)
	}
	if rules, err := a.NS().Netlink().RuleList(unix.AF_INET); err != nil || len(rules) != 3 {
		t.Errorf("routing rules after Close: %v, %v, want the three of the kernel", rules, err)
	}
	if _, err := a.NS().Netlink().LinkByName(a.Interface()); err == nil {
		t.Error("the device is there after Close")
	}
}
