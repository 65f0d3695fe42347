package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// squad is a gateway of several replicas: one key, one endpoint.
type squad struct {
	*world
	replicas []*gateway.Gateway
}

// newSquad starts n replicas, and waits until each knows of all others.
func newSquad(t *testing.T, n int, plan netns.Plan, c gateway.Config) *squad {
	t.Helper()
	need(t)
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
	c.Values += "\nextraArgs: [\"--fleet-join=" + strings.Join(where, ",") + "\"]\n"
	s := &squad{world: &world{Topology: topology}}
	for range n {
		s.replicas = append(s.replicas, startGateway(t, topology, gateway.Options{Config: c, PrivateKey: key}))
	}
	s.Gateway = s.replicas[0]
	for i := range s.replicas {
		eventually(t, fmt.Sprintf("replica %d", i), func() string {
			f, err := s.replicas[i].Fleet(t.Context())
			if err != nil {
				return err.Error()
			}
			if f.Replicas != n {
				return fmt.Sprintf("knows of %d replicas, want %d", f.Replicas, n)
			}
			return ""
		})
	}
	return s
}

// spares are Pods that may follow those that a squad starts with.
const spares = 8

// send makes a client's packets go to a replica from now on.
func (s *squad) send(t *testing.T, client, replica int) {
	t.Helper()
	pod := netip.AddrPortFrom(s.PodIP(replica), gateway.Port)
	if err := s.Move(s.ClientIP(client), s.Endpoint, pod); err != nil {
		t.Fatal(err)
	}
}

// pastSecondHandshake is when a session in a lab is past its second handshake: where the first one
// takes less than a millisecond, wireguard-go may begin another after 5 s.
const pastSecondHandshake = 6 * time.Second

// TestMovedFlow sends a stock client's packets to one replica after the other, as a
// load balancer does that has changed its mind. By itself WireGuard takes 15 s for it.
func TestMovedFlow(t *testing.T) {
	alice := newPerson(t, "alice", "10.8.0.2")
	s := newSquad(t, 3, netns.Plan{Clients: 1}, gateway.Config{Peers: []gateway.Peer{alice.entry()}})
	target := s.echo(t).Addr()
	s.send(t, 0, 0)
	alice.connect(t, s.world, 0, "10.0.0.0/8")
	flow := startStream(t, s.Clients[0], target, 100)
	time.Sleep(pastSecondHandshake)
	const moves = 6
	for i := range moves {
		s.send(t, 0, (i+1)%len(s.replicas))
		await(t, flow, 150)
	}
	r := flow.Stop(time.Second)
	t.Logf("%d moves: %s, longest outage %s", moves, r, r.LongestLoss)
	if r.Lost > 5*moves || r.LongestLoss > 150*time.Millisecond {
		t.Errorf("%d moves: %s, longest outage %s; want 5 packets and 150 ms each at most", moves, r, r.LongestLoss)
	}
}
