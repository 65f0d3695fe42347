package rotate

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// shown is a row in short.
func shown(r Row, now time.Time) string {
	party := r.Peer
	if r.Kind == Server {
		party = string(r.Slot)
	}
	return strings.Join([]string{string(r.Kind), r.Entry, party, string(r.State), r.Age(now), r.Due(now)}, " | ")
}

func TestShow(t *testing.T) {
	type named = map[string]string
	tests := []struct {
		name      string
		server    named // or
		preshared named
		now       time.Duration
		want      []string
		errors    []string
	}{
		{name: "the first key", server: named{"privateKey": "0", "other": literal + "x"}, want: []string{"server | privateKey | blue | current |  | "}},
		{
			name: "a next key", server: named{"privateKey": "0", "green." + at(lead): "1"}, want: []string{
				"server | privateKey | blue | current |  | retires in 7d0h",
				"server | green." + at(lead) + " | green | next |  | in force in 10m0s",
			},
		},
		{
			name: "the old key is answered", server: named{"privateKey": "0", "green." + at(0): "1"}, now: 90 * time.Minute, want: []string{
				"server | privateKey | blue | retiring |  | retires in 6d22h",
				"server | green." + at(0) + " | green | current | 1h30m | ",
			},
		},
		{
			name: "the old key is retired", server: named{"privateKey": "0", "green." + at(0): "1"}, now: overlap, want: []string{
				"server | privateKey | blue | retired |  | goes with the next rotation",
				"server | green." + at(0) + " | green | current | 7d0h | ",
			},
		},
		{
			name: "a copy", server: named{"privateKey": "1", "green." + at(-time.Minute): "1", "blue." + at(lead): "2"}, want: []string{
				"server | privateKey | green | copy | 1m0s | ",
				"server | green." + at(-time.Minute) + " | green | current | 1m0s | retires in 7d0h",
				"server | blue." + at(lead) + " | blue | next |  | in force in 10m0s",
			},
		},
		{
			name: "a clock went back", server: named{"privateKey": "1", "green." + at(30*time.Second): "1"}, want: []string{
				"server | privateKey | green | copy |  | ",
				"server | green." + at(30*time.Second) + " | green | current |  | in force in 30s",
			},
		},
		{
			name: "what is well beside what is not", server: named{"privateKey": "0", "green." + at(0): literal + "verysecret"},
			want:   []string{"server | privateKey | blue | current |  | "},
			errors: []string{`entry "green.` + at(0) + `": not the base64 of 32 bytes`},
		},
		{
			name: "two keys for a slot", server: named{"privateKey": "0", "blue." + at(0): "1"}, want: []string{
				"server | privateKey | blue | retiring |  | retires in 7d0h",
				"server | blue." + at(0) + " | blue | current | 0s | ",
			},
			errors: []string{"slot blue still answers"},
		},
		{
			name: "pre-shared keys", preshared: named{"bob": "b", "alice": "a1", "alice." + at(-lead): "a1", "alice." + at(lead): "a2", "carol": "c", "carol." + at(0): "c1"}, want: []string{
				"preshared | alice | alice | copy | 10m0s | ",
				"preshared | alice." + at(-lead) + " | alice | current | 10m0s | retires in 10m0s",
				"preshared | alice." + at(lead) + " | alice | next |  | in force in 10m0s",
				"preshared | bob | bob | current |  | ",
				"preshared | carol | carol | retired |  | goes with the next rotation",
				"preshared | carol." + at(0) + " | carol | current | 0s | ",
			},
		},
		{name: "a peer has no key yet", preshared: named{"alice." + at(lead): "a1"}, want: []string{"preshared | alice." + at(lead) + " | alice | next |  | in force in 10m0s"}},
		{name: "nothing", server: named{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := tests2026.Add(tt.now)
			rows, err := ShowServer(secretData(tt.server), serverEntry, now, overlap)
			if tt.preshared != nil {
				rows, err = ShowPreshared(secretData(tt.preshared), now)
			}
			if len(tt.errors) > 0 {
				wantError(t, err, tt.errors...)
			} else if err != nil {
				t.Error(err)
			}
			var got []string
			for _, r := range rows {
				got = append(got, shown(r, now))
				if r.Kind == Server && r.PublicKey.IsZero() {
					t.Errorf("no public key of %s", r.Entry)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			wantNoKeys(t, fmt.Sprint(rows, err), secretData(tt.server), secretData(tt.preshared))
		})
	}
}
