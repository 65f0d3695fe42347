package plan

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

func TestCalls(t *testing.T) {
	alice, site := key.GeneratePrivate().Public(), key.GeneratePrivate().Public()
	from, office := netip.MustParseAddrPort("192.0.2.7:4500"), netip.MustParseAddrPort("198.51.100.1:51820")
	ten := 10 * time.Second
	desired := state.Desired{Tunnels: []state.Tunnel{{
		Slot: key.Blue, Link: state.Link{Name: "wg0"},
		Device: state.Device{Peers: []state.Peer{
			{Name: "alice", PublicKey: alice},
			{Name: "site", PublicKey: site, Endpoint: office, Keepalive: ten},
		}},
	}}}
	for _, test := range []struct {
		name string
		call state.Call
		want []Peer
	}{
		{"adopted, no keepalive", state.Call{Slot: key.Blue, Peer: alice, Endpoint: from}, []Peer{
			{Operation: Call, Name: "alice", PublicKey: alice, Endpoint: &from},
		}},
		{"adopted, with keepalive", state.Call{Slot: key.Blue, Peer: site, Endpoint: from}, []Peer{
			{Operation: Call, Name: "site", PublicKey: site, Endpoint: &from, Keepalive: &ten},
		}},
		{"called where it is configured", state.Call{Slot: key.Blue, Peer: site}, []Peer{
			{Operation: Call, Name: "site", PublicKey: site, Endpoint: &office, Keepalive: &ten},
		}},
		{"nudged where it is", state.Call{Slot: key.Blue, Peer: site, Nudge: true}, []Peer{
			{Operation: Nudge, Name: "site", PublicKey: site, Keepalive: &ten},
		}},
		{"nudged elsewhere, no keepalive", state.Call{Slot: key.Blue, Peer: alice, Nudge: true, Endpoint: from}, []Peer{
			{Operation: Nudge, Name: "alice", PublicKey: alice, Endpoint: &from},
		}},
		{"silenced, with keepalive and endpoint", state.Call{Slot: key.Blue, Peer: site, Silence: true}, []Peer{
			{Operation: Renew, Name: "site", PublicKey: site},
		}},
		{"removed meanwhile", state.Call{Slot: key.Blue, Peer: key.GeneratePrivate().Public()}, nil},
		{"no such tunnel", state.Call{Slot: key.Green, Peer: alice}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []Peer
			for _, tunnel := range Calls(desired, []state.Call{test.call}).Tunnels {
				got = append(got, tunnel.Device.Peers...)
			}
			if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Of several calls of one peer the last handshake counts, whatever nudges come.
func TestCallsOfOnePeer(t *testing.T) {
	alice := key.GeneratePrivate().Public()
	desired := state.Desired{Tunnels: []state.Tunnel{{Slot: key.Blue, Device: state.Device{Peers: []state.Peer{{Name: "alice", PublicKey: alice}}}}}}
	call := func(from string) state.Call {
		return state.Call{Slot: key.Blue, Peer: alice, Endpoint: netip.MustParseAddrPort(from)}
	}
	nudge := state.Call{Slot: key.Blue, Peer: alice, Nudge: true}
	p := Calls(desired, []state.Call{nudge, call("192.0.2.1:1"), call("192.0.2.2:2"), nudge})
	if got := p.Tunnels[0].Device.Peers[0]; got.Operation != Call || got.Endpoint.String() != "192.0.2.2:2" {
		t.Errorf("%+v, want the call to 192.0.2.2:2", got)
	}
}

// Who has a session and is told of it waits for those who have none.
func TestCallsOfManyPeers(t *testing.T) {
	var desired state.Tunnel
	var calls []state.Call
	for i := range 4 {
		k := key.GeneratePrivate().Public()
		desired.Device.Peers = append(desired.Device.Peers, state.Peer{PublicKey: k})
		calls = append(calls, state.Call{Peer: k, Nudge: i%2 == 0})
	}
	var got []Operation
	for _, p := range Calls(state.Desired{Tunnels: []state.Tunnel{desired}}, calls).Tunnels[0].Device.Peers {
		got = append(got, p.Operation)
	}
	if diff := cmp.Diff([]Operation{Call, Call, Nudge, Nudge}, got); diff != "" {
		t.Error(diff)
	}
}

func TestElsewhere(t *testing.T) {
	k := key.GeneratePrivate().Public()
	here := state.Peer{Name: "alice", PublicKey: k, Keepalive: 25 * time.Second}
	away := state.Peer{Name: "alice", PublicKey: k, Elsewhere: true}
	desired := func(p state.Peer) state.Desired {
		return state.Desired{Tunnels: []state.Tunnel{{Slot: key.Blue, Device: state.Device{Peers: []state.Peer{p}}}}}
	}
	operations := func(p Plan) (out []Operation) {
		for _, tunnel := range p.Tunnels {
			for _, peer := range tunnel.Device.Peers {
				out = append(out, peer.Operation)
			}
		}
		return out
	}
	seen := func(endpoint string) state.Observed {
		p := state.ObservedPeer{Peer: state.Peer{PublicKey: k}}
		if endpoint != "" {
			p.Endpoint = netip.MustParseAddrPort(endpoint)
		}
		return state.Observed{Tunnels: map[key.Slot]state.ObservedTunnel{
			key.Blue: {LinkExists: true, LinkUp: true, Device: state.ObservedDevice{Peers: map[key.Public]state.ObservedPeer{k: p}}},
		}}
	}
	applied := desired(here)
	for _, test := range []struct {
		name string
		plan Plan
		want []Operation
	}{
		{"a sibling took it", Changes(desired(away), desired(here)), []Operation{Renew}},
		{"it stays away", Changes(desired(away), desired(away)), nil},
		{"it comes back: its new session must stay", Changes(desired(here), desired(away)), []Operation{Update}},
		{"seen where it was", Diff(desired(away), seen("192.0.2.7:4500"), &applied), []Operation{Renew}},
		{"seen nowhere", Diff(desired(away), seen(""), &applied), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, operations(test.plan)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
