package state

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

func pair(host, network string) (p spec.Peer) {
	p = spec.Peer{Name: host, Addresses: addrs(host)}
	copy(p.PublicKey[:], host)
	if network != "" {
		p.AllowedIPs = prefixes(network)
	}
	return p
}

func TestInterlink(t *testing.T) {
	private, link := key.GeneratePrivate(), key.GeneratePrivate()
	alice, bob, site := pair("10.8.0.2", ""), pair("10.8.0.3", ""), pair("10.8.0.4", "192.168.50.0/24")
	snapshot := &spec.Snapshot{
		Gateway:    spec.Gateway{Server: spec.Server{Interface: "wg0", ListenPort: 51820, MTU: 1300, Addresses: prefixes("10.8.0.1/24")}},
		ServerKeys: []spec.ServerKey{{Key: private, Slot: key.Blue}},
		Peers:      []spec.Peer{alice, bob, site},
	}
	a := Sibling{Name: "a", Address: netip.MustParseAddr("10.244.0.7"), LinkKey: key.Public{1}, LinkPort: 51840}
	b := Sibling{Name: "b", Address: netip.MustParseAddr("10.244.1.7"), Second: netip.MustParseAddr("fd00:244::7"), LinkKey: key.Public{2}, LinkPort: 51841}
	mute := Sibling{Name: "mute", Address: netip.MustParseAddr("10.244.2.7")}
	again := Sibling{Name: "successor of a", Address: a.Address, LinkKey: key.Public{3}, LinkPort: 51840}
	own := &LinkConfig{PrivateKey: link, ListenPort: 51840, Address: netip.MustParseAddr("10.244.9.9")}
	held := map[key.Public]string{alice.PublicKey: "b", site.PublicKey: "b", bob.PublicKey: "mute", {9}: "b"}
	build := func(f *Fleet) Desired {
		return Build(Inputs{Snapshot: snapshot, Uplink: Uplink{MTU: 1500}, Fleet: f})
	}
	plain := build(nil)
	t.Run("no siblings", func(t *testing.T) {
		got := build(&Fleet{Link: own})
		if diff := cmp.Diff(addrs("10.244.9.9"), got.Firewall.Entry, byValue); diff != "" {
			t.Errorf("source of flows of the cluster:\n%s", diff)
		}
		got.Firewall.Entry = nil
		if diff := cmp.Diff(plain, got, byValue); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("no link", func(t *testing.T) {
		if got := build(&Fleet{Siblings: []Sibling{a}, Elsewhere: held}); got.Interlink != nil || len(got.Firewall.Entry) > 0 {
			t.Errorf("there is one: %+v", got.Interlink)
		}
	})
	got := build(&Fleet{Elsewhere: held, Siblings: []Sibling{a, b, mute, again}, Link: own})
	want := &Tunnel{
		Slot: Interlink,
		Link: Link{
			Name: "wg0l", MTU: 1440, Addresses: prefixes("10.244.9.9/32"),
			Routes:  prefixes("10.8.0.2/32", "10.8.0.4/32", "192.168.50.0/24"),
			Answers: prefixes("10.244.0.7/32", "10.244.1.7/32", "fd00:244::7/128"), AnswersFor: []string{"wg0", "wg0g"},
		},
		Device: Device{PrivateKey: link, ListenPort: 51840, Peers: []Peer{
			{
				Name: "a", PublicKey: a.LinkKey, Endpoint: netip.MustParseAddrPort("10.244.0.7:51840"), Keepalive: 25 * time.Second,
				AllowedIPs: prefixes("10.244.0.7/32"),
			},
			{
				Name: "b", PublicKey: b.LinkKey, Endpoint: netip.MustParseAddrPort("10.244.1.7:51841"), Keepalive: 25 * time.Second,
				AllowedIPs: prefixes("10.8.0.2/32", "10.8.0.4/32", "10.244.1.7/32", "192.168.50.0/24", "fd00:244::7/128"),
			},
		}},
	}
	if diff := cmp.Diff(want, got.Interlink, byValue); diff != "" {
		t.Error(diff)
	}
	if routes := got.Tunnels[0].Link.Routes; len(routes) > 0 {
		t.Errorf("routes into the tunnel %v, want none: the site is elsewhere", routes)
	}
	if got.Firewall.Interlink != "wg0l" || got.Firewall.InterlinkPort != 51840 {
		t.Errorf("firewall knows %q, port %d", got.Firewall.Interlink, got.Firewall.InterlinkPort)
	}
	if diff := cmp.Diff(plain.Firewall, got.Firewall, byValue, cmpopts.IgnoreFields(Firewall{}, "Interlink", "InterlinkPort", "Entry")); diff != "" {
		t.Errorf("the rest of the firewall:\n%s", diff)
	}
}

// TestInterlinkWithTwoKeys: where a peer is elsewhere, it is on none of the tunnels.
func TestInterlinkWithTwoKeys(t *testing.T) {
	alice, bob := pair("10.8.0.2", ""), pair("10.8.0.3", "192.168.50.0/24")
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	snapshot := &spec.Snapshot{
		Gateway: spec.Gateway{Server: spec.Server{Interface: "wg0", ListenPort: 51820, Addresses: prefixes("10.8.0.1/24")}, KeyRotation: spec.KeyRotation{Server: spec.ServerRotation{Overlap: time.Hour}}},
		ServerKeys: []spec.ServerKey{
			{Key: key.GeneratePrivate(), Slot: key.Blue}, {Key: key.GeneratePrivate(), Slot: key.Green, From: now},
		},
		Peers: []spec.Peer{alice, bob},
	}
	d := Build(Inputs{
		Snapshot: snapshot, Now: now, Moved: map[key.Public]bool{alice.PublicKey: true, bob.PublicKey: true},
		Fleet: &Fleet{
			Elsewhere: map[key.Public]string{bob.PublicKey: "a"},
			Siblings:  []Sibling{{Name: "a", Address: netip.MustParseAddr("10.244.0.7"), LinkKey: key.Public{1}}},
			Link:      &LinkConfig{Address: netip.MustParseAddr("10.244.9.9")},
		},
	})
	var got [][]netip.Prefix
	for _, tunnel := range d.Devices() {
		got = append(got, tunnel.Link.Routes)
	}
	want := [][]netip.Prefix{{}, prefixes("10.8.0.2/32"), prefixes("10.8.0.3/32", "192.168.50.0/24")}
	if diff := cmp.Diff(want, got, byValue, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("routes of the first, second and between replicas:\n%s", diff)
	}
	if d.Tunnel(Interlink) != d.Interlink || d.Tunnel(key.Green) != &d.Tunnels[1] {
		t.Error("devices are not found by their slots")
	}
}

func BenchmarkBuildElsewhere(b *testing.B) {
	const n = 10_000
	snapshot := manyPeers(n)
	f := manyElsewhere(snapshot)
	b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Build(Inputs{Snapshot: snapshot, Uplink: Uplink{MTU: 1500}, Fleet: f})
		}
	})
}

// manyElsewhere is a fleet of 20, of which each replica holds as many.
func manyElsewhere(s *spec.Snapshot) *Fleet {
	f := &Fleet{Elsewhere: map[key.Public]string{}, Link: &LinkConfig{Address: netip.MustParseAddr("10.244.0.1")}}
	for i := 1; i < 20; i++ {
		f.Siblings = append(f.Siblings, Sibling{Name: fmt.Sprintf("replica-%02d", i), Address: netip.AddrFrom4([4]byte{10, 244, 0, byte(i + 1)}), LinkKey: key.Public{byte(i)}})
	}
	slices.SortFunc(f.Siblings, func(a, b Sibling) int { return a.Address.Compare(b.Address) })
	for i := range s.Peers {
		if holder := i % 20; holder > 0 {
			f.Elsewhere[s.Peers[i].PublicKey] = f.Siblings[holder-1].Name
		}
	}
	return f
}
