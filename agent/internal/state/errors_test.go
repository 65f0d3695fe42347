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
