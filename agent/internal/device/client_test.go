package device

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// patience is how long to wait for what should come; no test waits for nothing.
const patience = 20 * time.Second

// client is a WireGuard client as published, on a UDP socket of the outside
// neighbour. It has no link: packets go in and come out as bytes.
type client struct {
	private key.Private
	psk     key.Preshared
	address netip.Addr
	device  *wgdevice.Device
	tun     *tuntest.ChannelTUN
	replies chan uint16 // sequence numbers of echo replies
	seq     uint16
}

// newClient starts a client on one of the outside neighbour's sockets.
func newClient(t testing.TB, socket int, address string, psk key.Preshared) *client {
	t.Helper()
	c := &client{
		private: key.GeneratePrivate(), psk: psk, address: netip.MustParseAddr(address),
		tun: tuntest.NewChannelTUN(), replies: make(chan uint16, 1024),
	}
	recordSecret(t, c.private)
	c.device = wgdevice.NewDevice(c.tun.TUN(), &socketBind{descriptor: 3 + socket}, wgdevice.NewLogger(wgdevice.LogLevelSilent, ""))
	done := make(chan struct{})
	go c.receive(done)
	t.Cleanup(func() {
		c.device.Close()
		close(done)
	})
	return c
}

// connect points the client at a gateway.
func (c *client) connect(t testing.TB, gateway key.Public, endpoint netip.AddrPort) {
	t.Helper()
	private, psk := c.private.Bytes(), c.psk.Bytes()
	text := fmt.Sprintf("private_key=%s\nreplace_peers=true\npublic_key=%s\npreshared_key=%s\nendpoint=%s\nallowed_ip=0.0.0.0/0\n",
		hex.EncodeToString(private[:]), hex.EncodeToString(gateway[:]), hex.EncodeToString(psk[:]), endpoint)
	if err := c.device.IpcSet(text); err != nil {
		t.Fatal(err)
	}
	if err := c.device.Up(); err != nil {
		t.Fatal(err)
	}
}

// peer is the client as the gateway is to know it.
func (c *client) peer(name string) state.Peer {
	return state.Peer{
		Name: name, PublicKey: c.private.Public(), PresharedKey: c.psk,
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(c.address, 32)},
	}
}

func (c *client) receive(done <-chan struct{}) {
	for {
		select {
		case p := <-c.tun.Inbound:
			if len(p) >= 28 && p[9] == 1 && p[20] == 0 { // ICMP, echo reply
				c.replies <- binary.BigEndian.Uint16(p[26:])
			}
		case <-done:
			return
		}
	}
}

// knows reports whether the client sends by a session that the gateway made at a time.
func (c *client) knows(t testing.TB, since time.Time) bool {
	t.Helper()
	var last time.Time
	r := dumpReader{visit: func(p *state.ObservedPeer) { last = p.LastHandshake }}
	if err := c.device.IpcGetOperation(&r); err != nil {
		t.Fatal(err)
	}
	r.result()
	return !last.Before(since) // the client's is made when it is used, after the gateway's
}

// ping is echo, and ends the test where the reply does not come.
func (c *client) ping(t testing.TB, to netip.Addr) {
	t.Helper()
	if err := c.echo(to); err != nil {
		t.Fatal(err)
	}
}

// echo sends one echo request through the tunnel and waits for its reply. It
// never sends it again.
func (c *client) echo(to netip.Addr) error {
	c.seq++
	late := time.After(patience)
	select {
	case c.tun.Outbound <- echoRequest(c.address, to, c.seq):
	case <-late:
		return fmt.Errorf("ping %d of %s to %s: the client takes no packet", c.seq, c.address, to)
	}
	for {
		select {
		case seq := <-c.replies:
			if seq == c.seq {
				return nil
			}
		case <-late:
			return fmt.Errorf("ping %d of %s to %s: lost", c.seq, c.address, to)
		}
	}
}

// stream pings one packet after the other until stop, which says how many were
// answered; one that was not fails the test. It returns after the first.
func (c *client) stream(t testing.TB, to netip.Addr) (stop func() int) {
	t.Helper()
	c.ping(t, to)
	end, answered, running := make(chan struct{}), make(chan int, 1), make(chan struct{})
	go func() {
		n := 0
		defer func() { answered <- n }()
		close(running)
		for {
			select {
			case <-end:
				return
			default:
			}
			if err := c.echo(to); err != nil {
				t.Error(err)
				return
			}
			n++
		}
	}()
	<-running
	return func() int {
		close(end)
		return <-answered
	}
}

// echoRequest is an IPv4 packet (RFC 791) with an ICMP echo request (RFC 792).
func echoRequest(from, to netip.Addr, seq uint16) []byte {
	p := make([]byte, 36)
	p[0], p[8], p[9] = 0x45, 64, 1 // version and header length, TTL, ICMP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	p[20] = 8
	binary.BigEndian.PutUint16(p[26:], seq)
	binary.BigEndian.PutUint16(p[22:], checksum(p[20:]))
	return p
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// socketBind is a conn.Bind over an inherited UDP socket.
type socketBind struct {
	descriptor int
	mu         sync.Mutex
	conn       *net.UDPConn
}

// Open is [conn.Bind]'s; it leaves the inherited descriptor open for the next.
func (b *socketBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	fd, err := unix.Dup(b.descriptor)
	if err != nil {
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	pc, err := net.FilePacketConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, 0, err
	}
	c := pc.(*net.UDPConn)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = c
	receive := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, from, err := c.ReadFromUDPAddrPort(packets[0])
		if err != nil {
			return 0, net.ErrClosed
		}
		sizes[0], eps[0] = n, &conn.StdNetEndpoint{AddrPort: from}
		return 1, nil
	}
	return []conn.ReceiveFunc{receive}, uint16(c.LocalAddr().(*net.UDPAddr).Port), nil
}

func (b *socketBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn == nil {
		return nil
	}
	defer func() { b.conn = nil }()
	return b.conn.Close()
}

func (b *socketBind) SetMark(uint32) error { return nil }

func (b *socketBind) BatchSize() int { return 1 }

func (b *socketBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	b.mu.Lock()
	c := b.conn
	b.mu.Unlock()
	if c == nil {
		return net.ErrClosed
	}
	for _, buf := range bufs {
		if _, err := c.WriteToUDPAddrPort(buf, ep.(*conn.StdNetEndpoint).AddrPort); err != nil {
			return err
		}
	}
	return nil
}

func (b *socketBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	return &conn.StdNetEndpoint{AddrPort: ap}, err
}
