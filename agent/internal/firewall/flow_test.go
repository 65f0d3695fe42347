package firewall

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// expect sends a packet and fails the test unless that becomes of it. It
// returns the packet as it came out.
func (r *rig) expect(t testing.TB, what string, from side, p packet, want outcome) packet {
	t.Helper()
	got, out := r.outcome(t, from, p)
	if got != want {
		t.Fatalf("%s: %s, want %s", what, got, want)
	}
	return out
}

func withIPv6(s *spec.Snapshot) { s.Gateway.IPv6.Enabled = true }

// without returns a change that takes one peer away.
func without(name string) func(*spec.Snapshot) {
	return func(s *spec.Snapshot) { s.Peers = except(s.Peers, name) }
}

// allowing returns a change that gives one peer destinations of its own.
func allowing(name string, destinations ...spec.Destination) func(*spec.Snapshot) {
	return func(s *spec.Snapshot) {
		for i := range s.Peers {
			if s.Peers[i].Name == name {
				s.Peers[i].AllowedDestinations = destinations
			}
		}
	}
}

// response is the answer to a packet that came out, TCP's handshake included.
func response(p packet) packet {
	a := p.answer()
	if a.protocol == unix.IPPROTO_TCP {
		a.flags, a.seq, a.ack = syn|ack, 5000, p.seq+1
	}
	return a
}

func TestFlowOfPeer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		packet packet
		source string
	}{
		{"UDP", udp(alice4, host4, 1234), gatewayUplink4},
		{"TCP", tcp(alice4, web4, 443), gatewayUplink4},
		{"ping", ping(alice4, icmp4), gatewayUplink4},
		{"ping, IPv6", ping(alice6, icmp6), gatewayUplink6},
		{"TCP, IPv6", tcp(alice6, web6, 443), gatewayUplink6},
		{"network behind a peer", udp(lan4, host4, 1234), gatewayUplink4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.apply(t, nil, snapshot(withIPv6))
			first := r.expect(t, "first packet", tunnel, tc.packet, toCluster)
			if first.src != tc.source {
				t.Errorf("source is %s, want %s", first.src, tc.source)
			}
			back := r.expect(t, "answer", cluster, response(first), toTunnel)
			if back.src != tc.packet.dst || back.dst != tc.packet.src {
				t.Errorf("answer is from %s to %s, want from %s to %s", back.src, back.dst, tc.packet.dst, tc.packet.src)
			}
		})
	}
}

// TestFlowOfCluster: what the cluster side opens may be answered by any peer,
// whatever its policy; nothing else gets out that way.
func TestFlowOfCluster(t *testing.T) {
	for _, tc := range []struct {
		name   string
		packet packet
	}{
		{"UDP", udp(host4, carol4, 1234)},
		{"TCP", tcp(host4, carol4, 80)},
		{"ping", ping(host4, carol4)},
		{"UDP, IPv6", udp(host6, bob6, 1234)},
		{"network behind a peer", udp("10.50.0.1", lan4, 1234)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.apply(t, nil, snapshot(withIPv6))
			first := r.expect(t, "first packet", cluster, tc.packet, toTunnel)
			if first.src != tc.packet.src {
				t.Errorf("source is %s, want %s", first.src, tc.packet.src)
			}
			back := r.expect(t, "answer", tunnel, response(first), toCluster)
			if back.src != tc.packet.dst {
				t.Errorf("answer is from %s, want %s", back.src, tc.packet.dst)
			}
			other := udp(tc.packet.dst, tc.packet.src, 4321)
			r.expect(t, "a flow of the peer's own", tunnel, other, rejected)
		})
	}
}

// TestErrors: ICMP errors pass in both directions when they are about a flow
// that was allowed, wherever the policy lets their sender go.
func TestErrors(t *testing.T) {
	unreachable := func(p packet) packet {
		quote := p
		quote.mark = []byte("quoted")
		return packet{src: p.dst, dst: p.src, protocol: unix.IPPROTO_ICMP, kind: 3, code: 3, quote: quote.build(t)[0]}
	}
	r := newRig(t)
	r.apply(t, nil, snapshot(nil))

	first := r.expect(t, "peer's packet", tunnel, tcp(bob4, bobs4, 22), toCluster)
	back := r.expect(t, "error about it", cluster, unreachable(first), toTunnel)
	if back.dst != bob4 {
		t.Errorf("error goes to %s, want %s", back.dst, bob4)
	}
	answer := r.expect(t, "answer", cluster, response(first), toTunnel)
	out := r.expect(t, "error about the answer", tunnel, unreachable(answer), toCluster)
	if out.src != gatewayUplink4 {
		t.Errorf("error about the answer comes from %s, want %s", out.src, gatewayUplink4)
	}

	opened := r.expect(t, "cluster's packet", cluster, udp(host4, carol4, 1234), toTunnel)
	r.expect(t, "error about it", tunnel, unreachable(opened), toCluster)
}

// TestPeerToPeerFlow: switching peerToPeer off ends what is under way.
func TestPeerToPeerFlow(t *testing.T) {
	granted := func(s *spec.Snapshot) {
		s.Gateway.Routing.AllowedDestinations = append(s.Gateway.Routing.AllowedDestinations, destination("10.8.0.3/32", spec.UDP, 1234, 1234))
	}
	open := func(s *spec.Snapshot) { granted(s); s.Gateway.Routing.PeerToPeer = true }
	r := newRig(t)
	r.apply(t, nil, snapshot(open))
	first := r.expect(t, "first packet", tunnel, udp(alice4, bob4, 1234), toTunnel)
	r.expect(t, "answer", tunnel, response(first), toTunnel)
	if p := r.apply(t, snapshot(open), snapshot(granted)); !p.Replace {
		t.Fatalf("peerToPeer was switched off by %+v", p)
	}
	r.expect(t, "next packet", tunnel, first, rejected)
	r.expect(t, "next answer", tunnel, response(first), rejected)
}

func TestDeltas(t *testing.T) {
	begin := snapshot(withIPv6)
	flow := udp(alice4, host4, 1234)
	flow.sport = 7777
	tests := []struct {
		name   string
		change func(*spec.Snapshot)
		after  func(t *testing.T, r *rig)
	}{
		{
			name:   "a peer is removed",
			change: without("alice"),
			after: func(t *testing.T, r *rig) {
				r.expect(t, "its flow", tunnel, flow, dropped)
				r.expect(t, "its flow, IPv6", tunnel, udp(alice6, host6, 1), dropped)
				r.expect(t, "another's flow", tunnel, tcp(bob4, bobs4, 22), toCluster)
				r.expect(t, "its neighbour's address in the cluster", cluster, udp(bob4, site4, 1), dropped)
				r.expect(t, "its address in the cluster", cluster, udp(alice4, site4, 1), toTunnel)
			},
		},
		{
			name: "a peer is added",
			change: func(s *spec.Snapshot) {
				s.Peers = append(s.Peers, peer("nobody", nil, nobody4, nobody6, "192.168.51.0/24"))
			},
			after: func(t *testing.T, r *rig) {
				r.expect(t, "its flow", tunnel, udp(nobody4, host4, 1), toCluster)
				r.expect(t, "its flow, IPv6", tunnel, udp(nobody6, host6, 1), toCluster)
				r.expect(t, "its network", tunnel, udp("192.168.51.1", host4, 1), toCluster)
				r.expect(t, "the network next to it", tunnel, udp(lan4, host4, 1), toCluster)
				r.expect(t, "another's flow", tunnel, flow, toCluster)
			},
		},
		{
			name:   "a policy gets tighter",
			change: allowing("alice", destination("10.244.0.9/32", spec.UDP, 53, 53)),
			after: func(t *testing.T, r *rig) {
				r.expect(t, "a flow under way", tunnel, flow, rejected)
				r.expect(t, "what is still allowed", tunnel, udp(alice4, host4, 53), toCluster)
				r.expect(t, "another's flow", tunnel, udp(site4, host4, 1234), toCluster)
			},
		},
		{
			name:   "a policy gets wider",
			change: allowing("carol", destination("10.244.0.9/32", spec.UDP)),
			after: func(t *testing.T, r *rig) {
				r.expect(t, "its flow", tunnel, udp(carol4, host4, 53), toCluster)
				r.expect(t, "another's flow", tunnel, flow, toCluster)
			},
		},
		{
			name: "everybody's policy changes",
			change: func(s *spec.Snapshot) {
				s.Gateway.Routing.AllowedDestinations = []spec.Destination{destination("10.100.0.0/16", spec.AnyProtocol)}
			},
			after: func(t *testing.T, r *rig) {
				r.expect(t, "a flow under way", tunnel, flow, rejected)
				r.expect(t, "what is allowed now", tunnel, udp(alice4, "10.100.0.1", 1), toCluster)
				r.expect(t, "a peer with a policy of its own", tunnel, tcp(bob4, bobs4, 22), toCluster)
			},
		},
		{
			name: "peers swap their addresses",
			change: func(s *spec.Snapshot) {
				s.Peers[0].Addresses, s.Peers[1].Addresses = s.Peers[1].Addresses, s.Peers[0].Addresses
			},
			after: func(t *testing.T, r *rig) {
				r.expect(t, "first peer", tunnel, udp(bob4, host4, 1), toCluster)
				r.expect(t, "second peer", tunnel, tcp(alice4, bobs4, 22), toCluster)
				r.expect(t, "a flow under way", tunnel, flow, rejected)
			},
		},
		{
			name: "a network is split among peers",
			change: func(s *spec.Snapshot) {
				s.Peers = append(except(s.Peers, "site"),
					peer("east", nil, site4, "192.168.50.0/25"), peer("west", []spec.Destination{}, nobody4, "192.168.50.128/25"))
			},
			after: func(t *testing.T, r *rig) {
				r.expect(t, "one half", tunnel, udp("192.168.50.127", host4, 1), toCluster)
				r.expect(t, "the other half", tunnel, udp("192.168.50.128", host4, 1), rejected)
			},
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.apply(t, nil, begin)
			first := r.expect(t, "a flow before the change", tunnel, flow, toCluster)
			r.expect(t, "its answer", cluster, response(first), toTunnel)
			end := snapshot(func(s *spec.Snapshot) { withIPv6(s); tc.change(s) })
			if p := r.apply(t, begin, end); p.Replace {
				t.Fatalf("the change made the table anew")
			}
			tc.after(t, r)
			// And back again.
			if p := r.apply(t, end, begin); p.Replace {
				t.Fatalf("the change back made the table anew")
			}
			r.expect(t, "the flow after the change back", tunnel, flow, toCluster)
			r.expect(t, "a network behind a peer", tunnel, udp(lan4, host4, 1234), toCluster)
			r.expect(t, "a peer with no policy", tunnel, udp(carol4, host4, 1234), rejected)
			r.expect(t, "nobody", tunnel, udp(nobody4, host4, 1234), dropped)
		})
	}
}

func except(peers []spec.Peer, name string) []spec.Peer {
	return slices.DeleteFunc(peers, func(p spec.Peer) bool { return p.Name == name })
}

// TestReplaceKeepsFlows: a translation that only connection tracking knows of
// outlives the table.
func TestReplaceKeepsFlows(t *testing.T) {
	r := newRig(t)
	s := snapshot(nil)
	r.apply(t, nil, s)
	// Two peers with one source port to one destination: one of them gets
	// another port, which no rule could find again.
	a, b := udp(alice4, host4, 1234), udp(site4, host4, 1234)
	a.sport, b.sport = 5555, 5555
	before := []packet{r.expect(t, "first flow", tunnel, a, toCluster), r.expect(t, "second flow", tunnel, b, toCluster)}
	if before[0].sport == before[1].sport {
		t.Fatalf("both flows have source port %d", before[0].sport)
	}
	for range 3 {
		if p := r.apply(t, nil, s); !p.Replace {
			t.Fatal("the table was not made anew")
		}
		for i, p := range []packet{a, b} {
			back := r.expect(t, "answer", cluster, response(before[i]), toTunnel)
			if back.dst != p.src || back.dport != p.sport {
				t.Errorf("answer goes to %s port %d, want %s port %d", back.dst, back.dport, p.src, p.sport)
			}
			after := r.expect(t, "next packet", tunnel, p, toCluster)
			if after.src != before[i].src || after.sport != before[i].sport {
				t.Errorf("flow comes from %s port %d, before from %s port %d", after.src, after.sport, before[i].src, before[i].sport)
			}
		}
	}
}

func TestSegmentSize(t *testing.T) {
	r := newRig(t)
	r.apply(t, nil, snapshot(withIPv6))
	for _, tc := range []struct {
		name   string
		packet packet
		want   uint16
	}{
		{"too large", tcp(alice4, host4, 443), tunnelMTU - 40},
		{"too large, IPv6", tcp(alice6, host6, 443), tunnelMTU - 60},
		{"small already", tcp(alice4, host4, 443), 536},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.packet.mss = 1460
			if tc.want < 1000 {
				tc.packet.mss = tc.want
			}
			out := r.expect(t, "SYN", tunnel, tc.packet, toCluster)
			if out.mss != tc.want {
				t.Errorf("MSS out of the tunnel is %d, want %d", out.mss, tc.want)
			}
			answer := response(out)
			answer.mss = tc.packet.mss
			back := r.expect(t, "SYN-ACK", cluster, answer, toTunnel)
			if back.mss != tc.want {
				t.Errorf("MSS into the tunnel is %d, want %d", back.mss, tc.want)
			}
			if !out.intact || !back.intact {
				t.Errorf("checksum is wrong: out of the tunnel %t, into it %t", !out.intact, !back.intact)
			}
		})
	}
}

func TestStopped(t *testing.T) {
	r := newRig(t)
	r.apply(t, nil, snapshot(nil))
	for _, p := range []packet{
		udp(nobody4, host4, 1), ping(nobody4, gatewayTunnel4), udp(alice4, web4, 1), udp(alice4, web4, 2), udp(alice4, web4, 3),
		udp(alice4, bob4, 1), udp(alice4, gatewayTunnel4, 8080), flags(tcp(alice4, host4, 1), syn|fin), udp(alice6, host6, 1), ping(alice6, gatewayTunnel6),
	} {
		r.send(t, tunnel, p)
	}
	r.send(t, cluster, udp(alice4, gatewayUplink4, 8080))
	r.send(t, cluster, udp(alice4, bob4, 8080))
	r.send(t, cluster, udp(host4, "10.50.0.1", 1234))
	got := r.stopped(t)
	want := map[Reason]uint64{Spoofed: 4, Destination: 3, Isolated: 1, Transit: 1, Gateway: 1, Invalid: 1, IPv6: 2}
	for _, reason := range Reasons() {
		// The gateway's kernel announces itself over IPv6 whenever it likes.
		if reason == IPv6 && got[reason] > want[reason] {
			continue
		}
		if got[reason] != want[reason] {
			t.Errorf("%s: %d packets, want %d", reason, got[reason], want[reason])
		}
	}
}
