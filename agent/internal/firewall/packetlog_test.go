package firewall

import (
	"context"
	"sync"
	"testing"
)

// A log is listened to while packets keep coming: some are told of in the middle of its set-up.
func TestListenUnderWay(t *testing.T) {
	r := newSessionsRig(t)
	r.quiet()
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	sending.Go(func() {
		for index := uint32(1); ctx.Err() == nil; index++ {
			r.send(t, r.gateway, r.peer, messageInitiation, 148, index)
		}
	})
	for i := range 10 { // of which one in two would fail
		r.do(t, func() error {
			listening, end := context.WithCancel(ctx)
			defer end()
			heard := make(chan struct{}, 1)
			err := r.sessions.Listen(listening, func(Message) {
				select {
				case heard <- struct{}{}:
				default:
				}
			})
			if err != nil {
				t.Errorf("start %d: %v", i, err)
				return nil
			}
			<-heard
			return nil
		})
	}
	cancel()
	sending.Wait()
}
