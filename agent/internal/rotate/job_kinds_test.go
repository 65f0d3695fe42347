package rotate

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

func TestJobPreshared(t *testing.T) {
	server := newFakeServer()
	server.put("secrets/psk-a", secretTexts(map[string]string{"alice": "a"}))
	server.put("secrets/psk-b", secretTexts(map[string]string{"bob": literal + "verysecret"}))
	server.put("configmaps/keys", map[string]string{publicKeyEntry: "kept", rotationEntry: `{"server":{"time":"2026-12-01T03:00:00Z","result":"rotated","message":"m"}}`})
	var log bytes.Buffer
	j := testJob(t, server, &log)
	j.Kind = Preshared
	now := tests2026
	j.Now = func() time.Time { now = now.Add(time.Second); return now }

	j.Secret = "psk-b"
	wantError(t, run(t, server, j, &log), `entry "bob": not the base64 of 32 bytes`)
	j.Secret = "psk-a"
	if err := run(t, server, j, &log); err != nil {
		t.Fatal(err)
	}
	got := runOf(t, server, Preshared)
	if got.Result != Failed || !strings.Contains(got.Message, "psk-b") {
		t.Errorf("the failure of another Secret is hidden by %+v", got.Run)
	}
	results := map[string]Result{}
	for secret, r := range got.Secrets {
		results[secret] = r.Result
	}
	if diff := cmp.Diff(map[string]Result{"psk-a": Rotated, "psk-b": Failed}, results); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	server.put("secrets/psk-b", secretTexts(map[string]string{"bob": "b"}))
	j.Secret = "psk-b"
	if err := run(t, server, j, &log); err != nil {
		t.Fatal(err)
	}
	if got := runOf(t, server, Preshared); got.Result != Rotated || !got.Time.Equal(got.Secrets["psk-b"].Time) {
		t.Errorf("after all were well: %+v", got)
	}
	if other := runOf(t, server, Server); other.Message != "m" || server.get("configmaps/keys")[publicKeyEntry] != "kept" {
		t.Errorf("what is said of the server key changed: %+v", server.get("configmaps/keys"))
	}
}

// What is said of a Secret that is rotated no more goes, or its failure would be
// reported for ever.
func TestJobForgetsSecrets(t *testing.T) {
	const before = `{"server":{"time":"2026-12-01T03:00:00Z","result":"rotated","message":"m"},` +
		`"preshared":{"time":"2026-12-01T03:00:00Z","result":"failed","message":"gone","secrets":{` +
		`"gone":{"time":"2026-12-01T03:00:00Z","result":"failed","message":"gone"},` +
		`"psk-b":{"time":"2026-12-01T03:00:00Z","result":"unchanged","message":"b"}}}}`
	tests := []struct {
		name    string
		kind    Kind
		rotated []string
		want    map[string]Result // of Secrets
		result  Result            // of all
	}{
		{"renamed", Preshared, []string{"gateway", "psk-b"}, map[string]Result{"gateway": Rotated, "psk-b": Unchanged}, Rotated},
		{"nobody knows", Preshared, nil, map[string]Result{"gateway": Rotated, "gone": Failed, "psk-b": Unchanged}, Failed},
		{"not even this one", Preshared, []string{}, map[string]Result{"gateway": Rotated}, Rotated},
		{"by the job of the server key", Server, []string{"psk-b"}, map[string]Result{"psk-b": Unchanged}, Unchanged},
		{"none is left", Server, []string{}, nil, ""},
		{"the job of the server key does not know", Server, nil, map[string]Result{"gone": Failed, "psk-b": Unchanged}, Failed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newFakeServer()
			secret := map[string]string{"alice": "a"}
			if tt.kind == Server {
				secret = map[string]string{"privateKey": "0"}
			}
			server.put("secrets/gateway", secretTexts(secret))
			server.put("configmaps/keys", map[string]string{rotationEntry: before})
			var log bytes.Buffer
			j := testJob(t, server, &log)
			j.Kind, j.PresharedSecrets = tt.kind, tt.rotated
			if err := run(t, server, j, &log); err != nil {
				t.Fatal(err)
			}
			got := runOf(t, server, Preshared)
			var results map[string]Result
			for name, r := range got.Secrets {
				if results == nil {
					results = map[string]Result{}
				}
				results[name] = r.Result
			}
			if diff := cmp.Diff(tt.want, results); diff != "" || got.Result != tt.result {
				t.Errorf("of all %q, want %q; Secrets (-want +got):\n%s", got.Result, tt.result, diff)
			}
			if server := runOf(t, server, Server); server.Result != Rotated {
				t.Errorf("of the server key: %+v", server)
			}
		})
	}
}

// A rotation is undone by removing its entry; the next run makes another key.
func TestJobUndone(t *testing.T) {
	before := secretTexts(map[string]string{"privateKey": "0"})
	server := newFakeServer()
	server.put("secrets/gateway", before)
	server.put("configmaps/keys", nil)
	var log bytes.Buffer
	j := testJob(t, server, &log)
	var published []string
	for range 2 {
		server.put("secrets/gateway", before)
		if err := run(t, server, j, &log); err != nil {
			t.Fatal(err)
		}
		if got := runOf(t, server, Server); got.Result != Rotated {
			t.Errorf("%+v", got)
		}
		next := public(t, server.get("secrets/gateway")["green."+at(lead)]).String()
		if got := server.get("configmaps/keys")[publicKeyEntry]; got != next || slices.Contains(published, got) {
			t.Errorf("published is %s, want the key that was made now, %s, and none of %v", got, next, published)
		}
		published = append(published, next)
	}
}

func TestJobAnnotatesPods(t *testing.T) {
	type named = map[string]string
	waits := named{"privateKey": "0", "green." + at(time.Minute): "1"}
	tests := []struct {
		name   string
		secret named
		change func(*Job, *fakeServer)
		want   []string // Pods that are annotated
		errors []string
	}{
		{name: "rotated", secret: named{"privateKey": "0"}, want: []string{"a", "b"}},
		{name: "waits", secret: waits, want: []string{"a", "b"}},
		{name: "nothing is on its way", secret: named{"privateKey": "0", "green." + at(0): "1"}},
		{name: "off", secret: waits, change: func(j *Job, _ *fakeServer) { j.AnnotatePods = "" }},
		{name: "no such Pods", secret: waits, change: func(j *Job, _ *fakeServer) { j.AnnotatePods = "app=x" }},
		{
			name: "one has just gone", secret: waits, want: []string{"b"},
			change: func(_ *Job, f *fakeServer) {
				f.beforePatch = append(f.beforePatch, func(*fakeServer) {}, func(f *fakeServer) { delete(f.objects, "pods/a") })
			},
		},
		{
			name: "the ConfigMap is gone", secret: waits, want: []string{"a", "b"}, errors: []string{"read configmap"},
			change: func(_ *Job, f *fakeServer) { delete(f.objects, "configmaps/keys") },
		},
		{
			name: "may not list", secret: waits, errors: []string{"list pods app=vpn in ns", "let the service account list and patch Pods, or leave --annotate-pods out"},
			change: func(_ *Job, f *fakeServer) { f.refuse = refuse(http.StatusForbidden, "Forbidden", "GET pods") },
		},
		{
			name: "may not patch one", secret: waits, want: []string{"b"}, errors: []string{"annotate pod a in ns", "list and patch Pods"},
			change: func(_ *Job, f *fakeServer) { f.refuse = refuse(http.StatusForbidden, "Forbidden", "PATCH pods/a") },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newFakeServer()
			server.put("secrets/gateway", secretTexts(tt.secret))
			server.put("configmaps/keys", nil)
			for _, pod := range []string{"a", "b", "c"} {
				server.put("pods/"+pod, nil).labels = named{"app": "vpn"}
			}
			server.objects["pods/c"].labels["app"] = "other"
			var log bytes.Buffer
			j := testJob(t, server, &log)
			j.AnnotatePods = "app=vpn"
			if tt.change != nil {
				tt.change(&j, server)
			}
			err := run(t, server, j, &log)
			if len(tt.errors) > 0 {
				wantError(t, err, tt.errors...)
			} else if err != nil {
				t.Error(err)
			}
			var got []string
			for path, o := range server.objects {
				if pod, ok := strings.CutPrefix(path, "pods/"); ok && len(o.annotations) > 0 {
					got = append(got, pod)
					if diff := cmp.Diff(named{"vpn-gateway.io/keys-changed": "2026-12-25T03:00:00Z"}, o.annotations); diff != "" {
						t.Errorf("annotations (-want +got):\n%s", diff)
					}
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Pods (-want +got):\n%s", diff)
			}
		})
	}
}

func TestJobOptions(t *testing.T) {
	good := JobOptions{Kind: Server, Secret: "a", Key: "privateKey", Lead: 1}
	tests := []struct {
		name   string
		change func(*JobOptions)
		want   string
	}{
		{"good", func(*JobOptions) {}, ""},
		{"selector", func(o *JobOptions) { o.AnnotatePods = "a in (b, c),d" }, ""},
		{"kind", func(o *JobOptions) { o.Kind = "x" }, `--kind "x" is unknown; use server or preshared`},
		{"secret", func(o *JobOptions) { o.Secret = "" }, "--secret is missing"},
		{"source", func(o *JobOptions) { o.Source = "a" }, `--source "a" is --secret already`},
		{"key", func(o *JobOptions) { o.Key = "" }, `--key "" cannot be`},
		{"dated key", func(o *JobOptions) { o.Key = key.ServerEntry(key.Blue, tests2026) }, `--key "blue.20261225T030000Z" cannot be`},
		{"lead", func(o *JobOptions) { o.Lead = 0 }, "--lead 0s is not more than zero"},
		{"overlap", func(o *JobOptions) { o.Publication.Overlap = -1 }, "--overlap -1ns is less than zero"},
		{"bad selector", func(o *JobOptions) { o.AnnotatePods = "a in b" }, `--annotate-pods "a in b" is no label selector`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := good
			tt.change(&o)
			err := o.Validate()
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, tt.want)
		})
	}
}
