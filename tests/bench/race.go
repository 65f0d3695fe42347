package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	streams    = 4 // TCP connections at a time
	bufferSize = 256 << 10
	warmUp     = 500 * time.Millisecond // for TCP to find its rate
	// handshake is how long the first connection may take.
	handshake = 20 * time.Second
)

// race sends streams through both ways in turn, the one that begins changing
// from round to round: what else the machine does meanwhile meets both. The first
// round does not count: handshakes are made in it, and buffers.
func (b *bench) race(ctx context.Context, topology *netns.Topology, ours, theirs *way) error {
	// A stream's rate must not depend on what the kernel remembers of how an
	// earlier one to the same address ended.
	for _, ns := range []*netns.NS{ours.client, theirs.client, topology.Service} {
		if err := ns.SetSysctl("net.ipv4.tcp_no_metrics_save", "1"); err != nil {
			return err
		}
	}
	s, err := newService(topology)
	if err != nil {
		return err
	}
	defer s.close()
	for round := range rounds + 1 {
		b.progress("streaming, round %d of %d", round, rounds)
		order := []*way{ours, theirs}
		if round%2 == 1 {
			order = []*way{theirs, ours}
		}
		for _, direction := range []int{up, down} {
			for _, w := range order {
				if err := s.measure(ctx, w, direction); err != nil {
					return fmt.Errorf("streaming through the %s: %w", w.name, err)
				}
			}
		}
	}
	for _, w := range []*way{ours, theirs} {
		for _, direction := range []int{up, down} {
			w.rate[direction], w.cpu[direction] = w.rate[direction][1:], w.cpu[direction][1:]
		}
	}
	return nil
}

// service takes and gives streams: the first byte of a connection says which.
type service struct {
	listener net.Listener
	address  string
	received atomic.Int64 // bytes, whichever end it is
}

func newService(topology *netns.Topology) (*service, error) {
	l, err := topology.Service.Listen(netip.AddrPortFrom(topology.ServiceIP(), 5001))
	if err != nil {
		return nil, err
	}
	s := &service{listener: l, address: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go s.serve(c)
		}
	}()
	return s, nil
}

func (s *service) close() { _ = s.listener.Close() }

func (s *service) serve(c net.Conn) {
	defer c.Close()
	var direction [1]byte
	if _, err := io.ReadFull(c, direction[:]); err != nil {
		return
	}
	if direction[0] == up {
		s.receive(c)
	} else {
		send(c)
	}
}

// receive counts what comes until the other end closes.
func (s *service) receive(c net.Conn) {
	buffer := make([]byte, bufferSize)
	for {
		n, err := c.Read(buffer)
		s.received.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// send sends until the connection is closed.
func send(c net.Conn) {
	buffer := make([]byte, bufferSize)
	for {
		if _, err := c.Write(buffer); err != nil {
			return
		}
	}
}

// measure streams in one direction for roundTime, after a warm-up.
func (s *service) measure(ctx context.Context, w *way, direction int) error {
	connections, err := s.connect(ctx, w, direction)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer func() {
		for _, c := range connections {
			_ = c.Close()
		}
		running.Wait()
	}()
	for _, c := range connections {
		running.Go(func() {
			if direction == up {
				send(c)
			} else {
				s.receive(c)
			}
		})
	}
	time.Sleep(warmUp)
	before, err := w.usage()
	if err != nil {
		return err
	}
	start, bytes := time.Now(), s.received.Load()
	select {
	case <-time.After(roundTime):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	took, got := time.Since(start), s.received.Load()-bytes
	after, err := w.usage()
	if err != nil {
		return err
	}
	if got == 0 {
		return errors.New("nothing came through")
	}
	w.rate[direction] = append(w.rate[direction], 8*float64(got)/took.Seconds())
	w.cpu[direction] = append(w.cpu[direction], (after.CPU-before.CPU).Seconds()/float64(got)*1e9)
	return nil
}

func (s *service) connect(ctx context.Context, w *way, direction int) (out []net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, handshake)
	defer cancel()
	for range streams {
		c, err := w.client.DialContext(ctx, "tcp", s.address)
		if err == nil {
			out = append(out, c)
			_, err = c.Write([]byte{byte(direction)})
		}
		if err != nil {
			for _, c := range out {
				_ = c.Close()
			}
			return nil, err
		}
	}
	return out, nil
}

// rawKeys are a private key and a peer's public one as wgctrl wants them.
func rawKeys(own wgclient.Secret, peer string) (private, public wgtypes.Key, err error) {
	if private, err = wgtypes.ParseKey(own.Reveal()); err != nil {
		return private, public, errors.New("a key that was made here does not parse")
	}
	public, err = wgtypes.ParseKey(peer)
	return private, public, err
}

func udpAddr(a netip.AddrPort) *net.UDPAddr { return net.UDPAddrFromAddrPort(a) }

func ipNets(n ...net.IPNet) []net.IPNet { return n }

func maskOf(p netip.Prefix) net.IPMask { return net.CIDRMask(p.Bits(), p.Addr().BitLen()) }
