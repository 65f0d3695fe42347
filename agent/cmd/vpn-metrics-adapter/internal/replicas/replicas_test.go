package replicas

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// says is the answer of a replica: members as name=state/connectedPeers.
func says(replica string, members ...string) string {
	var list []string
	for _, m := range members {
		name, rest, _ := strings.Cut(m, "=")
		state, count, _ := strings.Cut(rest, "/")
		list = append(list, fmt.Sprintf(`{"name":%q,"address":"10.0.0.7","state":%q,"connectedPeers":%s}`, name, state, count))
	}
	return fmt.Sprintf(`{"replica":%q,"replicas":%d,"draining":0,"connectedPeers":1,"connectedPeersPerReplica":0.5,"members":[%s]}`,
		replica, len(members), strings.Join(list, ","))
}

// serve is a replica of that name that answers what it is told to.
func serve(t *testing.T, name string, handler http.HandlerFunc) Replica {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return Replica{Name: name, Address: netip.MustParseAddrPort(server.Listener.Addr().String())}
}

func answering(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/fleet" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(text))
	}
}

// hanging answers nothing until it is given up.
func hanging(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// gone is a replica at which nothing listens.
func gone(t *testing.T, name string) Replica {
	t.Helper()
	server := httptest.NewServer(http.NotFoundHandler())
	r := Replica{Name: name, Address: netip.MustParseAddrPort(server.Listener.Addr().String())}
	server.Close()
	return r
}

func TestAsk(t *testing.T) {
	tests := map[string]struct {
		replicas  func(t *testing.T) []Replica
		connected map[string]int64
		failed    []string
	}{
		"each for itself": {
			// What they say of each other is older, and differs.
			func(t *testing.T) []Replica {
				return []Replica{
					serve(t, "a", answering(says("a", "a=alive/40", "b=alive/1"))),
					serve(t, "b", answering(says("b", "a=alive/2", "b=alive/7"))),
				}
			},
			map[string]int64{"a": 40, "b": 7}, nil,
		},
		"as the agent writes it": { // by its own test
			func(t *testing.T) []Replica {
				text, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "internal", "telemetry", "testdata", "fleet.json"))
				if err != nil {
					t.Fatal(err)
				}
				return []Replica{serve(t, "a", answering(string(text))), gone(t, "b"), gone(t, "c")}
			},
			map[string]int64{"a": 4, "b": 1}, []string{"b", "c"},
		},
		"one is gone and its siblings know it, the highest figure counts": {
			func(t *testing.T) []Replica {
				return []Replica{
					serve(t, "a", answering(says("a", "a=alive/1", "b=alive/8", "c=alive/3"))),
					serve(t, "c", answering(says("c", "a=alive/1", "b=alive/9", "c=alive/3"))),
					gone(t, "b"),
				}
			},
			map[string]int64{"a": 1, "b": 9, "c": 3}, []string{"b"},
		},
		"one is dead by its siblings' word": {
			func(t *testing.T) []Replica {
				return []Replica{serve(t, "a", answering(says("a", "a=alive/1", "b=dead/8"))), gone(t, "b")}
			},
			map[string]int64{"a": 1}, []string{"b"},
		},
		"a draining one counts": {
			func(t *testing.T) []Replica {
				return []Replica{serve(t, "a", answering(says("a", "a=draining/5", "b=alive/2")))}
			},
			map[string]int64{"a": 5}, nil,
		},
		"none connected is a figure": {
			func(t *testing.T) []Replica { return []Replica{serve(t, "a", answering(says("a", "a=alive/0")))} },
			map[string]int64{"a": 0}, nil,
		},
		"all gone": {
			func(t *testing.T) []Replica { return []Replica{gone(t, "a"), gone(t, "b"), {Name: "pending"}} },
			map[string]int64{}, []string{"a", "b", "pending"},
		},
		"a slow one": {
			func(t *testing.T) []Replica {
				return []Replica{serve(t, "a", hanging), serve(t, "b", answering(says("b", "a=alive/4", "b=alive/2")))}
			},
			map[string]int64{"a": 4, "b": 2}, []string{"a"},
		},
		"garbage": {
			func(t *testing.T) []Replica {
				return []Replica{
					serve(t, "html", answering("<html>")),
					serve(t, "empty", answering("")),
					serve(t, "nobody", answering(`{}`)),
					serve(t, "negative", answering(says("negative", "negative=alive/-1"))),
					serve(t, "without", answering(`{"replica":"without","members":[{"name":"without","state":"alive"}]}`)),
					serve(t, "huge", answering(strings.Repeat(" ", bodyLimit+1))),
					serve(t, "alone", answering(says("alone", "b=alive/1"))),
					serve(t, "successor", answering(says("b", "b=alive/1"))), // at the address of another Pod
					serve(t, "error", func(w http.ResponseWriter, _ *http.Request) {
						http.Error(w, says("error", "error=alive/1"), http.StatusInternalServerError)
					}),
					serve(t, "moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }),
				}
			},
			map[string]int64{}, []string{"alone", "empty", "error", "html", "huge", "moved", "negative", "nobody", "successor", "without"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			asker := New(Options{Timeout: 300 * time.Millisecond, Parallel: 4})
			got := asker.Ask(t.Context(), test.replicas(t))
			if diff := cmp.Diff(test.connected, got.Connected); diff != "" {
				t.Errorf("connected (-want +got):\n%s", diff)
			}
			failed := map[string]bool{}
			for name := range got.Failed {
				failed[name] = true
			}
			want := map[string]bool{}
			for _, name := range test.failed {
				want[name] = true
			}
			if diff := cmp.Diff(want, failed); diff != "" {
				t.Errorf("failed (-want +got):\n%s\n%v", diff, got.Failed)
			}
		})
	}
}

// No more than so many at a time, and none after the whole is over.
func TestAskIsBounded(t *testing.T) {
	var mu sync.Mutex
	var now, most int
	count := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		now += n
		most = max(most, now)
	}
	handler := func(_ http.ResponseWriter, r *http.Request) {
		count(1)
		defer count(-1)
		<-r.Context().Done()
	}
	var all []Replica
	for i := range 40 {
		all = append(all, serve(t, fmt.Sprint(i), handler))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	got := New(Options{Timeout: 100 * time.Millisecond, Parallel: 3}).Ask(ctx, all)
	if len(got.Failed) != len(all) || len(got.Connected) != 0 {
		t.Errorf("%d failed and %d connected of %d that hang", len(got.Failed), len(got.Connected), len(all))
	}
	mu.Lock()
	defer mu.Unlock()
	// The server may see one end after the next one's beginning.
	if most > 6 {
		t.Errorf("%d were asked at a time, want 3", most)
	}
}
