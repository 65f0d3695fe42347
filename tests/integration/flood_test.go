package integration

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

const (
	floodRate = 10_000 // packets a second
	floodTime = 5 * time.Second
	// floodCPU is what a replica may spend on it, in processors. Most of it is
	// wireguard-go's own look at what is no session of its.
	floodCPU = 0.6
)

// TestFlood sends a replica packets of made-up sessions, and such of a session that
// another replica has, from somebody else's machine. Nobody is moved, and nobody is
// harmed.
func TestFlood(t *testing.T) {
	need(t)
	alice, bob := newPerson(t, "alice", "10.8.0.2"), newPerson(t, "bob", "10.8.0.3")
	s := newSquad(t, 2, netns.Plan{Clients: 3}, gateway.Config{Peers: []gateway.Peer{alice.entry(), bob.entry()}})
	const mallory = 2 // who is none of the peers
	for client, replica := range map[int]int{0: 0, 1: 1, mallory: 1} {
		s.send(t, client, replica)
	}
	target := s.echo(t).Addr()
	alice.connect(t, s.world, 0, "10.0.0.0/8")
	bob.connect(t, s.world, 1, "10.0.0.0/8")
	startStream(t, s.Clients[0], target, 100).Stop(patience)
	time.Sleep(pastSecondHandshake) // and then the session that stays
	index := indexOf(t, s.Clients[0], func() { startStream(t, s.Clients[0], target, 100).Stop(patience) })

	hers, his := startStream(t, s.Clients[0], target, 100), startStream(t, s.Clients[1], target, 100)
	before, err := s.replicas[1].Container().Usage()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	sent := flood(t, s.Clients[mallory], s.Endpoint, index)
	took := time.Since(start)
	after, err := s.replicas[1].Container().Usage()
	if err != nil {
		t.Fatal(err)
	}
	spent := (after.CPU - before.CPU).Seconds() / took.Seconds()
	t.Logf("%d packets in %.1f s, half of them of a session at the other replica: %.2f processors; handshakes begun: %v",
		sent, took.Seconds(), spent, s.total(t, "vpn_gateway_fleet_calls_total"))
	if spent > floodCPU {
		t.Errorf("the replica took %.2f processors, want %.2f at most", spent, floodCPU)
	}
	if n := s.adoptions(t); n != 0 {
		t.Errorf("%d peers were adopted, want none", n)
	}
	wantNothingLost(t, hers.Stop(patience))
	wantNothingLost(t, his.Stop(patience))
}

// flood sends data messages, every other one with the index and the others with any.
func flood(t *testing.T, from *netns.NS, to netip.AddrPort, index uint32) (sent int) {
	t.Helper()
	conn, err := from.DialContext(t.Context(), "udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), floodTime)
	defer cancel()
	var sending sync.WaitGroup
	sending.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for start := time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for due := int(time.Since(start).Seconds() * floodRate); sent < due; sent++ {
				message := make([]byte, 96)
				message[0] = 4
				binary.LittleEndian.PutUint32(message[4:], rand.Uint32())
				if sent%2 == 0 {
					binary.LittleEndian.PutUint32(message[4:], index)
				}
				if _, err := conn.Write(message); err != nil {
					return
				}
			}
		}
	})
	sending.Wait()
	return sent
}

// indexOf is the receiver's index of the last data that a client sends meanwhile.
func indexOf(t *testing.T, ns *netns.NS, meanwhile func()) uint32 {
	t.Helper()
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(htons(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	meanwhile()
	var index uint32
	packet := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(fd, packet, 0)
		if err != nil {
			break
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype != unix.PACKET_OUTGOING || n < 36 || packet[9] != unix.IPPROTO_UDP {
			continue
		}
		if binary.BigEndian.Uint16(packet[22:]) == gateway.Port && packet[28] == 4 {
			index = binary.LittleEndian.Uint32(packet[32:])
		}
	}
	if index == 0 {
		t.Fatal("the client sent no data")
	}
	return index
}

// total adds a metric up over all replicas.
func (s *squad) total(t *testing.T, name string) float64 {
	t.Helper()
	sum := 0.0
	for _, g := range s.replicas {
		m, err := g.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		v, ok := m.Value(name)
		if !ok {
			t.Fatalf("there is no metric %s", name)
		}
		sum += v
	}
	return sum
}
