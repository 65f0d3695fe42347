package fleet

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// person is a peer for tests.
func person(n int) key.Public { return key.Public{byte(n), byte(n >> 8), 1} }

var (
	home = netip.MustParseAddrPort("192.0.2.1:40000")
	spy  = netip.MustParseAddrPort("198.51.100.9:9999")
)

// troupe is replicas that hear each other only when a test says so.
type troupe struct {
	t   *testing.T
	now time.Time
	all map[string]*Replica
}

func newTroupe(t *testing.T, peers []Peer, names ...string) *troupe {
	t.Helper()
	tr := &troupe{t: t, now: epoch, all: map[string]*Replica{}}
	var members []Member
	for _, n := range names {
		members = append(members, Member{Name: n})
	}
	for _, n := range names {
		tr.all[n] = NewReplica(n, false)
		tr.all[n].Configure(peers)
		tr.all[n].SetMembers(members)
	}
	return tr
}

// serve has a replica shake hands with a peer, and tells those of it that hear.
func (tr *troupe) serve(name string, peer key.Public, index uint32, hear ...string) Effects {
	r := tr.all[name]
	r.Started(index, peer, false, tr.now)
	r.Located(index, 51820, home)
	e := r.Confirmed(index, tr.now)
	for _, h := range hear {
		tr.all[h].Heard(e.Publish, tr.now)
	}
	return e
}

func (tr *troupe) pass(d time.Duration) { tr.now = tr.now.Add(d) }

// stranger has a replica see a packet, and what it calls leave at once.
func (tr *troupe) stranger(name string, index uint32, from netip.AddrPort) Effects {
	e := tr.all[name].Stranger(index, 51820, from, tr.now)
	for _, c := range e.Calls {
		if c.isHandshake() {
			tr.left(name, c.Peer, c.Endpoint)
		}
	}
	return e
}

// left has the call that a replica asked for on its way.
func (tr *troupe) left(name string, peer key.Public, to netip.AddrPort) Effects {
	return tr.all[name].left(IDOf(peer), 51820, to, tr.now)
}

// message has a replica see one of a handshake or session with a peer.
func (tr *troupe) message(name string, peer key.Public, m firewall.Message) Effects {
	return tr.all[name].Message(m, func([]byte, netip.AddrPort) (key.Public, bool) { return peer, true }, tr.now)
}

// want compares the parts of effects that a test is about.
func (tr *troupe) want(what string, e Effects, refused Refusal, calls ...Call) {
	tr.t.Helper()
	if e.Refused != refused {
		tr.t.Errorf("%s: refused %q, want %q", what, e.Refused, refused)
	}
	equal := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if d := cmp.Diff(calls, e.Calls, equal, cmpopts.EquateEmpty()); d != "" {
		tr.t.Errorf("%s: calls (-want +got):\n%s", what, d)
	}
}

func (tr *troupe) elsewhere(name string, want map[key.Public]string) {
	tr.t.Helper()
	if d := cmp.Diff(want, tr.all[name].Elsewhere(), cmpopts.EquateEmpty()); d != "" {
		tr.t.Errorf("elsewhere for %s (-want +got):\n%s", name, d)
	}
}

func TestAdoption(t *testing.T) {
	alice := person(1)
	call := Call{Peer: alice, Port: 51820, Endpoint: home}
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b", "c")
	tr.serve("a", alice, 1, "b", "c")
	tr.elsewhere("a", nil)
	tr.elsewhere("b", map[key.Public]string{alice: "a"})
	tr.pass(time.Minute)
	tr.want("a random index", tr.stranger("b", 99, home), UnknownPeer)
	tr.want("the first packet", tr.stranger("b", 1, home), NotRefused, call)
	tr.pass(firstRetry / 2)
	tr.want("the next one", tr.stranger("b", 1, home), TooSoon)
	tr.pass(firstRetry / 2)
	tr.want("after a lost answer", tr.stranger("b", 1, home), NotRefused, call)
	tr.pass(firstRetry)
	tr.want("the time doubles", tr.stranger("b", 1, home), TooSoon)
	tr.elsewhere("b", map[key.Public]string{alice: "a"})

	e := tr.serve("b", alice, 2)
	if d := cmp.Diff([]Change{{alice, "a"}}, e.Adopted); d != "" {
		t.Errorf("adopted (-want +got):\n%s", d)
	}
	tr.elsewhere("b", nil)
	y := tr.all["a"].Heard(e.Publish, tr.now)
	if d := cmp.Diff([]Change{{alice, "b"}}, y.Yielded); d != "" {
		t.Errorf("yielded (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]uint32{2, 1}, y.Strangers); d != "" {
		t.Errorf("strangers (-want +got):\n%s", d)
	}
	tr.elsewhere("a", map[key.Public]string{alice: "b"})
	tr.all["c"].Heard(e.Publish, tr.now)
	tr.elsewhere("c", map[key.Public]string{alice: "b"})

	tr.want("a packet that was under way", tr.stranger("a", 1, home), Late)
	tr.want("to yet another replica", tr.stranger("c", 1, home), NotRefused, call)
	tr.want("to the adopter: the peer has not heard", tr.stranger("b", 1, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home, Nudge: true})
	tr.want("once in a while", tr.stranger("b", 1, home), Late)
	tr.pass(nudgeEvery)
	other := netip.AddrPortFrom(home.Addr(), 40001)
	tr.want("it is elsewhere by now", tr.stranger("b", 1, other), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: other, Nudge: true})
	reminder := Reminder{Peer: IDOf(alice), Index: 2}
	tr.want("a reminder goes where it answered", tr.all["b"].Remind(reminder, tr.now), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home, Nudge: true})
	tr.want("our own session, used", tr.stranger("b", 2, home), NotRefused)
	tr.want("a reminder", tr.all["b"].Remind(reminder, tr.now), NotRefused, Call{Peer: alice, Port: 51820, Nudge: true})
	for range 100 {
		tr.pass(nudgeEvery)
		tr.want("replayed for ever", tr.stranger("b", 1, spy), NotRefused, Call{Peer: alice, Port: 51820, Nudge: true})
		tr.want("our own session, replayed", tr.stranger("b", 2, spy), NotRefused)
	}
}

// TestFlap moves a peer back and forth.
func TestFlap(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	tr.serve("a", alice, 1, "b")
	last, here := uint32(1), "b"
	for range 20 {
		tr.pass(3 * time.Second)
		tr.want("moved to "+here, tr.stranger(here, last, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
		last++
		there := map[string]string{"a": "b", "b": "a"}[here]
		tr.serve(here, alice, last, there)
		tr.elsewhere(here, nil)
		tr.elsewhere(there, map[key.Public]string{alice: here})
		here = there
	}
}

// TestOvertaken has a second replica call before the peer has heard from the first: it
// answers to both, and knows the second one's session alone.
func TestOvertaken(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	tr.serve("a", alice, 1, "b")
	tr.pass(time.Second)
	tr.serve("b", alice, 2, "a")
	for range nudges {
		tr.pass(nudgeEvery)
		tr.want("nudged", tr.stranger("b", 1, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home, Nudge: true})
	}
	tr.pass(nudgeEvery)
	tr.want("called", tr.stranger("b", 1, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
	tr.want("the undone session is a stranger's", tr.stranger("b", 2, spy), TooSoon)
}

// TestUndone loses handshakes of ours because the device has forgotten them.
func TestUndone(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	tr.serve("a", alice, 1, "b")
	b := tr.all["b"]
	tr.pass(time.Minute)
	tr.stranger("b", 1, home)
	b.Started(2, alice, false, tr.now)
	b.Started(3, alice, true, tr.now)
	tr.pass(firstRetry)
	tr.want("called again", tr.stranger("b", 1, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
	if e := b.Confirmed(2, tr.now); len(e.Publish) != 1 || e.Publish[0].Seq != 0 || len(e.Strangers) != 1 {
		t.Errorf("of an answer to a call that is undone there is but a hint: %+v", e)
	}
	e := b.Confirmed(3, tr.now)
	if d := cmp.Diff([]uint32{3}, e.Strangers); d != "" {
		t.Errorf("the session of a peer that began it itself is no stranger's (-want +got):\n%s", d)
	}
	tr.pass(2 * firstRetry)
	tr.want("who sends by it is called", tr.stranger("b", 3, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
}

// TestTie has two replicas number their sessions alike: both agree, and the peer's
// packets decide.
func TestTie(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	ea, eb := tr.serve("a", alice, 1), tr.serve("b", alice, 2)
	tr.all["a"].Heard(eb.Publish, tr.now)
	tr.all["b"].Heard(ea.Publish, tr.now)
	if d := cmp.Diff(contents(&tr.all["a"].table), contents(&tr.all["b"].table), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Fatalf("tables differ:\n%s", d)
	}
	holder, other := "a", "b"
	if newest, _ := tr.all["a"].table.Newest(IDOf(alice)); newest.Holder == ReplicaIDOf("b") {
		holder, other = "b", "a"
	}
	tr.elsewhere(holder, nil)
	tr.elsewhere(other, map[key.Public]string{alice: holder})
	tr.pass(time.Second)
	index := map[string]uint32{"a": 1, "b": 2}
	tr.want("the loser's session is the peer's", tr.stranger(other, index[other], home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
}

// TestPartition makes sessions on two sides that do not hear each other.
func TestPartition(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	for i := range uint32(5) { // numbers grow on one side
		tr.serve("a", alice, 10+i)
		tr.pass(120 * time.Second)
	}
	b := tr.serve("b", alice, 2) // the peer came over, and its number is 1
	tr.pass(30 * time.Second)
	e := tr.all["b"].Heard(tr.all["a"].State(), tr.now)
	if len(e.Publish) != 1 || e.Publish[0].Seq <= 5 || e.Publish[0].Index != b.Publish[0].Index {
		t.Fatalf("the younger session does not count on: %+v", e.Publish)
	}
	tr.all["a"].Heard(e.Publish, tr.now)
	tr.elsewhere("a", map[key.Public]string{alice: "b"})
	tr.elsewhere("b", nil)
	// And where the older one is over already.
	tr = newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	for i := range uint32(3) {
		tr.serve("a", alice, 10+i)
	}
	tr.pass(sessionLifetime)
	tr.all["a"].Tick(tr.now)
	tr.serve("b", alice, 2)
	tr.pass(10 * time.Second)
	e = tr.all["b"].Heard(tr.all["a"].State(), tr.now)
	tr.all["a"].Heard(e.Publish, tr.now)
	tr.elsewhere("a", map[key.Public]string{alice: "b"})
}

// TestRestart starts a Pod's agent anew.
func TestRestart(t *testing.T) {
	alice := person(1)
	for _, inherited := range []bool{true, false} {
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
		tr.serve("a", alice, 1, "b")
		tr.pass(time.Minute)
		a := NewReplica("a", inherited)
		a.Configure([]Peer{{PublicKey: alice}})
		a.SetMembers([]Member{{Name: "a"}, {Name: "b"}})
		tr.all["a"] = a
		a.Heard(tr.all["b"].State(), tr.now)
		tr.elsewhere("a", nil)
		if inherited {
			tr.want("its own session", tr.stranger("a", 1, home), NotRefused)
			continue
		}
		tr.want("a session of its life before", tr.stranger("a", 1, home), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: home})
	}
}

// TestSites has one replica call a peer that comes to nobody.
func TestSites(t *testing.T) {
	peers := []Peer{{PublicKey: person(1), Site: true}, {PublicKey: person(2), Site: true}, {PublicKey: person(3), Site: true}}
	names := []string{"a", "b", "c"}
	tr := newTroupe(t, peers, names...)
	members := func(draining string, but ...string) (out []Member) {
		for _, n := range names {
			if len(but) == 0 || n != but[0] {
				out = append(out, Member{n, n == draining})
			}
		}
		return out
	}
	callers := map[key.Public]string{}
	for _, p := range peers {
		for _, n := range names {
			if _, isElsewhere := tr.all[n].Elsewhere()[p.PublicKey]; !isElsewhere {
				if callers[p.PublicKey] != "" {
					t.Fatalf("two callers: %s and %s", callers[p.PublicKey], n)
				}
				callers[p.PublicKey] = n
			}
		}
	}
	site := person(1)
	holder := callers[site]
	var others []string
	for _, n := range names {
		if n != holder {
			others = append(others, n)
		}
	}
	tr.serve(holder, site, 1, others...)
	// It leaves: one of the others calls, and until then it goes on.
	tr.all[holder].SetMembers(members(holder))
	if _, gone := tr.all[holder].Elsewhere()[site]; gone {
		t.Error("who leaves falls silent before another one has called")
	}
	next := ""
	for _, n := range others {
		for _, c := range tr.all[n].SetMembers(members(holder)).Calls {
			if c.Peer == site {
				next += n
			}
		}
	}
	if next != others[0] && next != others[1] {
		t.Fatalf("called by %q, want one of %q", next, others)
	}
	e := tr.serve(next, site, 2)
	tr.all[holder].Heard(e.Publish, tr.now)
	if to := tr.all[holder].Elsewhere()[site]; to != next {
		t.Errorf("after the call it is with %q, want %s", to, next)
	}
	// That one dies: again one calls.
	calls := 0
	for _, n := range names {
		if n != next {
			tr.all[n].Heard(e.Publish, tr.now)
			for _, c := range tr.all[n].SetMembers(members("", next)).Calls {
				if c.Peer == site {
					calls++
				}
			}
		}
	}
	if calls != 1 {
		t.Errorf("%d calls after the death of the holder, want 1", calls)
	}
}

// TestCallInVain has the device fall silent where nobody answers.
func TestCallInVain(t *testing.T) {
	alice := person(1)
	tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
	tr.serve("a", alice, 1, "b")
	b := tr.all["b"]
	tr.stranger("b", 1, spy)
	if d := cmp.Diff(map[key.Public]bool{alice: true}, b.Calling()); d != "" {
		t.Errorf("calling (-want +got):\n%s", d)
	}
	tr.pass(callingFor)
	if e := b.Tick(tr.now); !e.Elsewhere || len(b.Calling()) > 0 {
		t.Errorf("still calling: %+v", e)
	}
	b.SetMembers([]Member{{Name: "b"}}) // the holder is dead: b would serve it
	tr.stranger("b", 1, spy)
	tr.pass(callingFor)
	tr.want("it falls silent", b.Tick(tr.now), NotRefused, Call{Peer: alice, Silence: true})
}

// TestSpy repeats a packet of alice's from elsewhere, to keep her from being called.
func TestSpy(t *testing.T) {
	for _, addresses := range []int{1, 3, 1000} {
		alice := person(1)
		tr := newTroupe(t, []Peer{{PublicKey: alice}}, "a", "b")
		tr.serve("a", alice, 1, "b")
		tr.pass(time.Minute)
		flood := 0
		spied := func(n int) {
			for range n {
				tr.stranger("b", 1, netip.AddrPortFrom(spy.Addr(), uint16(1+flood%addresses)))
				flood++
			}
		}
		spied(50) // before she comes
		random := rand.New(rand.NewPCG(1, uint64(addresses)))
		start := tr.now
		for called := false; !called; {
			mine := random.IntN(11) // of ten times as many packets
			for i := range 11 {
				tr.pass(time.Millisecond)
				if i != mine {
					spied(1)
					continue
				}
				for _, c := range tr.stranger("b", 1, home).Calls {
					called = called || c.Endpoint == home
				}
			}
			if tr.now.Sub(start) > 5*time.Second {
				t.Fatalf("%d addresses: not called for %s", addresses, tr.now.Sub(start))
			}
		}
		t.Logf("%d addresses of a spy's: called after %s", addresses, tr.now.Sub(start))
	}
}

// TestFlood plays a minute of 10,000 forged packets a second.
func TestFlood(t *testing.T) {
	const seconds, each = 60, 10_000
	peers := make([]Peer, 100)
	for i := range peers {
		peers[i].PublicKey = person(i)
	}
	tr := newTroupe(t, peers, "a", "b")
	random := rand.New(rand.NewPCG(1, 2))
	var indices []uint32
	for _, p := range peers {
		index := random.Uint32()
		indices = append(indices, index)
		tr.serve("a", p.PublicKey, index, "b")
	}
	calls, refused := map[string]int{}, map[Refusal]int{}
	for i := range seconds * each {
		index, kind := random.Uint32(), "random"
		if i%2 == 0 {
			index, kind = indices[random.IntN(len(indices))], "replayed"
		}
		e := tr.stranger("b", index, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(random.IntN(256)), byte(random.IntN(256))}), uint16(random.IntN(65536))))
		calls[kind] += len(e.Calls)
		refused[e.Refused]++
		if i%each == each-1 {
			tr.all["b"].Tick(tr.now)
		}
		tr.pass(time.Second / each)
	}
	t.Logf("%d packets in %d s: calls %v, refused %v", seconds*each, seconds, calls, refused)
	if calls["random"] > 0 {
		t.Errorf("%d calls for random indices", calls["random"])
	}
	if most := len(peers) * (seconds + 4*callersKept); calls["replayed"] > most {
		t.Errorf("%d calls for replayed ones, want %d at most", calls["replayed"], most)
	}
	b := tr.all["b"]
	tr.pass(time.Minute)
	b.Tick(tr.now)
	if len(b.calls) > 0 || len(b.started.byIndex) > 0 {
		t.Errorf("%d calls and %d handshakes left", len(b.calls), len(b.started.byIndex))
	}
	for _, p := range peers {
		if to := b.Elsewhere()[p.PublicKey]; to != "a" {
			t.Fatalf("%s is with %q", p.PublicKey, to)
		}
	}
}

func BenchmarkStranger(b *testing.B) {
	r := NewReplica("b", false)
	peers := make([]Peer, 10_000)
	sessions := make([]Session, len(peers))
	for i := range peers {
		peers[i].PublicKey = person(i)
		sessions[i] = Session{Index: uint32(i), Peer: IDOf(person(i)), Seq: 1, Holder: ReplicaIDOf("a"), Since: epoch}
	}
	r.Configure(peers)
	r.SetMembers([]Member{{Name: "a"}, {Name: "b"}})
	r.Heard(sessions, epoch)
	for name, index := range map[string]func(i uint32) uint32{
		"random": func(i uint32) uint32 { return 1<<31 + i }, "replayed": func(i uint32) uint32 { return i % 10_000 }, "one": func(uint32) uint32 { return 7 },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			now := epoch
			for i := uint32(0); b.Loop(); i++ {
				now = now.Add(100 * time.Microsecond)
				var a [4]byte
				binary.BigEndian.PutUint32(a[:], i)
				r.Stranger(index(i), 51820, netip.AddrPortFrom(netip.AddrFrom4(a), 1), now)
			}
		})
	}
}
