package rotate

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPublishServer(t *testing.T) {
	type named = map[string]string
	tests := []struct {
		name   string
		secret named
		want   named
		errors []string
	}{
		{name: "the first identity", secret: named{"privateKey": "0"}, want: named{
			"identities.json": `[{"publicKey":"0","slot":"blue","endpoint":"vpn:1"}]`, "publicKey": "0", "endpoint": "vpn:1", rotationEntry: "r",
		}},
		{name: "after rotations", secret: named{"privateKey": "1", "green." + at(-lead): "1"}, want: named{
			"identities.json": `[{"publicKey":"1","slot":"green","from":"2026-12-25T02:50:00Z"}]`, "publicKey": "1", "from": "2026-12-25T02:50:00Z", rotationEntry: "r",
		}},
		{name: "a retired key", secret: named{"privateKey": "0", "green." + at(-overlap): "1"}, want: named{
			"identities.json": `[{"publicKey":"1","slot":"green","from":"2026-12-18T03:00:00Z"}]`, "publicKey": "1", "from": "2026-12-18T03:00:00Z", rotationEntry: "r",
		}},
		{name: "garbled", secret: named{"privateKey": "0", "green." + at(0): literal}, errors: []string{"secret gateway:\nentry \"green." + at(0) + "\": empty"}},
		{name: "gone", secret: named{}, errors: []string{"there is no key"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newFakeServer()
			server.put("secrets/gateway", secretTexts(tt.secret))
			before := named{rotationEntry: "r", fromEntry: "x", endpointEntry: "x"}
			server.put("configmaps/keys", before)
			api := server.api(t)
			err := PublishServer(t.Context(), api.Secrets(), api.ConfigMaps(), "gateway", serverEntry, tests2026,
				Publication{ConfigMap: "keys", Endpoints: Endpoints{Blue: "vpn:1"}, Overlap: overlap})
			want := tt.want
			if len(tt.errors) > 0 {
				wantError(t, err, tt.errors...)
				want = before
			} else if err != nil {
				t.Fatal(err)
			}
			got := server.get("configmaps/keys")
			for entry, text := range got { // public keys by the names of their keys
				for _, name := range []string{"0", "1"} {
					text = strings.ReplaceAll(text, public(t, testKey(name)).String(), name)
				}
				got[entry] = text
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("ConfigMap (-want +got):\n%s", diff)
			}
		})
	}
}

// With a Secret of --source, what is said is what the gateway can answer to.
func TestJobPublishesWithSource(t *testing.T) {
	type named = map[string]string
	old := at(-2 * overlap)
	tests := []struct {
		name            string
		source, mounted named
		newest, from    string
	}{
		{"alike", named{"privateKey": "0"}, named{"privateKey": "0"}, made, stamp(tests2026.Add(lead))},
		{"the next key is on its way", named{"privateKey": "0", "green." + at(lead): "1"}, named{"privateKey": "0"}, "1", stamp(tests2026.Add(lead))},
		{"it is so after its time", named{"privateKey": "0", "green." + old: "1"}, named{"privateKey": "0"}, "0", ""},
		{"nothing is mounted", named{"privateKey": "0"}, named{}, "0", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newFakeServer()
			server.put("secrets/source", secretTexts(tt.source))
			server.put("secrets/gateway", secretTexts(tt.mounted))
			server.put("configmaps/keys", nil)
			var log bytes.Buffer
			j := testJob(t, server, &log)
			j.Source = "source"
			if err := run(t, server, j, &log); err != nil {
				t.Fatal(err)
			}
			got, want := server.get("configmaps/keys"), testKey(tt.newest)
			if tt.newest == made {
				want = server.get("secrets/source")["green."+at(lead)]
			}
			if got[publicKeyEntry] != public(t, want).String() || got[fromEntry] != tt.from {
				t.Errorf("got %v, want %s from %q", got, tt.newest, tt.from)
			}
		})
	}
}

// Nobody writes the ConfigMap when a key's time comes: what it says then has to be
// what it would say if it were written anew.
func TestPublicationIsNeverStale(t *testing.T) {
	l := serverLine(t, secretData(map[string]string{"privateKey": "0", "green." + at(lead): "1"}))
	ends := Endpoints{Blue: "vpn:1", Green: "vpn:2"}
	before, err := publication(l, tests2026, overlap, ends)
	if err != nil {
		t.Fatal(err)
	}
	for _, later := range []time.Duration{lead, lead + overlap, 2 * overlap} {
		now, err := publication(l, tests2026.Add(later), overlap, ends)
		if err != nil {
			t.Fatal(err)
		}
		delete(before, identitiesEntry) // has the time until which each counts
		delete(now, identitiesEntry)
		if diff := cmp.Diff(keyNames(before), keyNames(now)); diff != "" {
			t.Errorf("after %s (-as written +as it should be):\n%s", later, diff)
		}
	}
}

func TestPublished(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"lines", "secret x:\nentry a\nentry b", "secret x: entry a; entry b"},
		{"a key", "invalid value " + testKey("0") + "!", "invalid value [redacted]!"},
		{"long", strings.Repeat("é ", messageLen), strings.Repeat("é ", messageLen/3) + "…"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, published(tt.text)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 3*time.Hour + 2*time.Minute: "3h2m", 49 * time.Hour: "2d1h", 9000 * time.Hour: "375d0h",
	} {
		if got := span(d); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
}
