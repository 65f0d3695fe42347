package wgdevice

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	hexKey := func(digit string) string { return strings.Repeat(digit, 64) }
	rawKey := func(b byte) (k Key) {
		for i := range k {
			k[i] = b
		}
		return k
	}
	answer := strings.Join([]string{
		"private_key=" + hexKey("1"), "listen_port=51820", "fwmark=7",
		"public_key=" + hexKey("2"), "preshared_key=" + hexKey("3"), "protocol_version=1",
		"endpoint=[2001:db8::1]:4500", "last_handshake_time_sec=12", "last_handshake_time_nsec=5",
		"tx_bytes=100", "rx_bytes=200", "persistent_keepalive_interval=25",
		"allowed_ip=10.8.0.2/32", "allowed_ip=fd00::/64",
		"public_key=" + hexKey("4"), "last_handshake_time_sec=0", "last_handshake_time_nsec=0",
		"errno=0", "", "trailing",
	}, "\n")
	got, err := parse(strings.NewReader(answer))
	if err != nil {
		t.Fatal(err)
	}
	second, fourth := rawKey(0x22), rawKey(0x44)
	want := Device{
		PrivateKey: rawKey(0x11), ListenPort: 51820,
		Peers: map[string]Peer{
			base64.StdEncoding.EncodeToString(second[:]): {
				PresharedKey: rawKey(0x33), Endpoint: netip.MustParseAddrPort("[2001:db8::1]:4500"),
				LastHandshake: time.Unix(12, 5), Received: 200, Sent: 100, Keepalive: 25 * time.Second,
				AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/32"), netip.MustParsePrefix("fd00::/64")},
			},
			base64.StdEncoding.EncodeToString(fourth[:]): {},
		},
	}
	compare := []cmp.Option{
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	if text := fmt.Sprintf("%v %+v %x", got, got, got.PrivateKey); strings.Contains(text, "1111") || strings.Contains(text, "17 17") {
		t.Errorf("a printed device shows its key: %s", text)
	}
	for _, bad := range []string{"errno=-22\n\n", "private_key=12\n\n", "listen_port=x\n\n"} {
		if _, err := parse(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
