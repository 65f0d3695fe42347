package firewall

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// packet is an IP packet of a test.
type packet struct {
	src, dst string
	protocol byte
	// Ports of TCP and UDP.
	sport, dport uint16
	// Flags, numbers and MSS option (0: none) of TCP.
	flags    byte
	seq, ack uint32
	mss      uint16
	// Type and code of ICMP, and what an error quotes; identifier of a ping.
	kind, code byte
	quote      []byte
	id         uint16
	// mark makes the packet known again, wherever it is quoted.
	mark []byte
	// size of padding behind the mark.
	size int
	// fragment splits the packet, 1,200 bytes of payload each.
	fragment bool
	// intact is set by parse where the checksum of TCP is right.
	intact bool
	// options puts a destination options header before the payload (IPv6).
	options bool
}

// TCP flags.
const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
)

func (p packet) source() netip.Addr      { return netip.MustParseAddr(p.src) }
func (p packet) destination() netip.Addr { return netip.MustParseAddr(p.dst) }

// build returns the packet's bytes, from the IP header on, or its fragments'.
func (p packet) build(t testing.TB) [][]byte {
	t.Helper()
	payload := p.transport()
	next := p.protocol
	if p.options {
		payload = append([]byte{p.protocol, 0, 1, 4, 0, 0, 0, 0}, payload...) // PadN, RFC 8200 section 4.2
		next = unix.IPPROTO_DSTOPTS
	}
	if !p.fragment {
		return [][]byte{p.header(next, payload, 0, false)}
	}
	const piece = 1200
	var out [][]byte
	for offset := 0; offset < len(payload); offset += piece {
		end := min(offset+piece, len(payload))
		out = append(out, p.header(next, payload[offset:end], offset, end < len(payload)))
	}
	if len(out) < 2 {
		t.Fatalf("packet of %d bytes is not worth a fragment", len(payload))
	}
	return out
}

// header puts the IP header before a payload.
func (p packet) header(next byte, payload []byte, offset int, more bool) []byte {
	if p.source().Is6() {
		if p.fragment {
			f := []byte{next, 0, 0, 0, 0, 0, 0, 77} // RFC 8200 section 4.5
			binary.BigEndian.PutUint16(f[2:], uint16(offset)|bit(more, 1))
			payload, next = append(f, payload...), unix.IPPROTO_FRAGMENT
		}
		h := make([]byte, 40)
		h[0], h[6], h[7] = 0x60, next, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
		copy(h[8:], p.source().AsSlice())
		copy(h[24:], p.destination().AsSlice())
		return append(h, payload...)
	}
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, next
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
	binary.BigEndian.PutUint16(h[4:], 77)
	binary.BigEndian.PutUint16(h[6:], uint16(offset/8)|bit(more, 0x2000))
	copy(h[12:], p.source().AsSlice())
	copy(h[16:], p.destination().AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func bit(on bool, value uint16) uint16 {
	if on {
		return value
	}
	return 0
}

// transport returns everything behind the IP header.
func (p packet) transport() []byte {
	body := append(append([]byte{}, p.mark...), make([]byte, p.size)...)
	var h []byte
	at := -1 // of the checksum
	switch p.protocol {
	case unix.IPPROTO_TCP:
		h, at = make([]byte, 20), 16
		if p.mss != 0 {
			h = binary.BigEndian.AppendUint16(append(h, 2, 4), p.mss)
		}
		binary.BigEndian.PutUint32(h[4:], p.seq)
		binary.BigEndian.PutUint32(h[8:], p.ack)
		h[12], h[13] = byte(len(h)/4<<4), p.flags
		binary.BigEndian.PutUint16(h[14:], 65535)
	case unix.IPPROTO_UDP:
		h, at = make([]byte, 8), 6
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)+len(body)))
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		h, at = make([]byte, 8), 2
		h[0], h[1] = p.kind, p.code
		binary.BigEndian.PutUint16(h[4:], p.id)
		if p.quote != nil {
			body = append(append([]byte{}, p.quote...), body...)
		}
	}
	if p.protocol == unix.IPPROTO_TCP || p.protocol == unix.IPPROTO_UDP {
		binary.BigEndian.PutUint16(h, p.sport)
		binary.BigEndian.PutUint16(h[2:], p.dport)
	}
	out := append(h, body...)
	if at >= 0 {
		var pseudo []byte
		if p.protocol != unix.IPPROTO_ICMP {
			pseudo = p.pseudo(len(out))
		}
		binary.BigEndian.PutUint16(out[at:], checksum(append(pseudo, out...)))
	}
	return out
}

// pseudo is the header that checksums cover beside the segment (RFC 9293
// section 3.1, RFC 8200 section 8.1).
func (p packet) pseudo(length int) []byte {
	out := append(p.source().AsSlice(), p.destination().AsSlice()...)
	out = binary.BigEndian.AppendUint32(out, uint32(length))
	return append(out, 0, 0, 0, p.protocol)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// parse reads the headers of a packet that came out, as far as tests look.
func parse(t testing.TB, b []byte) packet {
	t.Helper()
	var p packet
	rest := b
	if b[0]>>4 == 4 {
		p.src, p.dst, p.protocol = addr(b[12:16]), addr(b[16:20]), b[9]
		rest = b[int(b[0]&15)*4:]
	} else {
		p.src, p.dst, p.protocol = addr(b[8:24]), addr(b[24:40]), b[6]
		rest = b[40:]
		switch p.protocol {
		case unix.IPPROTO_FRAGMENT, unix.IPPROTO_DSTOPTS:
			p.protocol, rest = rest[0], rest[8:]
		}
	}
	switch p.protocol {
	case unix.IPPROTO_TCP:
		p.flags, p.seq, p.ack = rest[13], binary.BigEndian.Uint32(rest[4:]), binary.BigEndian.Uint32(rest[8:])
		if options := rest[20 : rest[12]>>4*4]; len(options) >= 4 && options[0] == 2 {
			p.mss = binary.BigEndian.Uint16(options[2:])
		}
		p.intact = checksum(append(p.pseudo(len(rest)), rest...)) == 0
		fallthrough
	case unix.IPPROTO_UDP:
		p.sport, p.dport = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		p.kind, p.code, p.id = rest[0], rest[1], binary.BigEndian.Uint16(rest[4:])
		p.quote = rest[8:]
	}
	return p
}

func addr(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

// answer is a packet the other way.
func (p packet) answer() packet {
	out := packet{src: p.dst, dst: p.src, protocol: p.protocol, sport: p.dport, dport: p.sport, id: p.id}
	switch {
	case p.protocol == unix.IPPROTO_ICMP && p.kind == 8:
		out.kind = 0
	case p.protocol == unix.IPPROTO_ICMPV6 && p.kind == 128:
		out.kind = 129
	}
	return out
}

// prohibited reports whether this is the ICMP error of a rejection.
func (p packet) prohibited() bool {
	return p.protocol == unix.IPPROTO_ICMP && p.kind == 3 && p.code == 13 ||
		p.protocol == unix.IPPROTO_ICMPV6 && p.kind == 1 && p.code == 1
}

func udp(src, dst string, port uint16) packet {
	return packet{src: src, dst: dst, protocol: unix.IPPROTO_UDP, dport: port}
}

func tcp(src, dst string, port uint16) packet {
	return packet{src: src, dst: dst, protocol: unix.IPPROTO_TCP, dport: port, flags: syn, seq: 1000}
}

func ping(src, dst string) packet {
	p := packet{src: src, dst: dst, protocol: unix.IPPROTO_ICMP, kind: 8}
	if p.source().Is6() {
		p.protocol, p.kind = unix.IPPROTO_ICMPV6, 128
	}
	return p
}
