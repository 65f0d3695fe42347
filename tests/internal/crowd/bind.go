package crowd

import (
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// bind is wireguard-go's UDP socket, in a network namespace. The library's own is
// one of the process's, and the process is in none of them.
type bind struct {
	ns   *netns.NS
	from netip.Addr
	// nat is where packets are let in from, as a NAT before the client would that is
	// as strict as most are (address and port-dependent filtering, RFC 4787); the zero
	// one: from anywhere.
	nat  netip.AddrPort
	mu   sync.Mutex
	conn *net.UDPConn
}

// Open is [conn.Bind]'s. The port is the kernel's choice.
func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	c, err := b.ns.ListenUDP(netip.AddrPortFrom(b.from, 0))
	if err != nil {
		return nil, 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = c
	receive := func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
		var n int
		var from netip.AddrPort
		for {
			var err error
			if n, from, err = c.ReadFromUDPAddrPort(packets[0]); err != nil {
				return 0, net.ErrClosed
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			if !b.nat.IsValid() || from == b.nat {
				break
			}
		}
		sizes[0], endpoints[0] = n, &conn.StdNetEndpoint{AddrPort: from}
		return 1, nil
	}
	return []conn.ReceiveFunc{receive}, uint16(c.LocalAddr().(*net.UDPAddr).Port), nil
}

// Close is [conn.Bind]'s.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn == nil {
		return nil
	}
	defer func() { b.conn = nil }()
	return b.conn.Close()
}

// SetMark is [conn.Bind]'s; there is no mark.
func (b *bind) SetMark(uint32) error { return nil }

// BatchSize is [conn.Bind]'s.
func (b *bind) BatchSize() int { return 1 }

// Send is [conn.Bind]'s.
func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	b.mu.Lock()
	c := b.conn
	b.mu.Unlock()
	if c == nil {
		return net.ErrClosed
	}
	for _, p := range packets {
		if _, err := c.WriteToUDPAddrPort(p, to.(*conn.StdNetEndpoint).AddrPort); err != nil {
			return err
		}
	}
	return nil
}

// ParseEndpoint is [conn.Bind]'s.
func (b *bind) ParseEndpoint(text string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(text)
	return &conn.StdNetEndpoint{AddrPort: ap}, err
}
