// Package rotate makes the gateway's keys in the Secrets that they live in, and
// has new ones take over from old ones by the clock. It is what runs in the cluster
// beside the gateway, never inside it.
//
// What to do follows from what a Secret holds and the time, by pure functions
// (server.go, preshared.go); [Job] reads and writes around them.
package rotate

import (
	"context"
	"errors"
	"fmt"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// ErrConflict says that an object was changed by somebody else since it was read.
var ErrConflict = errors.New("changed in the meantime")

// Store is the Secrets, or the ConfigMaps, of one namespace, by name.
type Store interface {
	// Get reads an object. The error of one that does not exist is known to
	// apierrors.IsNotFound.
	Get(ctx context.Context, name string) (Object, error)
	// Merge writes entries of an object, or removes them where the value is nil,
	// all at once, and leaves what else it holds alone, provided that its
	// version is still that of what was read; else the error is [ErrConflict].
	Merge(ctx context.Context, name, version string, data map[string][]byte) error
}

// Object is what matters of a Secret or a ConfigMap.
type Object struct {
	// Version is its resourceVersion, opaque.
	Version string
	Data    map[string][]byte
}

// Pods is what this package needs of the Pods of one namespace.
type Pods interface {
	// List returns the names of those with the labels.
	List(ctx context.Context, selector string) ([]string, error)
	// Annotate sets annotations of a Pod; one that is gone is no error.
	Annotate(ctx context.Context, name string, annotations map[string]string) error
}

// Initialized is the outcome of [Init].
type Initialized struct {
	// Public is the public half of the key that is in the Secret now.
	Public key.Public
	// Made is false where the key had been there before.
	Made bool
}

// attempts bounds how often an object that keeps changing is read again. The
// change that matters, another job of the same kind, comes once.
const attempts = 5

// Init sees to it that the Secret holds a private key (base64, as of wg genkey)
// under the given name. It never overwrites anything: a key that is there stays,
// and what is there but no key is an error that does not quote it. Of several at
// once the first wins and the others find its key.
func Init(ctx context.Context, secrets Store, secret, name string) (Initialized, error) {
	for range attempts {
		have, err := secrets.Get(ctx, secret)
		if err != nil {
			return Initialized{}, err
		}
		if text := have.Data[name]; len(text) > 0 {
			k, err := key.ParsePrivate(string(text))
			if err == nil && k.IsZero() {
				err = errors.New("32 zero bytes")
			}
			if err != nil {
				return Initialized{}, fmt.Errorf("secret %s, key %s: %w; it was not touched: store the output of 'wg genkey' there, or remove it to have one made", secret, name, err)
			}
			return Initialized{Public: k.Public()}, nil
		}
		k := key.GeneratePrivate()
		err = secrets.Merge(ctx, secret, have.Version, map[string][]byte{name: []byte(k.Reveal())})
		if err == nil {
			return Initialized{Public: k.Public(), Made: true}, nil
		}
		if !errors.Is(err, ErrConflict) {
			return Initialized{}, err
		}
	}
	return Initialized{}, busy("secret", secret, attempts)
}

// busy is the error after too many conflicts.
func busy(kind, name string, times int) error {
	return fmt.Errorf("%s %s: %w, %d times in a row; find out who keeps writing to it", kind, name, ErrConflict, times)
}
