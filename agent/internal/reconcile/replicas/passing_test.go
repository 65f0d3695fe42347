package replicas

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
)

const echoPort = 7

// TestPacketsArePassedOn: a replica that is not the holder of a peer is as good as the
// one that is, for the cluster and for other peers.
func TestPacketsArePassedOn(t *testing.T) {
	w := newWorld(t)
	w.peerToPeer = true
	w.tell(t)
	w.move(t, "alice", "a")
	w.move(t, "bob", "b")
	bob, alice := w.peers["bob"], w.peers["alice"]
	at := echo(t, bob.space, bob.address)
	echo(t, alice.space, alice.address)

	plain := w.replicas["b"].sniff(t)
	if lost := exchange(t, w.host, bob.address, 20, 64); lost > 0 {
		t.Errorf("cluster to a peer of a sibling: %d of 20 lost", lost)
	}
	if got, want := at.from(), w.replicas["a"].address; got != want {
		t.Errorf("the peer sees %s, want the replica that the packets came in by, %s", got, want)
	}
	if lost := exchange(t, w.host, bob.address, 20, 1392); lost > 0 {
		t.Errorf("packets of the tunnel's MTU: %d of 20 lost", lost)
	}
	if n := plain.Load(); n > 0 {
		t.Errorf("%d packets were to be seen in clear between the replicas", n)
	}
	if lost := exchange(t, w.host, alice.address, 20, 64); lost > 0 {
		t.Errorf("cluster to a peer of this replica: %d of 20 lost", lost)
	}
	if lost := exchange(t, alice.space, bob.address, 20, 64); lost > 0 {
		t.Errorf("peer to a peer of a sibling: %d of 20 lost", lost)
	}
	if got := at.from(); got != alice.address {
		t.Errorf("the peer sees %s, want the other peer's own address %s", got, alice.address)
	}

	// What must not pass.
	if lost := exchangeFrom(t, w.host, alice.address, bob.address, 5, 64); lost != 5 {
		t.Errorf("a peer's address outside the tunnel: %d of 5 lost", lost)
	}
	gateway := echo(t, w.replicas["a"].space, w.replicas["a"].address)
	if lost := exchange(t, bob.space, w.replicas["a"].address, 5, 64); lost != 5 || gateway.from().IsValid() {
		t.Errorf("peer to a replica itself: %d of 5 lost", lost)
	}
	w.peerToPeer = false
	w.tell(t)
	if lost := exchange(t, alice.space, bob.address, 5, 64); lost != 5 {
		t.Errorf("peer to a peer of a sibling, without peerToPeer: %d of 5 lost", lost)
	}
	if lost := exchange(t, w.host, bob.address, 20, 64); lost > 0 {
		t.Errorf("cluster to a peer of a sibling, without peerToPeer: %d of 20 lost", lost)
	}
	w.tell(t)
	if a := w.replicas["a"].stopped.Stopped; a[firewall.Isolated] == 0 || a[firewall.Spoofed] == 0 || a[firewall.Gateway] == 0 {
		t.Errorf("replica a counts as stopped %v, want some isolated, spoofed and for the gateway", a)
	}

	for _, name := range names() {
		if left := w.replicas[name].order(t, order{Leave: true}).Leftover; len(left) > 0 {
			t.Errorf("replica %s leaves behind %q", name, left)
		}
	}
}

// TestFlowsFollowTheHolder moves a peer from replica to replica while the cluster talks
// to it through one of them, by UDP at 100 Hz and by a TCP connection.
func TestFlowsFollowTheHolder(t *testing.T) {
	w := newWorld(t)
	w.tell(t)
	w.move(t, "alice", "b")
	w.move(t, "bob", "a") // where the flows come in: they begin without being passed on
	bob := w.peers["bob"]
	at := echo(t, bob.space, bob.address)
	line := talk(t, w.host, bob.space, bob.address)
	s := startStream(t, w.host, netip.AddrPortFrom(bob.address, echoPort))
	told := tellOnly(t, w.host, bob.space, bob.address)
	line(t)
	time.Sleep(500 * time.Millisecond)
	for _, to := range []string{"b", "c", "b", "a", "c", "a"} {
		s.settle()
		before, toldBefore, from := s.lost(), told.lost(), time.Now()
		w.move(t, "bob", to)
		took := time.Since(from)
		time.Sleep(500 * time.Millisecond)
		s.settle()
		lost := s.lost() - before
		toldLost := told.lost() - toldBefore
		t.Logf("to %s: new session and word of it to all in %s, lost at 100 Hz: %d of an echo, %d of what only the peer sends",
			to, took.Round(time.Millisecond), lost, toldLost)
		if lost > 50 || toldLost > 50 {
			t.Errorf("to %s: %d and %d packets lost", to, lost, toldLost)
		}
		line(t)
	}
	sent, lost := s.end()
	t.Logf("%d sent, %d lost in 6 moves; one TCP connection all the time", sent, lost)
	if got, want := at.from(), w.replicas["a"].address; got != want {
		t.Errorf("the peer sees %s, want %s all the time", got, want)
	}
}

// echoing is a UDP echo.
type echoing struct {
	mu   sync.Mutex
	last netip.Addr
}

// from is where the last packet came from.
func (e *echoing) from() netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

func listen(t *testing.T, s space, a netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	s.do(t, func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(a))
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func echo(t *testing.T, s space, a netip.Addr) *echoing {
	t.Helper()
	e, c := &echoing{}, listen(t, s, netip.AddrPortFrom(a, echoPort))
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			e.mu.Lock()
			e.last = from.Addr().Unmap()
			e.mu.Unlock()
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	return e
}

// exchange sends packets to an echo and returns how many did not come back.
func exchange(t *testing.T, s space, to netip.Addr, n, size int) (lost int) {
	t.Helper()
	return exchangeFrom(t, s, netip.IPv4Unspecified(), to, n, size)
}

// exchangeFrom does so from an address that the sender may not have.
func exchangeFrom(t *testing.T, s space, from, to netip.Addr, n, size int) (lost int) {
	t.Helper()
	var c net.PacketConn
	s.do(t, func() error {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			return errors.Join(raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			}), err)
		}}
		var err error
		c, err = config.ListenPacket(t.Context(), "udp4", netip.AddrPortFrom(from, 0).String())
		return err
	})
	defer c.Close()
	b := make([]byte, 2000)
	for i := range n {
		p := make([]byte, size)
		copy(p, mark())
		binary.BigEndian.PutUint32(p[16:], uint32(i))
		_, _ = c.WriteTo(p, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, echoPort)))
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if n == 5 {
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		}
		got, _, err := c.ReadFrom(b)
		if err != nil || !bytes.Equal(b[:got], p) {
			lost++
		}
	}
	return lost
}

// mark is in every packet that is exchanged.
func mark() []byte { return []byte("seen in clear?") }

// sniff counts the packets at a replica's eth0 that have the mark in clear.
func (m *member) sniff(t *testing.T) *atomic.Int64 {
	t.Helper()
	var fd int
	m.do(t, func() (err error) {
		all := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: eth0.Index}); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	})
	var seen atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 70000)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(fd, b, 0); err == nil && bytes.Contains(b[:n], mark()) {
				seen.Add(1)
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done; _ = unix.Close(fd) })
	return &seen
}

// talk opens a TCP connection to a service of a peer, and returns a function that
// sends a line and waits for its echo.
func talk(t *testing.T, from, to space, a netip.Addr) func(*testing.T) {
	t.Helper()
	var l net.Listener
	to.do(t, func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(a, echoPort).String())
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for lines := bufio.NewScanner(c); lines.Scan(); {
			_, _ = fmt.Fprintln(c, lines.Text())
		}
	}()
	var c net.Conn
	from.do(t, func() (err error) {
		c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(a, echoPort).String(), 10*time.Second)
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	answers, n := bufio.NewScanner(c), 0
	return func(t *testing.T) {
		t.Helper()
		n++
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := fmt.Fprintf(c, "line %d\n", n); err != nil {
			t.Fatalf("TCP connection: %v", err)
		}
		if !answers.Scan() || answers.Text() != fmt.Sprintf("line %d", n) {
			t.Fatalf("TCP connection: line %d did not come back: %v", n, answers.Err())
		}
	}
}

// stream is 100 packets a second to an echo.
type stream struct {
	conn     *net.UDPConn
	stop     chan struct{}
	sending  sync.WaitGroup
	sent     atomic.Int64
	received atomic.Int64
}

func startStream(t *testing.T, s space, to netip.AddrPort) *stream {
	t.Helper()
	out := &stream{conn: listen(t, s, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)), stop: make(chan struct{})}
	out.send(to)
	go out.receive(out.conn)
	return out
}

func (s *stream) send(to netip.AddrPort) {
	s.sending.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
				_, _ = s.conn.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(mark(), uint64(s.sent.Add(1))), to)
			}
		}
	})
}

func (s *stream) receive(c *net.UDPConn) {
	b := make([]byte, 2000)
	for {
		_, _, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.received.Add(1)
		}
	}
}

// tellOnly opens a flow from which on only its other end sends.
func tellOnly(t *testing.T, from, to space, a netip.Addr) *stream {
	t.Helper()
	listener := listen(t, to, netip.AddrPortFrom(a, echoPort+1))
	in := listen(t, from, netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if _, err := in.WriteToUDPAddrPort(mark(), netip.AddrPortFrom(a, echoPort+1)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2000)
	_ = listener.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, caller, err := listener.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	out := &stream{conn: listener, stop: make(chan struct{})}
	out.send(caller)
	go out.receive(in)
	t.Cleanup(func() { close(out.stop); out.sending.Wait() })
	return out
}

// settle waits for what is under way.
func (s *stream) settle() { time.Sleep(20 * time.Millisecond) }

func (s *stream) lost() int64 { return s.sent.Load() - s.received.Load() }

func (s *stream) end() (sent, lost int64) {
	close(s.stop)
	s.sending.Wait()
	time.Sleep(200 * time.Millisecond)
	return s.sent.Load(), s.lost()
}
