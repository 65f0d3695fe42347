package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// program is what runs on a client.
func (w *world) program(c *client) {
	w.after(w.in(c.every/2, c.every*3/2), func() {
		if !w.running {
			return
		}
		if !c.burst {
			c.begins()
			at := w.now
			c.send(true)
			w.after(2*c.distance+50*time.Millisecond, func() {
				if c.answeredAt < at && !c.burst {
					w.stream(c)
					c.outage.since = at
				}
			})
		}
		w.program(c)
	})
}

func (w *world) persistent(c *client) {
	w.after(c.keepalive, func() {
		if c.keepalive > 0 {
			c.send(false)
			w.persistent(c)
		}
	})
}

func (w *world) fault(format string, args ...any) {
	if len(w.faults) < 20 {
		w.faults = append(w.faults, fmt.Sprintf("at %s: ", w.now)+fmt.Sprintf(format, args...))
	}
	w.count("faults")
}

// trace prints what concerns one client, by SIMULATION_TRACE=name,from,to.
func (w *world) trace(c *client, format string, args ...any) {
	if w.traced == c.name && w.now >= w.tracedFrom && w.now < w.tracedTo {
		w.t.Logf("%s %s "+format, append([]any{w.now, c.name}, args...)...)
	}
}

func (w *world) traceSession(s Session, what string) {
	for _, c := range w.clients {
		if c.id == s.Peer {
			w.trace(c, "%s session %d number %d of %x, %s old, took %s", what, s.Index, s.Seq, s.Holder, w.clock().Sub(s.Since), s.Took)
		}
	}
}

func newWorld(seed uint64, c simConfig, clients int) *world {
	w := &world{random: rand.New(rand.NewPCG(seed, 1)), config: c, counts: map[string]int{}, sent: map[string]int{}, running: true, doubles: map[*client]int{}, dropped: map[uint32]bool{}}
	for i := range clients {
		k := key.Public{byte(i), byte(i >> 8), 1}
		w.peers = append(w.peers, Peer{PublicKey: k})
		cl := &client{
			world: w, name: fmt.Sprintf("client %d", i), public: k, id: IDOf(k), distance: w.in(time.Millisecond, 20*time.Millisecond),
			address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 40000),
		}
		switch i % 5 {
		case 0, 1: // in use
			cl.every = 5 * time.Second
		case 2: // idle, and says that it lives
			cl.keepalive = 25 * time.Second
		case 3: // both
			cl.every, cl.keepalive = time.Minute, 25*time.Second
		case 4: // idle
			cl.every = 4 * time.Minute
		}
		w.clients = append(w.clients, cl)
	}
	for range 4 {
		w.newNode()
	}
	w.run(time.Second)
	for _, c := range w.clients {
		c.target = w.anyReady(nil)
		if c.every > 0 {
			w.program(c)
		}
		if c.keepalive > 0 {
			w.persistent(c)
		}
	}
	w.after(5*time.Second, w.check)
	w.after(5*time.Second, w.rebalance)
	return w
}

// check looks for peers with two holders.
func (w *world) check() {
	calm := !w.split && (w.healed == 0 || w.now-w.healed > converges)
	for _, c := range w.clients {
		holders := 0
		for _, n := range w.nodes {
			if !n.up {
				continue
			}
			if s, ok := n.replica.table.Newest(c.id); ok && n.replica.isMine(s) {
				holders++
			}
		}
		if holders < 2 || !calm {
			delete(w.doubles, c)
			continue
		}
		if w.doubles[c]++; w.doubles[c] >= 2 {
			text := ""
			for _, n := range w.nodes {
				if s, ok := n.replica.table.Newest(c.id); ok && n.up {
					text += fmt.Sprintf("; %s (draining %t, sees %d): %d by %x, own %t, since %s", n.name, n.draining, len(n.seen), s.Seq, s.Holder, n.replica.isMine(s), s.Since.Sub(epoch))
				}
			}
			w.fault("%s has %d holders for 5 s%s", c.name, holders, text)
		}
	}
	w.after(5*time.Second, w.check)
}

// newSimulation is a world of 100 clients, of SIMULATION_SEED and traced as
// SIMULATION_TRACE says.
func newSimulation(t *testing.T, c simConfig) *world {
	t.Helper()
	seed := uint64(1) // 1 to 32 were played; continuous integration has time for one
	if s := os.Getenv("SIMULATION_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SIMULATION_SEED=%d", seed)
	w := newWorld(seed, c, 100)
	w.t = t
	if v := strings.Split(os.Getenv("SIMULATION_TRACE"), ","); len(v) == 3 {
		w.traced = v[0]
		w.tracedFrom, _ = time.ParseDuration(v[1])
		w.tracedTo, _ = time.ParseDuration(v[2])
	}
	return w
}

// TestDay plays a day of failures.
func TestDay(t *testing.T) {
	day := 24 * time.Hour
	if testing.Short() {
		day = 2 * time.Hour
	}
	w := newSimulation(t, simConfig{detectLeast: 800 * time.Millisecond, detectMost: 2 * time.Second, skew: 100 * time.Millisecond, loss: 0.001})
	w.after(20*time.Second, w.trouble)
	w.after(5*time.Second, w.moveSomebody)
	w.run(day)
	w.quiet(t)
	w.report(t, day)
}

// TestClocksApart moves clients between replicas whose clocks are half a minute apart.
// A client takes no initiation that is older than the last one, by the clock of who
// sent it: where the adopter is behind, WireGuard's own timers have to do.
func TestClocksApart(t *testing.T) {
	w := newSimulation(t, simConfig{detectLeast: 800 * time.Millisecond, detectMost: 2 * time.Second, skew: 30 * time.Second})
	w.after(5*time.Second, w.moveSomebody)
	w.run(time.Hour)
	w.quiet(t)
	w.report(t, time.Hour)
}

// quiet ends all trouble, and looks at what is left.
func (w *world) quiet(t *testing.T) {
	w.running = false
	w.run(w.now + 2*time.Minute)
	for _, c := range w.clients {
		if c.burst {
			t.Errorf("%s is still without a tunnel, since %s: %+v", c.name, c.outage.since, c.outage)
		}
		var first *node
		for _, n := range w.nodes {
			if !n.up {
				continue
			}
			if first == nil {
				first = n
			}
			a, _ := first.replica.table.Newest(c.id)
			b, _ := n.replica.table.Newest(c.id)
			if a.Seq != b.Seq || !a.same(b) {
				t.Errorf("%s: its newest session is %v for %s, and %v for %s", c.name, a, first.name, b, n.name)
			}
			at, isElsewhere := n.replica.Elsewhere()[c.public]
			if m, alive := n.replica.members[b.Holder]; alive && (b.Holder != n.replica.self) != isElsewhere || isElsewhere && at != m.Name {
				t.Errorf("%s: elsewhere for %s: %t (%q), held by %q", c.name, n.name, isElsewhere, at, m.Name)
			}
		}
	}
	for _, c := range w.clients {
		c.target = nil // they are switched off
		c.keyring, c.handshaking, c.keepalive = keyring{}, handshaking{}, 0
	}
	w.run(w.now + 5*time.Minute)
	for _, n := range w.nodes {
		r := n.replica
		left := map[string]int{
			"indices": len(r.table.indices), "handshakes": len(r.started.byIndex) + len(r.started.indices), "proofs": len(r.claims.byPeer) + len(r.claims.proven), "own sessions": len(r.mine), "calls": len(r.calls), "hints": len(r.hints) + len(r.hinted), "unseen": len(r.unseen), "loud": len(r.loud),
			"strangers": len(n.log.strangers), "peers too many": max(0, len(r.table.peers)-len(w.clients)), "elsewhere too many": max(0, len(r.elsewhere)-len(w.clients)),
		}
		for what, count := range left {
			if count > 0 && n.up {
				t.Errorf("%s: %d %s left", n.name, count, what)
			}
		}
	}
}

// report prints what happened.
func (w *world) report(t *testing.T, lasted time.Duration) {
	for _, f := range w.faults {
		t.Error(f)
	}
	line := ""
	for _, k := range slices.Sorted(maps.Keys(w.counts)) {
		line += fmt.Sprintf("; %s %d", k, w.counts[k])
	}
	t.Logf("%s of %d clients%s", lasted, len(w.clients), line)
	kinds := map[string][]outage{}
	for _, o := range w.outages {
		kinds[o.kind()] = append(kinds[o.kind()], o)
	}
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		all := kinds[k]
		slices.SortFunc(all, func(a, b outage) int { return cmp.Compare(a.lasted, b.lasted) })
		last := all[len(all)-1]
		t.Logf("outages: %-60s %6d, p50 %s, p99 %s, longest %s (%s at %s)", k, len(all), all[len(all)/2].lasted, all[len(all)*99/100].lasted, last.lasted, last.client, last.since)
	}
}
