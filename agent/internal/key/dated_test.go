package key_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

func TestEntries(t *testing.T) {
	christmas := time.Date(2026, 12, 25, 3, 0, 0, 0, time.UTC)
	type parsed struct {
		Slot   key.Slot
		From   time.Time
		Server bool
		Peer   string
		Since  time.Time
	}
	tests := []struct {
		name string
		want parsed
	}{
		{"blue.20261225T030000Z", parsed{key.Blue, christmas, true, "blue", christmas}},
		{"green.20261225T030000Z", parsed{key.Green, christmas, true, "green", christmas}},
		{"alice.20261225T030000Z", parsed{Peer: "alice", Since: christmas}},
		{"a.b-c_d.20261225T030000Z", parsed{Peer: "a.b-c_d", Since: christmas}},
		{"privateKey", parsed{Peer: "privateKey"}},
		{"green", parsed{Peer: "green"}},
		{"Z", parsed{Peer: "Z"}},
		{".20261225T030000Z", parsed{Peer: ".20261225T030000Z"}},
		{"green.20260231T030000Z", parsed{Peer: "green.20260231T030000Z"}},
		{"green.20261225T250000Z", parsed{Peer: "green.20261225T250000Z"}},
		{"green.00010101T000000Z", parsed{Peer: "green.00010101T000000Z"}},
		{"green.20261225T030000", parsed{Peer: "green.20261225T030000"}},
		{"green.20261225T030000.5Z", parsed{Peer: "green.20261225T030000.5Z"}},
		{"red.20261225T030000Z", parsed{Peer: "red", Since: christmas}},
		{"alice.20251225T030000Z.20261225T030000Z", parsed{Peer: "alice.20251225T030000Z", Since: christmas}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got parsed
			got.Slot, got.From, got.Server = key.ParseServerEntry(tt.name)
			got.Peer, got.Since = key.ParsePresharedEntry(tt.name)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("parsed (-want +got):\n%s", diff)
			}
			if back := key.PresharedEntry(got.Peer, got.Since); back != tt.name {
				t.Errorf("written again: %s", back)
			}
			if got.Server && key.ServerEntry(got.Slot, got.From) != tt.name {
				t.Errorf("written again: %s", key.ServerEntry(got.Slot, got.From))
			}
		})
	}
}

func TestEntriesAreInUTC(t *testing.T) {
	at := time.Date(2026, 12, 25, 4, 0, 0, 999, time.FixedZone("", 3600))
	if got, want := key.ServerEntry(key.Green, at), "green.20261225T030000Z"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSlotOther(t *testing.T) {
	if key.Blue.Other() != key.Green || key.Green.Other() != key.Blue {
		t.Errorf("others of blue and green: %s, %s", key.Blue.Other(), key.Green.Other())
	}
}
