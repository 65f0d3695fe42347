package fleet

import (
	"fmt"
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

// What an outage may last (milliseconds of virtual time are cheap: a client whose
// tunnel is in question sends every 20 ms).
const (
	streamEvery = 20 * time.Millisecond
	maxMove     = 150 * time.Millisecond
	maxKill     = 3 * time.Second
	// native is what WireGuard takes by itself: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT and
	// a repetition with its jitter.
	native = 15*time.Second + 2*(rekeyTimeout+333*time.Millisecond)
	// converges is when the replicas of a fleet agree after a partition: they look for
	// each other every 10 s, and compare everything when they meet.
	converges = joinEvery + 2*time.Second
)

// outage is a time in which what a client sent was not answered, and what happened.
type outage struct {
	since, lasted time.Duration
	// lost messages, those that a dead replica got, sessions that the replica did not
	// know of, initiations that the client took for old ones.
	lost, dead, unknown, replayed int
	// moved while replicas could not hear each other, with a session of the last
	// moment, or to a replica whose agent is dead.
	moves, parted, fresh, unseen int
	// again: moved a moment after another move, perhaps back to who takes it for pulled.
	again int
	// overtaken: a second replica called before the first was heard from.
	overtaken int
	// cold: the client called a replica that was dead, and waits for REKEY_TIMEOUT.
	cold bool
}

// kind is the reason, the one that takes the longest first.
func (o outage) kind() string {
	switch {
	case o.unknown > 0 && (o.parted > 0 || o.unseen > 0):
		return "session unknown (partition, or made while no agent looked)"
	case o.dead > 0 || o.unseen > 0:
		return "replica dead"
	case o.lost > 0:
		return "moved, and a message lost"
	case o.fresh > 0:
		return "moved during a handshake"
	case o.overtaken > 0:
		return "moved, and two replicas called at once"
	case o.replayed > 0:
		return "moved to a clock that is behind"
	}
	return "moved"
}

// most is how long it may last.
func (o outage) most(c simConfig) time.Duration {
	most := (maxMove + streamEvery) * time.Duration(max(1, o.moves))
	if o.dead > 0 || o.unseen > 0 {
		most += maxKill - maxMove
	}
	if o.replayed > 0 {
		most += 2*c.skew + 2*firstRetry
	}
	if o.fresh > 0 {
		most += rekeyTimeout + 333*time.Millisecond
	}
	if o.again > 0 {
		most += pulledWhileLeave
	}
	if o.overtaken > 0 {
		most = native // where both handshakes were with the replica that the client is with
	}
	if o.replayed > 0 && c.skew > time.Second { // the former holder's calls are newer, and hold the client up
		most = 2*native + rekeyAttempt
	}
	if o.parted > 0 && o.lost > 0 {
		most = native // both sides call, and the client forgets one for the other
	}
	if o.unknown > 0 && (o.parted > 0 || o.unseen > 0 || o.fresh > 0) {
		most = native
	}
	if o.unknown > 0 && (o.parted > 0 || o.unseen > 0) {
		most += rekeyAttempt // of the former holder, each of which puts the client off
	}
	if o.unknown > 0 && o.dead > 0 && o.lost > 0 {
		most = native // who made the session died before it was heard of
	}
	if o.parted > 0 {
		most += firstRetry // of a call that nobody asked for
	}
	if o.dead > 0 && o.cold {
		most += rekeyTimeout + 333*time.Millisecond
	}
	if o.lost > 0 {
		most += time.Duration(o.lost) * (rekeyTimeout + 333*time.Millisecond)
	}
	return most
}

// stream has a client send without a pause until it is answered.
func (w *world) stream(c *client) {
	if c.burst {
		return
	}
	c.burst, c.outage.since = true, w.now
	if w.parted() {
		c.outage.parted++
	}
	var send func()
	send = func() {
		if !c.burst {
			return
		}
		c.send(true)
		w.after(streamEvery, send)
	}
	send()
}

// answered notes that what a client sent at a time has come to the gateway and back.
func (w *world) answered(c *client, sent time.Duration) {
	c.answeredAt = sent
	if !c.burst || sent < c.outage.since {
		return
	}
	c.burst = false
	if c.outage.lasted = sent - c.outage.since; c.outage.lasted > 0 {
		w.outages = append(w.outages, c.outage)
		if most := c.outage.most(w.config); c.outage.lasted > most {
			w.fault("%s: no tunnel for %s, want %s at most: %+v", c.name, c.outage.lasted, most, c.outage)
		}
	}
}

// parted reports whether replicas cannot hear each other, or have not met since.
func (w *world) parted() bool { return w.split || w.healed > 0 && w.now-w.healed < converges }

// program is what runs on a client.
func (w *world) program(c *client) {
	w.after(w.in(c.every/2, c.every*3/2), func() {
		if !w.running {
			return
		}
		if !c.burst {
			c.outage = outage{}
			if c.pending != 0 {
				c.outage.fresh++
			}
			if c.overtaken > 0 && w.now-c.overtaken < 3*native {
				c.outage.overtaken++
			}
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

func newWorld(seed uint64, c simConfig, clients int) *world {
	w := &world{random: rand.New(rand.NewPCG(seed, 1)), config: c, counts: map[string]int{}, sent: map[string]int{}, running: true, doubles: map[*client]int{}}
	for i := range clients {
		k := key.Public{byte(i), byte(i >> 8), 1}
		w.peers = append(w.peers, Peer{PublicKey: k})
		cl := &client{
			world: w, name: fmt.Sprintf("client %d", i), public: k, distance: w.in(time.Millisecond, 20*time.Millisecond),
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
			if s, ok := n.replica.table.Newest(IDOf(c.public)); ok && n.replica.isMine(s) {
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
				if s, ok := n.replica.table.Newest(IDOf(c.public)); ok && n.up {
					text += fmt.Sprintf("; %s (draining %t, sees %d): %d by %x, own %t, since %s", n.name, n.draining, len(n.seen), s.Seq, s.Holder, n.replica.isMine(s), s.Since.Sub(epoch))
				}
			}
			w.fault("%s has %d holders for 5 s%s", c.name, holders, text)
		}
	}
	w.after(5*time.Second, w.check)
}

// TestDay plays a day of failures.
func TestDay(t *testing.T) {
	day := 24 * time.Hour
	if testing.Short() {
		day = 2 * time.Hour
	}
	seed := uint64(1) // any will do, and a test is not to fail for bad luck
	if s := os.Getenv("SIMULATION_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SIMULATION_SEED=%d", seed)
	w := newWorld(seed, simConfig{detectLeast: 800 * time.Millisecond, detectMost: 2 * time.Second, skew: 100 * time.Millisecond, loss: 0.001}, 100)
	w.t = t
	if v := strings.Split(os.Getenv("SIMULATION_TRACE"), ","); len(v) == 3 {
		w.traced = v[0]
		w.tracedFrom, _ = time.ParseDuration(v[1])
		w.tracedTo, _ = time.ParseDuration(v[2])
	}
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
	const seed = 1
	w := newWorld(seed, simConfig{detectLeast: 800 * time.Millisecond, detectMost: 2 * time.Second, skew: 30 * time.Second}, 100)
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
			a, _ := first.replica.table.Newest(IDOf(c.public))
			b, _ := n.replica.table.Newest(IDOf(c.public))
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
		c.keyring, c.pending, c.keepalive = keyring{}, 0, 0
	}
	w.run(w.now + 5*time.Minute)
	for _, n := range w.nodes {
		r := n.replica
		left := map[string]int{
			"indices": len(r.table.indices), "handshakes": len(r.started), "own sessions": len(r.mine), "calls": len(r.calls),
			"strangers": len(n.strangers), "peers too many": max(0, len(r.table.peers)-len(w.clients)), "elsewhere too many": max(0, len(r.elsewhere)-len(w.clients)),
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
	keys := make([]string, 0, len(w.counts))
	for k := range w.counts {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	line := ""
	for _, k := range keys {
		line += fmt.Sprintf("; %s %d", k, w.counts[k])
	}
	t.Logf("%s of %d clients%s", lasted, len(w.clients), line)
	kinds := map[string][]time.Duration{}
	for _, o := range w.outages {
		kinds[o.kind()] = append(kinds[o.kind()], o.lasted)
	}
	for _, k := range slices.Sorted(mapKeys(kinds)) {
		d := kinds[k]
		slices.Sort(d)
		t.Logf("outages: %-60s %6d, p50 %s, p99 %s, longest %s", k, len(d), d[len(d)/2], d[len(d)*99/100], d[len(d)-1])
	}
}
