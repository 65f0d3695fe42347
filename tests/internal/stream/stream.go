// Package stream sends a constant rate of numbered UDP packets out of one network
// namespace to an echo in another, and counts what comes back: how a test sees
// whether a tunnel was dropped.
package stream

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// LateAfter is the round trip from which on a packet counts as late: it waited
// somewhere, such as for a handshake, instead of being lost.
const LateAfter = time.Second

const (
	// headerSize is that of the stream's mark, the sequence number and the time of
	// sending, 8 bytes each.
	headerSize = 24
	maxSize    = 1500
	// socketBuffer is large enough that no packet is lost in the harness while
	// it waits for a processor: a second of the fastest stream and more.
	socketBuffer = 8 << 20
	// burst is how many packets are sent without a rest.
	burst     = 64
	burstRest = time.Millisecond
)

// Echo sends every UDP packet back to where it came from.
type Echo struct {
	conn *net.UDPConn
	done chan struct{}

	mu      sync.Mutex
	senders map[netip.AddrPort]uint64
}

// ListenEcho starts an echo at addr in the namespace. Port 0 lets the kernel choose.
func ListenEcho(ns *netns.NS, addr netip.AddrPort) (*Echo, error) {
	conn, err := ns.ListenUDP(addr)
	if err != nil {
		return nil, fmt.Errorf("echo: %w", err)
	}
	if err := enlarge(conn); err != nil {
		return nil, errors.Join(fmt.Errorf("echo: %w", err), conn.Close())
	}
	e := &Echo{conn: conn, done: make(chan struct{}), senders: map[netip.AddrPort]uint64{}}
	go e.serve()
	return e, nil
}

func (e *Echo) serve() {
	defer close(e.done)
	packet := make([]byte, maxSize)
	for {
		n, sender, err := e.conn.ReadFromUDPAddrPort(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		e.mu.Lock()
		e.senders[netip.AddrPortFrom(sender.Addr().Unmap(), sender.Port())]++
		e.mu.Unlock()
		_, _ = e.conn.WriteToUDPAddrPort(packet[:n], sender)
	}
}

// Addr is where the echo listens.
func (e *Echo) Addr() netip.AddrPort {
	a := e.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Senders returns the packets received from each address: who the packets
// behind the gateway seem to come from.
func (e *Echo) Senders() map[netip.AddrPort]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[netip.AddrPort]uint64, len(e.senders))
	for a, n := range e.senders {
		out[a] = n
	}
	return out
}

// Close ends the echo.
func (e *Echo) Close() error {
	err := e.conn.Close()
	<-e.done
	return err
}

// Options say what to send.
type Options struct {
	From *netns.NS
	To   netip.AddrPort
	Rate int // packets a second
	Size int // bytes of UDP payload, 24 to 1,500; 0: 64
}

// Stream is a stream under way.
type Stream struct {
	options Options
	mark    [8]byte // begins every packet
	conn    *net.UDPConn
	start   time.Time
	stop    chan struct{}
	sending sync.WaitGroup
	reading sync.WaitGroup

	sent, received, sendErrors atomic.Uint64

	mu       sync.Mutex
	arrivals []arrival // by sequence number
	order    []time.Duration
	stray    uint64
}

// arrival is what became of one packet.
type arrival struct {
	copies uint32
	trip   time.Duration
}

// Report is what came of a stream.
type Report struct {
	Sent, Received uint64 // distinct packets
	Lost           uint64 // sent, never received
	Duplicates     uint64 // received once more
	Late           uint64 // received, but after LateAfter
	SendErrors     uint64 // the kernel refused to send; they count as sent and lost
	// LongestLoss is the longest run of lost packets in a row, as time at the
	// stream's rate: the outage.
	LongestLoss time.Duration
	// LongestGap is the longest time between two arrivals. It has the harness's
	// own waits for a processor in it.
	LongestGap time.Duration
	// SlowestTrip is the longest round trip of a packet that came back.
	SlowestTrip time.Duration
}

// String sums the report up in a line.
func (r Report) String() string {
	return fmt.Sprintf("%d sent, %d lost, longest gap %d ms", r.Sent, r.Lost, r.LongestGap.Milliseconds())
}

// Start begins to send to an [Echo], or to any other service that answers with the
// packet, be it with something around it. The stream ends with [Stream.Stop].
func Start(o Options) (*Stream, error) {
	if o.Size == 0 {
		o.Size = 64
	}
	if o.Rate <= 0 || o.Size < headerSize || o.Size > maxSize {
		return nil, fmt.Errorf("stream: rate %d, size %d: want a rate above 0 and a size of %d to %d", o.Rate, o.Size, headerSize, maxSize)
	}
	s := &Stream{options: o, stop: make(chan struct{}), mark: [8]byte{'s'}}
	_, _ = rand.Read(s.mark[1:]) // never fails since Go 1.24
	any := netip.IPv4Unspecified()
	if o.To.Addr().Is6() {
		any = netip.IPv6Unspecified()
	}
	conn, err := o.From.ListenUDP(netip.AddrPortFrom(any, 0))
	if err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	if err := enlarge(conn); err != nil {
		return nil, errors.Join(fmt.Errorf("stream: %w", err), conn.Close())
	}
	s.conn = conn
	s.start = time.Now()
	s.sending.Go(s.send)
	s.reading.Go(s.read)
	return s, nil
}

// send keeps to the rate on the whole: after a wait for a processor it makes up for
// what has fallen due, so that a busy machine gets no fewer packets. It does so in
// bursts that a queue has room for: the kernel drops what goes beyond
// net.core.netdev_max_backlog, 1,000 packets of all namespaces together.
func (s *Stream) send() {
	packet := make([]byte, s.options.Size)
	copy(packet, s.mark[:])
	interval := time.Second / time.Duration(s.options.Rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for sequence := uint64(0); ; {
		select {
		case <-s.stop:
			return
		case <-timer.C:
		}
		for sent := 0; ; sent++ {
			now := time.Since(s.start)
			next := time.Duration(sequence) * interval
			if now < next {
				timer.Reset(next - now)
				break
			}
			if sent == burst {
				timer.Reset(burstRest)
				break
			}
			binary.BigEndian.PutUint64(packet[8:], sequence)
			binary.BigEndian.PutUint64(packet[16:], uint64(now))
			if _, err := s.conn.WriteToUDPAddrPort(packet, s.options.To); err != nil {
				s.sendErrors.Add(1)
			}
			sequence++
			s.sent.Store(sequence)
		}
	}
}

func (s *Stream) read() {
	packet := make([]byte, 2*maxSize)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about what was sent; the packet counts as lost
		}
		now := time.Since(s.start)
		i := bytes.Index(packet[:n], s.mark[:])
		s.mu.Lock()
		if i < 0 || n-i < s.options.Size || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != s.options.To {
			s.stray++
		} else {
			header := packet[i:]
			s.note(binary.BigEndian.Uint64(header[8:]), time.Duration(binary.BigEndian.Uint64(header[16:])), now)
		}
		s.mu.Unlock()
	}
}

// note is called with the lock held.
func (s *Stream) note(sequence uint64, sent, now time.Duration) {
	if sequence > s.sent.Load() { // not from this stream
		s.stray++
		return
	}
	for uint64(len(s.arrivals)) <= sequence {
		s.arrivals = append(s.arrivals, arrival{})
	}
	a := &s.arrivals[sequence]
	a.copies++
	if a.copies == 1 {
		a.trip = now - sent
		s.order = append(s.order, now)
		s.received.Add(1)
	}
}

// To is where the stream goes.
func (s *Stream) To() netip.AddrPort { return s.options.To }

// Sent returns the number of packets sent so far.
func (s *Stream) Sent() uint64 { return s.sent.Load() }

// Received returns the number of distinct packets that came back so far.
func (s *Stream) Received() uint64 { return s.received.Load() }

// Await waits until n more packets have come back than have by now. The error,
// when ctx is done first, says how many did.
func (s *Stream) Await(ctx context.Context, n uint64) error {
	before := s.Received()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for s.Received() < before+n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("stream to %s: %d of %d packets came back, %d of %d since it is waited for: %w",
				s.options.To, s.Received(), s.Sent(), s.Received()-before, n, context.Cause(ctx))
		}
	}
	return nil
}

// Stop ends the sending, waits until everything has come back but no longer
// than wait, and returns the result.
func (s *Stream) Stop(wait time.Duration) Report {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.sending.Wait()
	for deadline := time.Now().Add(wait); s.Received() < s.Sent() && time.Now().Before(deadline); {
		time.Sleep(2 * time.Millisecond)
	}
	_ = s.conn.Close()
	s.reading.Wait()
	return s.report()
}

// Loss is what became of the packets since one, but for those of the last second,
// which may be under way: how many did not come back, and the longest run of such as
// time at the stream's rate. The stream goes on.
func (s *Stream) Loss(since uint64) (lost uint64, outage time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var run, longest uint64
	for sequence := since; sequence+uint64(s.options.Rate) < s.Sent(); sequence++ {
		if sequence < uint64(len(s.arrivals)) && s.arrivals[sequence].copies > 0 {
			run = 0
			continue
		}
		lost++
		run++
		longest = max(longest, run)
	}
	return lost, time.Duration(longest) * time.Second / time.Duration(s.options.Rate)
}

func (s *Stream) report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Report{Sent: s.Sent(), Received: s.Received(), SendErrors: s.sendErrors.Load()}
	r.Lost = r.Sent - r.Received
	var run, longest uint64
	for sequence := range r.Sent {
		var a arrival
		if sequence < uint64(len(s.arrivals)) {
			a = s.arrivals[sequence]
		}
		if a.copies == 0 {
			run++
			longest = max(longest, run)
			continue
		}
		run = 0
		r.Duplicates += uint64(a.copies - 1)
		r.SlowestTrip = max(r.SlowestTrip, a.trip)
		if a.trip > LateAfter {
			r.Late++
		}
	}
	r.LongestLoss = time.Duration(longest) * time.Second / time.Duration(s.options.Rate)
	arrived := slices.Clone(s.order)
	for i := 1; i < len(arrived); i++ {
		r.LongestGap = max(r.LongestGap, arrived[i]-arrived[i-1])
	}
	return r
}

// enlarge gives a socket buffers beyond the machine's limit, as root may.
func enlarge(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		for _, option := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			if err := syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, option, socketBuffer); err != nil {
				set = fmt.Errorf("socket buffers: %w", err)
			}
		}
	})
	return errors.Join(err, set)
}
