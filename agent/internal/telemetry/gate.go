package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// acceptPause is how long to wait after an accept that failed, for lack of
// file descriptors above all.
const acceptPause = 100 * time.Millisecond

// Gate is a TCP port that exists only while the gateway is ready, for load
// balancers that cannot probe UDP: a connection that is accepted, and closed at
// once, is their 'healthy'; one that is refused, their 'unhealthy'. It serves
// one connection at a time, and each for no time. Safe for concurrent use.
type Gate struct {
	address string
	log     *slog.Logger

	mu       sync.Mutex
	closed   bool
	failed   bool         // the last attempt to listen; logged once
	listener net.Listener // nil while not ready
	stop     context.CancelFunc
	stopped  chan struct{} // closed when the accepting goroutine is gone
}

// NewGate returns a closed gate for a TCP address, such as ":8081". With an
// empty address it stays closed for ever.
func NewGate(address string, log *slog.Logger) *Gate {
	return &Gate{address: address, log: log}
}

// Set opens or closes the port; repeated calls change nothing. A port that
// cannot be opened is logged, and tried again by the next call.
func (g *Gate) Set(ready bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !ready:
		g.shut()
	case g.listener == nil && !g.closed && g.address != "":
		g.open()
	}
}

// Close closes the port for good.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.shut()
}

// Addr returns where the gate listens, nil while it is closed.
func (g *Gate) Addr() net.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener == nil {
		return nil
	}
	return g.listener.Addr()
}

func (g *Gate) open() {
	ctx, stop := context.WithCancel(context.Background())
	listener, err := (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp", g.address)
	if err != nil {
		stop()
		if !g.failed {
			g.log.Error("health port cannot be opened: load balancers will take this gateway for down", "address", g.address, "error", err)
		}
		g.failed = true
		return
	}
	g.failed, g.listener, g.stop, g.stopped = false, listener, stop, make(chan struct{})
	go func(stopped chan struct{}) {
		defer close(stopped)
		accept(ctx, listener)
	}(g.stopped)
}

func (g *Gate) shut() {
	if g.listener == nil {
		return
	}
	g.stop()
	_ = g.listener.Close()
	<-g.stopped
	g.listener = nil
}

// accept closes connections as they come, until the listener is closed.
func accept(ctx context.Context, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			_ = conn.Close()
		case errors.Is(err, net.ErrClosed):
			return
		default:
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
		}
	}
}
