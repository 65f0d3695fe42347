package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPercentFor(t *testing.T) {
	const mib = 1 << 20
	tests := []struct {
		name            string
		headroom, alive uint64
		want            int
	}{
		{"nothing known yet", 16 * mib, 0, 100},
		{"little alive: Go's own way", 16 * mib, 4 * mib, 100},
		{"as much alive as headroom", 16 * mib, 16 * mib, 100},
		{"1,000 peers", 16 * mib, 40 * mib, 40},
		{"10,000 peers", 16 * mib, 400 * mib, 4},
		{"more than is worth the work", 16 * mib, 4000 * mib, leastPercent},
	}
	for _, tt := range tests {
		if got := percentFor(tt.headroom, tt.alive); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestWhileScraped(t *testing.T) {
	t.Setenv("GOGC", "100") // of the test's own process nothing is to change
	m := newMemory()
	tasks := map[string]int{}
	h := m.whileScraped(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { tasks[r.URL.Path] = m.tasks }))
	want := map[string]int{"/metrics": 1, "/readyz": 0}
	for path := range want {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil))
		if m.tasks != 0 {
			t.Errorf("%s: %d tasks are left", path, m.tasks)
		}
	}
	if diff := cmp.Diff(want, tasks); diff != "" {
		t.Errorf("tasks while served (-want +got):\n%s", diff)
	}
}

func TestMove(t *testing.T) {
	t.Setenv("GOGC", "100") // of the test's own process nothing is to change
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		want := func(when string, tasks int) {
			synctest.Wait()
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.tasks != tasks {
				t.Errorf("%s: %d tasks, want %d", when, m.tasks, tasks)
			}
		}
		for _, after := range []time.Duration{0, movesLast / 2, movesLast / 2} {
			time.Sleep(after)
			m.move()
			want("while peers move", 1)
		}
		time.Sleep(movesLast - time.Millisecond)
		want("just before the end", 1)
		time.Sleep(time.Millisecond)
		want("at the end", 0)
		m.move()
		want("when peers move once more", 1)
		time.Sleep(movesLast)
	})
}
