package device

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.zx2c4.com/wireguard/wgctrl"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

var byAddress = cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})

func TestDumpReader(t *testing.T) {
	private, psk := key.GeneratePrivate(), key.GeneratePreshared()
	a, b := key.GeneratePrivate().Public(), key.GeneratePrivate().Public()
	secret := func(k [key.Len]byte) string { return hex.EncodeToString(k[:]) }
	text := strings.Join([]string{
		"private_key=" + secret(private.Bytes()), "listen_port=51820", "fwmark=7",
		"public_key=" + secret(a), "preshared_key=" + secret(psk.Bytes()), "protocol_version=1", "endpoint=[::ffff:203.0.113.9]:4500",
		"last_handshake_time_sec=1700000000", "last_handshake_time_nsec=5", "tx_bytes=2", "rx_bytes=1", "persistent_keepalive_interval=25",
		"allowed_ip=fd00::/64", "allowed_ip=192.168.7.0/24", "allowed_ip=10.0.0.1/32",
		"public_key=" + secret(b), "preshared_key=" + strings.Repeat("00", key.Len), "protocol_version=1", "endpoint=[fe80::1%eth0]:1",
		"last_handshake_time_sec=0", "last_handshake_time_nsec=0", "tx_bytes=0", "rx_bytes=0", "persistent_keepalive_interval=0",
		"allowed_ip=0.0.0.0/0", "",
	}, "\n")
	want := state.ObservedDevice{PrivateKey: private, ListenPort: 51820, Peers: map[key.Public]state.ObservedPeer{
		a: {
			Peer: state.Peer{
				PublicKey: a, PresharedKey: psk, Endpoint: netip.MustParseAddrPort("203.0.113.9:4500"), Keepalive: 25 * time.Second,
				AllowedIPs: prefixes("10.0.0.1/32", "192.168.7.0/24", "fd00::/64"),
			},
			LastHandshake: time.Unix(1700000000, 5), ReceiveBytes: 1, TransmitBytes: 2,
		},
		b: {Peer: state.Peer{PublicKey: b, Endpoint: netip.MustParseAddrPort("[fe80::1%eth0]:1"), AllowedIPs: prefixes("0.0.0.0/0")}},
	}}
	for _, part := range []int{1, 7, 64, len(text)} {
		c := newCollector(0)
		r := dumpReader{visit: c.add}
		for left := text; left != ""; left = left[min(part, len(left)):] {
			if _, err := r.Write([]byte(left[:min(part, len(left))])); err != nil {
				t.Fatal(err)
			}
		}
		got := r.result()
		got.Peers = c.peers
		if diff := cmp.Diff(want, got, byAddress); diff != "" {
			t.Errorf("in parts of %d bytes (-want +got):\n%s", part, diff)
		}
		// The peers' lists share memory; appending to one must not reach another.
		_ = append(got.Peers[a].AllowedIPs, prefixes("1.0.0.0/8")...)
		_ = append(got.Peers[b].AllowedIPs, prefixes("1.0.0.0/8")...)
		if diff := cmp.Diff(want, got, byAddress); diff != "" {
			t.Errorf("after appending (-want +got):\n%s", diff)
		}
	}
}

func TestDumpReaderRefuses(t *testing.T) {
	const secret = "00112233445566778899aabbccddeeff00112233445566778899aabbccddee"
	for line, want := range map[string]string{
		"private_key=" + secret:         "private_key: not 32 bytes in hex",
		"public_key=" + secret + "zz":   "public_key: not 32 bytes in hex",
		"preshared_key=" + secret + "z": "preshared_key: not 32 bytes in hex",
		"rx_bytes=" + secret:            "rx_bytes: not a number",
	} {
		_, err := new(dumpReader).Write([]byte(line + "\n"))
		if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", line, diff)
		}
	}
}

// Both ways to read a device must agree.
func TestReadIsWhatWgctrlReads(t *testing.T) {
	need(t)
	d := open(t, spec.Userspace)
	psk, keepalive, endpoint := key.GeneratePreshared(), 25*time.Second, netip.MustParseAddrPort("192.0.2.77:4500")
	want := desired(t,
		state.Peer{Name: "a", PublicKey: key.GeneratePrivate().Public(), PresharedKey: psk, Keepalive: keepalive, AllowedIPs: prefixes("10.8.0.2/32", "192.168.7.0/24")},
		state.Peer{Name: "b", PublicKey: key.GeneratePrivate().Public(), Endpoint: endpoint, AllowedIPs: prefixes("10.8.0.3/32", "fd00:8::3/128")},
		state.Peer{Name: "c", PublicKey: key.GeneratePrivate().Public()},
	)
	converge(t, d, want, nil)
	control := newControl(t)
	compare := func() {
		t.Helper()
		dump, err := control.Device(d.device(key.Blue).name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.device(key.Blue).read()
		if err != nil {
			t.Fatal(err)
		}
		c := newCollector(0)
		want := eachObserved(dump, c.add)
		want.Peers = c.peers
		if diff := cmp.Diff(want, got, byAddress, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("device (-by wgctrl +read):\n%s", diff)
		}
		if len(got.Peers) == 0 {
			t.Error("no peers were compared")
		}
	}
	compare()
	if err := d.Apply(plan.Plan{Tunnels: []plan.Tunnel{{Slot: key.Blue, Device: plan.Device{Peers: []plan.Peer{{Operation: plan.Remove, PublicKey: want.Device.Peers[0].PublicKey}}}}}}); err != nil {
		t.Fatal(err)
	}
	compare()
}

// newControl is wgctrl's client, as others have it too.
func newControl(t testing.TB) *wgctrl.Client {
	t.Helper()
	c, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
