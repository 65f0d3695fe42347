package rotate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// testJob is a job for the Secret gateway and the ConfigMap keys of the server.
func testJob(t testing.TB, server *fakeServer, log *bytes.Buffer) Job {
	api := server.api(t)
	return Job{
		JobOptions: JobOptions{
			Kind: Server, Secret: "gateway", Key: serverEntry, Lead: lead,
			Publication: Publication{ConfigMap: "keys", Endpoints: Endpoints{Blue: "vpn:1", Green: "vpn:2"}, Overlap: overlap},
		},
		Secrets: api.Secrets(), ConfigMaps: api.ConfigMaps(), Pods: api.Pods(),
		Log: slog.New(slog.NewJSONHandler(log, nil)),
		Now: func() time.Time { return tests2026 },
	}
}

// run runs the job once, and checks that no key is in what anybody may read.
func run(t *testing.T, server *fakeServer, j Job, log *bytes.Buffer) error {
	t.Helper()
	err := j.Run(t.Context())
	said := fmt.Sprint(err, log)
	for path := range server.objects {
		if !strings.HasPrefix(path, "secrets/") {
			said += fmt.Sprint(server.get(path), server.objects[path].annotations)
		}
	}
	for path := range server.objects {
		if strings.HasPrefix(path, "secrets/") {
			data := map[string][]byte{}
			for entry, text := range server.get(path) {
				data[entry] = []byte(text)
			}
			wantNoKeys(t, said, data)
		}
	}
	if strings.Contains(said, "verysecret") {
		t.Errorf("the content of an entry is quoted in %s", said)
	}
	return err
}

// runOf reads a kind's record from the ConfigMap.
func runOf(t *testing.T, server *fakeServer, kind Kind) Record {
	t.Helper()
	all := map[Kind]Record{}
	if err := json.Unmarshal([]byte(server.get("configmaps/keys")[rotationEntry]), &all); err != nil {
		t.Fatal(err)
	}
	return all[kind]
}

func TestJobLife(t *testing.T) {
	server := newFakeServer()
	server.put("secrets/gateway", secretTexts(map[string]string{"privateKey": "0"}))
	server.put("configmaps/keys", nil)
	var log bytes.Buffer
	j := testJob(t, server, &log)
	publicOf := func(entry string) string { return public(t, server.get("secrets/gateway")[entry]).String() }
	k0 := publicOf("privateKey")
	green, blue := "green."+at(lead), "blue."+at(2*overlap+lead)
	steps := []struct {
		name    string
		now     time.Duration
		entries []string
		want    func() map[string]string
		result  Result
		message string
	}{
		{"rotate", 0, []string{green, "privateKey"}, func() map[string]string {
			return map[string]string{
				"identities.json": `[{"publicKey":"` + k0 + `","slot":"blue","endpoint":"vpn:1","retires":"2027-01-01T03:10:00Z"},` +
					`{"publicKey":"` + publicOf(green) + `","slot":"green","endpoint":"vpn:2","from":"2026-12-25T03:10:00Z"}]`,
				"publicKey": publicOf(green), "endpoint": "vpn:2", "from": "2026-12-25T03:10:00Z",
			}
		}, Rotated, "the next key comes in force at 2026-12-25T03:10:00Z; the one before is answered until 2027-01-01T03:10:00Z"},
		{"in force", lead, []string{green, "privateKey"}, func() map[string]string {
			return map[string]string{
				"identities.json": `[{"publicKey":"` + k0 + `","slot":"blue","endpoint":"vpn:1","retires":"2027-01-01T03:10:00Z"},` +
					`{"publicKey":"` + publicOf(green) + `","slot":"green","endpoint":"vpn:2","from":"2026-12-25T03:10:00Z"}]`,
				"publicKey": publicOf(green), "endpoint": "vpn:2", "from": "2026-12-25T03:10:00Z",
			}
		}, Unchanged, "the key before is answered until 2027-01-01T03:10:00Z; the next rotation is possible then"},
		{"rotate again", 2 * overlap, []string{blue, green, "privateKey"}, func() map[string]string {
			return map[string]string{
				"identities.json": `[{"publicKey":"` + publicOf(green) + `","slot":"green","endpoint":"vpn:2","from":"2026-12-25T03:10:00Z","retires":"2027-01-15T03:10:00Z"},` +
					`{"publicKey":"` + publicOf(blue) + `","slot":"blue","endpoint":"vpn:1","from":"2027-01-08T03:10:00Z"}]`,
				"publicKey": publicOf(blue), "endpoint": "vpn:1", "from": "2027-01-08T03:10:00Z",
			}
		}, Rotated, "the next key comes in force at 2027-01-08T03:10:00Z; the one before is answered until 2027-01-15T03:10:00Z"},
	}
	for _, s := range steps {
		j.Now = func() time.Time { return tests2026.Add(s.now) }
		if err := run(t, server, j, &log); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if diff := cmp.Diff(s.entries, slices.Sorted(maps.Keys(server.get("secrets/gateway")))); diff != "" {
			t.Fatalf("%s: entries (-want +got):\n%s", s.name, diff)
		}
		got := server.get("configmaps/keys")
		delete(got, rotationEntry)
		if diff := cmp.Diff(s.want(), got); diff != "" {
			t.Errorf("%s: ConfigMap (-want +got):\n%s", s.name, diff)
		}
		want := Record{Run: Run{Time: tests2026.Add(s.now), Result: s.result, Message: s.message}}
		if diff := cmp.Diff(want, runOf(t, server, Server)); diff != "" {
			t.Errorf("%s: record (-want +got):\n%s", s.name, diff)
		}
	}
	wantLog := `{"level":"INFO","msg":"next key made","kind":"server","reason":"the next key comes in force at 2026-12-25T03:10:00Z; the one before is answered until 2027-01-01T03:10:00Z",` +
		`"publicKey":"` + k0 + `","slot":"blue","nextPublicKey":"` + publicOf(green) + `","nextSlot":"green","nextFrom":"2026-12-25T03:10:00Z","retires":"2027-01-01T03:10:00Z"}`
	first, _, _ := strings.Cut(log.String(), "\n")
	if _, rest, _ := strings.Cut(first, ","); "{"+rest != wantLog {
		t.Errorf("log:\n%s\nwant, but for the time:\n%s", first, wantLog)
	}
}

func TestJob(t *testing.T) {
	type named = map[string]string
	tests := []struct {
		name    string
		secret  named
		change  func(*Job, *fakeServer)
		errors  []string
		patches int    // of the Secret that is written
		result  Result // in the ConfigMap; empty: nothing is there
		message string // part of it
	}{
		{name: "rotated", secret: named{"privateKey": "0"}, patches: 1, result: Rotated, message: "comes in force"},
		{name: "waits", secret: named{"privateKey": "0", "green." + at(time.Minute): "1"}, patches: 0, result: Unchanged, message: "comes in force"},
		{
			name: "garbled", secret: named{"privateKey": "0", "green." + at(0): literal + "verysecret", "blue." + at(0): literal},
			errors: []string{"secret gateway was not touched:\nentry \"blue." + at(0) + "\": empty", "\nentry \"green." + at(0) + "\": not the base64 of 32 bytes; store"},
			result: Failed, message: "secret gateway was not touched: entry \"blue." + at(0) + "\": empty; store the output of 'wg genkey' there, or remove it; entry",
		},
		{
			name: "many faults", secret: func() named {
				n := named{"privateKey": "0"}
				for i := range 300 {
					n[fmt.Sprintf("green.%d", i)] = literal
				}
				return n
			}(),
			errors: []string{"and 200 more"}, result: Failed, message: "…",
		},
		{
			name: "another job was first", secret: named{"privateKey": "0"}, patches: 0, result: Unchanged, message: "the next key comes in force at 2026-12-25T03:05:00Z",
			change: func(_ *Job, f *fakeServer) {
				f.beforePatch = append(f.beforePatch, func(f *fakeServer) {
					f.change("secrets/gateway", secretTexts(named{"green." + at(5*time.Minute): "1"}))
				})
			},
		},
		{
			name: "never at rest", secret: named{"privateKey": "0"}, errors: []string{"secret gateway: changed in the meantime, 5 times"}, result: Failed, message: "changed in the meantime",
			change: func(_ *Job, f *fakeServer) {
				for range attempts {
					f.beforePatch = append(f.beforePatch, func(f *fakeServer) { f.change("secrets/gateway", nil) })
				}
			},
		},
		{
			name: "the ConfigMap is never at rest", secret: named{"privateKey": "0"}, patches: 1,
			errors: []string{"the keys are as they should be, but not what is said of them; run it again: configmap keys: changed in the meantime, 30 times"},
			change: func(_ *Job, f *fakeServer) {
				f.beforePatch = append(f.beforePatch, func(*fakeServer) {})
				for range publishAttempts {
					f.beforePatch = append(f.beforePatch, func(f *fakeServer) { f.change("configmaps/keys", nil) })
				}
			},
		},
		{
			name: "the ConfigMap is written at the same time", secret: named{"privateKey": "0"}, patches: 1, result: Rotated,
			change: func(_ *Job, f *fakeServer) {
				f.beforePatch = append(f.beforePatch, func(*fakeServer) {}, func(f *fakeServer) {
					f.change("configmaps/keys", named{rotationEntry: `{"preshared":{"result":"unchanged"}}`})
				})
			},
		},
		{
			name: "what is said of rotations is garbled", secret: named{"privateKey": "0"}, patches: 1, result: Rotated,
			change: func(_ *Job, f *fakeServer) { f.put("configmaps/keys", named{rotationEntry: "null"}) },
		},
		{
			name: "no ConfigMap", secret: named{"privateKey": "0"}, patches: 1,
			errors: []string{"read configmap ns/keys", "create it without data"},
			change: func(_ *Job, f *fakeServer) { delete(f.objects, "configmaps/keys") },
		},
		{
			name: "no ConfigMap is wanted", secret: named{"privateKey": "0"}, patches: 1,
			change: func(j *Job, _ *fakeServer) { j.Publication.ConfigMap = "" },
		},
		{
			name: "no rights on the ConfigMap", secret: named{"privateKey": "0"}, patches: 1,
			errors: []string{"write configmap ns/keys", "let the service account get and patch this ConfigMap"},
			change: func(_ *Job, f *fakeServer) {
				f.refuse = refuse(http.StatusForbidden, "Forbidden", "PATCH configmaps/keys")
			},
		},
		{
			name: "no Secret", errors: []string{"read secret ns/gone", "check its name"}, result: Failed, message: "read secret ns/gone",
			change: func(j *Job, _ *fakeServer) { j.Secret = "gone" },
		},
		{
			name: "no rights on the Secret", secret: named{"privateKey": "0"}, errors: []string{"write secret ns/gateway", "let the service account get and patch this Secret"},
			result: Failed, message: "let the service account get and patch this Secret",
			change: func(_ *Job, f *fakeServer) {
				f.refuse = refuse(http.StatusForbidden, "Forbidden", "PATCH secrets/gateway")
			},
		},
		{
			name: "no rights at all", secret: named{"privateKey": "0"}, errors: []string{"read secret ns/gateway", "read configmap ns/keys"},
			change: func(_ *Job, f *fakeServer) {
				f.refuse = refuse(http.StatusForbidden, "Forbidden", "GET")
			},
		},
		{
			name: "with a source", secret: named{}, patches: 1, result: Rotated, message: "was empty",
			change: func(j *Job, f *fakeServer) {
				j.Secret, j.Source = "mounted", "gateway"
				f.put("secrets/mounted", secretTexts(named{"privateKey": "0"}))
			},
		},
		{
			name: "with a source, before anything is mounted", secret: named{"privateKey": "0"}, result: Unchanged, message: "not in the mounted one yet",
			change: func(j *Job, _ *fakeServer) { j.Secret, j.Source = "mounted", "gateway" },
		},
		{
			name: "with a source, and no rights on what is mounted", secret: named{"privateKey": "0"}, errors: []string{"read secret ns/mounted"}, result: Failed,
			change: func(j *Job, f *fakeServer) {
				j.Secret, j.Source = "mounted", "gateway"
				f.refuse = refuse(http.StatusForbidden, "Forbidden", "GET secrets/mounted")
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newFakeServer()
			server.put("secrets/gateway", secretTexts(tt.secret))
			server.put("configmaps/keys", nil)
			var log bytes.Buffer
			j := testJob(t, server, &log)
			if tt.change != nil {
				tt.change(&j, server)
			}
			err := run(t, server, j, &log)
			if len(tt.errors) > 0 {
				wantError(t, err, tt.errors...)
			} else if err != nil {
				t.Error(err)
			}
			if n := server.patched("secrets/gateway"); n != tt.patches {
				t.Errorf("%d patches, want %d", n, tt.patches)
			}
			if tt.patches == 0 && len(server.beforePatch) == 0 && tt.change == nil {
				if diff := cmp.Diff(secretTexts(tt.secret), server.get("secrets/gateway")); diff != "" {
					t.Errorf("Secret (-before +after):\n%s", diff)
				}
			}
			if tt.result == "" {
				if got := server.get("configmaps/keys")[rotationEntry]; got != "" {
					t.Errorf("there is a record: %s", got)
				}
				return
			}
			got := runOf(t, server, Server)
			if got.Result != tt.result || !strings.Contains(got.Message, tt.message) || len(got.Message) > messageLen+3 {
				t.Errorf("record %+v, want %s with %q", got, tt.result, tt.message)
			}
			if _, said := server.get("configmaps/keys")[publicKeyEntry]; said != (tt.result != Failed) {
				t.Errorf("public key said: %t", said)
			}
		})
	}
}

// An answer that is lost is a rotation done: the next run says so.
func TestJobAborted(t *testing.T) {
	server := newFakeServer()
	server.put("secrets/gateway", secretTexts(map[string]string{"privateKey": "0"}))
	server.put("configmaps/keys", nil)
	lost := false
	server.refuse = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch || lost {
			return false
		}
		lost = true
		server.patch(httptest.NewRecorder(), r, "secrets/gateway")
		fail(w, http.StatusGatewayTimeout, "Timeout", "no")
		return true
	}
	var log bytes.Buffer
	j := testJob(t, server, &log)
	wantError(t, run(t, server, j, &log), "write secret ns/gateway")
	if got := runOf(t, server, Server); got.Result != Failed {
		t.Errorf("first: %+v", got)
	}
	if err := run(t, server, j, &log); err != nil {
		t.Fatal(err)
	}
	next := public(t, server.get("secrets/gateway")["green."+at(lead)]).String()
	if got := runOf(t, server, Server); got.Result != Unchanged || server.get("configmaps/keys")[publicKeyEntry] != next || server.patched("secrets/gateway") != 1 {
		t.Errorf("second: %+v, %v", got, server.get("configmaps/keys"))
	}
}

// Who has run out of time can still say so.
func TestJobOutOfTime(t *testing.T) {
	server := newFakeServer()
	server.put("secrets/gateway", secretTexts(map[string]string{"privateKey": "0"}))
	server.put("configmaps/keys", nil)
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, testJob(t, server, &log).Run(ctx), "context canceled")
	if got := runOf(t, server, Server); got.Result != Failed {
		t.Errorf("record %+v", got)
	}
}

// Of many jobs at once one rotates, the others find a key that waits, and what is
// said in the end is what there is.
func TestJobsAtOnce(t *testing.T) {
	for _, kind := range []Kind{Server, Preshared} {
		t.Run(string(kind), func(t *testing.T) {
			server := newFakeServer()
			before := map[string]string{"privateKey": "0"}
			if kind == Preshared {
				before = map[string]string{"alice": "a", "bob": "b"}
			}
			server.put("secrets/gateway", secretTexts(before))
			server.put("configmaps/keys", nil)
			// Each may lose the race for the ConfigMap to every other.
			const jobs = 10
			var logs [jobs]bytes.Buffer
			var group sync.WaitGroup
			for i := range jobs {
				j := testJob(t, server, &logs[i])
				j.Kind = kind
				group.Go(func() {
					if err := j.Run(context.WithoutCancel(t.Context())); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			rotations := 0
			for i := range logs {
				rotations += strings.Count(logs[i].String(), `"next key made"`)
			}
			if rotations != 1 || server.patched("secrets/gateway") != 1 {
				t.Errorf("%d jobs rotated, by %d patches", rotations, server.patched("secrets/gateway"))
			}
			after := server.get("secrets/gateway")
			if len(after) != 2*len(before) {
				t.Errorf("entries: %v", slices.Sorted(maps.Keys(after)))
			}
			if kind == Server {
				if got, want := server.get("configmaps/keys")[publicKeyEntry], public(t, after["green."+at(lead)]).String(); got != want {
					t.Errorf("public key: got %s, want %s", got, want)
				}
			}
		})
	}
}
