package device

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

const manyPeers = 10_000

// withPeers is a userspace device with many peers, each with a pre-shared key
// and one address.
func withPeers(b *testing.B, n int) (*Tunnels, state.Tunnel) {
	b.Helper()
	need(b)
	peers := make([]state.Peer, n)
	for i := range peers {
		peers[i] = state.Peer{
			Name: fmt.Sprintf("peer%05d", i), PublicKey: key.GeneratePrivate().Public(), PresharedKey: key.GeneratePreshared(),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 8, byte(i >> 8), byte(i)}), 32)},
		}
	}
	want := desired(b, peers...)
	want.Link.Addresses = prefixes("10.8.255.254/16")
	d := open(b, spec.Userspace)
	converge(b, d, want, nil)
	return d, want
}

// BenchmarkDump is what wgctrl itself takes; compare [BenchmarkRead] and
// [BenchmarkEachPeer].
func BenchmarkDump(b *testing.B) {
	d, _ := withPeers(b, manyPeers)
	control := newControl(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := control.Device(d.device(key.Blue).name); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	d, _ := withPeers(b, manyPeers)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.device(key.Blue).read(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEachPeer(b *testing.B) {
	d, _ := withPeers(b, manyPeers)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := d.EachPeer(key.Blue, func(*state.ObservedPeer) { n++ }); err != nil || n != manyPeers {
			b.Fatalf("%d peers, %v", n, err)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	d, _ := withPeers(b, manyPeers)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Observe(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApply changes one peer's pre-shared key among many.
func BenchmarkApply(b *testing.B) {
	d, want := withPeers(b, manyPeers)
	k := want.Device.Peers[0].PublicKey
	b.ReportAllocs()
	for b.Loop() {
		psk := key.GeneratePreshared()
		change := plan.Device{Peers: []plan.Peer{{Operation: plan.Update, PublicKey: k, PresharedKey: &psk}}}
		patch := plan.Plan{Tunnels: []plan.Tunnel{{Slot: key.Blue, Device: change}}}
		if err := d.Apply(patch); err != nil {
			b.Fatal(err)
		}
	}
}
