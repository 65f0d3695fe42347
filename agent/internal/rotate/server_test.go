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

// endOfNames is when a key could come in force in the year 10000.
const endOfNames = time.Duration(1<<63 - 1)

func TestPlanServer(t *testing.T) {
	type named = map[string]string // entry → name of the key of the tests
	tests := []struct {
		name      string
		data      named
		mounted   named // with --source
		now       time.Duration
		noOverlap bool
		// want is what the Secret holds afterwards; nil: as before.
		want    named
		result  Result
		message []string // parts
		warn    bool
		errors  []string // instead of all that
	}{
		{
			name: "the first rotation", data: named{"privateKey": "0"},
			want:    named{"privateKey": "0", "green." + at(lead): made},
			result:  Rotated,
			message: []string{"comes in force at 2026-12-25T03:10:00Z", "answered until 2027-01-01T03:10:00Z"},
		},
		{
			name: "not before a full second, and never early", data: named{"privateKey": "0"}, now: time.Millisecond,
			want: named{"privateKey": "0", "green." + at(lead+time.Second): made}, result: Rotated,
		},
		{
			name: "again at once", data: named{"privateKey": "0", "green." + at(lead): "1"},
			result: Unchanged, message: []string{"the next key comes in force at 2026-12-25T03:10:00Z"},
		},
		{
			name: "a moment before it comes in force", data: named{"privateKey": "0", "green." + at(lead): "1"}, now: lead - 1,
			result: Unchanged, message: []string{"comes in force at"},
		},
		{
			name: "in force, and the old one is answered", data: named{"privateKey": "0", "green." + at(lead): "1"}, now: lead,
			result: Unchanged, message: []string{"answered until 2027-01-01T03:10:00Z"},
		},
		{
			name: "the overlap is over", data: named{"privateKey": "0", "green." + at(0): "1"}, now: overlap,
			want:   named{"privateKey": "1", "green." + at(0): "1", "blue." + at(overlap+lead): made},
			result: Rotated,
		},
		{
			name: "a moment before", data: named{"privateKey": "0", "green." + at(0): "1"}, now: overlap - 1,
			result: Unchanged, message: []string{"answered until"},
		},
		{
			name: "no overlap", data: named{"privateKey": "0", "green." + at(0): "1"}, noOverlap: true,
			want:   named{"privateKey": "1", "green." + at(0): "1", "blue." + at(lead): made},
			result: Rotated,
		},
		{
			name: "the third rotation", data: named{"privateKey": "1", "green." + at(-2*overlap): "1", "blue." + at(-overlap): "2"},
			want:   named{"privateKey": "2", "blue." + at(-overlap): "2", "green." + at(lead): made},
			result: Rotated,
		},
		{
			name: "an activation that nobody saw counts", data: named{"privateKey": "1", "green." + at(-9000*time.Hour): "1", "blue." + at(-8000*time.Hour): "2"},
			want:   named{"privateKey": "2", "blue." + at(-8000*time.Hour): "2", "green." + at(lead): made},
			result: Rotated,
		},
		{
			name: "only a key whose own copy it is", data: named{"privateKey": "1", "green." + at(-time.Minute): "1"},
			want:   named{"privateKey": "1", "green." + at(-time.Minute): "1", "blue." + at(lead): made},
			result: Rotated,
		},
		{
			name: "a copy with a newline", data: named{"privateKey": literal + testKey("1") + "\n", "green." + at(-time.Minute): "1"},
			want:   named{"privateKey": "1", "green." + at(-time.Minute): "1", "blue." + at(lead): made},
			result: Rotated,
		},
		{
			name: "many old keys", data: named{"privateKey": "9", "blue." + at(-4*overlap): "1", "green." + at(-3*overlap): "2", "blue." + at(-2*overlap): "3"},
			want:   named{"privateKey": "3", "blue." + at(-2*overlap): "3", "green." + at(lead): made},
			result: Rotated,
		},
		{
			name: "another entry is nobody's business", data: named{"wg": "0", "privateKey": "5", "tls.crt": literal + "x", "alice." + at(0): literal},
			want:   named{"wg": "0", "privateKey": "5", "tls.crt": literal + "x", "alice." + at(0): literal, "green." + at(lead): made},
			result: Rotated,
		},
		{
			name: "the next key lies far ahead", data: named{"privateKey": "0", "green." + at(8000*time.Hour): "1"},
			result: Unchanged, warn: true,
			message: []string{"further ahead than --lead has it; it is respected", `remove entry "green.` + at(8000*time.Hour) + `"`},
		},
		{
			name: "a clock went back before the only key", data: named{"privateKey": "1", "green." + at(24*time.Hour): "1"},
			result: Unchanged, warn: true, message: []string{"is respected"},
		},

		// With a Secret of --source.
		{
			name: "the source is empty", data: named{}, mounted: named{"privateKey": "0"},
			want:   named{"privateKey": "0", "green." + at(lead): made},
			result: Rotated, message: []string{"comes in force", "the Secret of --source was empty"},
		},
		{
			name: "the source has an empty key", data: named{"privateKey": literal}, mounted: named{"privateKey": "0"},
			want:   named{"privateKey": "0", "green." + at(lead): made},
			result: Rotated,
		},
		{
			name: "the source is empty while a key is waiting", data: named{}, mounted: named{"privateKey": "0", "green." + at(lead): "1"},
			want:   named{"privateKey": "0", "green." + at(lead): "1"},
			result: Unchanged, message: []string{"the next key comes in force", "the Secret of --source was empty"},
		},
		{
			name: "the source is empty, and what is mounted has an old key", data: named{},
			mounted: named{"privateKey": "1", "green." + at(-3*overlap): "1", "blue." + at(-2*overlap): "2"},
			want:    named{"privateKey": "2", "blue." + at(-2*overlap): "2", "green." + at(lead): made},
			result:  Rotated,
		},
		{
			name: "nothing is mounted yet", data: named{"privateKey": "0"}, mounted: named{},
			result: Unchanged, warn: true, message: []string{"not in the mounted one yet"},
		},
		{
			name: "both are alike", data: named{"privateKey": "0"}, mounted: named{"privateKey": "0"},
			want: named{"privateKey": "0", "green." + at(lead): made}, result: Rotated,
		},
		{
			name: "the next key is still on its way", data: named{"privateKey": "0", "green." + at(lead): "1"}, mounted: named{"privateKey": "0"},
			result: Unchanged, message: []string{"the next key comes in force"},
		},
		{
			name: "it is so after its time", data: named{"privateKey": "0", "green." + at(-2*overlap): "1"}, mounted: named{"privateKey": "0"},
			result: Unchanged, warn: true, message: []string{"in force since", "not in the mounted one yet", "PushSecret"},
		},
		{
			name: "the old key has yet to go from what is mounted", data: named{"privateKey": "1", "green." + at(-2*overlap): "1"},
			mounted: named{"privateKey": "0", "green." + at(-2*overlap): "1"},
			want:    named{"privateKey": "1", "green." + at(-2*overlap): "1", "blue." + at(lead): made}, result: Rotated,
		},
		{
			name: "somebody wrote a newer key to the backend", data: named{"privateKey": "0"}, mounted: named{"privateKey": "0", "green." + at(lead): "7"},
			errors: []string{`entry "green.` + at(lead) + `": the mounted Secret has another key`, "--source"},
		},
		{
			name: "somebody wrote another key to the backend", data: named{"privateKey": "0"}, mounted: named{"privateKey": "7"},
			errors: []string{`entry "privateKey": the mounted Secret has another key`},
		},
		{
			name: "what is mounted is garbled", data: named{"privateKey": "0"}, mounted: named{"privateKey": literal + "verysecret"},
			errors: []string{`entry "privateKey": not the base64 of 32 bytes (in the mounted Secret); store the output of 'wg genkey'`},
		},
		{name: "no key in either", data: named{}, mounted: named{}, errors: []string{"there is no key", "keys init"}},

		// Faults.
		{name: "no key", data: named{}, errors: []string{`entry "privateKey": there is no key; have the first one made by 'vpn-agent keys init'`}},
		{
			name: "all faults at once",
			data: named{"privateKey": literal + "verysecret", "green." + at(0): literal, "blue." + at(lead): literal + testKey("")[:43], "blue.20261232T000000Z": "2", "Green": "3", "GREEN." + at(0): "4", "privateKey." + at(0): "5"},
			errors: []string{
				`entry "privateKey": not the base64 of 32 bytes`, `entry "green.` + at(0) + `": empty`, `entry "blue.` + at(lead) + `": not the base64`,
				`entry "blue.20261232T000000Z": not the name of a server key; name it like green.20261225T030000Z`, `entry "GREEN.` + at(0) + `": not the name`,
				`entry "privateKey.` + at(0) + `": not the name`,
			},
		},
		{name: "32 zero bytes", data: named{"privateKey": "0", "green." + at(0): literal + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}, errors: []string{"32 zero bytes"}},
		{name: "no undated key", data: named{"green." + at(0): "1"}, errors: []string{`entry "privateKey": missing; copy the entry of the key in force there`}},
		{name: "a key twice", data: named{"privateKey": "0", "green." + at(0): "1", "blue." + at(lead): "1"}, errors: []string{`entry "blue.` + at(lead) + `": the same key as entry "green.` + at(0) + `"`}},
		{name: "a time twice", data: named{"privateKey": "0", "green." + at(0): "1", "blue." + at(0): "2"}, errors: []string{`entry "green.` + at(0) + `": comes in force at the time of entry "blue.` + at(0) + `"`}},
		{name: "two keys for a slot", data: named{"privateKey": "0", "blue." + at(0): "1"}, errors: []string{`entry "blue.` + at(0) + `": slot blue still answers for the key of entry "privateKey"`}},
		{name: "three keys for two slots", data: named{"privateKey": "0", "green." + at(0): "1", "blue." + at(lead): "2"}, errors: []string{`entry "blue.` + at(lead) + `": slot blue still answers for the key of entry "privateKey"`}},
		{name: "a name that is a key", data: named{"privateKey": "0", "green." + testKey("1")[:43]: "1"}, errors: []string{`entry "green.[redacted]"`}},
		{name: "a clock beyond all names", data: named{"privateKey": "0"}, now: endOfNames, errors: []string{"set the clock"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := reading{data: secretData(tt.data), mounted: secretData(tt.mounted), now: tests2026.Add(tt.now), lead: lead, overlap: overlap}
			if tt.now == endOfNames {
				r.now = time.Date(9999, 12, 31, 23, 59, 0, 0, time.UTC)
			}
			if tt.noOverlap {
				r.overlap = 0
			}
			undated := "privateKey"
			if _, other := tt.data["wg"]; other {
				undated = "wg"
			}
			got, err := planServer(r, undated, func() key.Private { return testPrivate(t, made) })
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
			if diff := cmp.Diff(want, keyNames(patched(r.data, got.write))); diff != "" {
				t.Errorf("Secret (-want +got):\n%s", diff)
			}
			if got.result != tt.result || got.warn != tt.warn {
				t.Errorf("result %s, warn %t; want %s, %t", got.result, got.warn, tt.result, tt.warn)
			}
			wantError(t, errors.New(got.message), tt.message...)
			wantNoKeys(t, fmt.Sprint(got.message, got.attrs), r.data, r.mounted, map[string][]byte{made: []byte(testKey(made))})
		})
	}
}
