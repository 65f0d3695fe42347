//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// times collects how long things took, for the summary at the end. Nothing is
// asserted about them.
type times struct {
	mu   sync.Mutex
	rows []timesRow
}

type timesRow struct{ scenario, what, value string }

// newTimes makes a collection that is logged when t ends.
func newTimes(t *testing.T) *times {
	s := &times{}
	start := time.Now()
	t.Cleanup(func() {
		s.add("cluster", "everything", time.Since(start))
		t.Log("\n" + s.String())
	})
	return s
}

func (s *times) add(scenario, what string, took time.Duration) {
	s.note(scenario, what, fmt.Sprintf("%.2f s", took.Seconds()))
}

func (s *times) note(scenario, what, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = append(s.rows, timesRow{scenario, what, value})
}

// String is the table, rows of a scenario together in the order of their coming.
func (s *times) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	seen := map[string]bool{}
	for _, first := range s.rows {
		if seen[first.scenario] {
			continue
		}
		seen[first.scenario] = true
		for _, r := range s.rows {
			if r.scenario == first.scenario {
				fmt.Fprintf(w, "%s\t%s\t%s\n", r.scenario, r.what, r.value)
			}
		}
	}
	_ = w.Flush()
	return b.String()
}
