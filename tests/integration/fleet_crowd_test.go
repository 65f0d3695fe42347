package integration

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/crowd"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// leastOutage is what is asked for here, of a machine that other tests keep busy: far
// below the 15 s of WireGuard's own timers. What a move takes where it is quiet is
// measured by make bench.
const leastOutage = time.Second

// beat is how often each of the many sends a packet, and so how exactly an outage is
// measured.
const beat = 20 * time.Millisecond

// crowdDrain is how long a replica serves on that is to leave, at most. Who is still with
// it after half of that is called by its siblings.
const crowdDrain = 20 * time.Second

// many are clients behind a load balancer.
type many struct {
	*squad
	people  []person
	clients []*crowd.Client
	from    []netip.Addr
}

// newMany starts replicas and clients, all of which are connected when it returns.
func newMany(t *testing.T, replicas, clients int) *many {
	t.Helper()
	need(t)
	m := &many{}
	c := gateway.Config{Values: fmt.Sprintf("server: {addresses: [10.8.0.1/16], drain: %s}\n", crowdDrain)}
	for i := range clients {
		m.people = append(m.people, newPerson(t, fmt.Sprintf("client-%03d", i), netip.AddrFrom4([4]byte{10, 8, 1, byte(i + 1)}).String()))
		c.Peers = append(c.Peers, m.people[i].entry())
	}
	m.squad = newSquad(t, replicas, netns.Plan{Clients: 1}, c)
	ctx, cancel := context.WithCancel(t.Context())
	var pinging sync.WaitGroup
	t.Cleanup(func() { cancel(); pinging.Wait() })
	pinger := crowd.NewPinger(m.ServiceIP())
	pinging.Go(func() { pinger.Ping(ctx, beat) })
	for i, p := range m.people {
		from := netip.AddrFrom4([4]byte{198, 51, 100, byte(20 + i)})
		if err := m.Clients[0].AddAddress(netns.UplinkInterface, netip.PrefixFrom(from, 24)); err != nil {
			t.Fatal(err)
		}
		if err := m.balancer.Client(from); err != nil {
			t.Fatal(err)
		}
		client, err := crowd.Start(crowd.Options{
			NS: m.Clients[0], From: from, PrivateKey: p.key, Address: p.addresses[0],
			Gateway: crowd.Identity{PublicKey: m.PublicKey(), Endpoint: m.Endpoint},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		m.clients, m.from = append(m.clients, client), append(m.from, from)
		pinger.Add(client)
	}
	everyoneAnswered(t, m.clients)
	time.Sleep(pastSecondHandshake)
	if err := m.balancer.KnowFlows(); err != nil {
		t.Fatal(err)
	}
	m.wantTotal(t, clients)
	m.reset()
	return m
}

func (m *many) reset() {
	for _, c := range m.clients {
		c.Reset()
	}
}

// report says what it cost, and that everybody is served.
func (m *many) report(t *testing.T, what string, most time.Duration) {
	t.Helper()
	time.Sleep(2 * time.Second) // for what is under way
	var sent, lost uint64
	var outages []time.Duration
	for i, c := range m.clients {
		s, l, run := c.Loss(uint64(time.Second / beat))
		outage := time.Duration(run) * beat
		sent, lost, outages = sent+s, lost+l, append(outages, outage)
		if outage > most {
			t.Errorf("%s: %s lost everything for %d ms, want %d ms at most", what, m.people[i].name, outage.Milliseconds(), most.Milliseconds())
		}
	}
	slices.Sort(outages)
	t.Logf("%s, %d clients: %d packets sent, %d lost; longest outage of a client: median %d ms, worst %d ms", what,
		len(m.clients), sent, lost, outages[len(outages)/2].Milliseconds(), outages[len(outages)-1].Milliseconds())
	m.reset()
	for i, c := range m.clients {
		eventually(t, m.people[i].name, func() string {
			if _, received, _ := c.Counts(); received == 0 {
				return "left behind: no answers any more"
			}
			return ""
		})
	}
}

// retire ends a replica as Kubernetes does: SIGTERM, out of service once unready,
// and then gone by itself.
func (m *many) retire(t *testing.T, replica int) {
	t.Helper()
	g, start := m.replicas[replica], time.Now()
	if err := g.Container().Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Await(t.Context(), "the replica to be unready", func(r gateway.Readiness) bool { return !r.Ready }); err != nil {
		t.Fatal(err)
	}
	moved, err := m.balancer.Remove(m.pod(replica))
	if err != nil {
		t.Fatal(err)
	}
	// Who has no NAT may be drawn to it, and stays until siblings call: see
	// docs/high-availability.md. From when on is nobody there?
	alone, enough := start, time.After(patience)
	for left := false; !left; {
		select {
		case <-g.Container().Done():
			left = true
		case <-enough:
			t.Fatalf("replica %d has not left", replica)
		case <-time.After(100 * time.Millisecond):
			if m.holds(t, replica) {
				alone = time.Now()
			}
		}
	}
	took, idle := time.Since(start), time.Since(alone)
	t.Logf("replica %d: %d clients moved, gone %.1f s after SIGTERM, %.1f s after the last of them", replica, moved, took.Seconds(), idle.Seconds())
	lines, err := g.Log()
	if err != nil {
		t.Error(err)
	}
	said := slices.ContainsFunc(lines, func(l gateway.LogLine) bool { return l.Text("msg") == "all peers have gone to other replicas" })
	if idle > crowdDrain/2 || !said {
		t.Errorf("replica %d stayed for %.1f s with nobody there, of %s at most; its log says that all peers have gone: %t", replica, idle.Seconds(), crowdDrain, said)
	}
}

// holds reports whether connected peers have their session with a replica, as it says. One
// that is about to end may say nothing.
func (m *many) holds(t *testing.T, replica int) bool {
	t.Helper()
	f, err := m.replicas[replica].Fleet(t.Context())
	return err == nil && f.Member(m.PodIP(replica)).ConnectedPeers > 0
}

// wantTotal waits until every replica that runs says that so many peers are connected with
// all of them: an autoscaler asks any one.
func (m *many) wantTotal(t *testing.T, peers int) {
	t.Helper()
	m.everyReplica(t, "the total of all replicas", func(f gateway.Fleet) string {
		if f.ConnectedPeers != peers {
			return fmt.Sprintf("says %d peers, want %d: %+v", f.ConnectedPeers, peers, f)
		}
		return ""
	})
}

// TestRollingUpgrade replaces three replicas one after the other.
func TestRollingUpgrade(t *testing.T) {
	m := newMany(t, 3, 50)
	for i := range 3 {
		m.grow(t)
		m.awaitReplicas(t, 4)
		m.retire(t, i)
	}
	m.report(t, "rolling upgrade of 3 replicas", leastOutage)
	m.wantTotal(t, len(m.clients))
}

// TestScaleIn retires three of five replicas at once.
func TestScaleIn(t *testing.T) {
	m := newMany(t, 5, 50)
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() { m.retire(t, i) })
	}
	all.Wait()
	m.report(t, "scale-in from 5 to 2", leastOutage)
	m.wantTotal(t, len(m.clients))
}

// awaitDead waits until a survivor knows that a replica is dead, which is when it
// takes it out of service, and returns how long that took.
func (m *many) awaitDead(t *testing.T, survivor, replica int) time.Duration {
	t.Helper()
	start := time.Now()
	eventually(t, "the death", func() string {
		f, err := m.replicas[survivor].Fleet(t.Context())
		if err != nil {
			return err.Error()
		}
		if f.Member(m.PodIP(replica)).State == "dead" {
			return ""
		}
		return fmt.Sprintf("not noticed: %+v", f.Members)
	})
	return time.Since(start)
}

// TestReplicaKilled ends a replica with SIGKILL: nobody is told, and survivors find out.
func TestReplicaKilled(t *testing.T) {
	m := newMany(t, 3, 50)
	if _, err := m.replicas[0].Container().Kill(); err != nil {
		t.Fatal(err)
	}
	noticed := m.awaitDead(t, 1, 0)
	if _, err := m.balancer.Remove(m.pod(0)); err != nil {
		t.Fatal(err)
	}
	m.report(t, fmt.Sprintf("replica killed, noticed after %d ms", noticed.Milliseconds()), 3*time.Second)
}

// TestNodeGone takes a replica's network away without a word.
func TestNodeGone(t *testing.T) {
	m := newMany(t, 3, 50)
	if err := m.replicas[0].Pod.Network().SetUp(netns.UplinkInterface, false); err != nil {
		t.Fatal(err)
	}
	noticed := m.awaitDead(t, 1, 0)
	if _, err := m.balancer.Remove(m.pod(0)); err != nil {
		t.Fatal(err)
	}
	m.report(t, fmt.Sprintf("node gone, noticed after %d ms", noticed.Milliseconds()), 5*time.Second)
}
