// Package wgdevice reads WireGuard devices for tests: those of a wireguard-go by
// its socket, wherever that lies, and those of the kernel in any network
// namespace. wgctrl reads the same, but only in the directories and the namespace
// of the process itself.
package wgdevice

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// Key is a key of any kind as raw bytes. Compare keys; don't print them.
type Key [32]byte

// ParseKey reads a key in base64. The error never quotes it.
func ParseKey(text string) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != 32 {
		return Key{}, fmt.Errorf("not 32 bytes in base64")
	}
	return Key(raw), nil
}

// Base64 returns the form of wg. Not for secret keys, unless it goes to their owner.
func Base64(k Key) string { return base64.StdEncoding.EncodeToString(k[:]) }

// Format writes [redacted]: a Key may be a secret one.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// Device is what a device holds.
type Device struct {
	PrivateKey Key
	ListenPort int
	// Peers by public key, in base64.
	Peers map[string]Peer
}

// Peer is what a device knows of one peer.
type Peer struct {
	PresharedKey  Key
	Endpoint      netip.AddrPort // zero where unknown
	LastHandshake time.Time      // zero where there was none
	Received      int64          // bytes
	Sent          int64          // bytes
	Keepalive     time.Duration
	AllowedIPs    []netip.Prefix // in the device's order
}

// Userspace asks a wireguard-go at its socket (the cross-platform interface,
// wireguard.com/xplatform: get=1).
func Userspace(socket string) (Device, error) {
	// By way of the directory's descriptor: an address of a socket has at most
	// 107 bytes, a path may have more.
	dir, err := os.OpenFile(filepath.Dir(socket), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return Device{}, fmt.Errorf("WireGuard socket: %w", err)
	}
	defer dir.Close()
	conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket)))
	if err != nil {
		return Device{}, fmt.Errorf("WireGuard socket %s: %w", socket, err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "get=1\n\n"); err != nil {
		return Device{}, fmt.Errorf("WireGuard socket %s: %w", socket, err)
	}
	d, err := parse(conn)
	if err != nil {
		return Device{}, fmt.Errorf("WireGuard socket %s: %w", socket, err)
	}
	return d, nil
}

// parse reads the answer: lines of name=value until an empty one.
func parse(r io.Reader) (Device, error) {
	p := parser{device: Device{Peers: map[string]Peer{}}}
	lines := bufio.NewScanner(r)
	for lines.Scan() && lines.Text() != "" {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if err := p.line(name, value); err != nil {
			return Device{}, fmt.Errorf("%s: %w", name, err) // no value: it may be a key
		}
	}
	if p.current != "" {
		p.device.Peers[p.current] = p.peer
	}
	return p.device, lines.Err()
}

type parser struct {
	device  Device
	current string // public key of peer; empty before the first
	peer    Peer
	seconds int64
}

func (p *parser) line(name, value string) (err error) {
	switch name {
	case "private_key":
		p.device.PrivateKey, err = parseKey(value)
	case "listen_port":
		p.device.ListenPort, err = strconv.Atoi(value)
	case "public_key":
		if p.current != "" {
			p.device.Peers[p.current] = p.peer
		}
		var k Key
		k, err = parseKey(value)
		p.current, p.peer = Base64(k), Peer{}
	case "preshared_key":
		p.peer.PresharedKey, err = parseKey(value)
	case "endpoint":
		p.peer.Endpoint, err = netip.ParseAddrPort(value)
	case "last_handshake_time_sec":
		p.seconds, err = strconv.ParseInt(value, 10, 64)
	case "last_handshake_time_nsec":
		var n int64
		n, err = strconv.ParseInt(value, 10, 64)
		if p.seconds != 0 || n != 0 {
			p.peer.LastHandshake = time.Unix(p.seconds, n)
		}
	case "rx_bytes":
		p.peer.Received, err = strconv.ParseInt(value, 10, 64)
	case "tx_bytes":
		p.peer.Sent, err = strconv.ParseInt(value, 10, 64)
	case "persistent_keepalive_interval":
		var n int
		n, err = strconv.Atoi(value)
		p.peer.Keepalive = time.Duration(n) * time.Second
	case "allowed_ip":
		var a netip.Prefix
		a, err = netip.ParsePrefix(value)
		p.peer.AllowedIPs = append(p.peer.AllowedIPs, a)
	case "errno":
		if value != "0" {
			err = fmt.Errorf("error number %s", value)
		}
	}
	return err
}

func parseKey(text string) (Key, error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != 32 {
		return Key{}, fmt.Errorf("not 32 bytes in hex")
	}
	return Key(raw), nil
}

// Kernel reads a device of the kernel in the given namespace.
func Kernel(ns *netns.NS, name string) (Device, error) {
	d := Device{Peers: map[string]Peer{}}
	err := ns.Do(func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer c.Close()
		from, err := c.Device(name)
		if err != nil {
			return err
		}
		d.PrivateKey, d.ListenPort = Key(from.PrivateKey), from.ListenPort
		for _, p := range from.Peers {
			peer := Peer{
				PresharedKey: Key(p.PresharedKey), LastHandshake: p.LastHandshakeTime,
				Received: p.ReceiveBytes, Sent: p.TransmitBytes, Keepalive: p.PersistentKeepaliveInterval,
			}
			if p.Endpoint != nil {
				a := p.Endpoint.AddrPort()
				peer.Endpoint = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
			}
			for _, n := range p.AllowedIPs {
				a, _ := netip.AddrFromSlice(n.IP)
				bits, _ := n.Mask.Size()
				peer.AllowedIPs = append(peer.AllowedIPs, netip.PrefixFrom(a.Unmap(), bits))
			}
			d.Peers[Base64(Key(p.PublicKey))] = peer
		}
		return nil
	})
	if err != nil {
		return Device{}, fmt.Errorf("WireGuard device %s of the kernel: %w", name, err)
	}
	return d, nil
}
