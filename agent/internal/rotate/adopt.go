package rotate

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// AdoptOptions are those of [Adopt].
type AdoptOptions struct {
	// Secret is what the gateway mounts, made of what a backend has.
	Secret string
	// Source is the Secret to write to, from which a PushSecret pushes to that
	// backend, in place of what it has.
	Source string
	// Key is the name of the undated entry of both.
	Key string
	// MakeAfter is how long to wait for a key in Secret before one is made in
	// Source; 0: none is ever made.
	MakeAfter time.Duration
	// Now is the clock, Sleep waits.
	Now   func() time.Time
	Sleep func(ctx context.Context, d time.Duration) error
}

// adoptInterval is short against the minute that a backend is asked in.
const adoptInterval = 5 * time.Second

// Adopt sees to it that Source holds the server's keys: those that it has; else
// those that Secret has, so that what is pushed is what the backend had; else a new
// one, where none appears in time. As [Init] it never overwrites anything.
func Adopt(ctx context.Context, secrets Store, o AdoptOptions) (Initialized, error) {
	deadline := o.Now().Add(o.MakeAfter)
	for {
		done, err := adopt(ctx, secrets, o)
		if err != nil || !done.Public.IsZero() {
			return done, err
		}
		if o.MakeAfter <= 0 {
			return Initialized{}, fmt.Errorf("secret %s has no key yet, and none is made for it: store one in the backend, and see whether the ExternalSecret is ready", o.Secret)
		}
		if !o.Now().Before(deadline) {
			return Init(ctx, secrets, o.Source, o.Key)
		}
		if err := o.Sleep(ctx, adoptInterval); err != nil {
			return Initialized{}, err
		}
	}
}

// adopt is one attempt. The outcome has no key where neither Secret has one.
func adopt(ctx context.Context, secrets Store, o AdoptOptions) (Initialized, error) {
	for range attempts {
		have, err := secrets.Get(ctx, o.Source)
		if err != nil {
			return Initialized{}, err
		}
		if len(have.Data[o.Key]) > 0 {
			return Init(ctx, secrets, o.Source, o.Key)
		}
		mounted, err := secrets.Get(ctx, o.Secret)
		if err != nil && !apierrors.IsNotFound(err) { // External Secrets has still to make it
			return Initialized{}, err
		}
		if len(mounted.Data[o.Key]) == 0 {
			return Initialized{}, nil
		}
		l, faults := parseServer(mounted.Data, o.Key)
		if len(faults) > 0 {
			return Initialized{}, fmt.Errorf("secret %s: %w", o.Secret, faults)
		}
		err = secrets.Merge(ctx, o.Source, have.Version, l.raw)
		if err == nil {
			return Init(ctx, secrets, o.Source, o.Key)
		}
		if !errors.Is(err, ErrConflict) {
			return Initialized{}, err
		}
	}
	return Initialized{}, busy("secret", o.Source, attempts)
}
