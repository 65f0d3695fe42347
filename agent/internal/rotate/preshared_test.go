package rotate

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

func TestPlanPreshared(t *testing.T) {
	type named = map[string]string
	next := "." + at(lead)
	tests := []struct {
		name    string
		data    named
		mounted named
		now     time.Duration
		want    named // nil: as before
		result  Result
		message []string
		warn    bool
		errors  []string
	}{
		{name: "nobody", data: named{}, result: Unchanged, message: []string{"there are no pre-shared keys"}},
		{
			name: "every peer, with one time", data: named{"alice": "a", "bob.x": "b"},
			want:   named{"alice": "a", "alice" + next: made + " 1", "bob.x": "b", "bob.x" + next: made + " 2"},
			result: Rotated, message: []string{"2 next keys made, in force from 2026-12-25T03:10:00Z"},
		},
		{
			name: "again at once", data: named{"alice": "a", "alice" + next: "a1"}, result: Unchanged,
			message: []string{"1 peer with a next key already (peer alice: the next key comes in force at 2026-12-25T03:10:00Z)"},
		},
		{
			name: "a new peer while others wait", data: named{"alice": "a", "alice" + next: "a1", "bob": "b"}, now: time.Minute,
			want:   named{"alice": "a", "alice" + next: "a1", "bob": "b", "bob." + at(lead+time.Minute): made + " 1"},
			result: Rotated, message: []string{"1 next key made", "1 peer with a next key already"},
		},
		{
			name: "in force", data: named{"alice": "a", "alice" + next: "a1"}, now: lead,
			want:   named{"alice": "a1", "alice" + next: "a1", "alice." + at(2*lead): made + " 1"},
			result: Rotated,
		},
		{
			name: "the third one", data: named{"alice": "a1", "alice." + at(-2*lead): "a1", "alice." + at(-lead): "a2"},
			want:   named{"alice": "a2", "alice." + at(-lead): "a2", "alice" + next: made + " 1"},
			result: Rotated,
		},
		{
			name: "a peer without an undated key", data: named{"alice." + at(-lead): "a1"},
			want:   named{"alice": "a1", "alice." + at(-lead): "a1", "alice" + next: made + " 1"},
			result: Rotated,
		},
		{name: "a first key that waits", data: named{"alice" + next: "a1"}, result: Unchanged, message: []string{"1 peer with a next key"}},
		{
			name: "two peers share a key, until now", data: named{"alice": "a", "bob": "a"},
			want:   named{"alice": "a", "alice" + next: made + " 1", "bob": "a", "bob" + next: made + " 2"},
			result: Rotated,
		},
		{
			name: "one lies far ahead", data: named{"alice": "a", "alice" + next: "a1", "bob": "b", "bob." + at(9000*time.Hour): "b1"},
			result: Unchanged, warn: true, message: []string{"2 peers with a next key already (peer bob: ", `remove entry "bob.` + at(9000*time.Hour) + `"`},
		},

		{
			name: "the source is empty", data: named{}, mounted: named{"alice": "a", "bob": "b", "bob" + next: "b1"},
			want:   named{"alice": "a", "alice" + next: made + " 1", "bob": "b", "bob" + next: "b1"},
			result: Rotated, message: []string{"got the keys of 2 peers from what is mounted"},
		},
		{
			name: "a peer was added to the backend", data: named{"alice": "a", "alice" + next: "a1"}, mounted: named{"alice": "a", "alice" + next: "a1", "bob": "b"},
			want:   named{"alice": "a", "alice" + next: "a1", "bob": "b", "bob" + next: made + " 1"},
			result: Rotated, message: []string{"1 next key made", "got the keys of 1 peer"},
		},
		{
			name: "a key is on its way, and holds up nobody else", data: named{"alice": "a", "alice." + at(-lead): "a1", "bob": "b", "carol": "c"}, mounted: named{"alice": "a", "bob": "b"},
			want:   named{"alice": "a", "alice." + at(-lead): "a1", "bob": "b", "bob" + next: made + " 1", "carol": "c"},
			result: Rotated, warn: true, message: []string{"of 2 peers the newest key", "1 next key made"},
		},
		{
			name: "another key in the backend", data: named{"alice": "a", "bob": "b"}, mounted: named{"alice": "z", "bob": "b"},
			errors: []string{`entry "alice": the mounted Secret has another key`},
		},
		{
			name: "garbled in either", data: named{"alice": "a", "bob": literal + "verysecret"}, mounted: named{"alice": literal, "bob": "b"},
			errors: []string{`entry "bob": not the base64 of 32 bytes; store the output of 'wg genpsk'`, `entry "alice": empty (in the mounted Secret)`},
		},

		{
			name: "all faults at once", data: named{"alice": literal + "verysecret", "bob": literal + strings.Repeat("A", 43) + "=", "carol": "c", "carol" + next: "1", "carol." + at(0): "1", "dave": literal},
			errors: []string{`entry "alice": not`, `entry "bob": 32 zero bytes`, `entry "carol` + next + `": the same key as entry "carol.` + at(0) + `"`, `entry "dave": empty`},
		},
		{name: "the server's Secret", data: named{"privateKey": "0"}, errors: []string{`entry "privateKey": the name of a server key among pre-shared keys`}},
		{name: "a peer that is called like a dated key", data: named{"alice." + at(0) + "." + at(lead): "1"}, errors: []string{`entry "alice.` + at(0) + "." + at(lead) + `": no key of a peer of that name can have a time`}},
		{name: "a peer without a name", data: named{"." + at(0): "1", "": "2"}, errors: []string{"no key of a peer"}},
		{name: "a name that is a key", data: named{testKey("1")[:43]: literal + "x"}, errors: []string{`entry "[redacted]"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := reading{data: secretData(tt.data), mounted: secretData(tt.mounted), now: tests2026.Add(tt.now), lead: lead, overlap: overlap}
			n := 0
			got, err := planPreshared(r, func() key.Preshared {
				n++
				return testPreshared(t, fmt.Sprint(made, " ", n))
			})
			if len(tt.errors) > 0 {
				wantError(t, err, tt.errors...)
				if len(got.write) > 0 {
					t.Errorf("an error and a change of %d entries", len(got.write))
				}
				wantNoKeys(t, err.Error(), r.data, r.mounted)
				if strings.Contains(err.Error(), "verysecret") {
					t.Errorf("the error quotes the Secret: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := tt.want
			if want == nil {
				want = keyNames(r.data)
				if len(got.write) > 0 {
					t.Errorf("a change of %d entries, want none", len(got.write))
				}
			}
			after := patched(r.data, got.write)
			if diff := cmp.Diff(want, keyNames(after)); diff != "" {
				t.Errorf("Secret (-want +got):\n%s", diff)
			}
			if got.result != tt.result || got.warn != tt.warn {
				t.Errorf("result %s, warn %t; want %s, %t", got.result, got.warn, tt.result, tt.warn)
			}
			wantError(t, errors.New(got.message), tt.message...)
			wantNoKeys(t, fmt.Sprint(got.message, got.attrs), r.data, r.mounted, after)
		})
	}
}

// What is said of many peers stays short.
func TestPlanPresharedOfMany(t *testing.T) {
	data := map[string][]byte{}
	for i := range 1000 {
		data[fmt.Sprintf("peer-%04d", i)] = []byte(key.GeneratePreshared().Reveal())
	}
	r := reading{data: data, now: tests2026, lead: lead}
	got, err := planPreshared(r, key.GeneratePreshared)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.write) != 1000 || len(got.message) > 200 || len(fmt.Sprint(got.attrs)) > 2000 {
		t.Errorf("%d entries, a message of %d and attributes of %d characters", len(got.write), len(got.message), len(fmt.Sprint(got.attrs)))
	}
	for entry := range data {
		data[entry] = []byte("x")
	}
	if _, err = planPreshared(r, key.GeneratePreshared); err == nil || len(err.Error()) > 20_000 || !strings.HasSuffix(err.Error(), "and 900 more") {
		t.Errorf("an error of %d characters", len(fmt.Sprint(err)))
	}
}
