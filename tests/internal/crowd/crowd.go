// Package crowd runs many WireGuard clients in one process: wireguard-go as it is
// published, without a network device. Packets go in and come out as bytes, so
// that hundreds of clients cost no more than a few processes.
package crowd

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// Options say what a client is.
type Options struct {
	NS *netns.NS
	// From is the client's address outside of the tunnel. Each needs one of its
	// own: of one address, a busy WireGuard takes 20 handshakes a second.
	From       netip.Addr
	PrivateKey wgclient.Secret
	// Address inside the tunnel, IPv4.
	Address netip.Addr
	// Gateway to begin with.
	Gateway Identity
	// NAT lets packets in from the gateway's endpoint alone.
	NAT bool
}

// Identity is a gateway's, with the pre-shared key that goes with it.
type Identity struct {
	PublicKey    string // base64
	Endpoint     netip.AddrPort
	PresharedKey wgclient.Secret // may be zero
}

// Client is a client that is up.
type Client struct {
	options Options
	device  *device.Device
	tun     *tuntest.ChannelTUN
	done    chan struct{}
	running sync.WaitGroup

	sent, received atomic.Uint64
	answered       atomic.Int64 // UNIX nanoseconds of the last answer
	longest        atomic.Int64 // between two answers, in nanoseconds

	mu   sync.Mutex
	seen map[uint64]bool // requests since the last Reset that were answered
	from uint64          // the first of them
}

// Start brings a client up.
func Start(o Options) (*Client, error) {
	c := &Client{options: o, tun: tuntest.NewChannelTUN(), done: make(chan struct{})}
	b := &bind{ns: o.NS, from: o.From}
	if o.NAT {
		b.nat = o.Gateway.Endpoint
	}
	c.device = device.NewDevice(c.tun.TUN(), b, device.NewLogger(device.LogLevelSilent, ""))
	text := "private_key=" + inHex(o.PrivateKey.Reveal()) + "\n" + o.Gateway.section() + "replace_allowed_ips=true\nallowed_ip=0.0.0.0/0\n"
	if err := c.device.IpcSet(text); err != nil {
		c.device.Close()
		return nil, fmt.Errorf("client %s: %w", o.Address, err)
	}
	if err := c.device.Up(); err != nil {
		c.device.Close()
		return nil, fmt.Errorf("client %s: %w", o.Address, err)
	}
	c.running.Go(c.receive)
	return c, nil
}

// section is the beginning of a peer's part of the configuration protocol
// (https://www.wireguard.com/xplatform/).
func (i Identity) section() string {
	text := "public_key=" + inHex(i.PublicKey) + "\nendpoint=" + i.Endpoint.String() + "\n"
	if !i.PresharedKey.IsZero() {
		text += "preshared_key=" + inHex(i.PresharedKey.Reveal()) + "\n"
	}
	return text
}

func inHex(text string) string {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "" // refused by the device
	}
	return hex.EncodeToString(raw)
}

// Close takes the client down.
func (c *Client) Close() {
	close(c.done)
	c.device.Close()
	c.running.Wait()
}

// Ping sends echo requests through the tunnel at an interval until ctx ends.
func (c *Client) Ping(ctx context.Context, to netip.Addr, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.ping(ctx, to)
		}
	}
}

// ping sends one echo request.
func (c *Client) ping(ctx context.Context, to netip.Addr) {
	sequence := c.sent.Add(1)
	select {
	case c.tun.Outbound <- echoRequest(c.options.Address, to, uint16(sequence)):
	case <-ctx.Done():
	}
}

// Counts are the requests sent and the answers that came, and the longest time
// between two answers.
func (c *Client) Counts() (sent, received uint64, longest time.Duration) {
	return c.sent.Load(), c.received.Load(), time.Duration(c.longest.Load())
}

// Reset begins counting anew.
func (c *Client) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.longest.Store(0)
	c.received.Store(0)
	c.seen, c.from = map[uint64]bool{}, c.sent.Load()+1
}

// answer notes which request was answered. Of its number there are 16 bits.
func (c *Client) answer(low uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil {
		return
	}
	sent := c.sent.Load()
	sequence := sent&^0xffff | uint64(low)
	if sequence > sent {
		sequence -= 1 << 16
	}
	c.seen[sequence] = true
}

// Loss is what became of the requests since the last Reset, but for the last ones,
// which may be under way: how many were never answered, and the longest run of such.
// Unlike the time between answers it says nothing of how busy the machine is.
func (c *Client) Loss(underWay uint64) (sent, lost, run uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.sent.Load() - underWay
	var now uint64
	for n := c.from; n <= last; n++ {
		sent++
		if c.seen[n] {
			now = 0
			continue
		}
		lost++
		now++
		run = max(run, now)
	}
	return sent, lost, run
}

func (c *Client) receive() {
	for {
		select {
		case p := <-c.tun.Inbound:
			if len(p) < 28 || p[9] != 1 || p[20] != 0 { // ICMP, echo reply
				continue
			}
			c.received.Add(1)
			c.answer(binary.BigEndian.Uint16(p[26:]))
			now := time.Now().UnixNano()
			if last := c.answered.Swap(now); last != 0 {
				c.longest.Store(max(c.longest.Load(), now-last))
			}
		case <-c.done:
			return
		}
	}
}

// SetPresharedKey changes the one of the gateway.
func (c *Client) SetPresharedKey(k wgclient.Secret) error {
	c.options.Gateway.PresharedKey = k
	return c.device.IpcSet("public_key=" + inHex(c.options.Gateway.PublicKey) + "\nupdate_only=true\npreshared_key=" + inHex(k.Reveal()) + "\n")
}

// MoveTo has the client take another identity of its gateway: it calls that one
// beside the old one, and moves what it sends there once it answers.
func (c *Client) MoveTo(ctx context.Context, next Identity) error {
	if err := c.device.IpcSet(next.section() + "persistent_keepalive_interval=5\n"); err != nil {
		return err
	}
	for {
		met, err := c.met(next.PublicKey)
		if err != nil {
			return err
		}
		if met {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("client %s: %s does not answer: %w", c.options.Address, next.PublicKey, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	err := c.device.IpcSet("public_key=" + inHex(next.PublicKey) + "\nupdate_only=true\nallowed_ip=0.0.0.0/0\npersistent_keepalive_interval=0\n" +
		"public_key=" + inHex(c.options.Gateway.PublicKey) + "\nremove=true\n")
	c.options.Gateway = next
	return err
}

// met says whether there was a handshake with a peer.
func (c *Client) met(publicKey string) (bool, error) {
	text, err := c.device.IpcGet()
	if err != nil {
		return false, err
	}
	want, current := "public_key="+inHex(publicKey), false
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		switch name {
		case "public_key":
			current = lines.Text() == want
		case "last_handshake_time_sec":
			if current {
				return value != "0", nil
			}
		}
	}
	return false, lines.Err()
}

// echoRequest is an IPv4 packet with an ICMP echo request (RFC 791, RFC 792).
func echoRequest(from, to netip.Addr, sequence uint16) []byte {
	p := make([]byte, 36)
	p[0], p[8], p[9] = 0x45, 64, 1
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	p[20] = 8
	binary.BigEndian.PutUint16(p[26:], sequence)
	binary.BigEndian.PutUint16(p[22:], checksum(p[20:]))
	return p
}

// checksum is RFC 1071's, over an even number of bytes.
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
