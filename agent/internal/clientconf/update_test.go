package clientconf

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

func TestForGatewayWhileKeysRotate(t *testing.T) {
	s := load(t, "server: {publicEndpoint: 'vpn.example.com:443', addresses: [10.8.0.1/24]}\n")
	from := time.Date(2026, 12, 25, 3, 0, 0, 0, time.UTC)
	s.ServerKeys = append(s.ServerKeys, spec.ServerKey{Key: testKey(2), Slot: key.Green, From: from})
	for _, tt := range []struct {
		now      time.Time
		key      key.Private
		endpoint string
	}{
		{from.Add(-time.Second), testKey(1), "vpn.example.com:443"},
		{from, testKey(2), "vpn.example.com:444"},
	} {
		got := ForGateway(s, tt.now)
		if got.ServerPublicKey != tt.key.Public() || got.Endpoint.String() != tt.endpoint {
			t.Errorf("at %v: %v at %v, want %v at %s", tt.now, got.ServerPublicKey, got.Endpoint, tt.key.Public(), tt.endpoint)
		}
	}
}

func TestUpdate(t *testing.T) {
	psk := func(n byte) key.Preshared { return key.NewPreshared([key.Len]byte{n}) }
	p := func(k key.Preshared) *key.Preshared { return &k }
	config := func(section string) string {
		return "# home\n[Interface]\nPrivateKey = " + testKey(9).Reveal() + "\nAddress = 10.8.0.2/32\n\n" +
			"[Peer] # another gateway\nPublicKey = " + testKey(7).Public().String() + "\nEndpoint = 192.0.2.9:1\n\n" + section
	}
	u := Update{
		Known:     []key.Public{testKey(1).Public(), testKey(2).Public()},
		PublicKey: testKey(2).Public(), Endpoint: spec.Endpoint{Host: "vpn.example.com", Port: 444},
	}
	with := func(k *key.Preshared) Update { out := u; out.PresharedKey = k; return out }
	without := u
	without.Endpoint = spec.Endpoint{}
	old, now := testKey(1).Public().String(), testKey(2).Public().String()
	tests := []struct {
		name       string
		update     Update
		have, want string
	}{
		{"key and port", u,
			"[Peer]\nPublicKey = " + old + "\nAllowedIPs = 0.0.0.0/0 # everything\nEndpoint = vpn.example.com:443\n",
			"[Peer]\nPublicKey = " + now + "\nAllowedIPs = 0.0.0.0/0 # everything\nEndpoint = vpn.example.com:444\n"},
		{"as wg(8) reads it, and no line feed at the end", u,
			"[peer]\r\n  publickey=" + old + "  # old\r\nENDPOINT=[2001:db8::1]:443",
			"[peer]\n  publickey = " + now + "\nENDPOINT = [2001:db8::1]:444\n"},
		{"nothing new", u,
			"[Peer]\nPublicKey = " + now + "\nEndpoint = vpn.example.com:444\n",
			"[Peer]\nPublicKey = " + now + "\nEndpoint = vpn.example.com:444\n"},
		{"no endpoint known", without,
			"[Peer]\nPublicKey = " + old + "\nEndpoint = vpn.example.com:443\n",
			"[Peer]\nPublicKey = " + now + "\nEndpoint = vpn.example.com:443\n"},
		{"another pre-shared key", with(p(psk(2))),
			"[Peer]\nPresharedKey = " + psk(1).Reveal() + "\nPublicKey = " + old + "\n",
			"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk(2).Reveal() + "\n"},
		{"no pre-shared key any more", with(p(key.Preshared{})),
			"[Peer]\nPublicKey = " + old + "\nPresharedKey = " + psk(1).Reveal() + "\n",
			"[Peer]\nPublicKey = " + now + "\n"},
		{"a pre-shared key that nobody knows anything of", u,
			"[Peer]\nPublicKey = " + old + "\nPresharedKey = " + psk(1).Reveal() + "\n",
			"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk(1).Reveal() + "\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.update.Reveal(config(tt.have))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(config(tt.want), got); diff != "" {
				t.Errorf("file (-want +got):\n%s", diff)
			}
		})
	}
	if got, err := u.Reveal(config("")); !errors.Is(err, ErrNotOurs) || got != "" {
		t.Errorf("somebody else's file: %q, %v", got, err)
	}
}

func TestParseConfig(t *testing.T) {
	k, err := ParseConfig("[Interface]\nprivatekey=" + testKey(3).Reveal() + "\n")
	if err != nil || k != testKey(3) {
		t.Errorf("got %v, %v", k.Public(), err)
	}
	garbled := testKey(3).Reveal()[:40]
	for _, text := range []string{"", "[Peer]\nPrivateKey = " + garbled, "[Interface]\nPrivateKey = " + garbled, garbled} {
		if _, err := ParseConfig(text); err == nil || strings.Contains(err.Error(), garbled) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
