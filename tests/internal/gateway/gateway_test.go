package gateway

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgdevice"
)

// A search that finds nothing must have been able to find something.
func TestSpellings(t *testing.T) {
	secret, err := wgclient.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := wgdevice.ParseKey(secret.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{keys: []wgclient.Secret{secret}}
	keys, err := g.spellings()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"":                                  false,
		secret.Public():                     false,
		"key=" + secret.Reveal():            true,
		secret.Reveal()[1:] + " and more":   false,
		strings.ToUpper(hexOf(raw)) + "\n":  true,
		"private_key=" + hexOf(raw) + "\n.": true,
	} {
		if got := keys.in([]byte(text)); got != want {
			t.Errorf("a text with a key in it: %t, found: %t", want, got)
		}
	}
}

func hexOf(k wgdevice.Key) string { return hex.EncodeToString(k[:]) }

// A peer's pre-shared key is written into its Secret's file and nowhere else.
func TestPeersFile(t *testing.T) {
	psk, err := wgclient.NewPresharedKey()
	if err != nil {
		t.Fatal(err)
	}
	c := Config{
		Peers:     []Peer{{Name: "a", PublicKey: "A", PresharedKey: psk}},
		PeersFrom: map[string]map[string][]Peer{"s": {"f.yaml": {{Name: "b", PublicKey: "B", PresharedKey: psk}}}},
	}
	text, err := peersFile(c.PeersFrom["s"]["f.yaml"])
	if err != nil {
		t.Fatal(err)
	}
	if want := "peers:\n- name: b\n  presharedKey: " + psk.Reveal() + "\n  publicKey: B\n"; string(text) != want {
		t.Errorf("a file of peers has not the form of peers.d")
	}
	values, err := c.values()
	if err != nil {
		t.Fatal(err)
	}
	peers, _ := values["peers"].([]any)
	if peer, _ := peers[0].(map[string]any); len(peer) != 2 {
		t.Errorf("a peer of the values has %d fields, want name and publicKey", len(peer))
	}
}
