package rotate

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

func TestAdopt(t *testing.T) {
	const entry = "green.20261225T030000Z"
	undated := map[string]string{"privateKey": mine}
	next := key.GeneratePrivate().Reveal()
	both := map[string]string{"privateKey": mine, entry: next}
	tests := []struct {
		name            string
		source, mounted map[string]string // mounted nil: no such Secret
		makeAfter       time.Duration
		appears         time.Duration // when the mounted Secret gets the key of mine; 0: never
		refuse          func(http.ResponseWriter, *http.Request) bool
		others          []map[string]string
		want            map[string]string // nil: a new key
		waited          time.Duration
		errors          []string
	}{
		{name: "what is there stays", source: undated, mounted: map[string]string{"privateKey": next}, want: undated},
		{name: "the backend's key", mounted: undated, want: undated},
		{name: "the backend's keys, those with a time too", mounted: both, want: both},
		{name: "nothing of other people's", mounted: map[string]string{"privateKey": mine, "custom_metadata": "{}"}, want: undated},
		{name: "what else the Secret has stays", source: map[string]string{"other": "x"}, mounted: undated, want: map[string]string{"other": "x", "privateKey": mine}},
		{name: "the backend's key although one may be made", mounted: undated, makeAfter: time.Minute, want: undated},
		{name: "the backend's key, a little late", makeAfter: time.Minute, appears: 20 * time.Second, waited: 20 * time.Second, want: undated},
		{name: "none in time", makeAfter: time.Minute, waited: time.Minute},
		{name: "none in time, of a Secret that is there", mounted: map[string]string{}, makeAfter: time.Minute, waited: time.Minute},
		{name: "none, and none is to be made", errors: []string{"secret mounted has no key yet", "ExternalSecret"}},
		{name: "another one was first", mounted: map[string]string{"privateKey": next}, others: []map[string]string{undated}, want: undated},
		{name: "garbled", mounted: map[string]string{"privateKey": "verysecret"}, makeAfter: time.Minute, errors: []string{"secret mounted:", "not the base64 of 32 bytes"}},
		{
			name: "may not read", refuse: refuse(http.StatusForbidden, "Forbidden", http.MethodGet), makeAfter: time.Minute,
			errors: []string{"let the service account get and patch this Secret"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newFakeServer()
			server.put("secrets/source", tt.source)
			if tt.mounted != nil {
				server.put("secrets/mounted", tt.mounted)
			}
			server.refuse = tt.refuse
			for _, o := range tt.others {
				server.beforePatch = append(server.beforePatch, func(f *fakeServer) { f.change("secrets/source", o) })
			}
			start := time.Date(2026, 12, 25, 0, 0, 0, 0, time.UTC)
			now := start
			got, err := Adopt(t.Context(), server.api(t).Secrets(), AdoptOptions{
				Secret: "mounted", Source: "source", Key: "privateKey", MakeAfter: tt.makeAfter,
				Now: func() time.Time { return now },
				Sleep: func(_ context.Context, d time.Duration) error {
					now = now.Add(d)
					if tt.appears > 0 && now.Sub(start) == tt.appears {
						server.put("secrets/mounted", undated)
					}
					return nil
				},
			})
			if len(tt.errors) > 0 {
				wantError(t, err, tt.errors...)
				if len(server.patches) > 0 {
					t.Error("the Secret was written to")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			after := server.get("secrets/source")
			if tt.want == nil && !got.Made || tt.want != nil && !cmp.Equal(tt.want, after) {
				t.Errorf("made: %v, %d entries after; want %d entries, or a new key", got.Made, len(after), len(tt.want))
			}
			if want := public(t, after["privateKey"]); got.Public != want {
				t.Errorf("told of %s, the Secret has %s", got.Public, want)
			}
			if waited := now.Sub(start); waited != tt.waited {
				t.Errorf("waited %s, want %s", waited, tt.waited)
			}
		})
	}
}

func TestAdoptIsInterrupted(t *testing.T) {
	server := newFakeServer()
	server.put("secrets/source", nil)
	stopped := errors.New("stopped")
	_, err := Adopt(t.Context(), server.api(t).Secrets(), AdoptOptions{
		Secret: "mounted", Source: "source", Key: "privateKey", MakeAfter: time.Minute, Now: time.Now,
		Sleep: func(context.Context, time.Duration) error { return stopped },
	})
	if !errors.Is(err, stopped) || len(server.patches) > 0 {
		t.Errorf("error %v with %d patches, want it stopped with none", err, len(server.patches))
	}
}
