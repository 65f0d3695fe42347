package main

import "testing"

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
