package spec

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

func TestLoadServerKeys(t *testing.T) {
	k := func(n byte) key.Private { k, _ := testKey(n); return k }
	november, december := time.Date(2026, 11, 1, 3, 0, 0, 0, time.UTC), time.Date(2026, 12, 1, 3, 0, 0, 0, time.UTC)
	tests := []struct {
		name  string
		files Files
		want  []ServerKey
	}{
		{"one", minimal(""), []ServerKey{{k(1), key.Blue, time.Time{}}}},
		{"one to come", with(minimal(""), "key/green.20261201T030000Z", testKeyText(2)), []ServerKey{
			{k(1), key.Blue, time.Time{}}, {k(2), key.Green, december},
		}},
		{"the plain one is a copy", with(with(minimal(""), "key/green.20261101T030000Z", testKeyText(1)), "key/blue.20261201T030000Z", testKeyText(3)), []ServerKey{
			{k(1), key.Green, november}, {k(3), key.Blue, december},
		}},
		{"what else is in the Secret", with(with(minimal(""), "key/README", "hello"), "key/red.20261101T030000Z", "?"), []ServerKey{
			{k(1), key.Blue, time.Time{}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Load(tt.files)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, s.ServerKeys); diff != "" {
				t.Errorf("server keys (-want +got):\n%s", diff)
			}
		})
	}
}

// Two keys in a row in one slot are no fault, since somebody may mean it, but they
// do what a rotation is there to avoid.
func TestLoadWarnsOfOneSlot(t *testing.T) {
	s, err := Load(with(minimal(""), "key/blue.20261201T030000Z", testKeyText(2)))
	if err != nil {
		t.Fatal(err)
	}
	want := Faults{{
		File: "key/blue.20261201T030000Z", Problem: "in the slot of the key before it, whose clients are cut off when it comes in force",
		Fix: "name it green.20261201T030000Z",
	}}
	if diff := cmp.Diff(want, s.Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestLoadScheduledPresharedKeys(t *testing.T) {
	november, december := time.Date(2026, 11, 1, 3, 0, 0, 0, time.UTC), time.Date(2026, 12, 1, 3, 0, 0, 0, time.UTC)
	files := minimal("peers:\n- {name: a, publicKey: " + pub(2) + ", addresses: [10.8.0.2]}\n- {name: b, publicKey: " + pub(3) + ", addresses: [10.8.0.3]}\n")
	for name, n := range map[string]byte{
		"psk/x/a": 1, "psk/x/a.20261201T030000Z": 3, "psk/y/a.20261101T030000Z": 2, "psk/x/c.20261201T030000Z": 4,
	} {
		files[name] = []byte(testPSK(n).Reveal())
	}
	s, err := Load(files)
	if err != nil {
		t.Fatal(err)
	}
	if s.Peers[0].PresharedKey != testPSK(1) || !s.Peers[1].PresharedKey.IsZero() || s.Peers[1].Scheduled != nil {
		t.Errorf("keys that count since ever: %+v", s.Peers)
	}
	if diff := cmp.Diff([]ScheduledKey{{testPSK(2), november}, {testPSK(3), december}}, s.Peers[0].Scheduled); diff != "" {
		t.Errorf("scheduled (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Faults{{File: "psk/x/c.20261201T030000Z", Problem: "names no peer", Fix: "remove it, or name it like a peer"}}, s.Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestLoadKeyFaults(t *testing.T) {
	green := func(f Files) Files { return with(f, "key/green.20261201T030000Z", testKeyText(2)) }
	tests := []struct {
		name  string
		files Files
		want  []string
	}{
		{"every one at once", with(with(with(green(minimal("")),
			"key/blue.20261201T030000Z", testKeyText(3)),
			"key/green.20270101T030000Z", testKeyText(2)),
			"key/green.20270201T030000Z", "garbled"), []string{
			"key/green.20261201T030000Z: comes in force at the same time as key/blue.20261201T030000Z; remove one of them",
			"key/green.20270201T030000Z: not the base64 of 32 bytes; store the output of 'wg genkey'",
		}},
		{"one key twice", with(green(minimal("")), "key/green.20270101T030000Z", testKeyText(2)), []string{
			"key/green.20270101T030000Z: the same key as key/green.20261201T030000Z; remove one of them: a key comes in force once",
		}},
		{"no room for a second device", green(Files{
			GatewayFile:    []byte("server: {addresses: [10.8.0.1/24], interface: wireguard-tunn0, publicEndpoint: 'a:65535', listenPort: 65535}\nkeyRotation: {server: {overlap: -1s}}\n"),
			PrivateKeyFile: []byte(testKeyText(1)),
		}), []string{
			`config/gateway.yaml:1: server.interface: "wireguard-tunn0": leaves no room for the second device of a key rotation, wireguard-tunn0g; use up to 14 characters, such as wg0`,
			`config/gateway.yaml:2: keyRotation.server.overlap: "-1s": negative; use 0s or more, such as 168h`,
			`config/gateway.yaml:2: keyRotation.server.listenPort: "0": not a port beside server.listenPort; use one from 1 to 65535 of its own, such as 51821`,
			`config/gateway.yaml:2: keyRotation.server.publicPort: "0": not a port beside that of server.publicEndpoint; use one from 1 to 65535 of its own, such as 51821`,
		}},
		{"one port for both", green(minimal("keyRotation: {server: {listenPort: 51820}}\n")), []string{
			`config/gateway.yaml:3: keyRotation.server.listenPort: "51820": not a port beside server.listenPort; use one from 1 to 65535 of its own, such as 51821`,
		}},
		{"a peer with the next key of the gateway", green(minimal("peers:\n- {name: a, publicKey: " + pub(2) + ", addresses: [10.8.0.2]}\n")), []string{
			`config/gateway.yaml:4: peers[0].publicKey: "` + pub(2) + `": the gateway's own key; give the key of the peer: each end has its own`,
		}},
		{"a peer called like a scheduled key", minimal("peers:\n- {name: a.20261201T030000Z, publicKey: " + pub(2) + ", addresses: [10.8.0.2]}\n"), []string{
			`config/gateway.yaml:4: peers[0].name: "a.20261201T030000Z": ends like the name of a pre-shared key that comes in force at a time; name the peer without it, such as a`,
		}},
		{"a scheduled key twice", with(with(minimal("peers:\n- {name: a, publicKey: "+pub(2)+", addresses: [10.8.0.2]}\n"),
			"psk/x/a.20261201T030000Z", testPSK(1).Reveal()), "psk/y/a.20261201T030000Z", testPSK(2).Reveal()), []string{
			"psk/y/a.20261201T030000Z: peer a has a pre-shared key in psk/x/a.20261201T030000Z already; keep one",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Load(tt.files)
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("got %v and error %v, want faults", s, err)
			}
			if diff := cmp.Diff(tt.want, strings.Split(faults.Error(), "\n")); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadRotations(t *testing.T) {
	s, err := Load(with(minimal(""), RotationFile, `{"server": {"time": "2026-11-25T22:00:00Z", "result": "failed", "message": "why", "new": 1}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]RotationResult{"server": {Time: time.Date(2026, 11, 25, 22, 0, 0, 0, time.UTC), Result: "failed", Message: "why"}}
	if diff := cmp.Diff(want, s.Rotations); diff != "" {
		t.Errorf("rotations (-want +got):\n%s", diff)
	}
	s, err = Load(with(minimal(""), RotationFile, `{`))
	if err != nil || len(s.Warnings) != 1 || s.Rotations != nil {
		t.Errorf("garbled: got %+v and error %v, want a warning", s, err)
	}
}

func TestSlots(t *testing.T) {
	type slot struct {
		Interface, Endpoint string
		ListenPort          uint16
	}
	g := defaults()
	g.Server.PublicEndpoint = Endpoint{"vpn.example.com", 443}
	check := func(s key.Slot, want slot) {
		t.Helper()
		if diff := cmp.Diff(want, slot{g.Interface(s), g.Endpoint(s).String(), g.ListenPort(s)}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s, diff)
		}
	}
	check(key.Blue, slot{"wg0", "vpn.example.com:443", 51820})
	check(key.Green, slot{"wg0g", "vpn.example.com:444", 51821})
	g.KeyRotation.Server = ServerRotation{ListenPort: 1, PublicPort: 2}
	check(key.Green, slot{"wg0g", "vpn.example.com:2", 1})
	g.Server.PublicEndpoint = Endpoint{}
	check(key.Green, slot{"wg0g", "", 1})
}

// FuzzKeys loads a Secret of any content under any name.
func FuzzKeys(f *testing.F) {
	f.Add("green.20261201T030000Z", []byte(testKeyText(2)), "a.20261201T030000Z", []byte(testPSK(2).Reveal()))
	f.Add("blue.20261201T030000Z", []byte(testKeyText(1)), "a", []byte("x"))
	f.Add("privateKey", []byte(""), "..Z", []byte{0})
	f.Fuzz(func(t *testing.T, name string, content []byte, psk string, pskContent []byte) {
		files := minimal("peers:\n- {name: a, publicKey: " + pub(5) + ", addresses: [10.8.0.2]}\n")
		files[KeyDir+name], files[PresharedDir+"x/"+psk] = content, pskContent
		s, err := Load(files)
		if err != nil {
			for _, secret := range [][]byte{content, pskContent} {
				if len(secret) >= 16 && strings.Contains(err.Error(), string(secret)) && !strings.Contains(name+psk, string(secret)) {
					t.Fatalf("a secret in the error: %v", err)
				}
			}
			return
		}
		for i, k := range s.ServerKeys {
			if k.Key.IsZero() || k.Slot != key.Blue && k.Slot != key.Green || i > 0 && !s.ServerKeys[i-1].From.Before(k.From) {
				t.Fatalf("accepted keys %+v", s.ServerKeys)
			}
		}
		if len(s.ServerKeys) == 0 {
			t.Fatal("accepted without a key")
		}
		for _, k := range s.Peers[0].Scheduled {
			if k.Key.IsZero() || k.From.IsZero() {
				t.Fatalf("accepted pre-shared key of %v", k.From)
			}
		}
	})
}
