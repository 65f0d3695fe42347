package firewall

import (
	"log/slog"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// TestTakeOver: the table of an earlier process is exchanged without a gap,
// which shows by its counters going on, at whichever step that process ended.
func TestTakeOver(t *testing.T) {
	s := snapshot(nil)
	want := desired(s)
	steps := []struct {
		name   string
		before func(at edition) error
	}{
		{"whole", func(edition) error { return nil }},
		{"while filling sets", func(at edition) error {
			return commit(func(c *nftables.Conn) error { return addSets(c, want, at.other()) })
		}},
		{"before removing sets", func(at edition) error {
			if err := fill(want, at.other(), inventory{}); err != nil {
				return err
			}
			return commit(func(c *nftables.Conn) error {
				c.FlushTable(table())
				for _, ch := range switchesOf(want).chains(at) {
					c.DelChain(&nftables.Chain{Table: table(), Name: ch.name})
				}
				addChains(c, switchesOf(want), at.other())
				return nil
			})
		}},
	}
	for _, at := range []edition{editionA, editionB} {
		for _, step := range steps {
			t.Run(step.name+" in edition "+string(at), func(t *testing.T) {
				r := newRig(t)
				r.apply(t, nil, s)
				if at == editionB {
					r.apply(t, nil, s)
				}
				if got := r.firewall.made.edition; got != at {
					t.Fatalf("edition %s is in use, want %s", got, at)
				}
				r.send(t, tunnel, udp(nobody4, host4, 1))
				r.gateway.do(t, func() (err error) {
					if err = step.before(at); err != nil {
						return err
					}
					r.firewall, err = New(slog.New(slog.DiscardHandler))
					return err
				})
				r.apply(t, nil, snapshot(without("alice")))
				if got := r.stopped(t)[Spoofed]; got != 1 {
					t.Errorf("spoofed packets: %d, want 1 as before", got)
				}
				r.expect(t, "removed", tunnel, udp(alice4, host4, 1), dropped)
				r.expect(t, "still there", tunnel, tcp(bob4, bobs4, 22), toCluster)
				var left inventory
				r.gateway.do(t, func() (err error) {
					left, err = contents()
					return err
				})
				if len(left.sets) != len(sets(at)) {
					t.Errorf("sets in the end: %v, want %d", left.sets, len(sets(at)))
				}
			})
		}
	}
}

// TestSwap: making the table anew goes without a gap, also the first time.
func TestSwap(t *testing.T) {
	r := newRig(t)
	want := desired(snapshot(nil))
	for i, edition := range []edition{editionA, editionB, editionA} {
		r.gateway.do(t, func() error {
			got, err := swap(want)
			if err != nil || got != edition {
				t.Errorf("round %d: edition %q, want %q: %v", i, got, edition, err)
			}
			return nil
		})
		r.expect(t, "a peer", tunnel, udp(alice4, host4, 1), toCluster)
		r.expect(t, "nobody", tunnel, udp(nobody4, host4, 1), dropped)
	}
}

// TestStrangeTable: a table of our name is ours, whatever is in it.
func TestStrangeTable(t *testing.T) {
	r := newRig(t)
	r.meddle(t, func(c *nftables.Conn) error {
		ours := c.AddTable(table())
		drop := nftables.ChainPolicyDrop
		forward := c.AddChain(&nftables.Chain{Table: ours, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRaw, Policy: &drop})
		loop := c.AddChain(&nftables.Chain{Table: ours, Name: "loop"})
		// A map that keeps its chain from being deleted.
		verdicts := &nftables.Set{Table: ours, ID: 9, Name: "verdicts", KeyType: nftables.TypeMark, DataType: nftables.TypeVerdict, IsMap: true}
		c.AddRule(&nftables.Rule{Table: ours, Chain: forward, Exprs: goTo("loop")})
		return c.AddSet(verdicts, []nftables.SetElement{{Key: []byte{1, 0, 0, 0}, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: loop.Name}}})
	})
	r.gateway.do(t, func() error {
		if _, err := swap(desired(snapshot(nil))); err == nil {
			t.Error("nothing was in the way: this proves nothing")
		}
		return nil
	})
	r.apply(t, nil, snapshot(nil))
	r.expect(t, "a peer", tunnel, udp(alice4, host4, 1), toCluster)
	r.expect(t, "nobody", tunnel, udp(nobody4, host4, 1), dropped)
	if !r.inPlace(t, desired(snapshot(nil))) {
		t.Error("not in place")
	}
}
