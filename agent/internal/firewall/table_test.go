package firewall

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Addresses of the tests' peers, and of places behind the gateway.
const (
	alice4, alice6 = "10.8.0.2", "fd00:8::2" // has the gateway's destinations
	bob4, bob6     = "10.8.0.3", "fd00:8::3" // has destinations of its own
	site4, lan4    = "10.8.0.4", "192.168.50.7"
	carol4         = "10.8.0.5" // may go nowhere
	nobody4        = "10.8.0.6" // right behind carol
	nobody6        = "fd00:8::77"
	host4, host6   = "10.244.0.9", "fd00:244::9"
	web4, web6     = "10.96.0.1", "fd00:96::1"
	dns4           = "10.97.0.1"
	icmp4, icmp6   = "10.98.0.1", "fd00:98::1"
	bobs4, bobs6   = "10.99.0.1", "fd00:99::1"
)

func destination(cidr string, protocol spec.Protocol, ports ...uint16) spec.Destination {
	d := spec.Destination{CIDR: netip.MustParsePrefix(cidr), Protocol: protocol}
	for i := 0; i+1 < len(ports); i += 2 {
		d.Ports = append(d.Ports, spec.PortRange{First: ports[i], Last: ports[i+1]})
	}
	return d
}

func peer(name string, destinations []spec.Destination, addresses ...string) spec.Peer {
	p := spec.Peer{Name: name, AllowedDestinations: destinations}
	for _, a := range addresses {
		if prefix, err := netip.ParsePrefix(a); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, prefix)
		} else {
			p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
		}
	}
	// What the key is does not matter, but peers are told apart by it.
	copy(p.PublicKey[:], name)
	return p
}

// snapshot is a configuration as a user writes it; change may be nil.
func snapshot(change func(*spec.Snapshot)) *spec.Snapshot {
	s := &spec.Snapshot{Gateway: spec.Gateway{
		Server: spec.Server{Interface: "wg0", ListenPort: 51820},
		Routing: spec.Routing{
			Masquerade: true,
			AllowedDestinations: []spec.Destination{
				destination("10.244.0.0/24", spec.AnyProtocol), destination("fd00:244::/64", spec.AnyProtocol),
				destination("10.96.0.0/16", spec.TCP, 443, 443, 8000, 8080), destination("fd00:96::/112", spec.TCP, 443, 443),
				destination("10.97.0.0/16", spec.UDP, 53, 53),
				destination("10.98.0.0/16", spec.ICMP), destination("fd00:98::/112", spec.ICMP),
			},
		},
	}}
	s.Peers = []spec.Peer{
		peer("alice", nil, alice4, alice6),
		peer("bob", []spec.Destination{destination("10.99.0.0/16", spec.TCP, 22, 22), destination("fd00:99::/64", spec.TCP, 22, 22)}, bob4, bob6),
		peer("site", nil, site4, "192.168.50.0/24"),
		peer("carol", []spec.Destination{}, carol4),
		peer("sentinel", []spec.Destination{destination("10.244.0.9/32", spec.UDP)}, sentinelPeer),
	}
	if change != nil {
		change(s)
	}
	return s
}

func desired(s *spec.Snapshot) state.Firewall {
	return state.Build(state.Inputs{Snapshot: s}).Firewall
}

// apply takes the gateway from one configuration (nil: none) to the next, as
// the plan says.
func (r *rig) apply(t testing.TB, from, to *spec.Snapshot) plan.Firewall {
	t.Helper()
	want := state.Build(state.Inputs{Snapshot: to})
	var applied *state.Desired
	var observed state.Observed
	if from != nil {
		before := state.Build(state.Inputs{Snapshot: from})
		applied = &before
	}
	var p plan.Firewall
	r.gateway.do(t, func() (err error) {
		if observed.FirewallInPlace, err = r.firewall.InPlace(want.Firewall); err != nil {
			return err
		}
		p = plan.Diff(want, observed, applied).Firewall
		return r.firewall.Apply(p)
	})
	return p
}

func options(p packet) packet       { p.options = true; return p }
func flags(p packet, f byte) packet { p.flags = f; return p }
func fragmented(p packet) packet {
	p.fragment, p.size = true, 3000
	return p
}

// other is a packet of a protocol without ports: ESP.
func other(src, dst string) packet {
	return packet{src: src, dst: dst, protocol: unix.IPPROTO_ESP}
}

func TestTable(t *testing.T) {
	type row struct {
		name   string
		from   side
		packet packet
		want   outcome
		// source that the packet is passed on with; empty: its own.
		source string
	}
	tests := []struct {
		name   string
		change func(*spec.Snapshot)
		rows   []row
	}{
		{
			name: "as the chart sets it up",
			rows: []row{
				{"any protocol: UDP", tunnel, udp(alice4, host4, 1234), toCluster, gatewayUplink4},
				{"any protocol: TCP", tunnel, tcp(alice4, host4, 1), toCluster, gatewayUplink4},
				{"any protocol: ping", tunnel, ping(alice4, host4), toCluster, gatewayUplink4},
				{"any protocol: no ports", tunnel, other(alice4, host4), toCluster, gatewayUplink4},
				{"any protocol: fragments", tunnel, fragmented(udp(alice4, host4, 1234)), toCluster, gatewayUplink4},
				{"no policy for the network", tunnel, udp(alice4, "10.245.0.1", 1234), rejected, ""},
				{"port", tunnel, tcp(alice4, web4, 443), toCluster, gatewayUplink4},
				{"port below a range", tunnel, tcp(alice4, web4, 7999), rejected, ""},
				{"first port of a range", tunnel, tcp(alice4, web4, 8000), toCluster, gatewayUplink4},
				{"last port of a range", tunnel, tcp(alice4, web4, 8080), toCluster, gatewayUplink4},
				{"port above a range", tunnel, tcp(alice4, web4, 8081), rejected, ""},
				{"port of the other protocol", tunnel, udp(alice4, web4, 443), rejected, ""},
				{"ping where only a port is allowed", tunnel, ping(alice4, web4), rejected, ""},
				{"no ports where only a port is allowed", tunnel, other(alice4, web4), rejected, ""},
				{"fragments to a port", tunnel, fragmented(udp(alice4, dns4, 53)), toCluster, gatewayUplink4},
				{"fragments to another port", tunnel, fragmented(udp(alice4, dns4, 54)), rejected, ""},
				{"ping", tunnel, ping(alice4, icmp4), toCluster, gatewayUplink4},
				{"ping in fragments", tunnel, fragmented(ping(alice4, icmp4)), toCluster, gatewayUplink4},
				{"UDP where only ICMP is allowed", tunnel, udp(alice4, icmp4, 53), rejected, ""},
				{"own policy", tunnel, tcp(bob4, bobs4, 22), toCluster, gatewayUplink4},
				{"own policy stands in for the gateway's", tunnel, udp(bob4, host4, 1234), rejected, ""},
				{"another's policy", tunnel, tcp(alice4, bobs4, 22), rejected, ""},
				{"empty policy", tunnel, udp(carol4, host4, 1234), rejected, ""},
				{"network behind a peer", tunnel, udp(lan4, host4, 1234), toCluster, gatewayUplink4},
				{"first address of a network behind a peer", tunnel, udp("192.168.50.0", host4, 1234), toCluster, gatewayUplink4},
				{"last address of a network behind a peer", tunnel, udp("192.168.50.255", host4, 1234), toCluster, gatewayUplink4},
				{"after a network behind a peer", tunnel, udp("192.168.51.0", host4, 1234), dropped, ""},
				{"before a network behind a peer", tunnel, udp("192.168.49.255", host4, 1234), dropped, ""},
				{"nobody's address in the pool", tunnel, udp(nobody4, host4, 1234), dropped, ""},
				{"an address of the cluster", tunnel, udp("10.244.0.77", host4, 1234), dropped, ""},
				{"peer to peer", tunnel, udp(alice4, bob4, 1234), rejected, ""},
				{"peer to a network behind a peer", tunnel, udp(alice4, lan4, 1234), rejected, ""},
				{"nobody to peer", tunnel, udp(nobody4, bob4, 1234), dropped, ""},
				{"no flow at all", tunnel, flags(tcp(alice4, host4, 443), syn|fin), dropped, ""},
				{"error about no flow", tunnel, packet{src: alice4, dst: host4, protocol: 1, kind: 3, code: 3, quote: udp(host4, alice4, 7).build(t)[0]}, dropped, ""},

				{"ping the gateway", tunnel, ping(alice4, gatewayTunnel4), answered, ""},
				{"ping the gateway by its other address", tunnel, ping(alice4, gatewayUplink4), answered, ""},
				{"ping the gateway with no policy", tunnel, ping(carol4, gatewayTunnel4), answered, ""},
				{"nobody pings the gateway", tunnel, ping(nobody4, gatewayTunnel4), dropped, ""},
				{"the agent's port", tunnel, udp(alice4, gatewayTunnel4, 8080), dropped, ""},
				{"the agent's port by the other address", tunnel, udp(alice4, gatewayUplink4, 8080), dropped, ""},
				{"WireGuard inside itself", tunnel, udp(alice4, gatewayUplink4, 51820), dropped, ""},

				{"IPv6 out of the tunnel", tunnel, udp(alice6, host6, 1234), dropped, ""},
				{"ping the gateway over IPv6", tunnel, ping(alice6, gatewayTunnel6), dropped, ""},
				{"IPv6 into the tunnel", cluster, udp(host6, alice6, 1234), dropped, ""},

				{"cluster to peer", cluster, udp(host4, alice4, 1234), toTunnel, host4},
				{"cluster to peer with no policy", cluster, tcp(host4, carol4, 80), toTunnel, host4},
				{"cluster to a network behind a peer", cluster, udp(host4, lan4, 1234), toTunnel, host4},
				{"a peer's address in the cluster", cluster, udp(bob4, alice4, 1234), dropped, ""},
				{"a peer's network in the cluster", cluster, udp(lan4, alice4, 1234), dropped, ""},
				{"cluster to gateway", cluster, udp(host4, gatewayUplink4, 8080), answered, ""},
				{"a peer's address in the cluster, to the gateway", cluster, udp(bob4, gatewayUplink4, 8080), dropped, ""},
				{"a peer's address in the cluster, pinging the gateway", cluster, ping(bob4, gatewayUplink4), dropped, ""},
				{"to WireGuard, even so", cluster, udp(bob4, gatewayUplink4, 51820), toTunnel, gatewayUplink4},
				{"none of the tunnel's business", cluster, udp(host4, "10.50.0.1", 1234), dropped, ""},
				{"none of the tunnel's business, IPv6", cluster, udp(host6, "fd00:50::1", 1234), dropped, ""},
			},
		},
		{
			name: "IPv6, peer to peer, no masquerading",
			change: func(s *spec.Snapshot) {
				s.Gateway.IPv6.Enabled, s.Gateway.Routing.PeerToPeer, s.Gateway.Routing.Masquerade = true, true, false
				s.Gateway.Routing.AllowedDestinations = append(s.Gateway.Routing.AllowedDestinations, destination("10.8.0.0/24", spec.AnyProtocol),
					destination("192.168.50.0/24", spec.TCP, 80, 80), destination("fd00:8::/64", spec.AnyProtocol))
			},
			rows: []row{
				{"own source", tunnel, udp(alice4, host4, 1234), toCluster, alice4},
				{"own source, IPv6", tunnel, udp(alice6, host6, 1234), toCluster, alice6},
				{"any protocol: no ports", tunnel, other(alice6, host6), toCluster, alice6},
				{"any protocol: ping", tunnel, ping(alice6, host6), toCluster, alice6},
				{"fragments", tunnel, fragmented(udp(alice6, host6, 1234)), toCluster, alice6},
				{"port", tunnel, tcp(alice6, web6, 443), toCluster, alice6},
				{"another port", tunnel, tcp(alice6, web6, 444), rejected, ""},
				{"port behind an extension header", tunnel, options(tcp(alice6, web6, 443)), toCluster, alice6},
				{"another port behind an extension header", tunnel, options(tcp(alice6, web6, 444)), rejected, ""},
				{"ping", tunnel, ping(alice6, icmp6), toCluster, alice6},
				{"ping where only a port is allowed", tunnel, ping(alice6, web6), rejected, ""},
				{"own policy", tunnel, tcp(bob6, bobs6, 22), toCluster, bob6},
				{"another's policy", tunnel, tcp(alice6, bobs6, 22), rejected, ""},
				{"nobody's address", tunnel, udp(nobody6, host6, 1234), dropped, ""},
				{"peer to peer", tunnel, udp(alice4, bob4, 1234), toTunnel, alice4},
				{"peer to peer, IPv6", tunnel, tcp(alice6, bob6, 80), toTunnel, alice6},
				{"peer that may go nowhere to peer", tunnel, udp(carol4, bob4, 80), rejected, ""},
				{"peer with a policy of its own to peer", tunnel, udp(bob4, alice4, 80), rejected, ""},
				{"peer to a network behind a peer", tunnel, tcp(alice4, lan4, 80), toTunnel, alice4},
				{"peer to another port behind a peer", tunnel, tcp(alice4, lan4, 81), rejected, ""},
				{"nobody to peer", tunnel, udp(nobody4, bob4, 1234), dropped, ""},
				{"nobody to peer, IPv6", tunnel, udp(nobody6, bob6, 1234), dropped, ""},
				{"ping the gateway", tunnel, ping(alice6, gatewayTunnel6), answered, ""},
				{"nobody pings the gateway", tunnel, ping(nobody6, gatewayTunnel6), dropped, ""},
				{"the agent's port", tunnel, udp(alice6, gatewayTunnel6, 8080), dropped, ""},
				{"no flow that we saw begin", tunnel, flags(tcp(alice4, host4, 443), syn|fin), toCluster, alice4},
				{"cluster to peer", cluster, udp(host6, alice6, 1234), toTunnel, host6},
				{"a peer's address in the cluster", cluster, udp(bob6, alice6, 1234), dropped, ""},
				{"a peer's address in the cluster, to the gateway", cluster, udp(bob6, gatewayUplink6, 8080), dropped, ""},
				{"cluster to gateway", cluster, udp(host6, gatewayUplink6, 8080), answered, ""},
			},
		},
		{
			name:   "IPv6, masquerading",
			change: func(s *spec.Snapshot) { s.Gateway.IPv6.Enabled = true },
			rows: []row{
				{"UDP", tunnel, udp(alice6, host6, 1234), toCluster, gatewayUplink6},
				{"ping", tunnel, ping(alice6, host6), toCluster, gatewayUplink6},
				{"fragments", tunnel, fragmented(udp(alice6, host6, 1234)), toCluster, gatewayUplink6},
				{"no ports", tunnel, other(alice6, host6), toCluster, gatewayUplink6},
				{"IPv4", tunnel, udp(alice4, host4, 1234), toCluster, gatewayUplink4},
				{"peer to peer", tunnel, udp(alice6, bob6, 1234), rejected, ""},
				{"no flow at all", tunnel, flags(tcp(alice6, host6, 443), syn|fin), dropped, ""},
				{"cluster to peer", cluster, udp(host6, alice6, 1234), toTunnel, host6},
				{"none of the tunnel's business", cluster, udp(host6, "fd00:50::1", 1234), dropped, ""},
			},
		},
		{
			name: "everything to everywhere",
			change: func(s *spec.Snapshot) {
				s.Gateway.Routing.AllowedDestinations = []spec.Destination{destination("0.0.0.0/0", spec.AnyProtocol)}
			},
			rows: []row{
				{"Internet", tunnel, udp(alice4, "198.51.100.1", 443), toCluster, gatewayUplink4},
				{"own policy", tunnel, udp(bob4, "198.51.100.1", 443), rejected, ""},
				{"peer to peer", tunnel, udp(alice4, bob4, 1234), rejected, ""},
				{"the agent's port", tunnel, udp(alice4, gatewayTunnel4, 8080), dropped, ""},
			},
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r, bare := newRig(t), newRig(t)
			r.apply(t, nil, snapshot(tc.change))
			for _, row := range tc.rows {
				t.Run(row.name, func(t *testing.T) {
					if got, passed := bare.outcome(t, row.from, row.packet); got == dropped || got == rejected || got == confused {
						t.Fatalf("without a table: %s; so this proves nothing", got)
					} else if passed.dst == row.packet.dst && passed.src != row.packet.src {
						t.Fatalf("without a table: source is %s", passed.src)
					}
					got, passed := r.outcome(t, row.from, row.packet)
					if got != row.want {
						t.Fatalf("from the %s: %s, want %s", row.from, got, row.want)
					}
					if row.source != "" && passed.src != row.source {
						t.Errorf("source is %s, want %s", passed.src, row.source)
					}
				})
			}
		})
	}
}
