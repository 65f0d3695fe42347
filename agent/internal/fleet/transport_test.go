package fleet

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestTransport(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			at := netip.AddrPortFrom(netip.MustParseAddr(host), 0)
			a, err := listenAt(at)
			if err != nil {
				if os.Getenv("REQUIRE_INTEGRATION") == "1" || host == "127.0.0.1" {
					t.Fatal(err)
				}
				t.Skipf("this machine lacks the address: %v", err)
			}
			b, err := listenAt(at)
			if err != nil {
				t.Fatal(err)
			}
			_, port, err := b.FinalAdvertiseAddr(host, 0)
			if err != nil {
				t.Fatal(err)
			}
			to := netip.AddrPortFrom(at.Addr(), uint16(port)).String()
			for _, sent := range [][]byte{[]byte("one"), bytes.Repeat([]byte("x"), packetSize), []byte("two")} {
				if _, err := a.WriteTo(sent, to); err != nil {
					t.Fatal(err)
				}
				got := <-b.PacketCh()
				if !bytes.Equal(got.Buf, sent) || cap(got.Buf) > 2*packetSize {
					t.Errorf("sent %d bytes, got %d in %d", len(sent), len(got.Buf), cap(got.Buf))
				}
				if ip := got.From.(*net.UDPAddr).IP; ip.String() != host {
					t.Errorf("from %s, want %s", ip, host)
				}
			}
			dialled, err := a.DialTimeout(to, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			accepted := <-b.StreamCh()
			if accepted.RemoteAddr().String() != dialled.LocalAddr().String() {
				t.Errorf("accepted %s, want %s", accepted.RemoteAddr(), dialled.LocalAddr())
			}
			_, _ = dialled.Close(), accepted.Close()
			// Nobody takes these: that must not hold up the end.
			if _, err := a.WriteTo([]byte("three"), to); err != nil {
				t.Fatal(err)
			}
			if c, err := a.DialTimeout(to, time.Second); err == nil {
				defer c.Close()
			}
			for range 2 {
				if err := b.Shutdown(); err != nil {
					t.Error(err)
				}
			}
			if err := a.Shutdown(); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := listenAt(netip.MustParseAddrPort("192.0.2.1:7946")); err == nil {
		t.Error("an address that is not here was taken")
	}
}
