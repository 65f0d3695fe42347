package main

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// restHeadroom is how much garbage may lie about between two collections, in
	// bytes, while nothing is being changed. Left alone, Go lets it grow to the size
	// of what is alive; and with 10,000 peers wireguard-go's queues and stacks alone
	// are 350 MB, so that every gateway would need twice the memory that it uses.
	restHeadroom = 8 << 20
	// reloadHeadroom is the same while files are put in force: enough for most
	// reloads to end without a collection, which would slow them.
	reloadHeadroom = 32 << 20
	// tidyAfter is how long after a reload what it used is given back to the
	// operating system, unless the next one has begun.
	tidyAfter = time.Second
	// leastPercent bounds the work: a collection looks at all that is alive.
	leastPercent, mostPercent = 2, 100
)

// memory keeps the process near what it needs. It leaves everything alone where
// the user has set GOGC, and never goes beyond Go's own way where little is alive.
// Its methods may be called from any goroutine.
type memory struct {
	mu        sync.Mutex
	reloads   int // under way
	tidy      *time.Timer
	untouched bool
}

func newMemory() *memory {
	_, set := os.LookupEnv("GOGC")
	return &memory{untouched: set}
}

// reloading is called before a reload, and what it returns after it.
func (m *memory) reloading() (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reloads++
	if m.tidy != nil {
		m.tidy.Stop()
	}
	m.allow(reloadHeadroom)
	return m.reloaded
}

func (m *memory) reloaded() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reloads--
	if m.reloads == 0 {
		m.tidy = time.AfterFunc(tidyAfter, m.rest)
	}
}

// rest gives back what is free, and keeps it so.
func (m *memory) rest() {
	if m.untouched {
		return
	}
	debug.FreeOSMemory()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reloads == 0 {
		m.allow(restHeadroom)
	}
}

func (m *memory) allow(headroom uint64) {
	if !m.untouched {
		debug.SetGCPercent(percentFor(headroom, alive()))
	}
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
