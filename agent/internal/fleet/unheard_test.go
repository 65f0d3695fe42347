package fleet

import (
	"testing"
	"time"
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
	tr.want("and does not answer", b.Tick(tr.now), NotRefused, silent)
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
