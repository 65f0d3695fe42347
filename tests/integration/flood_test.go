package integration

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

const (
	floodRate = 10_000 // packets a second
	floodTime = 1500 * time.Millisecond
	// floodLater is for how long to make up for what was not sent in time.
	floodLater = floodTime / 4
	// floodBurst is how much of it is sent without a rest, every 10 ms: what waits for a
	// processor has room for 1,000 packets of all namespaces (net.core.netdev_max_backlog).
	floodBurst = 300
	// floodLeast is the part that must have been sent, and have come.
	floodLeast = 0.8
	// floodTold is how many packets of one index a replica is told of in a second, and
	// at once.
	floodTold = 8
	// floodCPU is what a replica may spend on it, in processors. Most of it is
	// wireguard-go's own look at what is no session of its; what is one has to be decrypted
	// before it is found to be old.
	floodCPU, floodCPUHolder = 0.6, 1
)

// TestFlood sends replicas packets of made-up sessions, and such of a session that one of
// them has, from somebody else's machine. Nobody is moved, and nobody is harmed.
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
	recorded := record(t, s.Clients[0], func() { startStream(t, s.Clients[0], target, 100).Stop(patience) })
	forged := make([]byte, 96)
	copy(forged, recorded[:8]) // the header up to the index
	madeUp := slices.Clone(forged)

	hers, his := startStream(t, s.Clients[0], target, 100), startStream(t, s.Clients[1], target, 100)
	at := s.endpoint(t, 0, alice)
	heard := 0
	for _, f := range []struct {
		name    string
		replica int // that it comes to
		message func() []byte
		told    bool // the replica's agent is told of some of it
		cpu     float64
	}{
		{"sessions that there are not", 1, func() []byte { binary.LittleEndian.PutUint32(madeUp[4:], rand.Uint32()); return madeUp }, false, floodCPU},
		{"a session of the other replica, made-up data", 1, func() []byte { return forged }, true, floodCPU},
		{"a recorded packet of it", 1, func() []byte { return recorded }, true, floodCPU},
		{"the same, to the replica that has the session", 0, func() []byte { return recorded }, false, floodCPUHolder},
	} {
		t.Run(f.name, func(t *testing.T) {
			s.send(t, mallory, f.replica)
			before := s.wear(t, f.replica)
			start := time.Now()
			sent, called := flood(t, s.Clients[mallory], s.Endpoint, f.message)
			took := time.Since(start).Seconds()
			after := s.wear(t, f.replica)
			heard += called
			came, told := after.packets-before.packets, after.told-before.told
			spent := (after.cpu - before.cpu).Seconds() / took
			t.Logf("%d packets in %.1f s, %d came: %.2f processors, %v told of; %d handshakes begun with who sent them", sent, took, came, spent, told, called)
			if want := floodLeast * floodRate * floodTime.Seconds(); float64(sent) < want || float64(came) < floodLeast*float64(sent) {
				t.Errorf("%d packets sent, of which %d came to the replica; want %.0f at least, and %.0f %% of them to come", sent, came, want, 100*floodLeast)
			}
			if most := floodTold * (took + 2); (told > 0) != f.told || told > most {
				t.Errorf("the replica was told of %v packets; want some: %t, and %.0f at most", told, f.told, most)
			}
			if spent > f.cpu {
				t.Errorf("the replica took %.2f processors, want %.2f at most", spent, f.cpu)
			}
			if now := s.endpoint(t, 0, alice); now != at {
				t.Errorf("replica 0 sends to alice at %s, was %s", now, at)
			}
		})
	}
	// There is nobody else to call, and some may not come in time.
	if calls := s.total(t, "vpn_gateway_fleet_calls_total"); heard == 0 || float64(heard) > calls {
		t.Errorf("who sends the packets was called %d times, replicas called %v times; want to be called", heard, calls)
	}
	if n := s.adoptions(t); n != 0 {
		t.Errorf("%d peers were adopted, want none", n)
	}
	wantNothingLost(t, hers.Stop(patience))
	wantNothingLost(t, his.Stop(patience))
}

// wear is what a flood leaves on a replica.
type wear struct {
	packets uint64 // that came to the Pod
	told    float64
	cpu     time.Duration
}

func (s *squad) wear(t *testing.T, replica int) wear {
	t.Helper()
	g := s.replicas[replica]
	link, err := g.Pod.Network().Netlink().LinkByName(netns.UplinkInterface)
	if err != nil {
		t.Fatal(err)
	}
	usage, err := g.Container().Usage()
	if err != nil {
		t.Fatal(err)
	}
	m, err := g.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := wear{packets: link.Attrs().Statistics.RxPackets, cpu: usage.CPU}
	// Each packet of a stranger that the agent is told of leads to a call, or is refused.
	for _, name := range []string{"vpn_gateway_fleet_calls_total", "vpn_gateway_fleet_refused_packets_total"} {
		if len(m[name].GetMetric()) == 0 {
			t.Fatalf("there is no metric %s", name)
		}
		for _, metric := range m[name].GetMetric() {
			out.told += metric.GetCounter().GetValue()
		}
	}
	return out
}

// endpoint is where a replica sends to a client.
func (s *squad) endpoint(t *testing.T, replica int, p person) netip.AddrPort {
	t.Helper()
	d, err := s.replicas[replica].Device()
	if err != nil {
		t.Fatal(err)
	}
	return d.Peers[p.key.Public()].Endpoint
}

// flood sends messages for floodTime, and returns how many, and how many handshakes were
// begun with the sender meanwhile.
func flood(t *testing.T, from *netns.NS, to netip.AddrPort, message func() []byte) (sent, called int) {
	t.Helper()
	conn, err := from.DialContext(t.Context(), "udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	var reading sync.WaitGroup
	reading.Go(func() {
		answer := make([]byte, 2048)
		for {
			n, err := conn.Read(answer)
			if err != nil {
				return
			}
			if n == 148 && answer[0] == 1 { // an initiation
				called++
			}
		}
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); time.Since(start) < floodTime+floodLater; <-tick.C {
		due := int(min(time.Since(start), floodTime).Seconds() * floodRate)
		for burst := 0; sent < due && burst < floodBurst; burst++ {
			if _, err := conn.Write(message()); err != nil {
				t.Fatalf("after %d packets: %v", sent, err)
			}
			sent++
		}
		if time.Since(start) >= floodTime && sent >= due {
			break
		}
	}
	_ = conn.Close()
	reading.Wait()
	return sent, called
}

// record returns the last message of data that a client sends meanwhile, as it is on the
// wire. A keepalive is none.
func record(t *testing.T, ns *netns.NS, meanwhile func()) []byte {
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
	const headers, keepalive = 28, 32 // IPv4 and UDP; header and tag of a message of data
	var last []byte
	packet := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(fd, packet, 0)
		if err != nil {
			break
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype != unix.PACKET_OUTGOING || n <= headers+keepalive || packet[9] != unix.IPPROTO_UDP {
			continue
		}
		if binary.BigEndian.Uint16(packet[22:]) == gateway.Port && packet[headers] == 4 {
			last = slices.Clone(packet[headers:n])
		}
	}
	if last == nil {
		t.Fatal("the client sent no data")
	}
	return last
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
