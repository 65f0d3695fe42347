package fleet

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// epoch is when virtual time begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func id(n byte) PeerID { return PeerID{n} }

func session(index uint32, peer byte, seq uint32, holder string, age time.Duration) Session {
	return Session{Index: index, Peer: id(peer), Seq: seq, Holder: ReplicaIDOf(holder), Since: epoch.Add(-age)}
}

// contents is everything in a table, in a fixed order.
func contents(t *Table) map[PeerID][]Session {
	out := map[PeerID][]Session{}
	for p, k := range t.peers {
		out[p] = append(slices.Clone(k.sessions), k.over)
	}
	return out
}

func TestTableAdd(t *testing.T) {
	a1, a2, a3, a4 := session(1, 1, 1, "a", 0), session(2, 1, 2, "b", 0), session(3, 1, 3, "a", 0), session(4, 1, 4, "b", 0)
	countedOn := a1
	countedOn.Seq = 5
	for _, tt := range []struct {
		name          string
		add           []Session
		news          []bool
		want, dropped []Session
	}{
		{name: "first", add: []Session{a1}, news: []bool{true}, want: []Session{a1}},
		{name: "twice", add: []Session{a1, a1}, news: []bool{true, false}, want: []Session{a1}},
		{name: "newest first", add: []Session{a2, a1, a3}, news: []bool{true, true, true}, want: []Session{a3, a2, a1}},
		{name: "oldest goes", add: []Session{a1, a2, a3, a4}, news: []bool{true, true, true, true}, want: []Session{a4, a3, a2}, dropped: []Session{a1}},
		{name: "too old to be kept", add: []Session{a4, a3, a2, a1}, news: []bool{true, true, true, false}, want: []Session{a4, a3, a2}},
		{name: "counts on", add: []Session{a1, a2, countedOn}, news: []bool{true, true, true}, want: []Session{countedOn, a2}},
		{name: "counted on already", add: []Session{countedOn, a2, a1}, news: []bool{true, true, false}, want: []Session{countedOn, a2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var table Table
			var news []bool
			var dropped []Session
			for _, s := range tt.add {
				n, d := table.Add(s)
				news, dropped = append(news, n), append(dropped, d...)
			}
			if d := cmp.Diff(tt.news, news); d != "" {
				t.Errorf("news (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.want, table.Sessions(id(1))); d != "" {
				t.Errorf("sessions (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.dropped, dropped); d != "" {
				t.Errorf("dropped (-want +got):\n%s", d)
			}
			for _, s := range tt.want {
				if got, ok := table.Find(s.Index); !ok || got != s {
					t.Errorf("Find(%d) = %v, %t; want %v", s.Index, got, ok, s)
				}
			}
			for _, s := range tt.dropped {
				if _, ok := table.Find(s.Index); ok {
					t.Errorf("Find(%d): found, but it was dropped", s.Index)
				}
			}
		})
	}
}

// TestTableConverges plays the same sessions in random orders, with duplicates, and by
// exchanges of part of the tables: all tables are equal in the end.
func TestTableConverges(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		type event struct {
			Session
			over bool
		}
		var all []event
		index := uint32(0)
		for peer := range byte(3) {
			for range 1 + random.IntN(8) {
				index++
				e := event{Session: session(index, peer, uint32(1+random.IntN(6)), string(rune('a'+random.IntN(3))), 0)}
				e.over = random.IntN(6) == 0
				all = append(all, e)
				if random.IntN(4) == 0 { // counted on
					e.Seq += uint32(1 + random.IntN(3))
					e.over = false
					all = append(all, e)
				}
			}
		}
		tables := make([]Table, 4)
		apply := func(table *Table, e event) {
			if e.over {
				table.Over(e.Session)
			} else {
				table.Add(e.Session)
			}
		}
		for i := range tables {
			random.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
			for j, e := range all {
				apply(&tables[i], e)
				apply(&tables[i], all[random.IntN(j+1)]) // a duplicate
			}
		}
		for i := 1; i < len(tables); i++ {
			if d := cmp.Diff(contents(&tables[0]), contents(&tables[i])); d != "" {
				t.Fatalf("tables 0 and %d differ:\n%s", i, d)
			}
			if d := cmp.Diff(tables[0].indices, tables[i].indices); d != "" {
				t.Fatalf("indices of tables 0 and %d differ:\n%s", i, d)
			}
		}
		// What a table says of itself makes an equal one, apart from what is over and has
		// something newer, in any order and in parts.
		var joined Table
		state := tables[0].State()
		random.Shuffle(len(state), func(a, b int) { state[a], state[b] = state[b], state[a] })
		for _, part := range [][]Session{state[len(state)/2:], state[:len(state)/3], state} {
			for _, s := range part {
				if tables[0].peers[s.Peer].over == s {
					joined.Over(s)
				} else {
					joined.Add(s)
				}
			}
		}
		for p := range tables[0].peers {
			if d := cmp.Diff(tables[0].Sessions(p), joined.Sessions(p), cmpopts.EquateEmpty()); d != "" {
				t.Fatalf("joined table differs:\n%s", d)
			}
		}
	}
}

func TestTableExpire(t *testing.T) {
	old, middle, young := session(1, 1, 1, "a", 250*time.Second), session(2, 1, 2, "b", 130*time.Second), session(3, 1, 3, "a", 10*time.Second)
	last := session(4, 2, 7, "a", 201*time.Second)
	stranger := session(5, 3, 1, "a", 201*time.Second)
	var table Table
	for _, s := range []Session{old, middle, young, last, stranger} {
		table.Add(s)
	}
	var visited []uint32
	table.Expire(epoch, func(p PeerID) bool { return p != id(3) }, func(s Session) { visited = append(visited, s.Index) })
	slices.Sort(visited)
	if d := cmp.Diff([]uint32{1, 4, 5}, visited); d != "" {
		t.Errorf("expired (-want +got):\n%s", d)
	}
	want := map[PeerID][]Session{id(1): {young, middle, old}, id(2): {last}}
	if d := cmp.Diff(want, contents(&table)); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
	if s, ok := table.Newest(id(2)); !ok || s != last {
		t.Errorf("Newest of a peer whose session is over = %v, %t; its number must not be given again", s, ok)
	}
	for _, s := range []Session{old, last} {
		s.Since = epoch // an old message, repeated
		if news, _ := table.Add(s); news {
			t.Errorf("session %d is news again", s.Index)
		}
	}
	table.Expire(epoch.Add(time.Hour), func(PeerID) bool { return false }, func(Session) {})
	if n := len(table.peers) + len(table.indices); n != 0 {
		t.Errorf("%d entries left of peers that are gone", n)
	}
}

func TestTableConnected(t *testing.T) {
	var table Table
	for _, s := range []Session{
		session(1, 1, 1, "a", 10*time.Second), session(2, 1, 2, "b", 5*time.Second),
		session(3, 2, 1, "a", 179*time.Second), session(4, 3, 1, "a", 180*time.Second),
	} {
		table.Add(s)
	}
	if d := cmp.Diff(map[ReplicaID]int{ReplicaIDOf("a"): 1, ReplicaIDOf("b"): 1}, table.Connected(epoch)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestScoreSpreads checks that each replica calls about as many sites as any other, and
// that hardly any changes hands when one leaves.
func TestScoreSpreads(t *testing.T) {
	calls := func(replicas int) []int {
		out := make([]int, 1000)
		for i := range out {
			p := PeerID{byte(i), byte(i >> 8)}
			for r := range replicas {
				if score(p, ReplicaID{byte(r)}) > score(p, ReplicaID{byte(out[i])}) {
					out[i] = r
				}
			}
		}
		return out
	}
	five, four := calls(5), calls(4)
	counts := map[int]int{}
	for i := range five {
		counts[five[i]]++
		if five[i] != 4 && five[i] != four[i] {
			t.Fatalf("site %d went from replica %d to %d, though neither had left", i, five[i], four[i])
		}
	}
	for r := range 5 {
		if counts[r] < 140 || counts[r] > 260 {
			t.Errorf("replica %d has %d of 1000 sites, want about 200", r, counts[r])
		}
	}
}
