package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is memberlist's way to the network. Its own, [memberlist.NetTransport], takes
// 64 KiB of memory for every packet, though ours have a kilobyte at most: where many peers
// move at once, that is a garbage collection for every hundred of them, at the time when
// the processors are needed most.
type transport struct {
	udp     *net.UDPConn
	tcp     *net.TCPListener
	packets chan *memberlist.Packet
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
	done    sync.WaitGroup
}

const (
	// receiveBuffer is what waits in the kernel at most, where the kernel allows it: all
	// siblings may have something to say at once.
	receiveBuffer = 2 << 20
	// acceptAgain is how long to wait after an error, such as too many open files.
	acceptAgain = 100 * time.Millisecond
)

// listenAt opens both sockets at an address; of port 0 it takes a free one.
func listenAt(at netip.AddrPort) (*transport, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	port := tcp.Addr().(*net.TCPAddr).AddrPort().Port() //nolint:forcetypeassert // of a TCP listener
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at.Addr(), port)))
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	_ = udp.SetReadBuffer(receiveBuffer) // less will do
	t := &transport{udp: udp, tcp: tcp, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), closed: make(chan struct{})}
	t.done.Go(t.receive)
	t.done.Go(t.accept)
	return t, nil
}

func (t *transport) receive() {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buffer)
		at := time.Now()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n == 0:
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buffer[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: at}
		select {
		case t.packets <- p:
		case <-t.closed:
			return
		}
	}
}

func (t *transport) accept() {
	for {
		c, err := t.tcp.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			select {
			case <-time.After(acceptAgain):
			case <-t.closed:
				return
			}
			continue
		}
		select {
		case t.streams <- c:
		case <-t.closed:
			_ = c.Close()
			return
		}
	}
}

// FinalAdvertiseAddr implements [memberlist.Transport].
func (t *transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, 0, fmt.Errorf("address to be reached at: %w", err)
	}
	if port == 0 {
		port = t.tcp.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // of a TCP listener
	}
	return a.Unmap().AsSlice(), port, nil
}

// WriteTo implements [memberlist.Transport].
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// PacketCh implements [memberlist.Transport].
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout implements [memberlist.Transport].
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return (&net.Dialer{Timeout: timeout}).DialContext(context.Background(), "tcp", addr)
}

// StreamCh implements [memberlist.Transport].
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements [memberlist.Transport]. A second call does nothing.
func (t *transport) Shutdown() error {
	var err error
	t.once.Do(func() {
		close(t.closed)
		err = errors.Join(t.udp.Close(), t.tcp.Close())
	})
	t.done.Wait()
	return err
}
