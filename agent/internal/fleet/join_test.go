package fleet

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestTrouble(t *testing.T) {
	broken, start := errors.New("no such host"), time.Unix(0, 0)
	var failing trouble
	for _, step := range []struct {
		at   time.Duration
		err  error
		want turn
	}{
		{0, broken, unremarkable},
		{warnAfter - 1, broken, unremarkable},
		{warnAfter, nil, unremarkable}, // a start like any other
		{warnAfter + 1, broken, unremarkable},
		{2*warnAfter + 1, broken, lasts},
		{3 * warnAfter, broken, unremarkable}, // said once
		{4 * warnAfter, nil, over},
		{5 * warnAfter, nil, unremarkable},
		{5 * warnAfter, broken, unremarkable},
		{6 * warnAfter, broken, lasts},
	} {
		if got := failing.note(step.err, start.Add(step.at)); got != step.want {
			t.Errorf("after %s, %v: %d, want %d", step.at, step.err, got, step.want)
		}
	}
}

// TestJoinSaysWhom: who cannot be found, or does not answer, is named.
func TestJoinSaysWhom(t *testing.T) {
	c := newCrew(t)
	for _, tt := range []struct{ where, want string }{
		{"siblings.invalid", "looking up siblings.invalid: "},
		{"127.0.0.99", "joining 127.0.0.99:"}, // nobody listens there
		{c.address(0).Addr().String(), ""},    // it finds itself
	} {
		f, err := Start(t.Context(), Options{
			Name: "vpn-gateway-0", Address: c.address(0), Join: []string{tt.where}, Initial: c.snapshot,
			Watch: func([]uint32, []uint32) error { return nil }, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		err = f.join(t.Context())
		if f.Close(); (err == nil) != (tt.want == "") || err != nil && !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.where, err, tt.want)
		}
	}
}
