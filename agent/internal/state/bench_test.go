package state

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// manyPeers is a snapshot of n peers, sorted by name, with an address each in no
// order.
func manyPeers(n int) *spec.Snapshot {
	s := &spec.Snapshot{
		Gateway: spec.Gateway{
			Server:  spec.Server{Interface: "wg0", ListenPort: 51820, Addresses: prefixes("10.0.0.1/8")},
			Routing: spec.Routing{Masquerade: true, AllowedDestinations: []spec.Destination{{CIDR: netip.MustParsePrefix("0.0.0.0/0")}}},
		},
		ServerKeys: []spec.ServerKey{{Key: key.GeneratePrivate(), Slot: key.Blue}},
	}
	for i, host := range rand.New(rand.NewPCG(1, 2)).Perm(n) {
		var public key.Public
		binary.LittleEndian.PutUint64(public[:], uint64(i)+1)
		s.Peers = append(s.Peers, spec.Peer{
			Name: fmt.Sprintf("peer-%05d", i), PublicKey: public, PresharedKey: key.GeneratePreshared(),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(host >> 8), byte(host)})},
		})
	}
	return s
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			snapshot := manyPeers(n)
			b.ReportAllocs()
			for b.Loop() {
				Build(Inputs{Snapshot: snapshot, Uplink: Uplink{MTU: 1500}})
			}
		})
	}
}
