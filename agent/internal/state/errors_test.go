package state

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

func TestOnlyOf(t *testing.T) {
	plain := errors.New("plain")
	blue, green := &TunnelError{key.Blue, plain}, &TunnelError{key.Green, plain}
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"none", nil, false},
		{"of no tunnel", plain, false},
		{"of the other tunnel", blue, false},
		{"of the tunnel", green, true},
		{"wrapped", fmt.Errorf("device: %w", green), true},
		{"of both", errors.Join(green, blue), false},
		{"twice", errors.Join(green, fmt.Errorf("x: %w", green)), true},
		{"beside another", fmt.Errorf("device: %w", errors.Join(green, plain)), false},
	} {
		if got := OnlyOf(tt.err, key.Green); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
	if !errors.Is(green, plain) || green.Error() != "plain" {
		t.Errorf("%v does not wrap %v", green, plain)
	}
}

func TestOf(t *testing.T) {
	plain := errors.New("plain")
	blue, green := &TunnelError{key.Blue, plain}, &TunnelError{key.Green, errors.New("of green")}
	joined := fmt.Errorf("device: %w", errors.Join(blue, green, fmt.Errorf("x: %w", green), plain))
	if got := Of(joined, key.Green); got == nil || got.Error() != "of green\nof green" {
		t.Errorf("of green: %v", got)
	}
	for _, err := range []error{nil, plain, errors.Join(), Of(joined, Interlink)} {
		if got := Of(err, key.Green); got != nil {
			t.Errorf("%v: %v, want nothing", err, got)
		}
	}
	if both := errors.Join(green, &TunnelError{Interlink, plain}); !OnlyOf(both, key.Green, Interlink) || OnlyOf(both, Interlink) {
		t.Errorf("%v is of two tunnels", both)
	}
}
