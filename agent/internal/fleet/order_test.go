package fleet

import (
	"testing"
	"time"
)

// TestAnswered does not call again while WireGuard makes a session of a response.
func TestAnswered(t *testing.T) {
	alice := person(1)
	call := Call{Peer: alice, Port: 51820, Endpoint: home}
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	tr.serve("a", alice, 1, "b")
	b := tr.all["b"]
	tr.pass(time.Minute)
	tr.want("the first packet", tr.stranger("b", 1, home), NotRefused, call)
	b.Started(2, alice, false, tr.now)
	tr.pass(firstRetry - time.Millisecond)
	b.Answered(2, tr.now)
	b.Answered(3, tr.now) // of nobody's
	tr.pass(time.Millisecond)
	tr.want("it has just answered", tr.stranger("b", 1, home), TooSoon)
	tr.pass(firstRetry - 2*time.Millisecond)
	b.Answered(2, tr.now) // by whoever repeats it
	tr.want("still", tr.stranger("b", 1, home), TooSoon)
	tr.pass(time.Millisecond)
	tr.want("it led to nothing", tr.stranger("b", 1, home), NotRefused, call)
}

// TestMovedTwice moves a peer on before it has heard from the replica that called it.
func TestMovedTwice(t *testing.T) {
	alice := person(1)
	call := Call{Peer: alice, Port: 51820, Endpoint: home}
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c", "d")
	tr.serve("a", alice, 1, "b", "c", "d")
	tr.pass(time.Minute)
	tr.want("it passes by d", tr.stranger("d", 1, home), NotRefused, call)
	tr.pass(10 * time.Millisecond)
	tr.want("it comes to b", tr.stranger("b", 1, home), NotRefused, call)
	tr.serve("b", alice, 2, "a", "c", "d")
	tr.pass(10 * time.Millisecond)
	tr.want("what was under way to a", tr.stranger("a", 1, home), Late)
	tr.want("what was under way to d", tr.stranger("d", 1, home), Late)
	tr.want("it comes to c, and knows nothing of b", tr.stranger("c", 1, home), NotRefused, call)
	tr.pass(lateFor)
	tr.want("it comes back to d", tr.stranger("d", 1, home), NotRefused, call)
}

// TestBothCalled has two replicas call a peer at nearly the same time, neither of which
// knows of the other: the peer uses the session that began later, whichever is confirmed
// first and whoever hears of it first.
func TestBothCalled(t *testing.T) {
	alice := person(1)
	for _, names := range [][2]string{{"b", "c"}, {"c", "b"}} {
		for _, firstFirst := range []bool{true, false} {
			for _, unheard := range []bool{true, false} {
				tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c")
				tr.serve("a", alice, 1, "b", "c")
				tr.pass(time.Minute)
				earlier, later := tr.all[names[0]], tr.all[names[1]]
				earlier.Started(2, alice, false, tr.now)
				tr.pass(20 * time.Millisecond)
				later.Started(3, alice, false, tr.now)
				tr.pass(20 * time.Millisecond)
				confirm := func(r *Replica, index uint32, other *Replica) []Session {
					tr.pass(5 * time.Millisecond)
					sent := r.Confirmed(index, tr.now).Publish
					if !unheard {
						got, err := decode(encode(sent, tr.now), tr.now.Add(3*time.Millisecond))
						if err != nil {
							t.Fatal(err)
						}
						sent = append(sent, other.Heard(got, tr.now.Add(3*time.Millisecond)).Publish...)
					}
					return sent
				}
				var told []Session
				if firstFirst {
					told = append(confirm(earlier, 2, later), confirm(later, 3, earlier)...)
				} else {
					told = append(confirm(later, 3, earlier), confirm(earlier, 2, later)...)
				}
				for range 3 { // until nobody has anything to say
					var next []Session
					for _, n := range []string{"a", "b", "c"} {
						next = append(next, tr.all[n].Heard(told, tr.now).Publish...)
					}
					told = append(told, next...)
				}
				for _, n := range []string{"a", "b", "c"} {
					if s, _ := tr.all[n].table.Newest(IDOf(alice)); s.Index != 3 {
						t.Errorf("later %s, earlier confirmed first %t, unheard %t: for %s the peer uses %d, want 3", names[1], firstFirst, unheard, n, s.Index)
					}
				}
			}
		}
	}
}
