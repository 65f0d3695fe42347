package firewall

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Message is a message of WireGuard's that passed a port of ours (section 5.4 of the
// WireGuard whitepaper).
type Message struct {
	// Out is true for what we sent.
	Out bool
	// Type is 1 for an initiation, 2 for a response and 4 for data.
	Type byte
	// Index is ours: the sender's of what we sent, the receiver's of what came in. Of
	// data that we sent it is the peer's.
	Index uint32
	// Port is ours, Remote the other end.
	Port   uint16
	Remote netip.AddrPort
	// Bytes of a handshake's message; of data, only the header.
	Bytes []byte
}

const udpHeader = 8

// parseMessage reads an IP packet as the log has it, with its end cut off perhaps.
func parseMessage(packet []byte, out bool) (m Message, ok bool) {
	source, destination, udp, ok := parseIP(packet)
	if !ok || len(udp) < udpHeader+8 {
		return m, false
	}
	from := netip.AddrPortFrom(source, binary.BigEndian.Uint16(udp[0:]))
	to := netip.AddrPortFrom(destination, binary.BigEndian.Uint16(udp[2:]))
	m.Out, m.Type, m.Port, m.Remote = out, udp[udpHeader], to.Port(), from
	if out {
		m.Port, m.Remote = from.Port(), to
	}
	// The length tells where the message ends: behind it may lie others, in a packet
	// that the network card or the sender put together (UDP GRO and GSO).
	length := int(binary.BigEndian.Uint16(udp[4:]))
	body := udp[udpHeader:]
	if length >= udpHeader && length-udpHeader < len(body) {
		body = body[:length-udpHeader]
	}
	at := 4 // the sender's index, and of data the receiver's
	if m.Type == messageResponse && !out {
		at = 8 // the receiver's
	}
	if len(body) < at+4 {
		return m, false
	}
	m.Index = binary.LittleEndian.Uint32(body[at:])
	if m.Type == messageData {
		body = body[:8]
	}
	m.Bytes = body
	return m, true
}

// parseIP returns the addresses and what follows the header. IPv6 headers with
// extensions are none of WireGuard's.
func parseIP(packet []byte) (source, destination netip.Addr, payload []byte, ok bool) {
	if len(packet) == 0 {
		return
	}
	switch packet[0] >> 4 {
	case 4: // RFC 791
		header := int(packet[0]&15) * 4
		if header < 20 || len(packet) < header || packet[9] != unix.IPPROTO_UDP {
			return
		}
		return netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20])), packet[header:], true
	case 6: // RFC 8200
		if len(packet) < 40 || packet[6] != unix.IPPROTO_UDP {
			return
		}
		return netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40])), packet[40:], true
	}
	return
}
