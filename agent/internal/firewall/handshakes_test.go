package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"
)

// TestHandshakes plays WireGuard's messages on the gateway's loopback.
func TestHandshakes(t *testing.T) {
	r := newRig(t)
	s := snapshot(nil)
	want := desired(s)
	want.Handshakes = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var told <-chan struct{}
	var gateway, peer *net.UDPConn
	r.gateway.do(t, func() (err error) {
		if err = r.firewall.replace(want); err != nil {
			return err
		}
		if told, err = Handshakes(ctx, slog.New(slog.DiscardHandler)); err != nil {
			return err
		}
		var errs [2]error
		gateway, errs[0] = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(want.ListenPorts[1])})
		peer, errs[1] = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		return errors.Join(errs[:]...)
	})
	defer gateway.Close()
	defer peer.Close()
	send := func(from, to *net.UDPConn, kind byte, index uint32) {
		t.Helper()
		message := make([]byte, 92)
		message[0] = kind
		binary.LittleEndian.PutUint32(message[4:], index)
		if _, err := from.WriteTo(message, to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	heard := func(within time.Duration) bool {
		select {
		case <-told:
			return true
		case <-time.After(within):
			return false
		}
	}
	const initiation = 1
	// What must not be heard comes first: each of these would be, at the next
	// step, in place of what is expected there.
	send(peer, gateway, initiation, 7)
	send(peer, gateway, messageData, 7)
	send(gateway, peer, messageResponse, 8)
	send(gateway, peer, messageData, 9)
	send(peer, gateway, messageData, 9)
	if heard(200 * time.Millisecond) {
		t.Fatal("a handshake was told of before any was complete")
	}
	send(peer, gateway, messageData, 8)
	if !heard(10 * time.Second) {
		t.Fatal("the peer called, and nobody was told")
	}
	send(peer, gateway, messageData, 8)
	if heard(200 * time.Millisecond) {
		t.Fatal("an index was told of twice")
	}
	send(peer, gateway, messageResponse, 10)
	if !heard(10 * time.Second) {
		t.Fatal("we called, and nobody was told")
	}
	r.gateway.do(t, func() error {
		if ok, err := r.firewall.InPlace(want); err != nil || !ok {
			t.Errorf("in place: %t, %v", ok, err)
		}
		if ok, err := r.firewall.InPlace(desired(s)); err != nil || ok {
			t.Errorf("in place without the log: %t, %v", ok, err)
		}
		return nil
	})
}
