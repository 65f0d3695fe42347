package readiness

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestController(t *testing.T) {
	const (
		soon = 3 * time.Second
		long = 2 * time.Minute
	)
	for _, tt := range []struct {
		name     string
		replicas string
		// happens is the story; it lets time pass itself.
		happens func(c *cluster, rs map[string]*replica, pass func(time.Duration))
		ready   string   // in the end
		writes  []string // to Pods
	}{
		{"nothing", "abc", func(_ *cluster, _ map[string]*replica, pass func(time.Duration)) { pass(long) }, "abc", nil},
		{"alone", "a", func(_ *cluster, _ map[string]*replica, pass func(time.Duration)) { pass(long) }, "a", nil},
		{"one of three dies with its node", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.deaf["c"], rs["c"].stopped = true, true
			c.see(rs, "ab", "c", Dead)
			pass(long)
		}, "ab", []string{"a c serving=False Ready=False"}},
		{"the first survivor cannot reach the API server", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			rs["c"].stopped, c.broken["a"] = true, errors.New("timeout")
			c.see(rs, "ab", "c", Dead)
			pass(soon)
		}, "ab", []string{"b c serving=False Ready=False"}},
		{"all survivors reach the API server again", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			rs["c"].stopped = true
			c.broken["a"], c.broken["b"] = errors.New("timeout"), errors.New("timeout")
			c.see(rs, "ab", "c", Dead)
			pass(long)
			clear(c.broken)
			pass(2 * longestPause)
		}, "ab", []string{"a c serving=False Ready=False"}},
		{"2|1", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.cut(rs, "ab", "c")
			pass(long)
		}, "ab", []string{"a c serving=False Ready=False"}},
		{"2|1, for longer than the fleet remembers", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.cut(rs, "ab", "c")
			pass(long)
			clear(rs["c"].members)
			delete(rs["a"].members, "c")
			delete(rs["b"].members, "c")
			pass(long)
		}, "ab", []string{"a c serving=False Ready=False"}},
		{"2|1, the majority cannot reach the API server", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.broken["a"], c.broken["b"] = errors.New("timeout"), errors.New("timeout")
			c.cut(rs, "ab", "c")
			pass(long)
		}, "c", []string{"c a serving=False Ready=False", "c b serving=False Ready=False"}},
		{"2|1 and back", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.cut(rs, "ab", "c")
			pass(long)
			c.see(rs, "abc", "abc", Alive)
			pass(soon)
		}, "abc", []string{"a c serving=False Ready=False", "c c serving=True"}},
		{"1|2, the one notices first, and one after the other", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.part("a", "bc")
			c.see(rs, "a", "b", Dead)
			pass(500 * time.Millisecond)
			c.see(rs, "a", "c", Dead)
			pass(500 * time.Millisecond)
			c.see(rs, "bc", "a", Dead)
			pass(long)
		}, "bc", []string{"b a serving=False Ready=False"}},
		{"1|1|1, all notice one after the other", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.part("a", "b", "c")
			for _, saw := range []string{"ab", "bc", "ca", "ac", "ba", "cb"} {
				c.see(rs, saw[:1], saw[1:], Dead)
				pass(250 * time.Millisecond)
			}
			pass(long)
		}, "abc", nil},
		{"2|2, half of it noticed", "abcd", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.lease.Holder = "somebody"
			c.part("ab", "cd")
			c.see(rs, "ab", "c", Dead)
			pass(soon)
		}, "abcd", nil},
		{"marked before it notices anything", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.part("a", "bc")
			c.see(rs, "bc", "a", Dead)
			pass(2 * resync)
		}, "bc", []string{"b a serving=False Ready=False"}},
		{"3|2", "abcde", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.cut(rs, "cde", "ab")
			pass(long)
		}, "cde", []string{"c a serving=False Ready=False", "c b serving=False Ready=False"}},
		{"3|2, then one of the three dies", "abcde", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.cut(rs, "cde", "ab")
			pass(long)
			rs["e"].stopped = true
			c.see(rs, "cd", "e", Dead)
			pass(soon)
		}, "cd", []string{"c a serving=False Ready=False", "c b serving=False Ready=False", "c e serving=False Ready=False"}},
		{"all siblings dead", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			rs["b"].stopped, rs["c"].stopped = true, true
			c.see(rs, "a", "bc", Dead)
			pass(long)
		}, "a", []string{"a b serving=False Ready=False", "a c serving=False Ready=False"}},
		{"all siblings dead, one marked by the node controller", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			rs["b"].stopped, rs["c"].stopped = true, true
			c.see(rs, "a", "bc", Dead)
			pass(time.Second)
			c.pods["b"].Ready = statusFalse
			pass(long)
		}, "a", []string{"a c serving=False Ready=False"}},
		{"a drain", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.see(rs, "abc", "c", Draining)
			pass(long)
			rs["c"].stopped = true
			c.see(rs, "ab", "c", Left)
			pass(long)
		}, "abc", nil},
		{"a dead replica flaps", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			for range 3 {
				c.see(rs, "ab", "c", Dead)
				pass(100 * time.Millisecond)
				c.see(rs, "ab", "c", Alive)
				pass(soon)
				rs["c"].changed()
				rs["c"].next = c.now
				pass(soon)
			}
		}, "abc", slices.Repeat([]string{"a c serving=False Ready=False", "c c serving=True"}, 3)},
		{"back before its turn", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.see(rs, "b", "c", Dead)
			pass(rankStep / 2)
			c.see(rs, "b", "c", Alive)
			pass(long)
		}, "abc", nil},
		{"a Pod that is gone", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			delete(c.pods, "c")
			c.see(rs, "ab", "c", Dead)
			pass(long)
		}, "ab", nil},
		{"a name that another Pod has by now", "abc", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.see(rs, "ab", "c", Dead)
			for _, name := range []string{"a", "b"} {
				m := rs[name].members["c"]
				m.UID = "uid-of-the-old-one"
				rs[name].members["c"] = m
			}
			pass(long)
		}, "abc", nil},
		{"a stranger closed the gate", "ab", func(c *cluster, _ map[string]*replica, pass func(time.Duration)) {
			c.pods["a"].Gate = statusFalse
			c.kubelet("a")
			pass(2 * resync)
		}, "ab", []string{"a a serving=True"}},
		{"this replica is not in service itself", "ab", func(c *cluster, rs map[string]*replica, pass func(time.Duration)) {
			c.deaf["a"], c.pods["a"].Ready = true, statusFalse
			rs["b"].stopped = true
			c.see(rs, "a", "b", Dead)
			pass(long)
		}, "b", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			names := strings.Split(tt.replicas, "")
			c := newCluster(names...)
			rs := c.replicas(t, names...)
			tt.happens(c, rs, func(d time.Duration) { c.run(t, rs, d) })
			if diff := cmp.Diff(tt.ready, c.ready()); diff != "" {
				t.Errorf("in service (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.writes, c.podWrites()); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
		})
	}
}

// podWrites are the writes that change more than the Lease or a proof of life.
func (c *cluster) podWrites() []string {
	var out []string
	for _, w := range c.writes {
		if !strings.Contains(w, " lease=") && !strings.HasSuffix(w, " beat") {
			out = append(out, w)
		}
	}
	// What one replica marks, it marks at one moment, in no order.
	isMark := func(i int) bool { return i < len(out) && strings.HasSuffix(out[i], " Ready=False") }
	for from := 0; from < len(out); from++ {
		to := from
		for isMark(to) && out[to][:2] == out[from][:2] {
			to++
		}
		slices.Sort(out[from:to])
		from = max(from, to-1)
	}
	return out
}

// Of two halves one is in service in the end, whichever it is; both are again when
// they see each other. While they are apart neither takes the other's place.
func TestHalves(t *testing.T) {
	for _, halves := range [][2]string{{"a", "b"}, {"ab", "cd"}, {"ac", "bd"}} {
		for range 20 { // the order in which replicas are asked is random
			names := strings.Split(halves[0]+halves[1], "")
			slices.Sort(names)
			all := strings.Join(names, "")
			c := newCluster(names...)
			rs := c.replicas(t, names...)
			c.cut(rs, halves[0], halves[1])
			var first string
			for range 60 {
				c.run(t, rs, time.Second)
				if first == "" {
					first = c.ready()
				}
				if got := c.ready(); got != first || got != halves[0] && got != halves[1] {
					t.Fatalf("%v: in service %q, before %q, want one of the halves all the time; writes %q", halves, got, first, c.writes)
				}
			}
			c.see(rs, all, all, Alive)
			c.run(t, rs, 3*time.Second)
			if got := c.ready(); got != all {
				t.Errorf("%v: in service when all see each other: %q", halves, got)
			}
			if c.lease.Holder != "" {
				t.Errorf("%v: %s still holds the Lease", halves, c.lease.Holder)
			}
			if marks := len(c.podWrites()); marks != 2*len(halves[0]) {
				t.Errorf("%v: writes to Pods %q, want one mark of each of a half, and their coming back", halves, c.podWrites())
			}
		}
	}
}

// When the half that stayed in service dies, the other one comes back as soon as the
// Lease has run out.
func TestHolderDies(t *testing.T) {
	c := newCluster("a", "b")
	rs := c.replicas(t, "a", "b")
	c.cut(rs, "a", "b")
	c.run(t, rs, time.Minute)
	winner := rs[c.ready()]
	winner.stopped, c.deaf[winner.name] = true, true
	c.run(t, rs, 2*leaseDuration)
	if got := c.ready(); len(got) != 1 || got == winner.name {
		t.Errorf("in service %q, want the one that is not %s", got, winner.name)
	}
}

// A Lease whose holder died long ago keeps nobody waiting.
func TestLeaseThatRanOut(t *testing.T) {
	c := newCluster("a", "b")
	c.lease.Holder = "z"
	rs := c.replicas(t, "a", "b")
	c.run(t, rs, 2*leaseDuration)
	rs["b"].stopped = true
	c.see(rs, "a", "b", Dead)
	c.run(t, rs, time.Second)
	if got := c.ready(); got != "a" {
		t.Errorf("in service %q a second after b died, want a", got)
	}
}

// An error is logged once, and again when it is another one.
func TestErrorsAreLoggedOnce(t *testing.T) {
	c := newCluster("a", "b", "c")
	rs := c.replicas(t, "a", "b", "c")
	c.broken["a"] = errors.New("first fault")
	c.see(rs, "a", "c", Dead)
	c.run(t, rs, time.Minute)
	c.broken["a"] = errors.New("second fault")
	c.run(t, rs, time.Minute)
	for _, fault := range []string{"first fault", "second fault"} {
		count := 0
		for line := range strings.Lines(rs["a"].log.String()) {
			if strings.Contains(line, fault) && strings.Contains(line, "dead replica") {
				count++
			}
		}
		if count != 1 {
			t.Errorf("%d lines about the Pod of c with %q, want 1:\n%s", count, fault, rs["a"].log)
		}
	}
}

// Run follows the fleet, and gives the Lease back in the end.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b")
		rs := c.replicas(t, "a", "b")
		changes := make(chan struct{}, 1)
		a := rs["a"]
		a.Changes, a.Now = changes, time.Now
		a.members["b"] = Member{Name: "b", State: Dead, Since: time.Now()}
		ended := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { a.Run(ctx); close(ended) }()
		time.Sleep(time.Second)
		synctest.Wait() // sleeping alone does not order what is read below
		if got, holder := c.ready(), c.lease.Holder; got != "a" || holder != "a" {
			t.Errorf("in service %q, Lease of %q, want a and a", got, holder)
		}
		a.members["b"] = Member{Name: "b", State: Alive, Since: time.Now()}
		changes <- struct{}{}
		synctest.Wait()
		if c.lease.Holder != "" {
			t.Errorf("%s holds the Lease although b is alive", c.lease.Holder)
		}
		a.members["b"] = Member{Name: "b", State: Dead, Since: time.Now().Add(1)}
		time.Sleep(time.Second / 2) // a second after the change it looks at itself
		synctest.Wait()             // sleeping alone does not order what is read below
		c.pods["b"].Ready = statusTrue
		changes <- struct{}{}
		time.Sleep(time.Second)
		synctest.Wait() // sleeping alone does not order what is read below
		cancel()
		<-ended
		want := []string{"a lease=a", "a b serving=False Ready=False", "a lease=", "a lease=a", "a b serving=False Ready=False", "a lease="}
		if diff := cmp.Diff(want, c.writes); diff != "" {
			t.Errorf("writes (-want +got):\n%s", diff)
		}
	})
}
