package state

import "github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"

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

// OnlyOf reports whether an error, or all that it joins, is of one tunnel; false
// for nil.
func OnlyOf(err error, s key.Slot) bool {
	switch e := err.(type) {
	case *TunnelError:
		return e.Slot == s
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			if !OnlyOf(one, s) {
				return false
			}
		}
		return true
	case interface{ Unwrap() error }:
		return OnlyOf(e.Unwrap(), s)
	}
	return false
}
