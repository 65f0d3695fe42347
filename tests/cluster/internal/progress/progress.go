// Package progress tells a person what goes on and for how long, so that a
// step of many minutes does not look like one that hangs.
package progress

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// heartbeat is how often a running step says that it still runs.
const heartbeat = 15 * time.Second

// Printer writes lines with the seconds since its start before them.
type Printer struct {
	start time.Time

	mu  sync.Mutex
	out io.Writer
}

// New makes a printer whose clock starts now.
func New(out io.Writer) *Printer { return &Printer{start: time.Now(), out: out} }

// Say prints a line, formatted as by fmt.Printf.
func (p *Printer) Say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "[%6.1fs] %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// Step runs f and prints name with a heartbeat while it takes long: how long
// so far, and what detail returns (nil for nothing), which must be safe to call
// from another goroutine.
func (p *Printer) Step(name string, detail func() string, f func() error) error {
	begin := time.Now()
	done := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		ticker := time.NewTicker(heartbeat)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				what := ""
				if detail != nil {
					what = ": " + detail()
				}
				p.Say("%s … %s%s", name, time.Since(begin).Round(time.Second), what)
			}
		}
	})
	err := f()
	close(done)
	beating.Wait()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p.Say("%s: done in %s", name, time.Since(begin).Round(100*time.Millisecond))
	return nil
}
