package stream

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

func start(t *testing.T, topology *netns.Topology, rate int) (*Stream, *Echo) {
	t.Helper()
	echo, err := ListenEcho(topology.Clients[1], netip.AddrPortFrom(topology.ClientIP(1), 7))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = echo.Close() })
	s, err := Start(Options{From: topology.Clients[0], To: echo.Addr(), Rate: rate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(0) })
	return s, echo
}

func await(t *testing.T, s *Stream, n uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Await(ctx, n); err != nil {
		t.Fatal(err)
	}
}

func TestNothingLostOnAGoodLink(t *testing.T) {
	testenv.Need(t, testenv.Root(), testenv.NetNS())
	topology := netns.TopologyForTest(t, netns.Plan{Clients: 2})
	s, echo := start(t, topology, 1000)
	await(t, s, 300)
	r := s.Stop(time.Minute)
	if r.Sent < 300 || r.Lost != 0 || r.Received != r.Sent || r.Duplicates != 0 || r.SendErrors != 0 || r.LongestLoss != 0 {
		t.Errorf("report = %+v, want at least 300 sent and none lost", r)
	}
	senders := echo.Senders()
	for a, n := range senders {
		if a.Addr() != topology.ClientIP(0) || n != r.Sent || len(senders) != 1 {
			t.Errorf("senders = %v, want %s alone with %d packets", senders, topology.ClientIP(0), r.Sent)
		}
	}
}

// A service of a cluster says more than what it was told.
func TestAnswerAroundThePacket(t *testing.T) {
	testenv.Need(t, testenv.Root(), testenv.NetNS())
	ns := netns.ForTest(t)
	server, err := ns.ListenUDP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		packet := make([]byte, maxSize)
		for {
			n, from, err := server.ReadFromUDPAddrPort(packet)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort([]byte("host "+from.String()+" "+string(packet[:n])+"\n"), from)
			_, _ = server.WriteToUDPAddrPort(packet[:n-1], from) // cut short: does not count
			_, _ = server.WriteToUDPAddrPort([]byte("nothing of it"), from)
		}
	}()
	defer server.Close()
	s, err := Start(Options{From: ns, To: server.LocalAddr().(*net.UDPAddr).AddrPort(), Rate: 500})
	if err != nil {
		t.Fatal(err)
	}
	await(t, s, 20)
	if r := s.Stop(time.Minute); r.Lost != 0 || r.Duplicates != 0 {
		t.Errorf("report = %+v, want each packet once", r)
	}
}

func TestAnOutageIsSeen(t *testing.T) {
	testenv.Need(t, testenv.Root(), testenv.NetNS())
	topology := netns.TopologyForTest(t, netns.Plan{Clients: 2})
	s, _ := start(t, topology, 200)
	await(t, s, 20)
	if err := topology.Internet.SetUp("client1", false); err != nil {
		t.Fatal(err)
	}
	for cut := s.Sent(); s.Sent() < cut+40; {
		time.Sleep(time.Millisecond)
	}
	if err := topology.Internet.SetUp("client1", true); err != nil {
		t.Fatal(err)
	}
	await(t, s, 20)
	r := s.Stop(time.Second)
	// Some of those that were sent last may have been waiting in the kernel for
	// the neighbour's address, and some more are lost until the link is up.
	if r.Lost < 30 || r.LongestLoss < 30*time.Second/200 || r.LongestGap < 30*time.Second/200 {
		t.Errorf("report = %+v, want an outage of 40 packets at 200 a second", r)
	}
}

func TestReport(t *testing.T) {
	s := &Stream{options: Options{Rate: 100}}
	s.sent.Store(10)
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	// 2, 3 and 9 are lost, 5 comes twice and 4 after two seconds, last of all.
	for _, a := range []struct {
		sequence  uint64
		sent, now time.Duration
	}{
		{0, ms(0), ms(1)}, {1, ms(10), ms(11)}, {5, ms(50), ms(52)}, {5, ms(50), ms(53)}, {6, ms(60), ms(61)},
		{7, ms(70), ms(71)}, {8, ms(80), ms(81)}, {4, ms(40), ms(2040)}, {11, ms(110), ms(2041)},
	} {
		s.note(a.sequence, a.sent, a.now)
	}
	want := Report{
		Sent: 10, Received: 7, Lost: 3, Duplicates: 1, Late: 1,
		LongestLoss: ms(20), LongestGap: ms(1959), SlowestTrip: ms(2000),
	}
	if diff := cmp.Diff(want, s.report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

func TestStartRefuses(t *testing.T) {
	for _, o := range []Options{{Rate: 0}, {Rate: 1, Size: 23}, {Rate: 1, Size: 2000}} {
		if _, err := Start(o); err == nil {
			t.Errorf("Start(%+v) was accepted", o)
		}
	}
}
