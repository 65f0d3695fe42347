package device

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// dumpReader reads what wireguard-go writes of itself: the answer to get=1 of the
// configuration protocol (https://www.wireguard.com/xplatform/). It stands in for
// wgctrl where the device is in this process. That spares a socket between two of
// our goroutines, and with 10,000 peers two thirds of the time and of the garbage
// of every look at them (BenchmarkDump, BenchmarkRead).
type dumpReader struct {
	device state.ObservedDevice // without peers
	// visit gets every peer, in memory that is used again: see [Tunnels.EachPeer].
	visit func(*state.ObservedPeer)
	rest  []byte // of a line that is not complete

	peer    state.ObservedPeer // is being read; its key is zero before the first
	seconds int64
}

// Write takes the next part of the dump. The error names the field, and never
// its value, which may be a key.
func (r *dumpReader) Write(p []byte) (int, error) {
	text := p
	if len(r.rest) > 0 {
		text = append(r.rest, p...)
	}
	for {
		end := bytes.IndexByte(text, '\n')
		if end < 0 {
			break
		}
		name, value, _ := bytes.Cut(text[:end], []byte{'='})
		if err := r.line(string(name), value); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		text = text[end+1:]
	}
	r.rest = bytes.Clone(text)
	return len(p), nil
}

// result is what was read, once everything was written.
func (r *dumpReader) result() state.ObservedDevice {
	r.endPeer()
	return r.device
}

func (r *dumpReader) line(name string, value []byte) (err error) {
	p := &r.peer
	switch name {
	case "private_key":
		var k [key.Len]byte
		k, err = hexKey(value)
		r.device.PrivateKey = key.NewPrivate(k)
	case "listen_port":
		var port uint64
		port, err = strconv.ParseUint(string(value), 10, 16)
		r.device.ListenPort = uint16(port)
	case "public_key":
		r.endPeer()
		p.PublicKey, err = hexKey(value)
	case "preshared_key":
		var k [key.Len]byte
		k, err = hexKey(value)
		p.PresharedKey = key.NewPreshared(k)
	case "endpoint":
		var ap netip.AddrPort
		ap, err = netip.ParseAddrPort(string(value))
		p.Endpoint = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	case "persistent_keepalive_interval":
		var seconds int64
		seconds, err = number(value)
		p.Keepalive = time.Duration(seconds) * time.Second
	case "allowed_ip":
		var prefix netip.Prefix
		if prefix, err = netip.ParsePrefix(string(value)); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, prefix.Masked())
		}
	case "last_handshake_time_sec":
		r.seconds, err = number(value)
	case "last_handshake_time_nsec":
		var nanoseconds int64
		nanoseconds, err = number(value)
		if r.seconds != 0 || nanoseconds != 0 {
			p.LastHandshake = time.Unix(r.seconds, nanoseconds)
		}
	case "rx_bytes":
		p.ReceiveBytes, err = number(value)
	case "tx_bytes":
		p.TransmitBytes, err = number(value)
	}
	return err // what else there is does not matter to us
}

// endPeer hands out the peer that was read.
func (r *dumpReader) endPeer() {
	if r.peer.PublicKey.IsZero() {
		return
	}
	slices.SortFunc(r.peer.AllowedIPs, netip.Prefix.Compare)
	r.visit(&r.peer)
	again := r.peer.AllowedIPs[:0]
	r.peer = state.ObservedPeer{}
	r.peer.AllowedIPs = again
}

// collector keeps the peers that are shown to it.
type collector struct {
	peers    map[key.Public]state.ObservedPeer
	prefixes []netip.Prefix // of all peers, in one piece of memory: a peer mostly has one
}

// newCollector takes about how many peers there are.
func newCollector(peers int) *collector {
	return &collector{
		peers:    make(map[key.Public]state.ObservedPeer, peers),
		prefixes: make([]netip.Prefix, 0, peers),
	}
}

func (c *collector) add(p *state.ObservedPeer) {
	kept, first := *p, len(c.prefixes)
	c.prefixes = append(c.prefixes, p.AllowedIPs...)
	kept.AllowedIPs = c.prefixes[first:len(c.prefixes):len(c.prefixes)]
	c.peers[kept.PublicKey] = kept
}

func hexKey(value []byte) (k [key.Len]byte, err error) {
	if hex.DecodedLen(len(value)) != key.Len {
		return k, errors.New("not 32 bytes in hex")
	}
	if _, err := hex.Decode(k[:], value); err != nil {
		return k, errors.New("not 32 bytes in hex")
	}
	return k, nil
}

func number(value []byte) (int64, error) {
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil {
		return 0, errors.New("not a number")
	}
	return n, nil
}
