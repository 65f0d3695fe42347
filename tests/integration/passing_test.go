package integration

import (
	"fmt"
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
	m := moves{costs: moveCosts(), flow: flow}
	for i := range 6 {
		before := flow.Sent()
		s.send(t, 0, (i+1)%len(s.replicas))
		await(t, flow, 150)
		m.note(t, fmt.Sprintf("move %d", i), before)
		wantHolder(t, s, alice, (i+1)%len(s.replicas))
	}
	m.stop(t)
	t.Logf("her own flow: %s", own.Stop(time.Second))
	wantOneSender(t, "the client", at["alice"], s.PodIP(0)) // which the packets come in by
}

// wantOneSender checks that an echo has seen one flow, from an address.
func wantOneSender(t *testing.T, who string, e *stream.Echo, want netip.Addr) {
	t.Helper()
	senders := e.Senders()
	if len(senders) != 1 {
		t.Errorf("%s sees one flow as %v", who, senders)
	}
	for from := range senders {
		if from.Addr() != want {
			t.Errorf("%s sees %s, want %s", who, from.Addr(), want)
		}
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
