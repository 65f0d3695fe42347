package state

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// day is a moment that a test calls by a number.
func day(n int) time.Time { return time.Date(2026, 11, n, 3, 0, 0, 0, time.UTC) }

func serverKey(n byte) key.Private { return key.NewPrivate([key.Len]byte{n << 3, 31: 64}) }

func TestIdentities(t *testing.T) {
	const overlap = 7 * 24 * time.Hour
	since := time.Time{}
	first := spec.ServerKey{Key: serverKey(1), Slot: key.Blue, From: since}
	second := spec.ServerKey{Key: serverKey(2), Slot: key.Green, From: day(10)}
	third := spec.ServerKey{Key: serverKey(3), Slot: key.Blue, From: day(20)}
	early := spec.ServerKey{Key: serverKey(4), Slot: key.Blue, From: day(12)} // while the first is still there
	type step struct {
		now     time.Time
		want    string // slots and days, oldest first
		inForce time.Time
		change  time.Time
	}
	tests := []struct {
		name  string
		keys  []spec.ServerKey
		steps []step
	}{
		{"one for ever", []spec.ServerKey{first}, []step{
			{now: day(1), want: "blue 0"},
			{now: day(28), want: "blue 0"},
		}},
		{"one takes over", []spec.ServerKey{first, second}, []step{
			{now: day(1), want: "blue 0, green 10", change: day(10)},
			{now: day(10).Add(-1), want: "blue 0, green 10", change: day(10)},
			{now: day(10), want: "blue 0, green 10", inForce: day(10), change: day(17)},
			{now: day(17).Add(-1), want: "blue 0, green 10", inForce: day(10), change: day(17)},
			{now: day(17), want: "green 10", inForce: day(10)},
			{now: day(28), want: "green 10", inForce: day(10)},
		}},
		{"the next one takes the slot that is free again", []spec.ServerKey{second, third}, []step{
			{now: day(19), want: "green 10, blue 20", inForce: day(10), change: day(20)},
			{now: day(20), want: "green 10, blue 20", inForce: day(20), change: day(27)},
			{now: day(27), want: "blue 20", inForce: day(20)},
		}},
		{"all are still to come", []spec.ServerKey{second, third}, []step{
			{now: day(1), want: "green 10, blue 20", inForce: day(10), change: day(10)},
		}},
		{"a history that nobody tidied", []spec.ServerKey{first, second, third}, []step{
			{now: day(16), want: "blue 0, green 10", inForce: day(10), change: day(17)},
			{now: day(17), want: "green 10, blue 20", inForce: day(10), change: day(20)},
			{now: day(28), want: "blue 20", inForce: day(20)},
		}},
		{"a slot that is not free when the time comes", []spec.ServerKey{first, second, early}, []step{
			{now: day(11), want: "blue 0, green 10", inForce: day(10), change: day(12)},
			{now: day(12), want: "green 10, blue 12", inForce: day(12), change: day(17)},
			{now: day(19), want: "blue 12", inForce: day(12)},
		}},
		{"two to come in one slot", []spec.ServerKey{second, {Key: serverKey(5), Slot: key.Green, From: day(11)}}, []step{
			{now: day(1), want: "green 10", inForce: day(10), change: day(10)},
			{now: day(11), want: "green 11", inForce: day(11), change: day(18)},
		}},
		{"none", nil, []step{{now: day(1)}}},
	}
	name := func(ids []Identity) string {
		text := ""
		for _, id := range ids {
			if text != "" {
				text += ", "
			}
			n := "0"
			if !id.From.IsZero() {
				n = id.From.Format("2")
			}
			text += string(id.Slot) + " " + n
		}
		return text
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &spec.Snapshot{ServerKeys: tt.keys}
			s.Gateway.KeyRotation.Server.Overlap = overlap
			for _, step := range tt.steps {
				ids := Identities(s, step.now)
				if got := name(ids); got != step.want {
					t.Errorf("on %v: got %q, want %q", step.now, got, step.want)
				}
				if got := InForce(ids, step.now); !got.From.Equal(step.inForce) {
					t.Errorf("on %v: in force since %v, want %v", step.now, got.From, step.inForce)
				}
				if got := NextChange(s, step.now); !got.Equal(step.change) {
					t.Errorf("on %v: next change %v, want %v", step.now, got, step.change)
				}
			}
		})
	}
}

func TestBuildPresharedKeys(t *testing.T) {
	psk := func(n byte) key.Preshared { return key.NewPreshared([key.Len]byte{n}) }
	peer := spec.Peer{
		Name: "a", PublicKey: key.Public{1}, PresharedKey: psk(1),
		Scheduled: []spec.ScheduledKey{{Key: psk(2), From: day(10)}, {Key: psk(3), From: day(20)}},
	}
	from := peer
	from.Name, from.PublicKey, from.PresharedKey = "b", key.Public{2}, key.Preshared{}
	s := &spec.Snapshot{Peers: []spec.Peer{peer, from}}
	for _, tt := range []struct {
		now    time.Time
		a, b   key.Preshared
		change time.Time
	}{
		{day(1), psk(1), key.Preshared{}, day(10)},
		{day(10), psk(2), psk(2), day(20)},
		{day(19), psk(2), psk(2), day(20)},
		{day(28), psk(3), psk(3), time.Time{}},
	} {
		peers := Build(Inputs{Snapshot: s, Now: tt.now}).Tunnels[0].Device.Peers
		if peers[0].PresharedKey != tt.a || peers[1].PresharedKey != tt.b {
			t.Errorf("on %v: not the keys of that day", tt.now)
		}
		if got := NextChange(s, tt.now); !got.Equal(tt.change) {
			t.Errorf("on %v: next change %v, want %v", tt.now, got, tt.change)
		}
	}
}

func TestBuildTwoTunnels(t *testing.T) {
	alice, site, pool := key.Public{1}, key.Public{2}, key.Public{3}
	s := &spec.Snapshot{
		ServerKeys: []spec.ServerKey{{Key: serverKey(1), Slot: key.Green, From: day(1)}, {Key: serverKey(2), Slot: key.Blue, From: day(10)}},
		Gateway: spec.Gateway{
			Server:      spec.Server{Interface: "wg0", ListenPort: 51820, Addresses: prefixes("10.8.0.1/24"), MTU: 1400},
			KeyRotation: spec.KeyRotation{Server: spec.ServerRotation{Overlap: time.Hour, ListenPort: 7}},
		},
		Peers: []spec.Peer{
			{Name: "alice", PublicKey: alice, Addresses: addrs("10.8.0.2")},
			{Name: "pool", PublicKey: pool, AllowedIPs: prefixes("10.8.0.64/26", "172.16.0.0/12")},
			{Name: "site", PublicKey: site, Addresses: addrs("10.8.0.3"), AllowedIPs: prefixes("192.168.0.0/16")},
		},
	}
	type link struct {
		Name              string
		Addresses, Routes []netip.Prefix
		Port              uint16
		Key               key.Private
		Peers             int
	}
	tests := []struct {
		name  string
		now   time.Time
		moved map[key.Public]bool
		want  []link
	}{
		{"nobody has moved", day(9), nil, []link{
			{"wg0g", prefixes("10.8.0.1/24"), prefixes("172.16.0.0/12", "192.168.0.0/16"), 7, serverKey(1), 3},
			{"wg0", prefixes("10.8.0.1/32"), nil, 51820, serverKey(2), 3},
		}},
		{"some have moved", day(10), map[key.Public]bool{alice: true, pool: true}, []link{
			{"wg0g", prefixes("10.8.0.1/24"), prefixes("192.168.0.0/16"), 7, serverKey(1), 3},
			{"wg0", prefixes("10.8.0.1/32"), prefixes("10.8.0.2/32", "10.8.0.64/26", "172.16.0.0/12"), 51820, serverKey(2), 3},
		}},
		{"the older one has retired", day(10).Add(time.Hour), map[key.Public]bool{alice: true}, []link{
			{"wg0", prefixes("10.8.0.1/24"), prefixes("172.16.0.0/12", "192.168.0.0/16"), 51820, serverKey(2), 3},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Build(Inputs{Snapshot: s, Now: tt.now, Moved: tt.moved})
			var got []link
			for _, tunnel := range d.Tunnels {
				if tunnel.Link.MTU != 1400 {
					t.Errorf("mtu %d", tunnel.Link.MTU)
				}
				got = append(got, link{
					tunnel.Link.Name, tunnel.Link.Addresses, tunnel.Link.Routes,
					tunnel.Device.ListenPort, tunnel.Device.PrivateKey, len(tunnel.Device.Peers),
				})
			}
			if diff := cmp.Diff(tt.want, got, byValue); diff != "" {
				t.Errorf("tunnels (-want +got):\n%s", diff)
			}
			if d.Firewall.Handshakes != (len(tt.want) == 2) {
				t.Errorf("handshakes: %v", d.Firewall.Handshakes)
			}
			if diff := cmp.Diff([2]string{"wg0", "wg0g"}, d.Firewall.Interfaces); diff != "" {
				t.Errorf("firewall's interfaces (-want +got):\n%s", diff)
			}
			if d.Tunnel(key.Blue) == nil || d.Tunnel(key.Blue).Slot != key.Blue {
				t.Error("no blue tunnel is found")
			}
		})
	}
}

// A peer that only the gateway calls would never hear of the newer key.
func TestSecondTunnelCallsPassivePeers(t *testing.T) {
	site, client, chatty := key.Public{1}, key.Public{2}, key.Public{3}
	s := &spec.Snapshot{
		ServerKeys: []spec.ServerKey{{Key: serverKey(1), Slot: key.Blue}, {Key: serverKey(2), Slot: key.Green, From: day(10)}},
		Peers: []spec.Peer{
			{Name: "a", PublicKey: site, Endpoint: spec.Endpoint{Host: "192.0.2.1", Port: 1}},
			{Name: "b", PublicKey: client},
			{Name: "c", PublicKey: chatty, Endpoint: spec.Endpoint{Host: "192.0.2.3", Port: 1}, PersistentKeepalive: 7},
		},
	}
	s.Gateway.KeyRotation.Server.Overlap = time.Hour
	keepalives := func(tunnel Tunnel) []time.Duration {
		var out []time.Duration
		for _, p := range tunnel.Device.Peers {
			out = append(out, p.Keepalive)
		}
		return out
	}
	d := Build(Inputs{Snapshot: s, Now: day(9)})
	if diff := cmp.Diff([]time.Duration{0, 0, 7 * time.Second}, keepalives(d.Tunnels[0])); diff != "" {
		t.Errorf("first (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]time.Duration{25 * time.Second, 0, 7 * time.Second}, keepalives(d.Tunnels[1])); diff != "" {
		t.Errorf("second (-want +got):\n%s", diff)
	}
	d = Build(Inputs{Snapshot: s, Now: day(11)})
	if diff := cmp.Diff([]time.Duration{0, 0, 7 * time.Second}, keepalives(d.Tunnels[0])); diff != "" {
		t.Errorf("the second alone (-want +got):\n%s", diff)
	}
}

func TestMoved(t *testing.T) {
	at := func(days int) ObservedPeer {
		if days == 0 {
			return ObservedPeer{}
		}
		return ObservedPeer{LastHandshake: day(days)}
	}
	first := map[key.Public]ObservedPeer{{1}: at(0), {2}: at(1), {3}: at(9), {4}: at(3)}
	second := map[key.Public]ObservedPeer{{1}: at(0), {2}: at(2), {3}: at(8), {4}: at(3), {5}: at(1)}
	if diff := cmp.Diff(map[key.Public]bool{{2}: true, {5}: true}, Moved(first, second, day(20))); diff != "" {
		t.Errorf("moved (-want +got):\n%s", diff)
	}
	if got := Moved(second, nil, day(20)); got != nil {
		t.Errorf("without a second tunnel: %v", got)
	}
	// The clock was set back to day 5: peer 3 was with the first on what it called
	// day 9, and so before.
	if diff := cmp.Diff(map[key.Public]bool{{3}: true}, Moved(map[key.Public]ObservedPeer{{3}: at(9)}, map[key.Public]ObservedPeer{{3}: at(4)}, day(5))); diff != "" {
		t.Errorf("after the clock was set back (-want +got):\n%s", diff)
	}
}

func TestLatest(t *testing.T) {
	peer := func(n byte, at int, received, sent int64) ObservedPeer {
		p := ObservedPeer{Peer: Peer{PublicKey: key.Public{n}}, ReceiveBytes: received, TransmitBytes: sent}
		if at != 0 {
			p.LastHandshake = day(at)
		}
		return p
	}
	first := map[key.Public]ObservedPeer{{1}: peer(1, 0, 0, 1), {2}: peer(2, 1, 10, 20), {3}: peer(3, 9, 10, 20)}
	second := map[key.Public]ObservedPeer{{1}: peer(1, 0, 0, 2), {2}: peer(2, 2, 1, 2), {3}: peer(3, 8, 1, 2), {4}: peer(4, 1, 5, 6)}
	want := map[key.Public]ObservedPeer{{1}: peer(1, 0, 0, 3), {2}: peer(2, 2, 11, 22), {3}: peer(3, 9, 11, 22), {4}: peer(4, 1, 5, 6)}
	if diff := cmp.Diff(want, Latest(first, second, day(20)), byValue); diff != "" {
		t.Errorf("latest (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(second, Latest(nil, second, day(20)), byValue); diff != "" {
		t.Errorf("without the first tunnel (-want +got):\n%s", diff)
	}
}

func TestInputsSame(t *testing.T) {
	s := &spec.Snapshot{ServerKeys: []spec.ServerKey{{Slot: key.Blue}, {Slot: key.Green, From: day(10)}}}
	base := Inputs{Snapshot: s, Now: day(5)}
	with := func(change func(*Inputs)) Inputs { in := base; change(&in); return in }
	for _, tt := range []struct {
		name string
		in   Inputs
		want bool
	}{
		{"later", with(func(in *Inputs) { in.Now = day(10).Add(-1) }), true},
		{"a key's time", with(func(in *Inputs) { in.Now = day(10) }), false},
		{"long after a key's time", with(func(in *Inputs) { in.Now = day(28) }), false},
		{"the clock was set back", with(func(in *Inputs) { in.Now = day(4) }), false},
		{"another snapshot", with(func(in *Inputs) { in.Snapshot = &spec.Snapshot{} }), false},
		{"another uplink", with(func(in *Inputs) { in.Uplink.MTU = 1 }), false},
		{"a peer has moved", with(func(in *Inputs) { in.Moved = map[key.Public]bool{{1}: true} }), false},
		{"a name was resolved", with(func(in *Inputs) {
			in.Resolved = map[spec.Endpoint]netip.AddrPort{{Host: "a", Port: 1}: {}}
		}), false},
	} {
		if got := tt.in.Same(base); got != tt.want {
			t.Errorf("%s: the same: %t", tt.name, got)
		}
	}
}
