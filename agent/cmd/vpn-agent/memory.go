package main

import (
	"net/http"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// restHeadroom is how much garbage may lie about between two collections, in
	// bytes, while nothing is being changed. Left alone, Go lets it grow to the size
	// of what is alive; and with 10,000 peers wireguard-go's queues and stacks alone
	// are 350 MB, so that every gateway would need twice the memory that it uses.
	restHeadroom = 8 << 20
	// busyHeadroom is the same while files are put in force, metrics are read or peers
	// move between replicas: enough for most of that to end without a collection, which
	// with 10,000 peers takes longer than the thing itself. Of a peer that shakes hands
	// meanwhile, the collection takes the processor: that was seen to be 30 ms.
	busyHeadroom = 32 << 20
	// movesLast is for how long after a sign of it peers are taken to move.
	movesLast = 3 * time.Second
	// tidyAfter is how long after that what it used is given back to the operating
	// system, unless there is more to do.
	tidyAfter = time.Second
	// leastPercent bounds the work: a collection looks at all that is alive.
	leastPercent, mostPercent = 2, 100
)

// memory keeps the process near what it needs. It leaves everything alone where
// the user has set GOGC, and never goes beyond Go's own way where little is alive.
// Its methods may be called from any goroutine.
type memory struct {
	mu        sync.Mutex
	tasks     int // under way
	tidy      *time.Timer
	percent   int // set last
	untouched bool

	moved  atomic.Int64 // when there was a sign last that peers move, in UNIX nanoseconds
	moving atomic.Bool  // and that is a task
}

func newMemory() *memory {
	_, set := os.LookupEnv("GOGC")
	return &memory{untouched: set}
}

// busy is called before something that makes garbage by the megabyte, and what it
// returns after it.
func (m *memory) busy() (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tasks++
	if m.tidy != nil {
		m.tidy.Stop()
	}
	m.allow(busyHeadroom)
	return m.done
}

func (m *memory) done() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tasks--
	if m.tasks == 0 {
		m.tidy = time.AfterFunc(tidyAfter, m.rest)
	}
}

// move is called when peers move between replicas, or are about to, as often as that is.
// It never waits.
func (m *memory) move() {
	m.moved.Store(time.Now().UnixNano())
	if m.moving.CompareAndSwap(false, true) {
		go m.whileMoving()
	}
}

// whileMoving is busy until nothing has moved for movesLast.
func (m *memory) whileMoving() {
	defer m.busy()()
	defer m.moving.Store(false)
	for left := movesLast; left > 0; left = movesLast - time.Since(time.Unix(0, m.moved.Load())) {
		time.Sleep(min(left, movesLast)) // clocks are set back
	}
}

// whileScraped is a handler that is busy with metrics, and with nothing else.
func (m *memory) whileScraped(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			defer m.busy()()
		}
		h.ServeHTTP(w, r)
	})
}

// rest gives back what is free, and keeps it so.
func (m *memory) rest() {
	if m.untouched {
		return
	}
	debug.FreeOSMemory()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tasks == 0 {
		m.allow(restHeadroom)
	}
}

// allow sets what follows from headroom, where that is something new: setting it
// waits for a collection that is under way, and stops everything for a moment.
func (m *memory) allow(headroom uint64) {
	percent := percentFor(headroom, alive())
	if m.untouched || percent == m.percent {
		return
	}
	m.percent = percent
	debug.SetGCPercent(percent)
}

// percentFor is the GOGC value by which the heap may grow by headroom: the
// collector counts it of everything that it looks at (runtime/debug.SetGCPercent,
// https://go.dev/doc/gc-guide).
func percentFor(headroom, alive uint64) int {
	if alive == 0 {
		return mostPercent
	}
	return max(leastPercent, min(int(headroom*100/alive), mostPercent))
}

// alive is what the last collection found alive, with stacks and globals, in bytes.
func alive() uint64 {
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"},
	}
	metrics.Read(samples)
	var total uint64
	for _, s := range samples {
		if s.Value.Kind() == metrics.KindUint64 {
			total += s.Value.Uint64()
		}
	}
	return total
}
