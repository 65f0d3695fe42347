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
			"[peer]\n  publickey = " + now + "  # old\nENDPOINT = [2001:db8::1]:444\n"},
		{"nothing new", u,
			"[Peer]\nPublicKey = " + now + "\nEndpoint = vpn.example.com:444\n",
			"[Peer]\nPublicKey = " + now + "\nEndpoint = vpn.example.com:444\n"},
		{"no endpoint known", without,
			"[Peer]\nPublicKey = " + old + "\nEndpoint = vpn.example.com:443\n",
			"[Peer]\nPublicKey = " + now + "\nEndpoint = vpn.example.com:443\n"},
		{"another pre-shared key", with(p(psk(2))),
			"[Peer]\nPresharedKey = " + psk(1).Reveal() + " # since May\nPublicKey = " + old + "\n",
			"[Peer]\nPresharedKey = " + psk(2).Reveal() + " # since May\nPublicKey = " + now + "\n"},
		{"a first pre-shared key", with(p(psk(2))),
			"[Peer]\nPublicKey = " + old + "\nAllowedIPs = ::/0\n",
			"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk(2).Reveal() + "\nAllowedIPs = ::/0\n"},
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

// A client that knows both keys has a section for each. One is left.
func TestUpdateOfBothKeys(t *testing.T) {
	psk := key.NewPreshared([key.Len]byte{2})
	oldest, old, now := testKey(3).Public().String(), testKey(1).Public().String(), testKey(2).Public().String()
	u := Update{
		Known:     []key.Public{testKey(1).Public(), testKey(2).Public(), testKey(3).Public()},
		PublicKey: testKey(2).Public(), Endpoint: spec.Endpoint{Host: "vpn.example.com", Port: 444}, PresharedKey: &psk,
	}
	const foreign = "[Peer]\nPublicKey = x\nAllowedIPs = 10.1.0.0/16\n"
	tests := []struct{ name, have, want string }{
		{"the new one is to have all",
			"[Peer]\nPublicKey = " + old + "\nPresharedKey = " + psk.Reveal() + "\nEndpoint = vpn.example.com:443\n# inside\nAllowedIPs = 0.0.0.0/0, ::/0 # all\n\n# the next key\n" +
				"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk.Reveal() + "\nEndpoint = vpn.example.com:444\nPersistentKeepalive = 5\n\n" + foreign,
			"\n# the next key\n[Peer]\nPublicKey = " + now + "\nAllowedIPs = 0.0.0.0/0, ::/0 # all\nPresharedKey = " + psk.Reveal() + "\nEndpoint = vpn.example.com:444\nPersistentKeepalive = 5\n\n" + foreign},
		{"it has them, and comes first",
			"[Peer]\nPublicKey = " + now + "\nAllowedIPs = ::/0,0.0.0.0/0\n" + foreign + "[Peer]\nPublicKey = " + old + "\nAllowedIPs = 0.0.0.0/0\nAllowedIPs = ::/0",
			"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk.Reveal() + "\nAllowedIPs = ::/0,0.0.0.0/0\n" + foreign},
		{"it has some of them",
			"[Peer]\nPublicKey = " + old + "\nAllowedIPs = 10.0.0.0/8\nAllowedIPs = ::/0\n[Peer]\nPublicKey = " + now + "\nAllowedIPs = ::/0\n",
			"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk.Reveal() + "\nAllowedIPs = 10.0.0.0/8\nAllowedIPs = ::/0\n"},
		{"it lacks everything",
			"[Peer]\nPublicKey = " + old + "\nEndpoint = 192.0.2.1:443 # nat\nPersistentKeepalive = 5\nAllowedIPs = ::/0\n[Peer]\nPublicKey = " + now + "\n",
			"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk.Reveal() + "\nEndpoint = 192.0.2.1:444 # nat\nPersistentKeepalive = 5\nAllowedIPs = ::/0\n"},
		{"two old ones",
			"[Peer]\nPublicKey = " + oldest + "\nAllowedIPs = ::/0\nPersistentKeepalive = 5\n[Peer]\nPublicKey = " + old + "\nEndpoint = vpn.example.com:443\n",
			"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk.Reveal() + "\nAllowedIPs = ::/0\nPersistentKeepalive = 5\nEndpoint = vpn.example.com:444\n"},
		{"two old ones and the new one",
			"[Peer]\nPublicKey = " + oldest + "\nEndpoint = vpn.example.com:1\nAllowedIPs = ::/0\n[Peer]\nPublicKey = " + old + "\nEndpoint = vpn.example.com:2\nAllowedIPs = 0.0.0.0/0\n[Peer]\nPublicKey = " + now + "\n",
			"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk.Reveal() + "\nEndpoint = vpn.example.com:444\nAllowedIPs = ::/0\nAllowedIPs = 0.0.0.0/0\n"},
		{"the same one twice",
			"[Peer]\nPublicKey = " + now + "\nAllowedIPs = ::/0\n[Peer]\nPublicKey = " + now + "\nEndpoint = vpn.example.com:443\n",
			"[Peer]\nPublicKey = " + now + "\nPresharedKey = " + psk.Reveal() + "\nAllowedIPs = ::/0\nEndpoint = vpn.example.com:444\n"},
	}
	const head = "[Interface]\nAddress = 10.8.0.2/32\n"
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := u.Reveal(head + tt.have)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(head+tt.want, got); diff != "" {
				t.Errorf("file (-want +got):\n%s", diff)
			}
			if again, err := u.Reveal(got); err != nil || again != got {
				t.Errorf("once more: %v (-first +second):\n%s", err, cmp.Diff(got, again))
			}
		})
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
