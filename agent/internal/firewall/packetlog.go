package firewall

import (
	"context"
	"errors"
	"time"

	"github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"
)

// packetLog is one of the kernel's logs that rules of ours write to (NFLOG).
type packetLog struct {
	nflog.Config
	prepare func(*nflog.Nflog) // before it is listened to; nil: nothing
	heard   func(nflog.Attribute)
	// ended is told why nothing is heard any more, where that is not the context. The log
	// stays open meanwhile.
	ended func(n *nflog.Nflog, err error)
}

// A log's socket is set up by one request after the other, and what the kernel tells of
// between them is taken for the answer, which fails them. Under a client that sends without
// a pause that was one start of an agent in twenty: so it is tried again.
const listenTries, listenPause = 20, 10 * time.Millisecond

// listen hears what the log tells until ctx ends.
func (l packetLog) listen(ctx context.Context) (err error) {
	for range listenTries {
		if err = l.tryToListen(ctx); err == nil {
			return nil
		}
		time.Sleep(listenPause)
	}
	return err
}

func (l packetLog) tryToListen(ctx context.Context) error {
	n, err := nflog.Open(&l.Config)
	if err != nil {
		return err
	}
	if l.prepare != nil {
		l.prepare(n)
	}
	err = n.RegisterWithErrorFunc(ctx,
		func(a nflog.Attribute) int {
			l.heard(a)
			return 0
		},
		func(err error) int {
			if errors.Is(err, unix.ENOBUFS) { // some were lost in a flood, and come again
				return 0
			}
			if ctx.Err() == nil {
				l.ended(n, err)
			}
			return 1
		})
	if err != nil {
		_ = n.Close()
		return err
	}
	context.AfterFunc(ctx, func() { _ = n.Close() })
	return nil
}
