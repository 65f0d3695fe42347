package device

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// interval is more than the least time between two initiations that a client takes.
const interval = wgdevice.HandshakeInitationRate + 5*time.Millisecond

// A peer that is called has another session, made by a handshake of the device's; to nudge
// it is to send a packet by the session that there is. The keepalive that it is to have is
// then as it was, or there is none. wireguard-go misses nothing of what the peer says; the
// kernel what it says before it knows of the session, since it forgets the one before.
func TestCalls(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		for _, keepalive := range []time.Duration{0, 30 * time.Second} {
			t.Run("keepalive "+keepalive.String(), func(t *testing.T) {
				d := open(t, p)
				c := newClient(t, 0, "10.8.0.2", key.GeneratePreshared())
				peer := c.peer("alice")
				peer.Keepalive = keepalive
				want := desired(t, peer)
				converge(t, d, want, nil)
				c.connect(t, publicKey(want), endpoint())
				c.ping(t, insideAddress())

				at := observedPeer(t, d, c)
				do := func(c state.Call) {
					c.Slot, c.Peer = key.Blue, peer.PublicKey
					if err := d.Apply(plan.Calls(state.Desired{Tunnels: []state.Tunnel{want}}, []state.Call{c})); err != nil {
						t.Fatal(err)
					}
				}
				sentMore := func(what string, before state.ObservedPeer, reached func(now state.ObservedPeer) bool) state.ObservedPeer {
					for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
						now := observedPeer(t, d, c)
						if reached(now) {
							return now
						}
						if time.Now().After(deadline) {
							t.Fatalf("%s: nothing came of it: handshake %s, then %s; sent %d bytes, then %d", what,
								before.LastHandshake, now.LastHandshake, before.TransmitBytes, now.TransmitBytes)
						}
					}
				}
				pinged := func() {
					for deadline := time.Now().Add(patience); p == spec.Kernel && !c.knows(t, observedPeer(t, d, c).LastHandshake); time.Sleep(time.Millisecond) {
						if time.Now().After(deadline) {
							t.Fatal("the client does not know of its session")
						}
					}
					c.ping(t, insideAddress())
				}
				do(state.Call{Endpoint: at.Endpoint})
				called := sentMore("called", at, func(now state.ObservedPeer) bool { return now.LastHandshake.After(at.LastHandshake) })
				pinged()
				time.Sleep(interval)
				do(state.Call{Endpoint: at.Endpoint}) // again, though REKEY_TIMEOUT is not over
				sentMore("called again", called, func(now state.ObservedPeer) bool { return now.LastHandshake.After(called.LastHandshake) })
				pinged()

				before := observedPeer(t, d, c)
				do(state.Call{Nudge: true})
				const empty = 32 // bytes: header and tag of a packet without content
				nudged := sentMore("nudged", before, func(now state.ObservedPeer) bool { return now.TransmitBytes >= before.TransmitBytes+empty })
				if nudged.LastHandshake != before.LastHandshake {
					t.Error("nudged: there was another handshake")
				}
				if p := difference(t, d, want, &want); !p.Empty() {
					t.Errorf("afterwards there is still to do: %q", p.Summary(10))
				}
			})
		}
	})
}

// Who was removed meanwhile stays so.
func TestCallOfAStranger(t *testing.T) {
	need(t)
	d := open(t, spec.Userspace)
	want := desired(t)
	converge(t, d, want, nil)
	at := netip.MustParseAddrPort("203.0.113.9:4500")
	for _, operation := range []plan.Operation{plan.Call, plan.Nudge} {
		peer := plan.Peer{Operation: operation, PublicKey: key.GeneratePrivate().Public(), Endpoint: &at}
		p := plan.Plan{Tunnels: []plan.Tunnel{{Slot: key.Blue, Link: plan.Link{Name: linkName}, Device: plan.Device{Peers: []plan.Peer{peer}}}}}
		if err := d.Apply(p); err != nil {
			t.Errorf("%s: %v", operation, err)
		}
	}
	if p := difference(t, d, want, &want); !p.Empty() {
		t.Errorf("afterwards there is still to do: %q", p.Summary(10))
	}
}

func TestCallConfigs(t *testing.T) {
	at := netip.MustParseAddrPort("203.0.113.9:4500")
	udp := &net.UDPAddr{IP: net.IP{203, 0, 113, 9}, Port: 4500}
	off, on, ten := time.Duration(0), wake, 10*time.Second
	allowed := []net.IPNet{{IP: net.IP{10, 8, 0, 2}, Mask: net.CIDRMask(32, 32)}}
	a, b := wgtypes.Key{1}, wgtypes.Key{2}
	for _, tt := range []struct {
		name string
		list []plan.Peer
		want []wgtypes.PeerConfig
	}{
		{"called, no keepalive", []plan.Peer{
			{Operation: plan.Call, PublicKey: key.Public(a), Endpoint: &at, AllowedIPs: prefixes("10.8.0.2/32")},
			{Operation: plan.Call, PublicKey: key.Public(b), Endpoint: &at, Keepalive: &ten},
		}, []wgtypes.PeerConfig{
			{PublicKey: a, Remove: true},
			{PublicKey: a, Endpoint: udp, PersistentKeepaliveInterval: &on, AllowedIPs: allowed},
			{PublicKey: b, Remove: true},
			{PublicKey: b, Endpoint: udp, PersistentKeepaliveInterval: &ten},
			{PublicKey: a, UpdateOnly: true, PersistentKeepaliveInterval: &off},
		}},
		{"nudged", []plan.Peer{
			{Operation: plan.Nudge, PublicKey: key.Public(a), Endpoint: &at},
			{Operation: plan.Nudge, PublicKey: key.Public(b), Keepalive: &ten},
		}, []wgtypes.PeerConfig{
			{PublicKey: a, UpdateOnly: true, Endpoint: udp, PersistentKeepaliveInterval: &off},
			{PublicKey: a, UpdateOnly: true, PersistentKeepaliveInterval: &on},
			{PublicKey: b, UpdateOnly: true, PersistentKeepaliveInterval: &off},
			{PublicKey: b, UpdateOnly: true, PersistentKeepaliveInterval: &ten},
			{PublicKey: a, UpdateOnly: true, PersistentKeepaliveInterval: &off},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, callConfigs(tt.list)); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}
