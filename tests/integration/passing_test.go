package integration

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
)

// TestPassedOn sends packets of the cluster for a client to one replica, while the
// client goes from one to the other: they are passed on to the one that it is at. And
// clients at different replicas reach each other.
func TestPassedOn(t *testing.T) {
	alice, bob := newPerson(t, "alice", "10.8.0.2"), newPerson(t, "bob", "10.8.0.3")
	need(t)
	s := newSquad(t, 3, netns.Plan{Clients: 2}, gateway.Config{
		Values: "routing: {peerToPeer: true, allowedDestinations: [{cidr: 10.0.0.0/8}]}",
		Peers:  []gateway.Peer{alice.entry(), bob.entry()},
	})
	s.send(t, 0, 0)
	s.send(t, 1, 1)
	target := s.echo(t).Addr()
	alice.connect(t, s.world, 0, "10.0.0.0/8")
	bob.connect(t, s.world, 1, "10.0.0.0/8")
	for machine := range 2 { // both have a session
		startStream(t, s.Clients[machine], target, 100).Stop(patience)
	}
	// What a cluster's network would do for it.
	if err := s.Node.AddRoute(netns.Route{To: netip.MustParsePrefix("10.8.0.0/24"), Via: s.PodIP(0)}); err != nil {
		t.Fatal(err)
	}
	at := map[string]*stream.Echo{}
	for i, p := range []person{alice, bob} {
		e, err := stream.ListenEcho(s.Clients[i], netip.AddrPortFrom(p.addresses[0], 0))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.Close() })
		at[p.name] = e
	}
	// Replicas that have just met may take until WireGuard's second try for their link.
	startStream(t, s.Clients[0], at["bob"].Addr(), 100).Stop(0)
	wantNothingLost(t, startStream(t, s.Clients[0], at["bob"].Addr(), 100).Stop(patience))

	s.behindNAT(t, 0)
	time.Sleep(pastSecondHandshake)
	// What she sends by herself shows where she is: of a client that only answers, and is
	// not reached any more, nobody could know.
	own := startStream(t, s.Clients[0], target, 100)
	flow := startStream(t, s.Service, at["alice"].Addr(), 100)
	const moves = 6
	for i := range moves {
		s.send(t, 0, (i+1)%len(s.replicas))
		await(t, flow, 150)
		if at := s.holder(t, alice); at != (i+1)%len(s.replicas) {
			t.Errorf("move %d: replica %d has the newest session, want %d", i, at, (i+1)%len(s.replicas))
		}
	}
	r := flow.Stop(time.Second)
	t.Logf("%d moves: %s, longest outage %s; her own flow: %s", moves, r, r.LongestLoss, own.Stop(time.Second))
	for from := range at["alice"].Senders() {
		if from.Addr() != s.PodIP(0) {
			t.Errorf("the client sees %s, want the replica that the packets come in by, %s", from.Addr(), s.PodIP(0))
		}
	}
	if len(at["alice"].Senders()) > 1 {
		t.Errorf("the client sees one flow as %v", at["alice"].Senders())
	}
	if r.Lost > movePackets*moves || r.LongestLoss > leastOutage {
		t.Errorf("%d moves: %s, longest outage %s; want %d packets and %s each at most", moves, r, r.LongestLoss, movePackets, leastOutage)
	}
}

// holder is the replica that knows where a client is; -1 for none, or several.
func (s *squad) holder(t *testing.T, p person) int {
	t.Helper()
	out := -1
	for i, replica := range s.replicas {
		d, err := replica.Device()
		if err != nil {
			t.Fatal(err)
		}
		if !d.Peers[p.key.Public()].Endpoint.IsValid() {
			continue
		}
		if out >= 0 {
			return -1
		}
		out = i
	}
	return out
}
