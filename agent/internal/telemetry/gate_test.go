package telemetry

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// probe connects the way a load balancer does. It returns nil where the port
// accepts and closes.
func probe(addr net.Addr) error {
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Read(make([]byte, 1))
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func TestGateOpensAndCloses(t *testing.T) {
	defer goleak.VerifyNone(t)
	g := NewGate("127.0.0.1:0", quiet())
	defer g.Close()
	if g.Addr() != nil {
		t.Error("open before anybody said ready")
	}
	g.Set(false)
	for range 2 {
		g.Set(true)
		addr := g.Addr()
		if addr == nil {
			t.Fatal("closed while ready")
		}
		g.Set(true)
		if got := g.Addr(); got != addr {
			t.Errorf("a second Set(true) moved the port from %v to %v", addr, got)
		}
		for range 3 {
			if err := probe(addr); err != nil {
				t.Errorf("while ready: %v", err)
			}
		}
		g.Set(false)
		g.Set(false)
		if err := probe(addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("while not ready: got %v, want connection refused", err)
		}
	}
	g.Set(true)
	g.Close()
	g.Close()
	g.Set(true)
	if g.Addr() != nil {
		t.Error("open after Close")
	}
}

func TestGateWithoutAddress(t *testing.T) {
	g := NewGate("", quiet())
	g.Set(true)
	if g.Addr() != nil {
		t.Errorf("listens on %v", g.Addr())
	}
	g.Close()
}

// Clients that hold on to their end cost nothing here.
func TestGateIsBounded(t *testing.T) {
	defer goleak.VerifyNone(t)
	g := NewGate("127.0.0.1:0", quiet())
	defer g.Close()
	g.Set(true)
	before := runtime.NumGoroutine()
	for range 100 {
		conn, err := net.Dial("tcp", g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("got %v, want EOF", err)
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("100 clients made %d goroutines", after-before)
	}
}

// A port in use is said once, and taken as soon as it is free.
func TestGateWaitsForItsPort(t *testing.T) {
	defer goleak.VerifyNone(t)
	occupant, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	g := NewGate(occupant.Addr().String(), slog.New(slog.NewTextHandler(&log, nil)))
	defer g.Close()
	g.Set(true)
	g.Set(true)
	if n := strings.Count(log.String(), "address already in use"); n != 1 {
		t.Errorf("said %d times, want once:\n%s", n, log.String())
	}
	if err := occupant.Close(); err != nil {
		t.Fatal(err)
	}
	g.Set(true)
	if g.Addr() == nil {
		t.Fatalf("closed though the port is free:\n%s", log.String())
	}
	if err := probe(g.Addr()); err != nil {
		t.Error(err)
	}
}

func TestGateIsSafeForConcurrentUse(t *testing.T) {
	defer goleak.VerifyNone(t)
	g := NewGate("127.0.0.1:0", quiet())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				g.Set((i+j)%2 == 0)
				if addr := g.Addr(); addr != nil {
					_ = probe(addr) // either answer is right by now
				}
			}
		})
	}
	wg.Wait()
	g.Close()
	if g.Addr() != nil {
		t.Error("open after Close")
	}
}
