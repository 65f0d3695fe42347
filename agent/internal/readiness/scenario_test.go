package readiness

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	soon = 2500 * time.Millisecond // for a minority to mark, after it noticed
	long = 10 * time.Minute
)

// scenario is a story with its end.
type scenario struct {
	name     string
	replicas string
	happens  func(w *world)
	ready    string        // in the end
	marks    []string      // who marked whom
	within   time.Duration // of the beginning, the last one
	beats    int           // of any replica, at most
}

func (s scenario) run(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, s.replicas)
		s.happens(w)
		ready := w.inService()
		w.stop()
		slices.Sort(w.marks)
		if diff := cmp.Diff(s.ready, ready); diff != "" {
			t.Errorf("in service (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(s.marks, w.marks); diff != "" {
			t.Errorf("marks (-want +got):\n%s", diff)
		}
		if s.within > 0 && w.marked > s.within {
			t.Errorf("the last one is marked after %s, want %s at most", w.marked, s.within)
		}
		if w.none {
			t.Error("for a moment none was in service")
		}
		for name, n := range w.beats {
			if n > s.beats {
				t.Errorf("%d proofs of life of %s, want %d at most", n, name, s.beats)
			}
		}
		// Of each sibling every five seconds, and some at first; and its own.
		minutes, siblings := int(time.Since(w.began)/time.Minute)+1, len(s.replicas)-1
		for name, n := range w.reads {
			if most := siblings*12*(minutes+1) + 30*minutes; n > most {
				t.Errorf("%s has read %d Pods, want %d at most", name, n, most)
			}
		}
		t.Logf("last mark after %s; proofs of life: %v; all writes: %d; reads: %v", w.marked, w.beats, len(w.writes), w.reads)
	})
}

// Whoever is left when a node dies marks the rest soon, however few they are.
func TestNodeDies(t *testing.T) {
	for _, s := range []scenario{
		{"one of 3", "abc", func(w *world) {
			w.crash("c")
			w.notice(0, "ab", "c", Dead)
			time.Sleep(long)
		}, "ab", []string{"a c"}, 100 * time.Millisecond, 0},
		{"2 of 3", "abc", func(w *world) {
			w.crash("bc")
			w.notice(0, "a", "bc", Dead)
			time.Sleep(long)
		}, "a", []string{"a b", "a c"}, soon, 3},
		{"2 of 3, one noticed after the other", "abc", func(w *world) {
			w.crash("ab")
			w.noticeEach(0, "c", "ba")
			time.Sleep(long)
		}, "c", []string{"c a", "c b"}, soon, 3},
		{"4 of 5", "abcde", func(w *world) {
			w.crash("abde")
			w.notice(0, "c", "abde", Dead)
			time.Sleep(long)
		}, "c", []string{"c a", "c b", "c d", "c e"}, soon, 3},
		{"4 of 5, one noticed after the other", "abcde", func(w *world) {
			w.crash("abcd")
			w.noticeEach(0, "e", "dabc")
			time.Sleep(long)
		}, "e", []string{"e a", "e b", "e c", "e d"}, 2*time.Second + rankStep + 4*100*time.Millisecond, 4},
		{"3 of 5", "abcde", func(w *world) {
			w.crash("bcd")
			w.notice(0, "e", "bcd", Dead)
			w.notice(200*time.Millisecond, "a", "bcd", Dead)
			time.Sleep(long)
		}, "ae", []string{"a b", "a c", "a d"}, 200*time.Millisecond + soon, 5},
		{"2 of 3, requests take a while", "abc", func(w *world) {
			w.reach("a", nil, 100*time.Millisecond)
			w.crash("bc")
			w.noticeEach(0, "a", "bc")
			time.Sleep(long)
		}, "a", []string{"a b", "a c"}, 3500 * time.Millisecond, 4},
		{"2 of 3, and the API server for a while", "abc", func(w *world) {
			w.crash("bc")
			w.reach("a", errUnreachable, 0)
			w.noticeEach(0, "a", "bc")
			time.Sleep(10 * time.Second)
			w.reach("a", nil, 0)
			time.Sleep(long)
		}, "a", []string{"a b", "a c"}, 10*time.Second + longestPause + soon, 10},
		{"2 of 3, and the API server for longer", "abc", func(w *world) {
			w.crash("bc")
			w.reach("a", errUnreachable, 0)
			w.noticeEach(0, "a", "bc")
			time.Sleep(2 * time.Minute)
			w.reach("a", nil, 0)
			time.Sleep(long)
		}, "a", []string{"a b", "a c"}, 2*time.Minute + longestPause + 2*beatLater + soon, 80},
		{"2 of 3, and the other one starts anew", "abc", func(w *world) {
			w.crash("bc")
			w.notice(0, "a", "bc", Dead)
			time.Sleep(time.Second)
			w.restart("a")
			time.Sleep(long)
		}, "a", []string{"a b", "a c"}, time.Second + soon, 5},
		{"1 of 3, and then another one", "abc", func(w *world) {
			w.crash("b")
			w.notice(0, "ac", "b", Dead)
			time.Sleep(time.Second)
			w.crash("c")
			w.notice(0, "a", "c", Dead)
			time.Sleep(long)
		}, "a", []string{"a b", "a c"}, 1100 * time.Millisecond, 0},
		{"3 of 5, and then another one", "abcde", func(w *world) {
			w.crash("cde")
			w.notice(0, "ab", "cde", Dead)
			time.Sleep(time.Minute)
			w.crash("b")
			w.notice(0, "a", "b", Dead)
			time.Sleep(long)
		}, "a", []string{"a b", "a c", "a d", "a e"}, time.Minute + soon, 6},
		{"2 of 3, while another one holds the Lease", "abc", func(w *world) {
			w.Lock()
			w.lease.Holder, w.lease.Version = "somebody", "2"
			w.Unlock()
			w.crash("bc")
			w.notice(0, "a", "bc", Dead)
			time.Sleep(leaseDuration / 2)
			if got := w.inService(); got != "abc" {
				w.t.Errorf("in service while another one holds the Lease: %q", got)
			}
			time.Sleep(long)
		}, "a", []string{"a b", "a c"}, leaseDuration + resync + again, 40},
	} {
		s.runAs(t)
	}
}

// Those who are cut off do not mark those who are not, as long as these reach the API
// server. Where they do not, it is better to go on without them.
func TestPartition(t *testing.T) {
	for _, skew := range []time.Duration{-time.Second, -300 * time.Millisecond, 0, time.Second} {
		// The one notices it by so much before the two.
		before, after := max(-skew, 0), max(skew, 0)
		scenario{"1|2, skew " + skew.String(), "abc", func(w *world) {
			w.part("a", "bc")
			w.noticeEach(before, "a", "bc")
			w.notice(after, "bc", "a", Dead)
			time.Sleep(long)
		}, "bc", []string{"b a"}, after + 400*time.Millisecond, 3}.runAs(t)
		scenario{"4|1, skew " + skew.String(), "abcde", func(w *world) {
			w.part("abcd", "e")
			w.noticeEach(before, "e", "abcd")
			w.notice(after, "abcd", "e", Dead)
			time.Sleep(long)
		}, "abcd", []string{"a e"}, after + 100*time.Millisecond, 3}.runAs(t)
	}
	for _, s := range []scenario{
		{"1|2 and back", "abc", func(w *world) {
			w.part("a", "bc")
			w.noticeEach(0, "a", "bc")
			w.notice(0, "bc", "a", Dead)
			time.Sleep(long)
			w.heal()
			time.Sleep(5 * time.Second)
		}, "abc", []string{"b a"}, 0, 2},
		{"1|2, the two do not reach the API server; and back", "abc", func(w *world) {
			w.part("a", "bc")
			w.reach("bc", errUnreachable, 0)
			w.noticeEach(0, "a", "bc")
			w.notice(0, "bc", "a", Dead)
			time.Sleep(soon)
			if got := w.inService(); got != "a" {
				w.t.Errorf("in service after %s: %q, want a", soon, got)
			}
			time.Sleep(long)
			w.reach("bc", nil, 0)
			w.heal()
			time.Sleep(5 * time.Second)
		}, "abc", []string{"a b", "a c"}, soon, 62},
		{"1|2, the two reach the API server later", "abc", func(w *world) {
			w.part("a", "bc")
			w.reach("bc", errUnreachable, 0)
			w.noticeEach(0, "a", "bc")
			w.notice(0, "bc", "a", Dead)
			time.Sleep(20 * time.Second)
			w.reach("bc", nil, 0)
			time.Sleep(long)
		}, "bc", []string{"a b", "a c", "b a"}, 0, 62},
		{"1|2, the two do not notice in time", "abc", func(w *world) {
			w.part("a", "bc")
			w.noticeEach(0, "a", "bc")
			w.notice(4*time.Second, "bc", "a", Dead)
			time.Sleep(long)
		}, "bc", []string{"a b", "a c", "c a"}, 5 * time.Second, 10},
		{"2|3, no longer than it takes to notice", "abcde", func(w *world) {
			w.part("ab", "cde")
			w.notice(0, "ab", "cde", Dead)
			time.Sleep(time.Second)
			w.heal()
			time.Sleep(long)
		}, "abcde", nil, 0, 3},
	} {
		s.runAs(t)
	}
}

func (s scenario) runAs(t *testing.T) { t.Run(s.name, s.run) }

// Where all are alive, reach the API server and do not hear each other, nobody is
// marked, however long it takes; and the API server has little to do.
func TestAllIsolated(t *testing.T) {
	const most = 60 + 9*6 + 3 // a minute of them every second, nine every ten
	for _, s := range []scenario{
		{"3", "abc", func(w *world) {
			w.isolate(0)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"3, skew of a second", "abc", func(w *world) {
			w.isolate(time.Second)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"5, skew of a second", "abcde", func(w *world) {
			w.isolate(time.Second)
			time.Sleep(long)
		}, "abcde", nil, 0, most},
		{"one notices a second before the others", "abc", func(w *world) {
			w.part("a", "b", "c")
			w.notice(0, "a", "bc", Dead)
			w.notice(time.Second, "bc", "abc", Dead)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"requests take 300 ms", "abcde", func(w *world) {
			w.reach("abcde", nil, 300*time.Millisecond)
			w.isolate(time.Second)
			time.Sleep(long)
		}, "abcde", nil, 0, most},
		{"requests take 900 ms", "abc", func(w *world) {
			w.reach("abc", nil, 900*time.Millisecond)
			w.isolate(time.Second)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"requests take 400 ms, but those of one", "abcd", func(w *world) {
			w.reach("bcd", nil, 400*time.Millisecond)
			w.isolate(time.Second)
			time.Sleep(long)
		}, "abcd", nil, 0, most},
		{"the API server is away for 5 s", "abc", func(w *world) {
			w.reach("abc", errUnreachable, 0)
			w.isolate(time.Second)
			time.Sleep(5 * time.Second)
			w.reach("abc", nil, 0)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"the API server is away for 2 min, one reaches it first", "abc", func(w *world) {
			w.isolate(time.Second)
			time.Sleep(500 * time.Millisecond)
			w.reach("abc", errUnreachable, 0)
			time.Sleep(2 * time.Minute)
			w.reach("b", nil, 0)
			time.Sleep(beatFirst / 2)
			w.reach("abc", nil, 0)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"the API server is away before the others show life", "abc", func(w *world) {
			w.part("a", "b", "c")
			w.notice(0, "a", "bc", Dead)
			w.notice(1950*time.Millisecond, "bc", "abc", Dead)
			time.Sleep(1200 * time.Millisecond)
			w.reach("abc", errUnreachable, 0)
			time.Sleep(2 * time.Second)
			w.reach("abc", nil, 0)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"the API server takes no changes at first", "abc", func(w *world) {
			w.changesFail(errUnreachable)
			w.part("a", "b", "c")
			w.notice(0, "a", "bc", Dead)
			w.notice(300*time.Millisecond, "bc", "abc", Dead)
			time.Sleep(1950 * time.Millisecond)
			w.changesFail(nil)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"the API server takes no changes for a while", "abc", func(w *world) {
			w.changesFail(errUnreachable)
			w.isolate(time.Second)
			time.Sleep(10 * time.Second)
			w.changesFail(nil)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"the API server answers nobody in time, then everybody", "abc", func(w *world) {
			w.reach("abc", nil, 2*time.Second)
			w.isolate(time.Second)
			time.Sleep(7 * time.Second)
			w.reach("abc", nil, 0)
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"one starts anew", "abc", func(w *world) {
			w.isolate(0)
			for range 20 {
				time.Sleep(7 * time.Second)
				w.restart("b")
			}
			time.Sleep(long)
		}, "abc", nil, 0, most + 40},
		{"one of them is dead", "abc", func(w *world) {
			w.crash("b")
			w.part("a", "b", "c")
			w.noticeEach(0, "a", "bc")
			w.noticeEach(time.Second, "c", "ba")
			time.Sleep(long)
		}, "abc", nil, 0, most},
		{"in pairs, which part later", "abcde", func(w *world) {
			w.part("ab", "cd", "e")
			w.notice(0, "ab", "cde", Dead)
			w.notice(0, "cd", "abe", Dead)
			w.notice(0, "e", "abcd", Dead)
			time.Sleep(5 * time.Minute)
			w.part("a", "b", "cd", "e")
			w.notice(0, "a", "b", Dead)
			w.notice(time.Second, "b", "a", Dead)
			time.Sleep(5 * time.Minute)
		}, "abcde", nil, 0, 2 * most},
	} {
		s.runAs(t)
	}
}

// A replica that was marked for a silence that was none comes back by itself, is not
// marked again, and marks nobody either.
func TestComesBack(t *testing.T) {
	for _, s := range []scenario{
		{"all isolated, one notices much earlier", "abc", func(w *world) {
			w.part("a", "b", "c")
			w.notice(0, "a", "bc", Dead)
			w.notice(4*time.Second, "bc", "abc", Dead)
			time.Sleep(3 * time.Second)
			if got := w.inService(); got != "a" {
				w.t.Errorf("in service before the others notice: %q, want a", got)
			}
			time.Sleep(3 * time.Second)
			if got := w.inService(); got != "abc" {
				w.t.Errorf("in service 2 s after they did: %q, want all", got)
			}
			time.Sleep(long)
		}, "abc", []string{"a b", "a c"}, 0, 120},
		{"one whose node comes back, and which hears of nobody", "abc", func(w *world) {
			w.crash("bc")
			w.notice(0, "a", "bc", Dead)
			time.Sleep(3 * time.Minute)
			w.Lock()
			w.broken["b"], w.deaf["b"] = nil, false
			clear(w.replicas["b"].members)
			w.Unlock()
			w.start("b")
			time.Sleep(long)
		}, "ab", []string{"a b", "a c"}, soon, 120},
		{"only one does", "abc", func(w *world) {
			w.part("a", "b", "c")
			w.notice(0, "a", "bc", Dead)
			w.notice(4*time.Second, "c", "ab", Dead)
			w.crash("b")
			time.Sleep(long)
		}, "ac", []string{"a b", "a c"}, 0, 120},
	} {
		s.runAs(t)
	}
}

// stubborn is an API server that does not let one Pod be marked.
type stubborn struct {
	API
	pod string
}

func (s stubborn) SetConditions(ctx context.Context, name, uid string, conditions []Condition) error {
	if name == s.pod {
		return errUnreachable
	}
	return s.API.SetConditions(ctx, name, uid, conditions)
}

// A minority that got half of its marks done is no majority of the rest: the one that
// is left over, and lives, stays.
func TestHalfDone(t *testing.T) {
	for _, tt := range []struct{ all, survivors, dead, alive string }{
		{"abc", "a", "b", "c"},
		{"abcde", "ab", "cd", "e"},
	} {
		names := strings.Split(tt.all, "")
		c := newCluster(names...)
		rs := c.replicas(t, names...)
		for _, name := range tt.dead + tt.alive {
			rs[string(name)].stopped = true
		}
		for _, name := range tt.survivors {
			r := rs[string(name)]
			r.API = stubborn{r.API, tt.alive}
		}
		c.see(rs, tt.survivors, tt.dead+tt.alive, Dead)
		c.run(t, rs, 5*time.Second)
		if got, want := c.ready(), tt.survivors+tt.alive; got != want {
			t.Errorf("%s: in service %q, want %q", tt.all, got, want)
		}
		c.pods[tt.alive].Beat = "now"
		for _, name := range tt.survivors {
			r := rs[string(name)]
			r.API = r.API.(stubborn).API
		}
		c.run(t, rs, long)
		if got, want := c.ready(), tt.survivors+tt.alive; got != want {
			t.Errorf("%s: in service once %s has shown that it lives: %q, want %q", tt.all, tt.alive, got, want)
		}
	}
}

// A proof of life is another one than the last even where the clock was set back.
func TestBeatsDiffer(t *testing.T) {
	c := newCluster("a", "b", "c")
	rs := c.replicas(t, "a", "b", "c")
	c.see(rs, "a", "bc", Dead)
	a := rs["a"]
	a.step(t.Context())
	first := c.pods["a"].Beat
	a.own.beat.at = time.Time{}
	a.step(t.Context())
	if second := c.pods["a"].Beat; first == "" || first == second {
		t.Errorf("proofs of life %q and %q, want two", first, second)
	}
}

// What could not be read is no silence.
func TestLookFails(t *testing.T) {
	c := newCluster("a", "b", "c")
	rs := c.replicas(t, "a", "b", "c")
	c.see(rs, "a", "bc", Dead)
	c.run(t, rs, 1200*time.Millisecond)
	a := rs["a"]
	before := a.sibling("b").Same
	c.broken["a"] = errUnreachable
	a.look(t.Context(), a.sibling("b"), c.now)
	if after := a.sibling("b").Same; before != 3 || after != 0 {
		t.Errorf("b was found the same %d times, and %d after an error, want 3 and 0", before, after)
	}
}

// A minority whose gate was closed at the last moment marks nobody.
func TestClosedAtTheLastMoment(t *testing.T) {
	c := newCluster("a", "b", "c")
	rs := c.replicas(t, "a", "b", "c")
	rs["b"].stopped, rs["c"].stopped = true, true
	c.see(rs, "a", "bc", Dead)
	c.run(t, rs, 1400*time.Millisecond)
	rs["a"].own.beat.at = c.now // whose answer would tell it, too
	c.pods["a"].Gate, c.pods["a"].Reason = statusFalse, reasonMarked
	c.kubelet("a")
	c.run(t, rs, long)
	if got := c.ready(); got != "bc" {
		t.Errorf("in service %q, want b and c", got)
	}
	if c.lease.Holder != "" {
		t.Errorf("%s has taken the Lease, which others may need", c.lease.Holder)
	}
}
