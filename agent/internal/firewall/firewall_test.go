package firewall

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// inPlace asks the firewall inside the gateway's namespace.
func (r *rig) inPlace(t testing.TB, want state.Firewall) bool {
	t.Helper()
	var in bool
	r.gateway.do(t, func() (err error) {
		in, err = r.firewall.InPlace(want)
		return err
	})
	return in
}

// meddle changes the gateway's ruleset as somebody else would.
func (r *rig) meddle(t testing.TB, f func(*nftables.Conn) error) {
	t.Helper()
	r.gateway.do(t, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		if err := f(c); err != nil {
			return err
		}
		return c.Flush()
	})
}

func TestInPlace(t *testing.T) {
	ours := table()
	forward := &nftables.Chain{Table: ours, Name: "forward"}
	tests := []struct {
		name   string
		meddle func(*nftables.Conn) error
		want   bool
	}{
		{"nobody does anything", func(*nftables.Conn) error { return nil }, true},
		{"flush ruleset", func(c *nftables.Conn) error { c.FlushRuleset(); return nil }, false},
		{"delete table", func(c *nftables.Conn) error { c.DelTable(ours); return nil }, false},
		{"flush table", func(c *nftables.Conn) error { c.FlushTable(ours); return nil }, false},
		{"flush chain", func(c *nftables.Conn) error { c.FlushChain(forward); return nil }, false},
		{"delete chain", func(c *nftables.Conn) error {
			c.FlushChain(forward)
			c.DelChain(forward)
			return nil
		}, false},
		{"delete rule", func(c *nftables.Conn) error {
			rules, err := c.GetRules(ours, forward)
			if err != nil {
				return err
			}
			return c.DelRule(rules[0])
		}, false},
		{"replace rule", func(c *nftables.Conn) error {
			rules, err := c.GetRules(ours, forward)
			if err != nil {
				return err
			}
			rules[0].Table, rules[0].Exprs = ours, accept()
			c.ReplaceRule(rules[0])
			return nil
		}, false},
		{"insert rule", func(c *nftables.Conn) error {
			c.InsertRule(&nftables.Rule{Table: ours, Chain: forward, Exprs: accept()})
			return nil
		}, false},
		{"add chain", func(c *nftables.Conn) error {
			c.AddChain(&nftables.Chain{Table: ours, Name: "extra"})
			return nil
		}, false},
		{"drop by default", func(c *nftables.Conn) error {
			policy := nftables.ChainPolicyDrop
			c.AddChain(&nftables.Chain{Table: ours, Name: "forward", Policy: &policy})
			return nil
		}, false},
		{"another table is made", func(c *nftables.Conn) error {
			c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "vpn_gateway2"})
			return nil
		}, true},
		{"another table is deleted", func(c *nftables.Conn) error {
			c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: foreign})
			return nil
		}, true},
	}
	s := snapshot(nil)
	want := desired(s)
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			if r.inPlace(t, want) {
				t.Fatal("in place before it was made")
			}
			r.apply(t, nil, s)
			if !r.inPlace(t, want) {
				t.Fatal("not in place after it was made")
			}
			r.meddle(t, tc.meddle)
			if got := r.inPlace(t, want); got != tc.want {
				t.Fatalf("in place is %t, want %t", got, tc.want)
			}
			if got := r.inPlace(t, want); got != tc.want {
				t.Fatalf("in place is %t when asked again, want %t", got, tc.want)
			}
			p := r.apply(t, s, s)
			if p.Replace == tc.want {
				t.Errorf("the plan makes the table anew: %t", p.Replace)
			}
			if !r.inPlace(t, want) {
				t.Error("not in place after the repair")
			}
			r.expect(t, "a peer", tunnel, udp(alice4, host4, 1), toCluster)
			r.expect(t, "nobody", tunnel, udp(nobody4, host4, 1), dropped)
		})
	}
}

// TestInPlaceElsewhere: a table counts only with the rules that are asked for,
// and only to the process that made it.
func TestInPlaceElsewhere(t *testing.T) {
	r := newRig(t)
	s := snapshot(nil)
	r.apply(t, nil, s)
	for name, change := range map[string]func(*state.Firewall){
		"interface":  func(f *state.Firewall) { f.Interfaces[1] = "wg1" },
		"listenPort": func(f *state.Firewall) { f.ListenPorts[1]++ },
		"masquerade": func(f *state.Firewall) { f.Masquerade = false },
		"peerToPeer": func(f *state.Firewall) { f.PeerToPeer = true },
		"ipv6":       func(f *state.Firewall) { f.IPv6 = true },
	} {
		want := desired(s)
		change(&want)
		if r.inPlace(t, want) {
			t.Errorf("in place with another %s", name)
		}
	}
	fewer := desired(s)
	fewer.Sources = nil
	if !r.inPlace(t, fewer) {
		t.Error("not in place with other elements, which it does not look at")
	}
	r.gateway.do(t, func() (err error) {
		r.firewall, err = New(slog.New(slog.DiscardHandler))
		return err
	})
	if r.inPlace(t, desired(s)) {
		t.Error("in place for a process that did not make it")
	}
}

// TestDeltaHeals: element changes that do not fit make the table anew.
func TestDeltaHeals(t *testing.T) {
	r := newRig(t)
	before, after := snapshot(nil), snapshot(without("alice"))
	r.apply(t, nil, before)
	r.meddle(t, func(c *nftables.Conn) error { c.FlushSet(ipv4().hosts(r.firewall.made.edition)); return nil })
	if p := r.apply(t, before, after); p.Replace {
		t.Fatal("planned to make the table anew: this proves nothing")
	}
	r.expect(t, "the removed peer", tunnel, udp(alice4, host4, 1), dropped)
	r.expect(t, "another peer", tunnel, tcp(bob4, bobs4, 22), toCluster)
	if !r.inPlace(t, desired(after)) {
		t.Error("not in place after healing")
	}
}

// stopped counts packets by reason, inside the gateway's namespace.
func (r *rig) stopped(t testing.TB) map[Reason]uint64 {
	t.Helper()
	out := map[Reason]uint64{}
	r.gateway.do(t, func() error {
		counts, err := r.firewall.Stopped()
		for reason, c := range counts {
			if c.Bytes < 20*c.Packets {
				t.Errorf("%s: %d packets of %d bytes", reason, c.Packets, c.Bytes)
			}
			out[reason] = c.Packets
		}
		return err
	})
	return out
}

// TestRefusal: what the kernel refuses leaves everything as it was.
func TestRefusal(t *testing.T) {
	r := newRig(t)
	good := desired(snapshot(nil))
	r.apply(t, nil, snapshot(nil))
	overlap := good
	overlap.Grants = append(slices.Clone(good.Grants), good.Grants[0])
	overlap.Grants[len(good.Grants)].LastPort--
	for name, p := range map[string]plan.Firewall{
		"whole table": {Replace: true, Desired: overlap},
		"delta":       {Desired: overlap, AddGrants: overlap.Grants[len(good.Grants):]},
	} {
		t.Run(name, func(t *testing.T) {
			err := r.gateway.run(func() error { return r.firewall.Apply(p) })
			if err == nil {
				t.Fatal("overlapping grants were taken")
			}
			r.expect(t, "a peer", tunnel, udp(alice4, host4, 1), toCluster)
			r.expect(t, "outside of its policy", tunnel, udp(alice4, web4, 1), rejected)
			if r.inPlace(t, good) {
				t.Error("in place after a refusal, which nobody knows the elements of")
			}
		})
	}
}

// TestForeignTable: nobody else's table is touched, nor does ours stay behind.
func TestForeignTable(t *testing.T) {
	r := newRig(t)
	state := func() string {
		var out string
		r.gateway.do(t, func() error {
			c, err := dial()
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			digest, err := digestOf(c, foreign)
			out = hex.EncodeToString(digest[:])
			return err
		})
		return out
	}
	tables := func() []string {
		var out []string
		r.meddle(t, func(c *nftables.Conn) error {
			tables, err := c.ListTables()
			for _, t := range tables {
				out = append(out, t.Name)
			}
			return err
		})
		slices.Sort(out)
		return out
	}
	before := state()
	s := snapshot(nil)
	steps := []struct {
		name string
		do   func()
		want []string
	}{
		{"remove what is not there", func() { r.gateway.do(t, r.firewall.Remove) }, []string{foreign}},
		{"make", func() { r.apply(t, nil, s) }, []string{foreign, Table}},
		{"change", func() { r.apply(t, s, snapshot(without("alice"))) }, []string{foreign, Table}},
		{"make anew", func() { r.apply(t, nil, s) }, []string{foreign, Table}},
		{"remove", func() { r.gateway.do(t, r.firewall.Remove) }, []string{foreign}},
	}
	for _, step := range steps {
		step.do()
		if d := cmp.Diff(step.want, tables()); d != "" {
			t.Errorf("%s: tables (-want +got):\n%s", step.name, d)
		}
		if state() != before {
			t.Errorf("%s: the other table changed", step.name)
		}
		if want := len(step.want) == 2; r.inPlace(t, desired(s)) != want {
			t.Errorf("%s: in place is %t", step.name, !want)
		}
	}
}

// elements is the content of the table's four sets.
func (r *rig) elements(t testing.TB) []string {
	t.Helper()
	var out []string
	r.meddle(t, func(c *nftables.Conn) error {
		for _, s := range sets(r.firewall.made.edition) {
			elements, err := c.GetSetElements(s)
			if err != nil {
				return err
			}
			for _, e := range elements {
				out = append(out, fmt.Sprintf("%s %x-%x %t %x", s.Name[:len(s.Name)-1], e.Key, e.KeyEnd, e.IntervalEnd, e.Val))
			}
		}
		return nil
	})
	slices.Sort(out)
	return out
}

// TestDeltasAddUp: any row of changes leads to what making the table anew does.
func TestDeltasAddUp(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(s *spec.Snapshot) {
		s.Gateway.IPv6.Enabled = true
		s.Peers = nil
		// Prefixes of both ends of the address space and side by side.
		pool := []string{
			"0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "224.0.0.0/4", "240.0.0.0/5", "248.0.0.0/6", "252.0.0.0/7", "254.0.0.0/8", "255.0.0.0/9",
			"255.255.255.252/31", "255.255.255.254/32", "255.255.255.255/32",
			"::/1", "8000::/2", "fd00::/64", "fd00:0:0:1::/64", "ffff::/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
		}
		policies := [][]spec.Destination{
			nil, {}, {destination("0.0.0.0/0", spec.AnyProtocol), destination("::/0", spec.AnyProtocol)},
			{destination("10.0.0.0/8", spec.TCP, 1, 7, 9, 70), destination("10.1.0.0/16", spec.AnyProtocol)},
			{destination("255.255.255.255/32", spec.UDP, 65535, 65535), destination("ffff::/16", spec.ICMP)},
		}
		for range 10 {
			port := uint16(rnd.IntN(100))
			policies = append(policies, []spec.Destination{destination("10.0.0.0/8", spec.TCP, port, port), destination("fd00::/8", spec.UDP, port, port+1)})
		}
		for i, p := range pool {
			if rnd.IntN(2) == 0 {
				s.Peers = append(s.Peers, peer(fmt.Sprintf("peer%d", i), policies[rnd.IntN(len(policies))], p))
			}
		}
	}
	r := newRig(t)
	now := snapshot(random)
	r.apply(t, nil, now)
	for round := range 40 {
		next := snapshot(random)
		if p := r.apply(t, now, next); p.Replace {
			t.Fatalf("round %d made the table anew: this proves nothing", round)
		}
		if !r.inPlace(t, desired(next)) {
			t.Fatalf("round %d: not in place", round)
		}
		now = next
	}
	got := r.elements(t)
	r.apply(t, nil, now)
	if d := cmp.Diff(r.elements(t), got); d != "" || len(got) == 0 {
		t.Errorf("elements after the changes (-made anew +changed):\n%s", d)
	}
}

// crowd returns a change to n peers of two addresses each. The first and every
// own-th after it have a policy of their own; 0 is none.
func crowd(n, own int) func(*spec.Snapshot) {
	return func(s *spec.Snapshot) {
		s.Gateway.IPv6.Enabled = true
		a := netip.MustParseAddr("10.8.0.1")
		s.Peers = s.Peers[len(s.Peers)-1:] // the sentinel
		for i := range n {
			a = a.Next()
			p := peer(fmt.Sprintf("peer%d", i), nil, a.String(), fmt.Sprintf("fd00:8::%x", i+2))
			if own > 0 && i%own == 0 {
				p.AllowedDestinations = []spec.Destination{
					destination("10.100.0.0/16", spec.TCP, uint16(i), uint16(i)), destination("fd00:100::/64", spec.TCP, uint16(i), uint16(i)),
				}
			}
			s.Peers = append(s.Peers, p)
		}
	}
}

func TestCrowd(t *testing.T) {
	const n = 10000
	first, middle, last, behind := "10.8.0.2", "10.8.21.40", "10.8.39.17", "10.8.39.18"
	r := newRig(t)
	all := snapshot(crowd(n, 10))
	r.apply(t, nil, all)
	for _, src := range []string{middle, last, "fd00:8::3", fmt.Sprintf("fd00:8::%x", n+1)} {
		dst := host4
		if netip.MustParseAddr(src).Is6() {
			dst = host6
		}
		r.expect(t, src, tunnel, udp(src, dst, 1), toCluster)
	}
	r.expect(t, "first peer, which has a policy of its own", tunnel, udp(first, host4, 1), rejected)
	r.expect(t, "another policy", tunnel, tcp("10.8.3.254", "10.100.0.1", 1020), toCluster)
	r.expect(t, "a third one's", tunnel, tcp("10.8.3.254", "10.100.0.1", 1030), rejected)
	r.expect(t, "behind the last", tunnel, udp(behind, host4, 1), dropped)
	r.expect(t, "behind the last, IPv6", tunnel, udp(fmt.Sprintf("fd00:8::%x", n+2), host6, 1), dropped)

	fewer := snapshot(func(s *spec.Snapshot) {
		crowd(n, 10)(s)
		s.Peers = slices.DeleteFunc(s.Peers, func(p spec.Peer) bool { return p.Addresses[0] == netip.MustParseAddr(middle) })
	})
	if p := r.apply(t, all, fewer); p.Replace || len(p.RemoveSources) != 2 {
		t.Fatalf("a peer was removed by %d sources, whole table: %t", len(p.RemoveSources), p.Replace)
	}
	r.expect(t, "the removed peer", tunnel, udp(middle, host4, 1), dropped)
	r.expect(t, "the peer before it", tunnel, udp("10.8.21.39", host4, 1), toCluster)
	r.expect(t, "the peer behind it", tunnel, udp("10.8.21.41", host4, 1), toCluster)

	// A change of the policy that all share touches every element.
	other := snapshot(func(s *spec.Snapshot) {
		crowd(n, 10)(s)
		s.Gateway.Routing.AllowedDestinations = []spec.Destination{destination("10.96.0.0/16", spec.UDP)}
	})
	if p := r.apply(t, fewer, other); p.Replace {
		t.Fatal("a change of policy made the table anew")
	}
	r.expect(t, "after the change of policy", tunnel, udp(last, web4, 1), toCluster)
	r.expect(t, "no longer allowed", tunnel, udp(last, host4, 1), rejected)
}

// TestCapability: CAP_NET_ADMIN is enough, and without it New says what to do.
func TestCapability(t *testing.T) {
	need(t)
	const netAdmin = 1 << unix.CAP_NET_ADMIN
	limit := func(capabilities uint32) error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{{Effective: capabilities, Permitted: capabilities}}
		if err := unix.Capset(&header, &data[0]); err != nil {
			return err
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", unix.Gettid()))
		if err == nil && !bytes.Contains(status, fmt.Appendf(nil, "CapEff:\t%016x\n", capabilities)) {
			err = errors.New("capabilities were not dropped")
		}
		return err
	}
	s := newSpace(t)
	s.do(t, func() error {
		runtime.LockOSThread()
		if err := limit(netAdmin); err != nil {
			return err
		}
		f, err := New(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		want := desired(snapshot(crowd(10000, 1)))
		if err := f.Apply(plan.Firewall{Replace: true, Desired: want}); err != nil {
			return err
		}
		in, err := f.InPlace(want)
		if err != nil || !in {
			return fmt.Errorf("in place is %t: %w", in, err)
		}
		one := plan.Firewall{Desired: want, RemoveSources: want.Sources[:1], RemoveGrants: want.Grants[:1]}
		if err := f.Apply(one); err != nil {
			return err
		}
		if _, err := f.Stopped(); err != nil {
			return err
		}
		return f.Remove()
	})
	s.do(t, func() error {
		if err := limit(0); err != nil {
			return err
		}
		_, err := New(slog.New(slog.DiscardHandler))
		if !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("New without capabilities, want permission denied: %w", err)
		}
		return nil
	})
}
