package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// squad is a gateway of several replicas behind a load balancer: one key, one
// endpoint.
type squad struct {
	*world
	balancer *netns.Balancer
	options  gateway.Options // of the next replica
	replicas []*gateway.Gateway
}

// spares are Pods that may follow those that a squad starts with.
const spares = 6

// newSquad starts n replicas, and waits until each knows of all others.
func newSquad(t *testing.T, n int, plan netns.Plan, c gateway.Config) *squad {
	t.Helper()
	key, err := wgclient.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	topology := netns.TopologyForTest(t, plan)
	// No cluster's DNS is here to find siblings by.
	var where []string
	for i := range n + spares {
		where = append(where, topology.PodIP(i).String())
	}
	c.Values += "\nextraArgs: [\"--fleet-join=" + strings.Join(where, ",") + "\", \"--fleet-link-port=51840\"]\n"
	s := &squad{world: &world{Topology: topology}, options: gateway.Options{Config: c, PrivateKey: key}}
	s.balancer = netns.NewBalancer(topology, netip.AddrPortFrom(topology.PublicIP(), gateway.Port))
	for range n {
		s.grow(t)
	}
	s.Gateway = s.replicas[0]
	s.awaitReplicas(t, n)
	return s
}

// grow adds a replica, and takes it into service once it is ready.
func (s *squad) grow(t *testing.T) *gateway.Gateway {
	t.Helper()
	s.replicas = append(s.replicas, startGateway(t, s.Topology, s.options))
	s.balancer.Add(s.pod(len(s.replicas) - 1))
	return s.replicas[len(s.replicas)-1]
}

// pod is where a replica listens.
func (s *squad) pod(replica int) netip.AddrPort {
	return netip.AddrPortFrom(s.PodIP(replica), gateway.Port)
}

// awaitReplicas waits until every replica that runs knows of n.
func (s *squad) awaitReplicas(t *testing.T, n int) {
	t.Helper()
	s.everyReplica(t, "the replicas", func(f gateway.Fleet) string {
		if f.Replicas != n {
			return fmt.Sprintf("knows of %d replicas, want %d", f.Replicas, n)
		}
		return ""
	})
}

// everyReplica waits until all replicas that run say at once of the fleet what is wanted;
// wanted returns what is missing.
func (s *squad) everyReplica(t *testing.T, what string, wanted func(gateway.Fleet) string) {
	t.Helper()
	eventually(t, what, func() string {
		for i, g := range s.replicas {
			if len(g.Container().Exits()) > 0 {
				continue
			}
			f, err := g.Fleet(t.Context())
			if err != nil {
				return err.Error()
			}
			if missing := wanted(f); missing != "" {
				return fmt.Sprintf("replica %d %s", i, missing)
			}
		}
		return ""
	})
}

// send makes a client's packets go to a replica from now on.
func (s *squad) send(t *testing.T, client, replica int) {
	t.Helper()
	if err := s.balancer.Move(s.ClientIP(client), s.pod(replica)); err != nil {
		t.Fatal(err)
	}
}

// behindNAT lets packets in to a client from the endpoint alone, as a NAT before it
// would. Without one, what a replica sends once the load balancer has forgotten the flow
// arrives, from another address, and the client follows it there.
func (s *squad) behindNAT(t *testing.T, client int) {
	t.Helper()
	if err := s.Clients[client].BehindNAT(testenv.MustTool(t, "nft"), s.Endpoint); err != nil {
		t.Fatal(err)
	}
}

// pastSecondHandshake is when a session in a lab is as sessions are elsewhere: where
// the first handshake takes less than a millisecond, wireguard-go may begin another
// after 5 s.
const pastSecondHandshake = 6 * time.Second

// costs bound what moves may cost a stream of 100 packets a second. Without adoption each
// would cost 1,500, of WireGuard's own 15 s.
type costs struct {
	// typical is for the median, and for all that is lost beside the moves.
	typical uint64
	most    uint64 // for a single one, on a machine that other tests keep busy
}

// moveCosts are those of wireguard-go.
func moveCosts() costs { return costs{typical: 5, most: 50} }

// emulatedCosts are for where the processor may be an emulated one: a change of a peer or
// of a route takes the kernel 60 to 300 ms there while the machine has other things to do,
// and replicas that do not get to answer each other take each other for dead. What is
// looked at is that it is adoption that brings a client back, and not WireGuard's own 15 s.
func emulatedCosts() costs { return costs{typical: 200, most: 1000} }

// moves counts what each of several moves costs a stream.
type moves struct {
	costs
	flow *stream.Stream
	lost []uint64
}

// note takes a move that began when the stream had sent so many packets. The last second
// is not known yet.
func (m *moves) note(t *testing.T, what string, before uint64) {
	t.Helper()
	lost, outage := m.flow.Loss(before)
	m.lost = append(m.lost, lost)
	t.Logf("%s: %d packets lost, outage %s", what, lost, outage)
	if lost > m.most {
		t.Errorf("%s: %d packets lost, outage %s; want %d packets at most", what, lost, outage, m.most)
	}
}

// stop ends the stream, and looks at all moves together.
func (m *moves) stop(t *testing.T) {
	t.Helper()
	r := m.flow.Stop(time.Second)
	slices.Sort(m.lost)
	median, besides := m.lost[len(m.lost)/2], r.Lost
	for _, n := range m.lost {
		besides -= min(n, besides) // some may have come later
	}
	t.Logf("%d moves: %s, longest outage %s", len(m.lost), r, r.LongestLoss)
	if median > m.typical || besides > m.typical {
		t.Errorf("%d moves: %d packets lost in half of them or more, %d beside them; want %d each at most", len(m.lost), median, besides, m.typical)
	}
}

// TestMovedFlow sends a stock client's packets to one replica after the other, as a
// load balancer does that has changed its mind. By itself WireGuard takes 15 s for it.
func TestMovedFlow(t *testing.T) {
	need(t)
	testMovedFlow(t, "userspace", false)
}

func testMovedFlow(t *testing.T, dataPlane string, kernelClient bool) {
	alice, bob := newPerson(t, "alice", "10.8.0.2"), newPerson(t, "bob", "10.8.0.3")
	s := newSquad(t, 3, netns.Plan{Clients: 2}, gateway.Config{
		Values: "server: {dataPlane: " + dataPlane + "}", Peers: []gateway.Peer{alice.entry(), bob.entry()},
	})
	s.kernelClients = kernelClient
	s.behindNAT(t, 0)
	target := s.echo(t).Addr()
	s.send(t, 0, 0)
	alice.connect(t, s.world, 0, "10.0.0.0/8")
	flow := startStream(t, s.Clients[0], target, 100)
	his := s.connectToPod(t, bob, 1, 0)
	hisFlow := startStream(t, s.Clients[1], target, 100)
	time.Sleep(pastSecondHandshake)
	m := moves{costs: moveCosts(), flow: flow}
	if kernelClient {
		m.costs = emulatedCosts()
	}
	const times = 6
	for i := range times {
		before := flow.Sent()
		s.send(t, 0, (i+1)%len(s.replicas))
		await(t, flow, 150)
		m.note(t, fmt.Sprintf("move %d", i), before)
	}
	m.stop(t)
	if n := s.adoptions(t); n < times {
		t.Errorf("replicas adopted the client %d times, want %d at least", n, times)
	}
	t.Run("by the client itself", func(t *testing.T) { testBalancesItself(t, s, bob, his, moves{costs: m.costs, flow: hisFlow}) })
}

// connectToPod brings a client up that sends to a replica's own address, as one that needs
// no load balancer.
func (s *squad) connectToPod(t *testing.T, p person, machine, replica int) *wgclient.Client {
	t.Helper()
	// Where Pod addresses are routed. The tunnel has to be clear of them.
	if err := s.Internet.AddRoute(netns.Route{To: netip.PrefixFrom(s.PodIP(0), 24), Via: netip.MustParseAddr("192.0.2.2")}); err != nil {
		t.Fatal(err)
	}
	file := p.file(s.Gateway, netip.PrefixFrom(s.ServiceIP(), 24).Masked().String())
	file.Peers[0].Endpoint = s.pod(replica).String()
	return wgclient.ForTest(t, file, wgclient.Options{NS: s.Clients[machine], Kernel: s.kernelClients})
}

// testBalancesItself has the client of replica 0 send to the others, one after the other, by
// nothing but another endpoint.
func testBalancesItself(t *testing.T, s *squad, p person, client *wgclient.Client, m moves) {
	wantHolder(t, s, p, 0)
	for _, replica := range []int{1, 2} {
		before, to := m.flow.Sent(), s.pod(replica).String()
		// An answer of its former replica that is under way draws it back, and then it has
		// to say so again.
		eventually(t, "the client", func() string {
			if s.holder(t, p) == replica {
				return ""
			}
			out, err := client.Run("show", client.Interface(), "endpoints")
			if err == nil && !strings.HasSuffix(out, "\t"+to) {
				_, err = client.Run("set", client.Interface(), "peer", s.PublicKey(), "endpoint", to)
			}
			return fmt.Sprintf("sends to %s, want %s: %v", out, to, err)
		})
		await(t, m.flow, 150)
		m.note(t, "to "+to, before)
		wantHolder(t, s, p, replica)
	}
	m.stop(t)
}

// wantHolder checks that a replica has a client's newest session, and no other.
func wantHolder(t *testing.T, s *squad, p person, want int) {
	t.Helper()
	if at := s.holder(t, p); at != want {
		t.Errorf("replica %d has the session of %s, want %d", at, p.name, want)
	}
}

// adoptions is how often replicas have taken a peer over.
func (s *squad) adoptions(t *testing.T) int {
	t.Helper()
	return int(s.total(t, "vpn_gateway_fleet_adopted_peers_total"))
}

// TestFlapping moves a client back and forth every 3 s, which is too often for
// WireGuard's own timers ever to bring it back.
func TestFlapping(t *testing.T) {
	need(t)
	alice := newPerson(t, "alice", "10.8.0.2")
	s := newSquad(t, 2, netns.Plan{Clients: 1}, gateway.Config{Peers: []gateway.Peer{alice.entry()}})
	target := s.echo(t).Addr()
	s.send(t, 0, 0)
	// Else it follows what its former holder sends last, off the load balancer, and no move
	// after the first one moves it.
	s.behindNAT(t, 0)
	alice.connect(t, s.world, 0, "10.0.0.0/8")
	flow := startStream(t, s.Clients[0], target, 100)
	time.Sleep(pastSecondHandshake)
	m := moves{costs: moveCosts(), flow: flow}
	for i := range 6 {
		before := flow.Sent()
		s.send(t, 0, (i+1)%2)
		time.Sleep(3 * time.Second)
		m.note(t, fmt.Sprintf("move %d", i), before)
		wantHolder(t, s, alice, (i+1)%2)
	}
	m.stop(t)
}

// TestIdleClientMoves has no packet under way when the flow moves: the client's next
// keepalive is what the new replica sees of it. By itself WireGuard notices with the
// next handshake, up to two minutes later.
func TestIdleClientMoves(t *testing.T) {
	need(t)
	alice := newPerson(t, "alice", "10.8.0.2")
	s := newSquad(t, 2, netns.Plan{Clients: 1}, gateway.Config{Peers: []gateway.Peer{alice.entry()}})
	target := s.echo(t).Addr()
	s.send(t, 0, 0)
	file := alice.file(s.Gateway, "10.0.0.0/8")
	file.Peers[0].PersistentKeepalive = 2
	wgclient.ForTest(t, file, wgclient.Options{NS: s.Clients[0]})
	startStream(t, s.Clients[0], target, 100).Stop(time.Second)
	time.Sleep(pastSecondHandshake)
	s.send(t, 0, 1)
	start := time.Now()
	eventually(t, "the idle client", func() string {
		f, err := s.replicas[1].Fleet(t.Context())
		if err != nil {
			return err.Error()
		}
		if f.Member(s.PodIP(1)).ConnectedPeers == 1 {
			return ""
		}
		return fmt.Sprintf("not adopted: %+v", f)
	})
	took := time.Since(start)
	t.Logf("adopted after %d ms, with a keepalive every 2 s", took.Milliseconds())
	if took > 5*time.Second {
		t.Errorf("adopted after %s", took)
	}
	wantNothingLost(t, startStream(t, s.Clients[0], target, 100).Stop(patience))
}
