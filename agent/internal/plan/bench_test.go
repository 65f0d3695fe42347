package plan

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// manyPeers is the desired state of n peers with an address each.
func manyPeers(n int) state.Desired {
	d := device0(state.Device{PrivateKey: key.GeneratePrivate(), ListenPort: 51820})
	device := &d.Tunnels[0].Device
	for i := range n {
		var public key.Public
		binary.LittleEndian.PutUint64(public[:], uint64(i)+1)
		address := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32)
		device.Peers = append(device.Peers, state.Peer{
			Name: fmt.Sprintf("peer-%05d", i), PublicKey: public, PresharedKey: key.GeneratePreshared(),
			AllowedIPs: []netip.Prefix{address},
		})
		d.Firewall.Sources = append(d.Firewall.Sources, state.Source{Prefix: address, Policy: 1})
	}
	return d
}

// BenchmarkDiff plans the change of one peer's pre-shared key.
func BenchmarkDiff(b *testing.B) {
	benchmark(b, func(desired, applied state.Desired, observed state.Observed) Plan {
		return Diff(desired, observed, &applied)
	})
}

// BenchmarkChanges does the same without the system.
func BenchmarkChanges(b *testing.B) {
	benchmark(b, func(desired, applied state.Desired, _ state.Observed) Plan {
		return Changes(desired, applied)
	})
}

func benchmark(b *testing.B, plan func(desired, applied state.Desired, observed state.Observed) Plan) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			applied, desired := manyPeers(n), manyPeers(n)
			before, now := &applied.Tunnels[0].Device, &desired.Tunnels[0].Device
			observed := seenBlue(state.ObservedTunnel{LinkExists: true, LinkUp: true, Device: asObserved(*before)})
			observed.FirewallInPlace = true
			now.PrivateKey = before.PrivateKey
			for i := range now.Peers {
				if i != n/2 {
					now.Peers[i].PresharedKey = before.Peers[i].PresharedKey
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if p := plan(desired, applied, observed); len(p.Tunnels) != 1 || len(p.Tunnels[0].Device.Peers) != 1 {
					b.Fatalf("not one peer is to be changed, but %v", p.Summary(3))
				}
			}
		})
	}
}
