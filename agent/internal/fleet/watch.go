package fleet

import (
	"context"
	"maps"
	"slices"
	"time"
)

const (
	// watchRest is how long to leave the kernel alone after it was told of indices: each
	// time costs as much as hundreds of indices at once. Where it took long, because
	// processors are busy, it is watchShare times as long, up to longestWatchRest.
	watchRest, watchShare, longestWatchRest = 20 * time.Millisecond, 4, 80 * time.Millisecond
	// watchAgain is when to tell the kernel of all indices, after it refused some.
	watchAgain = time.Second
)

// watchStrangers has the kernel tell of the indices that it should.
func (f *Fleet) watchStrangers(ctx context.Context) {
	var dropped time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.watch:
		}
		f.mu.Lock()
		start := time.Now()
		var drop []uint32
		if start.Sub(dropped) >= tickEvery {
			drop, dropped = slices.Collect(maps.Keys(f.drop)), start
			clear(f.drop)
		}
		add := f.add
		f.add = nil
		f.mu.Unlock()
		err := f.options.Watch(add, drop)
		rest := min(max(watchShare*time.Since(start), watchRest), longestWatchRest)
		if err != nil {
			f.options.Log.Error("cannot watch for peers of other replicas, trying again", "error", err)
			rest = watchAgain
		}
		if !pause(ctx, rest) {
			return
		}
		if err != nil {
			f.WatchAll()
		}
	}
}

// WatchAll has the kernel told of all indices anew, after it lost them.
func (f *Fleet) WatchAll() {
	f.do(func(now time.Time) Effects { return Effects{Strangers: f.replica.Strangers(now)} })
}
