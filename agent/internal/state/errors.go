package state

import (
	"errors"
	"slices"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// TunnelError is an error of one tunnel. While there are two, a fault of the second
// must do no harm to the first.
type TunnelError struct {
	Slot key.Slot
	Err  error
}

// Error is that of Err.
func (e *TunnelError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *TunnelError) Unwrap() error { return e.Err }

// OnlyOf reports whether an error, or all that it joins, is of one of the tunnels;
// false for nil.
func OnlyOf(err error, slots ...key.Slot) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(one error) bool { return !OnlyOf(one, slots...) })
	}
	if inner := errors.Unwrap(err); inner != nil && !isTunnelError(err) {
		return OnlyOf(inner, slots...)
	}
	var t *TunnelError
	return errors.As(err, &t) && slices.Contains(slots, t.Slot)
}

// Of returns what of an error is one tunnel's, nil for nothing.
func Of(err error, s key.Slot) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, one := range joined.Unwrap() {
			out = append(out, Of(one, s))
		}
		return errors.Join(out...)
	}
	if isTunnelError(err) {
		if !OnlyOf(err, s) {
			return nil
		}
		return err
	}
	if inner := errors.Unwrap(err); inner != nil {
		return Of(inner, s)
	}
	return nil
}

// isTunnelError looks at an error itself, not at what it wraps.
func isTunnelError(err error) bool {
	_, ok := err.(*TunnelError) //nolint:errorlint // on purpose
	return ok
}
