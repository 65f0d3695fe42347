package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
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
	site := bob.entry()
	site.AllowedIPs = []string{"192.168.50.0/24"}
	s := newSquad(t, 3, netns.Plan{Clients: 2}, gateway.Config{
		Values: "routing: {peerToPeer: true, allowedDestinations: [{cidr: 10.0.0.0/8}]}",
		Peers:  []gateway.Peer{alice.entry(), site},
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
		at[p.name] = echoAt(t, s.Clients[i], p.addresses[0])
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

	c := s.options.Config
	c.Values = strings.Replace(c.Values, "peerToPeer: true", "masquerade: false", 1)
	for _, g := range s.replicas {
		if err := g.Reload(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a site, not masqueraded", func(t *testing.T) { testSitePassedOn(t, s, bob) })
}

// testSitePassedOn has a network behind bob, the client of one of three replicas, and no
// masquerading. What the cluster opens comes in by one replica, wherever the site is. What
// the site opens is answered by way of its holder, as the cluster's network has to see to.
func testSitePassedOn(t *testing.T, s *squad, bob person) {
	network := netip.MustParsePrefix("192.168.50.0/24")
	caller, server := netip.MustParseAddr("192.168.50.8"), netip.MustParseAddr("192.168.50.7")
	host := s.lan(t, 1, netip.PrefixFrom(caller, network.Bits()), netip.PrefixFrom(server, network.Bits()))
	s.behindNAT(t, 1)
	// What a cluster's network would do for it: the site is by one replica, but who calls
	// from there is where its holder is.
	const door = 0
	follow := func(replica int) {
		if err := s.Node.AddRoute(netns.Route{To: netip.PrefixFrom(caller, caller.BitLen()), Via: s.PodIP(replica)}); err != nil {
			t.Fatal(err)
		}
	}
	s.send(t, 1, 1)
	follow(1)
	if err := s.Node.AddRoute(netns.Route{To: network, Via: s.PodIP(door)}); err != nil {
		t.Fatal(err)
	}
	inSite := echoAt(t, host, server)
	inCluster := s.echo(t)
	out := startStream(t, host, inCluster.Addr(), 100)
	in := startStream(t, s.Service, inSite.Addr(), 100)
	await(t, in, 100)
	wantHolder(t, s, bob, 1)
	serveWhoami(t, host, netip.AddrPortFrom(server, 80))
	serveWhoami(t, s.Service, netip.AddrPortFrom(s.ServiceIP(), 80))
	inward, outward := moves{costs: moveCosts(), flow: in}, moves{costs: moveCosts(), flow: out}
	for _, move := range []struct {
		to   int
		seen netip.Addr // whom the site takes new callers from the cluster for
	}{{2, s.PodIP(door)}, {door, s.ServiceIP()}, {1, s.PodIP(door)}} {
		sentIn, sentOut := in.Sent(), out.Sent()
		s.send(t, 1, move.to)
		// Not before: a replica that sees an answer, and has not seen what was asked, takes
		// it for a call of the cluster's, and passes it on as one.
		eventually(t, "the session at its new holder", func() string {
			if at := s.holder(t, bob); at != move.to {
				return fmt.Sprintf("it is at %d", at)
			}
			return ""
		})
		follow(move.to)
		await(t, in, 100)
		await(t, out, 50)
		inward.note(t, fmt.Sprintf("cluster → site at replica %d", move.to), sentIn)
		outward.note(t, fmt.Sprintf("site at replica %d → cluster", move.to), sentOut)
		wantHolder(t, s, bob, move.to)
		if outcome, seen := flow(t, s.Service, "tcp", netip.AddrPortFrom(server, 80)); outcome != passed || seen != move.seen {
			t.Errorf("cluster → site at replica %d: %s as %s, want as %s", move.to, outcome, seen, move.seen)
		}
		if outcome, seen := flow(t, host, "tcp", netip.AddrPortFrom(s.ServiceIP(), 80)); outcome != passed || seen != caller {
			t.Errorf("site at replica %d → cluster: %s as %s, want as %s", move.to, outcome, seen, caller)
		}
	}
	inward.stop(t)
	outward.stop(t)
	wantOneSender(t, "the site", inSite, s.PodIP(door))
	wantOneSender(t, "the cluster", inCluster, caller)
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

// lan puts a machine with addresses behind a client, which becomes the router to it. The
// machine calls from the first one.
func (w *world) lan(t *testing.T, client int, addresses ...netip.Prefix) *netns.NS {
	t.Helper()
	host, router := netns.ForTest(t), addresses[0].Masked().Addr().Next()
	err := errors.Join(
		netns.Veth(
			netns.End{NS: host, Interface: netns.UplinkInterface, Addresses: addresses},
			netns.End{NS: w.Clients[client], Interface: "lan", Addresses: []netip.Prefix{netip.PrefixFrom(router, addresses[0].Bits())}}, 0),
		host.AddRoute(netns.DefaultRoute(router)),
		w.Clients[client].Forward())
	if err != nil {
		t.Fatal(err)
	}
	return host
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
