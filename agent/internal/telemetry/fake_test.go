package telemetry

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

var (
	alice = key.Public{0: 0xfb, 31: 1} // base64 with '+'
	bob   = key.Public{0: 2, 31: 2}
	carol = key.Public{0: 3, 31: 3}
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// running is a status with everything set, and one peer on either side that
// the other does not know.
func running() (Status, map[key.Public]state.ObservedPeer) {
	now := time.Unix(1_700_000_000, 0)
	onDevice := map[key.Public]state.ObservedPeer{
		alice: {
			Peer: state.Peer{PublicKey: alice, AllowedIPs: []netip.Prefix{
				netip.MustParsePrefix("10.8.0.2/32"), netip.MustParsePrefix("fd00::2/128"),
			}},
			LastHandshake: now.Add(-time.Minute), ReceiveBytes: 1 << 53, TransmitBytes: 7,
		},
		bob: {Peer: state.Peer{PublicKey: bob}},
	}
	var sessions state.Sessions
	_, _ = sessions.Look(state.Each(onDevice), now)
	return Status{
		Conditions: []Condition{
			{Name: "config", Detail: "3 faults", Informational: true},
			{Name: "device", OK: true, Detail: "wg0 is up"},
		},
		Generation:      7,
		Hash:            "0123456789ab",
		Reloads:         Reloads{Succeeded: 7, Failed: 2, LastSuccess: now.Add(1500 * time.Millisecond), LastOK: true},
		DataPlane:       "userspace",
		DataPlaneReason: "kernel: \"operation not supported\"\n\\ \xff",
		Identities: []Identity{
			{PublicKey: key.Public{9}, Slot: key.Blue, Interface: "wg0", ListenPort: 51820, InForce: true, Retires: time.Date(2026, 12, 1, 3, 0, 0, 0, time.UTC)},
			{PublicKey: key.Public{8}, Slot: key.Green, Interface: "wg0g", ListenPort: 51821, From: time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC)},
		},
		Moved: 3,
		Keys: state.KeyTimes{
			Server:    state.KeyTime{Next: time.Unix(1_700_000_100, 0)},
			Preshared: state.KeyTime{Since: time.Unix(1_600_000_000, 0)},
			Retires:   time.Unix(1_700_000_200, 0),
		},
		Rotations: map[string]spec.RotationResult{
			"server": {Time: time.Unix(1_700_000_000, 0), Result: "unchanged"}, "preshared": {Time: time.Unix(1_700_000_001, 0), Result: "failed"},
		},
		PeerNames: map[key.Public]string{alice: `a"l\ice`, carol: "carol"},
		Sessions:  sessions.Count(nil),
		Version:   "0.1.0",
	}, onDevice
}

// crowd is a status and a device with n peers of one allowed IP each.
func crowd(n int) (Status, map[key.Public]state.ObservedPeer) {
	s, _ := running()
	s.PeerNames = make(map[key.Public]string, n)
	onDevice := make(map[key.Public]state.ObservedPeer, n)
	for i := range n {
		var k key.Public
		binary.LittleEndian.PutUint64(k[:], uint64(i)*0x9e3779b97f4a7c15) // looks random
		s.PeerNames[k] = fmt.Sprintf("peer-%05d", i)
		address := netip.AddrFrom4([4]byte{10, byte(8 + i>>16), byte(i >> 8), byte(i)})
		onDevice[k] = state.ObservedPeer{
			Peer:          state.Peer{PublicKey: k, AllowedIPs: []netip.Prefix{netip.PrefixFrom(address, 32)}},
			LastHandshake: time.Unix(1_700_000_000+int64(i), 0),
			ReceiveBytes:  int64(i) * 1_000_003, TransmitBytes: int64(i) * 999_983,
		}
	}
	var sessions state.Sessions
	_, _ = sessions.Look(state.Each(onDevice), time.Unix(1_700_000_000, 0))
	s.Sessions = sessions.Count(nil)
	return s, onDevice
}

// handlerOf serves a status that does not change.
func handlerOf(t testing.TB, s Status, onDevice map[key.Public]state.ObservedPeer, err error) *metricsServer {
	t.Helper()
	reg := NewRegistry()
	RegisterStopped(reg, func() (map[string]uint64, error) { return map[string]uint64{"spoofed": 3, "isolated": 0}, nil })
	RegisterExternalSecrets(reg, func() map[string]bool { return map[string]bool{"keys": true, "peers": false} })
	RegisterFleet(reg, fakeFleet, func() FleetCounts {
		return FleetCounts{Adopted: 2, RefusedPackets: map[string]uint64{"late": 1}, RefusedMessages: map[string]uint64{"malformed": 3}}
	})
	readiness := NewReadinessCounters(reg, []string{"lease", "minority"})
	readiness.Marked()
	readiness.Refused("minority")
	instruments := NewInstruments(reg)
	return &metricsServer{instruments, NewHandler(Options{
		Status: func() Status { return s },
		EachPeer: func(tunnel key.Slot, visit func(*state.ObservedPeer)) error {
			if err != nil {
				return err
			}
			if tunnel == key.Green {
				return nil // nobody is there yet
			}
			return state.Each(onDevice)(visit)
		},
		Registry: reg, Log: quiet(), Fleet: fakeFleet,
	})}
}

type metricsServer struct {
	instruments *Instruments
	http.Handler
}

// fakeFleet is three replicas, of which one is dead.
func fakeFleet() FleetView {
	return FleetView{Replica: "a", Replicas: 2, Draining: 1, ConnectedPeers: 5, PerReplica: 2.5, Members: []FleetMember{
		{Name: "a", Address: "10.244.1.2", State: "alive", ConnectedPeers: 4},
		{Name: "b", Address: "10.244.2.2", State: "draining", ConnectedPeers: 1},
		{Name: "c", Address: "10.244.3.2", State: "dead"},
	}}
}
