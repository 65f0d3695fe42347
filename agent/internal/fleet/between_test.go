package fleet

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// A load balancer that loses three replicas within a moment may send a client of the first
// to the second, and on to one that stays before it has answered. Of two initiations within
// 20 ms the client would drop the second.
func TestBetweenCalls(t *testing.T) {
	alice := person(1)
	call := Call{Peer: alice, Port: 51820, Endpoint: home}
	start := func(t *testing.T) *troupe {
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c")
		tr.serve("a", alice, 1, "b", "c")
		tr.pass(time.Minute)
		e := tr.stranger("b", 1, home)
		tr.want("at b", e, NotRefused, call)
		tr.all["c"].Heard(e.Tell, tr.now)
		return tr
	}
	held := func(t *testing.T) (*troupe, Effects) {
		tr := start(t)
		tr.pass(10 * time.Millisecond)
		e := tr.stranger("c", 1, home)
		tr.want("at c", e, TooSoon)
		return tr, e
	}
	remind := func(tr *troupe, what string, e Effects, refused Refusal, calls ...Call) {
		tr.t.Helper()
		if len(e.Reminders) != 1 {
			tr.t.Fatalf("%s: %d reminders, want one", what, len(e.Reminders))
		}
		tr.pass(e.Reminders[0].After)
		tr.want(what, tr.all["c"].Remind(e.Reminders[0], tr.now), refused, calls...)
	}
	t.Run("moved on", func(t *testing.T) {
		tr, first := held(t)
		tr.pass(10 * time.Millisecond)
		second := tr.stranger("c", 1, home)
		tr.want("still", second, TooSoon)
		if len(second.Reminders) != 0 {
			t.Error("the second packet is kept in mind, too")
		}
		tr.pass(-10 * time.Millisecond)
		remind(tr, "after the other's call", first, NotRefused, call)
	})
	t.Run("moved on late", func(t *testing.T) {
		tr := start(t)
		tr.pass(betweenCalls)
		tr.want("at c", tr.stranger("c", 1, home), NotRefused, call)
	})
	t.Run("not moved on", func(t *testing.T) {
		tr, late := held(t) // a packet that somebody repeats, or on a detour
		tr.serve("b", alice, 2, "a", "c")
		remind(tr, "it has answered the other one", late, NotRefused)
	})
	t.Run("two others call", func(t *testing.T) {
		tr, first := held(t)
		tr.pass(10 * time.Millisecond)
		tr.all["c"].Heard([]Session{{Peer: IDOf(alice), Holder: ReplicaIDOf("a"), Since: tr.now, Endpoint: home}}, tr.now)
		tr.pass(-10 * time.Millisecond)
		again := tr.all["c"].Remind(first.Reminders[0], tr.now.Add(first.Reminders[0].After))
		tr.want("after the first of them", again, TooSoon)
		tr.pass(first.Reminders[0].After)
		remind(tr, "after the second", again, NotRefused, call)
	})
	t.Run("called elsewhere", func(t *testing.T) { // as whoever repeats its packets would have it
		tr := start(t)
		tr.pass(10 * time.Millisecond)
		away := netip.AddrPortFrom(spy.Addr(), home.Port())
		tr.want("at c", tr.stranger("c", 1, away), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: away})
	})
	t.Run("somebody repeats the message", func(t *testing.T) {
		tr := start(t)
		tr.pass(10 * time.Millisecond)
		begins := tr.now
		for tr.stranger("c", 1, home).Refused == TooSoon {
			tr.pass(10 * time.Millisecond)
			tr.all["c"].Heard([]Session{{Peer: IDOf(alice), Holder: ReplicaIDOf("b"), Since: tr.now, Endpoint: home}}, tr.now)
			if held := tr.now.Sub(begins); held > reluctance+betweenCalls {
				t.Fatalf("held for %s", held)
			}
		}
	})
	// called has c call at last.
	called := func(t *testing.T) *troupe {
		tr, first := held(t)
		tr.pass(first.Reminders[0].After)
		tr.want("after the other's call", tr.all["c"].Remind(first.Reminders[0], tr.now), NotRefused, call)
		return tr
	}
	t.Run("one of both was dropped", func(t *testing.T) { // the other's left later than it said
		tr := called(t)
		tr.left("c", alice, home)
		tr.pass(earlyAfter - time.Millisecond)
		tr.want("at once", tr.stranger("c", 1, home), TooSoon)
		tr.pass(time.Millisecond)
		tr.want("it is still there", tr.stranger("c", 1, home), NotRefused, call)
		tr.left("c", alice, home)
		tr.pass(earlyAfter)
		tr.want("once more", tr.stranger("c", 1, home), TooSoon)
		tr.pass(firstRetry - earlyAfter)
		tr.want("in its turn", tr.stranger("c", 1, home), NotRefused, call)
	})
	t.Run("it waits for a processor", func(t *testing.T) { // two of our own would be too many as well
		tr := called(t)
		tr.pass(2 * firstRetry)
		tr.want("not sent yet", tr.stranger("c", 1, home), TooSoon)
		late := tr.left("c", alice, home).Tell
		if d := cmp.Diff([]Session{{Peer: IDOf(alice), Holder: ReplicaIDOf("c"), Since: tr.now, Port: 51820, Endpoint: home}}, late, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
			t.Errorf("told (-want +got):\n%s", d)
		}
		tr.pass(firstRetry - time.Millisecond)
		tr.want("on its way", tr.stranger("c", 1, home), TooSoon)
		tr.pass(time.Millisecond)
		tr.want("in its turn", tr.stranger("c", 1, home), NotRefused, call)
	})
	t.Run("the other's call was said too late", func(t *testing.T) {
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c")
		tr.serve("a", alice, 1, "b", "c")
		tr.pass(time.Minute)
		late := tr.stranger("b", 1, home).Tell
		tr.pass(betweenCalls / 2)
		tr.want("at c", tr.stranger("c", 1, home), NotRefused, call)
		if e := tr.left("c", alice, home); len(e.Tell) != 0 {
			t.Error("a call that left at once is told of twice")
		}
		tr.all["c"].Heard(late, tr.now)
		tr.pass(earlyAfter)
		tr.want("it is still there", tr.stranger("c", 1, home), NotRefused, call)
	})
	t.Run("it has answered", func(t *testing.T) { // from far away
		tr := called(t)
		tr.left("c", alice, home)
		tr.all["c"].Started(7, alice, false, tr.now)
		tr.pass(earlyAfter)
		tr.all["c"].Answered(7, tr.now)
		tr.want("its data", tr.stranger("c", 1, home), TooSoon)
	})
	t.Run("somebody repeats its packets", func(t *testing.T) { // and is called at b, as it is at c
		tr := called(t)
		tr.left("c", alice, home)
		tr.all["c"].Heard([]Session{{Peer: IDOf(alice), Holder: ReplicaIDOf("b"), Since: tr.now, Endpoint: spy}}, tr.now)
		tr.pass(earlyAfter)
		tr.want("from elsewhere", tr.stranger("c", 1, spy), TooSoon)
	})
	t.Run("it never leaves", func(t *testing.T) { // the queue was full
		tr := called(t)
		tr.pass(longestTurn)
		tr.want("at last", tr.stranger("c", 1, home), NotRefused, call)
	})
	t.Run("it was slow to answer", func(t *testing.T) { // and drops the call that undid the first one
		tr := called(t)
		tr.left("c", alice, home)
		tr.all["c"].Started(7, alice, false, tr.now)
		tr.all["c"].Located(7, 51820, home)
		tr.pass(earlyAfter)
		tr.want("it is still there", tr.stranger("c", 1, home), NotRefused, call)
		tr.left("c", alice, home)
		tr.all["c"].Confirmed(7, tr.now)
		tr.pass(betweenCalls - time.Millisecond)
		tr.want("by what was undone, at once", tr.stranger("c", 7, home), TooSoon)
		tr.pass(time.Millisecond)
		tr.want("by what was undone", tr.stranger("c", 7, home), NotRefused, call)
		tr.left("c", alice, home)
		tr.all["c"].Confirmed(7, tr.now)
		tr.pass(earlyAfter)
		tr.want("and once more", tr.stranger("c", 7, home), TooSoon)
	})
	t.Run("the call of nobody that is known", func(t *testing.T) {
		tr := start(t)
		tr.all["c"].Heard([]Session{{Peer: IDOf(person(2)), Holder: ReplicaIDOf("b"), Since: tr.now}}, tr.now)
		if n := len(tr.all["c"].begun); n != 1 {
			t.Errorf("%d calls are kept in mind, want one", n)
		}
		tr.pass(time.Second)
		tr.all["c"].Tick(tr.now)
		if n := len(tr.all["c"].begun); n != 0 {
			t.Errorf("%d calls are kept in mind a second later, want none", n)
		}
	})
}

// A replica that leaves calls nobody whom the load balancer is about to move on.
func TestReluctance(t *testing.T) {
	alice := person(1)
	call := Call{Peer: alice, Port: 51820, Endpoint: home}
	start := func(t *testing.T, members ...Member) (tr *troupe, first Effects) {
		tr = newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c")
		tr.serve("a", alice, 1, "b", "c")
		tr.pass(time.Minute)
		tr.all["b"].SetMembers(append(members, Member{Name: "a"}, Member{Name: "b", Draining: true}))
		first = tr.stranger("b", 1, home)
		tr.want("at the replica that leaves", first, TooSoon)
		if len(first.Reminders) != 1 || first.Reminders[0].After != reluctance {
			t.Fatalf("reminders %+v, want one after %s", first.Reminders, reluctance)
		}
		return tr, first
	}
	t.Run("moved on", func(t *testing.T) {
		tr, first := start(t, Member{Name: "c"})
		tr.pass(reluctance / 2)
		tr.want("at the one that stays", tr.stranger("c", 1, home), NotRefused, call)
		tr.serve("c", alice, 2, "b")
		tr.pass(reluctance / 2)
		tr.want("at the one that leaves", tr.all["b"].Remind(first.Reminders[0], tr.now), NotRefused)
	})
	t.Run("moved on, and called", func(t *testing.T) {
		tr, first := start(t, Member{Name: "c"})
		tr.pass(reluctance - betweenCalls/2)
		tr.all["b"].Heard(tr.stranger("c", 1, home).Tell, tr.now)
		tr.pass(betweenCalls / 2)
		tr.want("at the one that leaves", tr.all["b"].Remind(first.Reminders[0], tr.now), TooSoon)
		tr.pass(reluctance - betweenCalls/2 - time.Millisecond) // more than a call of one that stays
		tr.want("while it may answer the other", tr.stranger("b", 1, home), TooSoon)
		tr.pass(time.Millisecond)
		tr.want("which it does not", tr.stranger("b", 1, home), NotRefused, call)
	})
	t.Run("somebody repeats the message of the one that stays", func(t *testing.T) {
		tr, _ := start(t, Member{Name: "c"})
		begins := tr.now
		for tr.stranger("b", 1, home).Refused == TooSoon {
			tr.pass(10 * time.Millisecond)
			tr.all["b"].Heard([]Session{{Peer: IDOf(alice), Holder: ReplicaIDOf("c"), Since: tr.now, Endpoint: home}}, tr.now)
			if held := tr.now.Sub(begins); held > 2*reluctance {
				t.Fatalf("held for %s", held)
			}
		}
	})
	t.Run("not moved on", func(t *testing.T) {
		tr, _ := start(t, Member{Name: "c"})
		tr.pass(reluctance / 2)
		tr.want("for a while", tr.stranger("b", 1, home), TooSoon)
		tr.pass(reluctance / 2)
		tr.want("that is over", tr.stranger("b", 1, home), NotRefused, call)
	})
	t.Run("silent", func(t *testing.T) {
		tr, first := start(t, Member{Name: "c"})
		tr.pass(reluctance)
		tr.want("reminded", tr.all["b"].Remind(first.Reminders[0], tr.now), NotRefused, call)
	})
}

// The message to the former holder of a peer may be lost: it is told again, once.
func TestToldAgain(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	tr.serve("a", alice, 1, "b")
	tr.pass(time.Minute)
	adopted := tr.serve("b", alice, 2) // a does not hear of it
	tr.elsewhere("a", nil)
	told := 0
	for _, m := range adopted.Reminders {
		e := tr.all["b"].Remind(m, tr.now.Add(m.After))
		told += len(e.Tell)
		tr.all["a"].Heard(e.Tell, tr.now.Add(m.After))
	}
	if told != 1 {
		t.Errorf("told %d times again, want once", told)
	}
	tr.elsewhere("a", map[key.Public]string{alice: "b"})
}

// A NAT may give a client another port just when it is called: it is called there, once, and
// does not wait for its turn.
func TestRemapped(t *testing.T) {
	alice := person(1)
	port := func(p uint16) netip.AddrPort { return netip.AddrPortFrom(home.Addr(), p) }
	call := func(p uint16) Call { return Call{Peer: alice, Port: 51820, Endpoint: port(p)} }
	start := func(t *testing.T) *troupe {
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
		tr.serve("a", alice, 1, "b")
		tr.pass(time.Minute)
		tr.want("the first port", tr.stranger("b", 1, port(1)), NotRefused, call(1))
		tr.left("b", alice, port(1))
		tr.pass(betweenCalls / 2)
		return tr
	}
	t.Run("once", func(t *testing.T) {
		tr := start(t)
		tr.want("another port", tr.stranger("b", 1, port(2)), TooSoon)
		tr.pass(earlyAfter - betweenCalls/2)
		tr.want("for a while", tr.stranger("b", 1, port(2)), NotRefused, call(2))
		tr.left("b", alice, port(2))
		tr.pass(earlyAfter)
		tr.want("a third port", tr.stranger("b", 1, port(3)), TooSoon)
	})
	t.Run("both are in use", func(t *testing.T) {
		tr := start(t)
		tr.want("the first port", tr.stranger("b", 1, port(1)), TooSoon)
		tr.pass(earlyAfter)
		tr.want("another port", tr.stranger("b", 1, port(2)), TooSoon)
	})
	t.Run("another address", func(t *testing.T) {
		tr := start(t)
		tr.pass(earlyAfter)
		tr.want("somebody", tr.stranger("b", 1, spy), TooSoon)
	})
}
