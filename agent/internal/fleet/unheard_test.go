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
	call, silent := Call{Peer: alice, Port: 51820, Endpoint: home}, Call{Peer: alice}
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
	silent := Call{Peer: alice}
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

// TestRecalled draws a peer back that has come a moment ago, and leaves one alone that was
// here for long: it may have gone there.
func TestRecalled(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	tr.serve("a", alice, 1)
	a := tr.all["a"]
	tr.want("at once", a.Recalled(a.Own(), tr.now), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home, Nudge: true})
	tr.pass(2 * pulledWhileLeave)
	tr.want("later", a.Recalled(a.Own(), tr.now), NotRefused)
}

// TestHint: a peer that moves before it has used the session that it began is known
// wherever it goes. That moves nobody: an initiation can be recorded and sent again.
func TestHint(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c")
	tr.serve("a", alice, 1, "b", "c")
	tr.pass(2 * time.Minute)
	b, whose := tr.all["b"], func([]byte, netip.AddrPort) (key.Public, bool) { return alice, true }
	answer := response(true, home, 2, 20)
	answer.Port = 51820
	e := b.Message(answer, whose, tr.now)
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
	tr.want("it goes to c with it", tr.stranger("c", 2, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
	if _, known := tr.all["c"].table.Find(2); known {
		t.Error("a hint counts as a session")
	}
	tr.pass(startedLifetime)
	tr.want("nobody has used it", b.Tick(tr.now), NotRefused)
	tr.want("it is used late", tr.stranger("b", 2, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
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
	b, whose := tr.all["b"], func([]byte, netip.AddrPort) (key.Public, bool) { return alice, true }
	b.Message(firewall.Message{Out: true, Type: messageTypeInit, Index: 2, Port: 51820, Remote: home}, whose, tr.now)
	e := b.Message(response(false, home, 20, 2), whose, tr.now)
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
		a.Heard(tr.all["b"].State(), tr.now)
		e := a.Unseen([]Session{made(alice, first), made(bob, tr.now.Add(-time.Second)), made(person(3), tr.now)}, tr.now)
		if !siblings {
			tr.want("there is nobody to go to", e, NotRefused)
			continue
		}
		tr.want("bob has a newer one", e, NotRefused, Call{Peer: bob, Port: 51820, Endpoint: home})
		if a.Holds(bob) || !a.Holds(alice) {
			t.Error("the session of before counts, or another one does not")
		}
	}
}
