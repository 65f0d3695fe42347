package firewall

import (
	"net/netip"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

const (
	dave4       = "10.8.7.7"   // a sibling holds him, and he has the gateway's destinations
	siblingPod4 = "10.244.7.1" // inside what the gateway's destinations do not have
)

// withDave adds a peer that a sibling holds, and lets peers reach some others.
func withDave(s *spec.Snapshot) {
	s.Peers = append(s.Peers, peer("dave", nil, dave4))
	s.Gateway.Routing.AllowedDestinations = append(s.Gateway.Routing.AllowedDestinations, destination(alice4+"/32", spec.UDP, 1234, 1234))
}

func withDaveAndPeerToPeer(s *spec.Snapshot) { withDave(s); s.Gateway.Routing.PeerToPeer = true }

func withDaveUnmasqueraded(s *spec.Snapshot) { withDave(s); s.Gateway.Routing.Masquerade = false }

func fleetOf(s *spec.Snapshot) *state.Fleet {
	dave := s.Peers[len(s.Peers)-1].PublicKey
	return &state.Fleet{
		Elsewhere: map[key.Public]string{dave: "b"},
		Siblings:  []state.Sibling{{Name: "b", Address: netip.MustParseAddr(siblingPod4), LinkKey: key.Public{1}, LinkPort: 51840}},
		Link:      &state.LinkConfig{ListenPort: 51840, Address: netip.MustParseAddr(gatewayUplink4)},
	}
}

// applyFleet takes the gateway to a configuration with a sibling.
func (r *rig) applyFleet(t testing.TB, s *spec.Snapshot) {
	t.Helper()
	want := state.Build(state.Inputs{Snapshot: s, Fleet: fleetOf(s)}).Firewall
	r.gateway.do(t, func() error { return r.firewall.Apply(plan.Firewall{Replace: true, Desired: want}) })
	var inPlace bool
	r.gateway.do(t, func() (err error) {
		inPlace, err = r.firewall.InPlace(want)
		return err
	})
	if !inPlace {
		t.Error("the table is not in place right after it was made")
	}
}

func TestInterlink(t *testing.T) {
	type row struct {
		name    string
		from    side
		packet  packet
		want    outcome
		source  string // of what comes out; "" for its own
		stopped Reason
	}
	const none = Reason("")
	for _, group := range []struct {
		name   string
		change func(*spec.Snapshot)
		rows   []row
	}{
		{"peers are isolated", withDave, []row{
			{"cluster to a peer elsewhere", cluster, udp(host4, dave4, 80), passedOn, gatewayUplink4, none},
			{"cluster to a peer here", cluster, tcp(host4, carol4, 80), toTunnel, gatewayUplink4, none},
			{"cluster to a network behind a peer here", cluster, udp("10.50.0.1", lan4, 80), toTunnel, gatewayUplink4, none},
			{"sibling to a peer here", sibling, udp(siblingPod4, carol4, 80), toTunnel, "", none},
			{"sibling to a peer that it holds itself", sibling, udp(siblingPod4, dave4, 80), dropped, "", Transit},
			{"sibling to the cluster", sibling, udp(siblingPod4, host4, 80), dropped, "", Transit},
			{"sibling's peer to the cluster", sibling, udp(dave4, host4, 80), dropped, "", Transit},
			{"sibling to the gateway", sibling, udp(siblingPod4, gatewayUplink4, 8080), dropped, "", Gateway},
			{"sibling's peer to the gateway", sibling, ping(dave4, gatewayUplink4), dropped, "", Gateway},
			{"sibling's peer to a peer here", sibling, udp(dave4, alice4, 1234), rejected, "", Isolated},
			{"peer to a peer elsewhere", tunnel, udp(alice4, dave4, 80), rejected, "", Isolated},
			{"peer to a sibling, which takes answers", tunnel, udp(carol4, siblingPod4, 80), passedOn, "", none},
			{"peer to the cluster", tunnel, udp(alice4, host4, 80), toCluster, gatewayUplink4, none},
			{"nobody to a peer elsewhere", tunnel, udp(nobody4, dave4, 80), dropped, "", Spoofed},
			{"peer's address outside, to a peer elsewhere", cluster, udp(alice4, dave4, 80), dropped, "", Spoofed},
			{"address of a peer elsewhere outside, to a peer here", cluster, udp(dave4, alice4, 1234), dropped, "", Spoofed},
			{"IPv6 of a sibling", sibling, udp(host6, bob6, 80), dropped, "", IPv6},
		}},
		{"peers reach each other", withDaveAndPeerToPeer, []row{
			{"sibling's peer to a peer here", sibling, udp(dave4, alice4, 1234), toTunnel, "", none},
			{"sibling's peer to a port that it may not", sibling, udp(dave4, alice4, 1235), rejected, "", Destination},
			{"peer to a peer elsewhere, checked there", tunnel, udp(alice4, dave4, 80), passedOn, "", none},
			{"sibling's peer to the cluster", sibling, udp(dave4, host4, 80), dropped, "", Transit},
		}},
		{"peers keep their addresses", withDaveUnmasqueraded, []row{
			{"cluster to a peer elsewhere", cluster, udp(host4, dave4, 80), passedOn, gatewayUplink4, none},
			{"cluster to a peer here", cluster, tcp(host4, carol4, 80), toTunnel, "", none},
			{"peer to the cluster", tunnel, udp(alice4, host4, 80), toCluster, "", none},
		}},
	} {
		t.Run(group.name, func(t *testing.T) {
			r := newRig(t)
			r.applyFleet(t, snapshot(group.change))
			for _, row := range group.rows {
				before := r.stopped(t)
				got, out := r.outcome(t, row.from, row.packet)
				if got != row.want {
					t.Errorf("%s: %s, want %s", row.name, got, row.want)
					continue
				}
				want := row.source
				if want == "" {
					want = row.packet.src
				}
				if got != dropped && got != rejected && out.src != want {
					t.Errorf("%s: comes from %s, want %s", row.name, out.src, want)
				}
				for reason, n := range r.stopped(t) {
					if reason == IPv6 && row.stopped != IPv6 {
						continue // the kernels beside it report their groups (MLD) when they like
					}
					if counted := n > before[reason]; counted != (reason == row.stopped) {
						t.Errorf("%s: counted as %s: %t", row.name, reason, counted)
					}
				}
			}
		})
	}
}

// TestInterlinkFlow: a flow of the cluster is the same wherever its peer is.
func TestInterlinkFlow(t *testing.T) {
	r := newRig(t)
	r.applyFleet(t, snapshot(withDave))
	first := r.expect(t, "first packet", cluster, tcp(host4, dave4, 80), passedOn)
	for _, from := range []side{sibling, tunnel, sibling} {
		back := r.expect(t, "answer from the "+string(from), from, response(first), toCluster)
		if back.src != dave4 || back.dst != host4 {
			t.Errorf("answer is from %s to %s, want from %s to %s", back.src, back.dst, dave4, host4)
		}
	}
	// Somebody else's packets do not get in beside it.
	other := response(first)
	other.sport++
	r.expect(t, "no answer", sibling, other, dropped)
}
