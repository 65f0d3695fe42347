package firewall

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// populate gives the rig a peer with alice's addresses and a host of the
// cluster, whose kernels answer by themselves from then on.
func (r *rig) populate(t testing.TB) {
	t.Helper()
	r.peers.do(t, func() error {
		return errors.Join(address("t0", alice4+"/32"), address("t0", alice6+"/128"), route("t0", "0.0.0.0/0"), route("t0", "::/0"))
	})
	r.cluster.do(t, func() error {
		return errors.Join(address("c0", host4+"/24"), address("c0", host6+"/64"), route("c0", "10.8.0.0/16"))
	})
}

// patience is how long a socket waits for what should come at once; it passes
// only where a packet was lost.
const patience = 20 * time.Second

// dial connects from inside a namespace.
func (s space) dial(network, address string) (c net.Conn, err error) {
	err = s.run(func() error {
		c, err = (&net.Dialer{Timeout: patience}).Dial(network, address)
		return err
	})
	if err == nil {
		err = c.SetDeadline(time.Now().Add(6 * patience))
	}
	return c, err
}

// echo answers on a port of TCP and of UDP inside a namespace until the test
// ends. It returns where.
func (s space) echo(t testing.TB, host string) string {
	t.Helper()
	var where string
	s.do(t, func() error {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		where = l.Addr().String()
		u, err := net.ListenPacket("udp", where)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return // the test has ended
				}
				go func() {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}()
			}
		}()
		go func() {
			buffer := make([]byte, 2048)
			for {
				n, from, err := u.ReadFrom(buffer)
				if err != nil {
					return // the test has ended
				}
				_, _ = u.WriteTo(buffer[:n], from)
			}
		}()
		return nil
	})
	return where
}

// TestSockets is what users see: connections that come about, or fail at once.
func TestSockets(t *testing.T) {
	r := newRig(t)
	r.populate(t)
	r.apply(t, nil, snapshot(withIPv6))
	inside, inside6 := r.cluster.echo(t, host4), r.cluster.echo(t, host6)
	outside := r.peers.echo(t, alice4)
	for _, tc := range []struct {
		name, network, where string
		from                 space
	}{
		{"peer to cluster", "tcp", inside, r.peers},
		{"peer to cluster, UDP", "udp", inside, r.peers},
		{"peer to cluster, IPv6", "tcp", inside6, r.peers},
		{"peer to cluster, IPv6, UDP", "udp", inside6, r.peers},
		{"cluster to peer", "tcp", outside, r.cluster},
		{"cluster to peer, UDP", "udp", outside, r.cluster},
		{"gateway to peer", "tcp", outside, r.gateway},
		{"gateway to peer, UDP", "udp", outside, r.gateway},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := tc.from.dial(tc.network, tc.where)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			said := []byte("hello")
			if _, err := c.Write(said); err != nil {
				t.Fatal(err)
			}
			heard := make([]byte, len(said))
			if _, err := io.ReadFull(c, heard); err != nil || !bytes.Equal(said, heard) {
				t.Fatalf("said %q, heard %q: %v", said, heard, err)
			}
		})
	}
	t.Run("an error reaches the gateway", func(t *testing.T) {
		c, err := r.gateway.dial("udp", net.JoinHostPort(alice4, "9"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 8)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP: %v, want %v", err, syscall.ECONNREFUSED)
		}
	})
	t.Run("rejected", func(t *testing.T) {
		for network, where := range map[string]string{"tcp4": "10.96.0.1:80", "tcp6": "[fd00:96::1]:80"} {
			_, err := r.peers.dial(network, where)
			if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EACCES) {
				t.Errorf("%s: %v, want an error that tells of the rejection", where, err)
			}
		}
		c, err := r.peers.dial("udp", "10.96.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 8)); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("UDP: %v, want %v", err, syscall.EHOSTUNREACH)
		}
	})
}

// TestGatewayWithoutIPv6: the gateway itself sends no IPv6 into the tunnel.
func TestGatewayWithoutIPv6(t *testing.T) {
	r := newRig(t)
	r.apply(t, nil, snapshot(nil))
	c, err := r.gateway.dial("udp", net.JoinHostPort(alice6, "1234"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("hello")); !errors.Is(err, syscall.EPERM) {
		t.Errorf("sent: %v, want %v", err, syscall.EPERM)
	}
	if r.stopped(t)[IPv6] == 0 {
		t.Error("not counted")
	}
}

// TestNoPacketLost: an allowed flow notices nothing while the table is changed
// and made anew around it, in both directions.
func TestNoPacketLost(t *testing.T) {
	r := newRig(t)
	r.populate(t)
	// Alice stays; among 1,000 others, one comes and goes, with a policy of its
	// own. Everybody's policy changes, but never for Alice's destination.
	configuration := func(late bool, extra string) *spec.Snapshot {
		return snapshot(func(s *spec.Snapshot) {
			alice := s.Peers[0]
			crowd(1000, 10)(s)
			s.Peers[1] = alice
			if late {
				s.Peers = append(s.Peers, peer("late", []spec.Destination{destination("10.0.0.0/8", spec.TCP, 1, 1000)}, "10.8.200.1"))
			}
			s.Gateway.Routing.AllowedDestinations = append(s.Gateway.Routing.AllowedDestinations, destination(extra, spec.UDP))
		})
	}
	begin, more, other := configuration(false, "10.1.0.0/16"), configuration(true, "10.1.0.0/16"), configuration(false, "10.2.0.0/16")
	r.apply(t, nil, begin)
	where := r.cluster.echo(t, host4)

	for name, stream := range map[string]func(testing.TB, net.Conn, <-chan struct{}){"tcp": upload, "udp": volley} {
		t.Run(name, func(t *testing.T) {
			c, err := r.peers.dial(name, where)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range 5 {
					r.apply(t, nil, begin) // as an agent does that has been restarted
					r.apply(t, begin, more)
					r.apply(t, more, other)
					r.apply(t, other, begin)
				}
			}()
			stream(t, c, done)
			<-done
		})
	}
}

// upload sends megabytes and compares what comes back, until done.
func upload(t testing.TB, c net.Conn, done <-chan struct{}) {
	said, heard := make([]byte, 1<<20), make([]byte, 1<<20)
	_, _ = rand.Read(said) // never fails
	for {
		select {
		case <-done:
			return
		default:
		}
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write(said)
			wrote <- err
		}()
		if _, err := io.ReadFull(c, heard); err != nil {
			t.Errorf("read: %v", err)
			return
		}
		if err := <-wrote; err != nil {
			t.Errorf("write: %v", err)
			return
		}
		if !bytes.Equal(said, heard) {
			t.Error("what came back is not what was sent")
			return
		}
	}
}

// volley sends packets by the handful, so that no queue overflows, and waits
// for each handful's answers, until done.
func volley(t testing.TB, c net.Conn, done <-chan struct{}) {
	const handful = 16
	buffer := make([]byte, 64)
	for i := 0; ; i++ {
		select {
		case <-done:
			return
		default:
		}
		for j := range handful {
			if _, err := fmt.Fprintf(c, "%d.%d", i, j); err != nil {
				t.Errorf("send: %v", err)
				return
			}
		}
		for range handful {
			if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Errorf("deadline: %v", err)
				return
			}
			if _, err := c.Read(buffer); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a packet of handful %d was lost", i)
				return
			} else if err != nil {
				t.Errorf("receive: %v", err)
				return
			}
		}
	}
}
