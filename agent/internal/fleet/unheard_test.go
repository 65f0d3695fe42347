package fleet

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// TestSilentAfterwards: a device that was made to call a peer falls silent when a sibling has
// it, or nobody answers, though the peer was elsewhere before and is so after: left alone,
// WireGuard repeats the call for 90 s and undoes what the sibling has.
func TestSilentAfterwards(t *testing.T) {
	alice := person(1)
	call, silent := Call{Peer: alice, Port: 51820, Endpoint: home}, Call{Peer: alice, Silence: true}
	begin := func() (*troupe, *Replica) {
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c")
		tr.serve("a", alice, 1, "b", "c")
		tr.pass(time.Minute)
		tr.want("it comes to b", tr.stranger("b", 1, home), NotRefused, call)
		return tr, tr.all["b"]
	}
	tr, b := begin()
	e := tr.serve("c", alice, 2)
	tr.want("and goes to c", b.Heard(e.Publish, tr.now), NotRefused, silent)
	tr.want("which is told again", b.Heard(e.Publish, tr.now), NotRefused)

	tr, b = begin()
	tr.pass(callingFor)
	e = b.Tick(tr.now)
	tr.want("and does not answer", e, NotRefused, silent)
	if len(e.Recall) != 1 || e.Recall[0].Index != 1 {
		t.Errorf("its holder is not told: %+v", e.Recall)
	}
	tr.want("once", b.Tick(tr.now), NotRefused)

	tr, b = begin()
	b.Started(3, alice, true, tr.now)
	if !b.IsOver(call) || !b.IsOver(silent) || b.IsOver(Call{Peer: alice, Nudge: true}) {
		t.Error("a call would end the handshake that the peer has begun")
	}
	b.undo(IDOf(alice))
	if b.IsOver(call) {
		t.Error("a handshake that is undone keeps the peer from being called")
	}
}

// TestUnheard: a device that gets no answer holds a peer up that is elsewhere. It falls
// silent where there is a sign of that, and of WireGuard's own initiations alone.
func TestUnheard(t *testing.T) {
	alice := person(1)
	silent := Call{Peer: alice, Silence: true}
	suspicions := map[string]func(*troupe){
		"a sibling gets its packets": func(tr *troupe) { tr.all["a"].Recalled(tr.all["a"].Own(), tr.now) },
		"a sibling is gone": func(tr *troupe) {
			tr.all["a"].SetMembers([]Member{{Name: "a"}})
			tr.all["a"].Tick(tr.now)
		},
		"none": func(*troupe) {},
	}
	for name, suspect := range suspicions {
		for _, answered := range []bool{false, true} {
			tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
			tr.serve("a", alice, 1)
			a := tr.all["a"]
			tr.pass(time.Minute)
			suspect(tr)
			a.Started(2, alice, false, tr.now)
			if answered {
				a.Answered(2, tr.now)
			}
			tr.pass(callingFor)
			e := a.Tick(tr.now)
			if answered || name == "none" {
				tr.want(name+": it is left alone", e, NotRefused)
				continue
			}
			tr.want(name, e, NotRefused, silent)
			if d := cmp.Diff([]uint32{1}, e.Strangers); d != "" {
				t.Errorf("%s: strangers (-want +got):\n%s", name, d)
			}
			for range orphanEvery/time.Second - 1 {
				tr.pass(time.Second)
				tr.want(name+": it has time", a.Tick(tr.now), NotRefused)
			}
			tr.pass(time.Second)
			tr.want(name+": and is called now and then", a.Tick(tr.now), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
			tr.pass(callingFor)
			a.Tick(tr.now)
			tr.want(name+": it is here after all", tr.stranger("a", 1, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
		}
	}
}

// TestLostOnce: of the messages by which WireGuard renews a session, one may be lost. The
// session goes on, unless a second one is unanswered too; and where the sibling had said
// goodbye, in any case.
func TestLostOnce(t *testing.T) {
	alice := person(1)
	for _, tt := range []struct {
		name    string
		age     time.Duration // of the session
		drained bool
		lost    int
		silent  bool
	}{
		{"one of a renewal", rekeyAfter, false, 1, false},
		{"two of a renewal", rekeyAfter, false, 2, true},
		{"one, when nothing came for 15 s", time.Minute, false, 1, true},
		{"two, after a goodbye", rekeyAfter, true, 2, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
			tr.serve("a", alice, 1)
			a := tr.all["a"]
			tr.pass(tt.age)
			a.SetMembers([]Member{{Name: "a"}, {Name: "b", Draining: tt.drained}})
			a.SetMembers([]Member{{Name: "a"}})
			a.Tick(tr.now)
			for i := range tt.lost {
				a.Started(uint32(2+i), alice, false, tr.now)
				tr.pass(5 * time.Second) // REKEY_TIMEOUT
			}
			var want []Call
			if tt.silent {
				want = []Call{{Peer: alice, Silence: true}}
			}
			tr.want("unanswered", a.Tick(tr.now.Add(-time.Second)), NotRefused, want...)
		})
	}
}

// TestSilentSite: a site that a replica was made to call is left to who serves it.
func TestSilentSite(t *testing.T) {
	site := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: site, Site: true}}, "a", "b")
	tr.serve("a", site, 1, "b")
	tr.pass(time.Minute)
	b := tr.all["b"]
	tr.want("it comes to b", tr.stranger("b", 1, home), NotRefused, Call{Peer: site, Port: 51820, Endpoint: home})
	tr.pass(callingFor)
	tr.want("and does not answer", b.Tick(tr.now), NotRefused, Call{Peer: site, Silence: true})
	tr.want("once", b.Tick(tr.now), NotRefused)
}

// TestOrderOfCalls: what was given up before it was made is not made, and of two calls the
// peer takes the one that began later.
func TestOrderOfCalls(t *testing.T) {
	alice := person(1)
	call := Call{Peer: alice, Port: 51820, Endpoint: home}
	begin := func() *troupe {
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c")
		tr.serve("a", alice, 1, "b", "c")
		tr.pass(time.Minute)
		return tr
	}
	tr := begin()
	tr.want("it comes to b", tr.stranger("b", 1, home), NotRefused, call)
	if tr.all["b"].IsOver(call) {
		t.Error("a call is over before it was made")
	}
	tr.all["b"].Heard(tr.serve("c", alice, 2).Publish, tr.now)
	if !tr.all["b"].IsOver(call) {
		t.Error("a call is made after c has the peer")
	}

	tr = begin()
	tr.all["c"].Started(2, alice, false, tr.now)
	tr.pass(30 * time.Millisecond)
	tr.want("it comes to b", tr.stranger("b", 1, home), NotRefused, call)
	b := tr.all["b"]
	b.Started(3, alice, false, tr.now)
	tr.pass(30 * time.Millisecond)
	e := tr.all["c"].Confirmed(2, tr.now)
	tr.want("c, which had begun before", b.Heard(e.Publish, tr.now), NotRefused)
	tr.pass(30 * time.Millisecond)
	tr.all["c"].Heard(b.Confirmed(3, tr.now).Publish, tr.now)
	tr.elsewhere("b", nil)
	tr.elsewhere("c", map[key.Public]string{alice: "b"})
}

// TestConfirmedLate: a reminder of a handshake that the peer uses by then asks for nothing,
// and one of a call that it has not used yet for a packet: what confirmed it may be lost.
func TestConfirmedLate(t *testing.T) {
	alice := person(1)
	for _, used := range []bool{false, true} {
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a")
		tr.serve("a", alice, 1)
		var want []Call
		if used {
			tr.stranger("a", 1, home)
		} else {
			want = []Call{{Peer: alice, Port: 51820, Endpoint: home, Nudge: true}}
		}
		tr.want("a reminder", tr.all["a"].Remind(Reminder{Peer: IDOf(alice), Index: 1, Handshake: true}, tr.now), NotRefused, want...)
	}
}

// TestRecalled draws a peer back that has come a moment ago, and leaves one alone that was
// here for long: it may have gone there.
func TestRecalled(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	tr.serve("a", alice, 1)
	a := tr.all["a"]
	tr.want("at once", a.Recalled(a.Own(), tr.now), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home, Nudge: true})
	tr.pass(settled)
	tr.want("later", a.Recalled(a.Own(), tr.now), NotRefused)
}

// TestHint: a peer that moves before it has used the session that it began is known
// wherever it goes. That moves nobody: an initiation can be recorded and sent again.
func TestHint(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c")
	tr.serve("a", alice, 1, "b", "c")
	tr.pass(2 * time.Minute)
	b := tr.all["b"]
	answer := response(true, home, 2, 20)
	answer.Port = 51820
	e := tr.message("b", alice, answer)
	if len(e.Reminders) != 1 {
		t.Fatalf("reminders are %+v, want one", e.Reminders)
	}
	tr.pass(e.Reminders[0].After)
	e = b.Remind(e.Reminders[0], tr.now)
	if len(e.Publish) != 1 || e.Publish[0].Seq != 0 || e.Publish[0].Index != 2 {
		t.Fatalf("published is %+v, want a hint of 2", e.Publish)
	}
	for _, n := range []string{"a", "c"} {
		got := tr.all[n].Heard(e.Publish, tr.now)
		if d := cmp.Diff([]uint32{2}, got.Strangers); d != "" {
			t.Errorf("strangers of %s (-want +got):\n%s", n, d)
		}
	}
	tr.elsewhere("a", nil)
	tr.elsewhere("c", map[key.Public]string{alice: "a"})
	tr.want("from another address", tr.stranger("c", 2, spy), Late)
	tr.want("to who holds it, from another address", tr.stranger("a", 2, spy), Late)
	tr.want("to who holds it, from another port", tr.stranger("a", 2, netip.AddrPortFrom(home.Addr(), 1)), Late)
	tr.want("it goes to c with it", tr.stranger("c", 2, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
	if _, known := tr.all["c"].table.Find(2); known {
		t.Error("a hint counts as a session")
	}
	tr.pass(startedLifetime)
	tr.want("nobody has used it", b.Tick(tr.now), NotRefused)
	tr.want("it is used late", tr.stranger("b", 2, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
	other := Session{Index: 5, Peer: IDOf(alice), Holder: ReplicaIDOf("b"), Since: tr.now, Port: 51820, Endpoint: home}
	if e := tr.all["a"].Heard([]Session{other}, tr.now); len(tr.all["a"].hints) != 1 || !slices.Contains(e.Known, 2) {
		t.Errorf("of each peer there is one hint: %v, %v", tr.all["a"].hints, e.Known)
	}
	tr.pass(sessionLifetime)
	for _, n := range []string{"b", "c"} {
		if e := tr.all[n].Tick(tr.now); len(tr.all[n].hints) != 0 || !slices.Contains(e.Known, 2) {
			t.Errorf("%s keeps a hint, or watches for it: %v, %v", n, tr.all[n].hints, e.Known)
		}
	}
}

// TestCrossed calls a peer again whose own handshake has crossed our call: it has answered,
// and neither side makes anything of it.
func TestCrossed(t *testing.T) {
	alice := person(1)
	call := Call{Peer: alice, Port: 51820, Endpoint: home}
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	tr.serve("a", alice, 1, "b")
	tr.pass(time.Minute)
	tr.want("it comes to b", tr.stranger("b", 1, home), NotRefused, call)
	b := tr.all["b"]
	tr.message("b", alice, firewall.Message{Out: true, Type: messageTypeInit, Index: 2, Port: 51820, Remote: home})
	e := tr.message("b", alice, response(false, home, 20, 2))
	if len(e.Reminders) != 1 {
		t.Fatalf("reminders are %+v, want one", e.Reminders)
	}
	tr.pass(e.Reminders[0].After)
	tr.want("nothing came of it", b.Remind(e.Reminders[0], tr.now), NotRefused, call)
}

// TestUnseen calls peers whose sessions the device has and nobody knows of.
func TestUnseen(t *testing.T) {
	alice, bob := person(1), person(2)
	made := func(k key.Public, at time.Time) Session {
		return Session{Peer: IDOf(k), Since: at, Port: 51820, Endpoint: home}
	}
	for _, siblings := range []bool{true, false} {
		tr := newTroupe(t, []Peer{{PublicKey: alice}, {PublicKey: bob}}, "a", "b")
		tr.serve("a", alice, 1, "b")
		tr.serve("a", bob, 2, "b")
		first := tr.now
		tr.pass(2 * time.Minute)
		a := NewReplica("a", true)
		a.Configure([]Peer{{PublicKey: alice}, {PublicKey: bob}})
		if siblings {
			a.SetMembers([]Member{{Name: "a"}, {Name: "b"}})
		}
		a.Unseen([]Session{made(alice, first), made(bob, tr.now.Add(-time.Second)), made(person(3), tr.now)})
		a.Heard(tr.all["b"].State(), tr.now)
		tr.want("siblings may know", a.Tick(tr.now), NotRefused)
		a.Compared(nil, tr.now)
		e := a.Tick(tr.now)
		if !siblings {
			tr.want("there is nobody to go to", e, NotRefused)
			continue
		}
		tr.want("bob has a newer one", e, NotRefused, Call{Peer: bob, Port: 51820, Endpoint: home})
		if a.Holds(bob) || !a.Holds(alice) {
			t.Error("the session of before counts, or another one does not")
		}
		// A moment later: one of a handshake that was under way, and one that was seen and is
		// not confirmed yet.
		tr.pass(2 * time.Second)
		a.Started(9, bob, true, tr.now)
		a.Unseen([]Session{made(alice, tr.now), made(bob, tr.now)})
		tr.want("alice has a newer one", a.Tick(tr.now), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
	}
}

// TestHintOfTheNewer: a peer that has begun a handshake with a sibling, and comes back before
// anybody has seen it used, is called by who holds it.
func TestHintOfTheNewer(t *testing.T) {
	alice := person(1)
	hint := func(since time.Time) Session {
		return Session{Index: 2, Peer: IDOf(alice), Holder: ReplicaIDOf("b"), Since: since, Port: 51820, Endpoint: home}
	}
	start := func(t *testing.T) *troupe {
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
		tr.serve("a", alice, 1, "b")
		tr.stranger("a", 1, home) // it is used
		return tr
	}
	t.Run("newer", func(t *testing.T) {
		tr := start(t)
		tr.pass(time.Minute)
		tr.all["a"].Heard([]Session{hint(tr.now)}, tr.now)
		e := tr.stranger("a", 2, home)
		tr.want("its packet", e, NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
		if d := cmp.Diff([]uint32{1}, e.Strangers); d != "" {
			t.Errorf("watched for (-want +got):\n%s", d)
		}
		tr.want("the next one", tr.stranger("a", 2, home), TooSoon)
		tr.pass(firstRetry)
		again := tr.stranger("a", 2, home)
		tr.want("after a lost answer", again, NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
		if len(again.Recall) > 0 {
			t.Error("it recalls itself")
		}
	})
	t.Run("older", func(t *testing.T) { // than a session that it was called for since
		tr := start(t)
		tr.all["a"].Heard([]Session{hint(tr.now.Add(-time.Second))}, tr.now)
		tr.want("its packet", tr.stranger("a", 2, home), Late)
	})
}

// A peer may lose a session that is new: where somebody else calls it before it has heard from
// us. It goes on with the one before, and is called again.
func TestUnknownSession(t *testing.T) {
	alice := person(1)
	call := Call{Peer: alice, Port: 51820, Endpoint: home}
	// start has a renew its session with alice, who answers, and says no more.
	start := func(t *testing.T) *troupe {
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
		tr.serve("a", alice, 1, "b")
		tr.stranger("a", 1, home)
		tr.pass(rekeyAfter)
		tr.serve("a", alice, 2, "b")
		e := tr.all["a"].Remind(Reminder{After: firstRetry, Peer: IDOf(alice), Index: 2, Handshake: true}, tr.now.Add(firstRetry))
		if d := cmp.Diff([]uint32{1, 2}, slices.Sorted(slices.Values(e.Strangers))); d != "" {
			t.Fatalf("watched (-want +got):\n%s", d)
		}
		return tr
	}
	t.Run("called again", func(t *testing.T) {
		tr := start(t)
		tr.pass(unusedFor)
		e := tr.stranger("a", 1, home)
		tr.want("by the one before", e, NotRefused, call)
		if len(e.Tell) != 1 {
			t.Errorf("siblings are told of %d calls, want one", len(e.Tell))
		}
		if d := cmp.Diff([]uint32{1, 2}, slices.Sorted(slices.Values(e.Strangers))); d != "" {
			t.Errorf("watched then (-want +got):\n%s", d)
		}
	})
	t.Run("under way when it was made", func(t *testing.T) {
		tr := start(t)
		tr.pass(unusedFor - time.Millisecond)
		tr.want("by the one before", tr.stranger("a", 1, home), NotRefused)
	})
	t.Run("used", func(t *testing.T) {
		tr := start(t)
		if e := tr.stranger("a", 2, home); !slices.Equal(e.Known, []uint32{2}) {
			t.Errorf("watched no more: %v, want 2", e.Known)
		}
		tr.pass(unusedFor)
		tr.want("by the one before", tr.stranger("a", 1, home), NotRefused)
	})
	t.Run("repeated by somebody", func(t *testing.T) {
		tr := start(t)
		tr.pass(unusedFor)
		tr.want("by the one before", tr.stranger("a", 1, spy), NotRefused)
	})
	t.Run("over", func(t *testing.T) {
		tr := start(t)
		tr.pass(time.Second)
		tr.serve("a", alice, 3, "b") // three are kept
		tr.pass(time.Second)
		e := tr.serve("a", alice, 4, "b")
		if d := cmp.Diff([]uint32{1}, e.Known); d != "" {
			t.Errorf("watched no more (-want +got):\n%s", d)
		}
	})
}
