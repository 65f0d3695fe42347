package fleet

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHandshakes(t *testing.T) {
	alice, bob := IDOf(person(1)), IDOf(person(2))
	h := newHandshakes()
	of := func(id PeerID) []uint32 {
		var out []uint32
		for index := range h.with(id) {
			out = append(out, index)
		}
		slices.Sort(out)
		return out
	}
	want := func(what string, alices, bobs []uint32) {
		t.Helper()
		if d := cmp.Diff([][]uint32{alices, bobs}, [][]uint32{of(alice), of(bob)}); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	h.put(1, started{peer: alice})
	h.put(2, started{peer: alice})
	h.put(3, started{peer: bob})
	want("put", []uint32{1, 2}, []uint32{3})
	h.put(2, started{peer: bob}) // chance
	want("an index of somebody else's", []uint32{1}, []uint32{2, 3})
	h.change(1, func(s *started) { s.used = true })
	h.change(9, func(*started) { t.Error("there is no such index") })
	if !h.byIndex[1].used || len(h.byIndex) != 3 {
		t.Errorf("changed: %+v", h.byIndex)
	}
	for index := range h.with(bob) {
		h.drop(index)
	}
	h.drop(1)
	h.drop(1)
	want("dropped", nil, nil)
	if len(h.byIndex)+len(h.indices) > 0 {
		t.Errorf("left: %+v", h)
	}
}
