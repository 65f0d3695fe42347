package integration

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// forge sends a UDP packet over IPv4 with whatever source, as nobody but root can.
func forge(t *testing.T, ns *netns.NS, source, target netip.AddrPort, payload string) {
	t.Helper()
	const ipHeader, udpHeader = 20, 8
	size := ipHeader + udpHeader + len(payload)
	p := make([]byte, ipHeader+udpHeader, size)
	p[0] = 0x45 // version 4, 5 words of header; RFC 791. The kernel fills in length, ID and checksum.
	p[8], p[9] = 64, unix.IPPROTO_UDP
	src, dst := source.Addr().As4(), target.Addr().As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[20:], source.Port())
	binary.BigEndian.PutUint16(p[22:], target.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(udpHeader+len(payload))) // checksum 0: none; RFC 768
	p = append(p, payload...)
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		return errors.Join(unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: dst}), unix.Close(fd))
	})
	if err != nil {
		t.Fatalf("sending a packet from %s to %s: %v", source, target, err)
	}
}

// segmentSizes listens on a namespace's network card and returns how to wait for
// the next TCP packet with SYN that comes in for a port: the answer is its MSS
// option (RFC 9293).
func segmentSizes(t *testing.T, ns *netns.NS, port uint16) (next func() int) {
	t.Helper()
	fd := -1
	err := ns.Do(func() (err error) {
		// Cooked packets: without the link's header.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(htons(unix.ETH_P_IP)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	return func() int {
		t.Helper()
		packet := make([]byte, 65536)
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			n, from, err := unix.Recvfrom(fd, packet, 0)
			if err != nil {
				t.Fatalf("waiting for a SYN: %v", err)
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype != unix.PACKET_HOST {
				continue // what we send ourselves
			}
			if size, ok := segmentSize(packet[:n], port); ok {
				return size
			}
		}
		t.Fatal("no SYN came")
		return 0
	}
}

// segmentSize reads the MSS option of a SYN to the port.
func segmentSize(packet []byte, port uint16) (int, bool) {
	if len(packet) < 20 || packet[9] != unix.IPPROTO_TCP {
		return 0, false
	}
	tcp := packet[4*int(packet[0]&0x0f):]
	const syn = 0x02
	if len(tcp) < 20 || binary.BigEndian.Uint16(tcp[2:]) != port || tcp[13]&syn == 0 {
		return 0, false
	}
	options := tcp[20 : 4*int(tcp[12]>>4)]
	for len(options) >= 2 {
		switch kind, size := options[0], int(options[1]); {
		case kind == 0:
			return 0, false
		case kind == 1:
			options = options[1:]
		case kind == 2 && size == 4 && len(options) >= 4:
			return int(binary.BigEndian.Uint16(options[2:])), true
		case size < 2 || size > len(options):
			return 0, false
		default:
			options = options[size:]
		}
	}
	return 0, false
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
