// Package rotate makes the gateway's keys in the Secret that they live in. It is
// what runs in the cluster beside the gateway, never inside it.
package rotate

import (
	"context"
	"errors"
	"fmt"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// ErrConflict says that a Secret was changed by somebody else since it was read.
var ErrConflict = errors.New("changed in the meantime")

// Secrets is what this package needs of a cluster: the Secrets of one
// namespace, by name.
type Secrets interface {
	// Get reads a Secret.
	Get(ctx context.Context, name string) (Secret, error)
	// Merge adds data to a Secret, and leaves what else it holds alone,
	// provided that its version is still that of what was read; else the error
	// is [ErrConflict].
	Merge(ctx context.Context, name, version string, data map[string][]byte) error
}

// Secret is what matters of a Kubernetes Secret.
type Secret struct {
	// Version is its resourceVersion, opaque.
	Version string
	Data    map[string][]byte
}

// Initialized is the outcome of [Init].
type Initialized struct {
	// Public is the public half of the key that is in the Secret now.
	Public key.Public
	// Made is false where the key had been there before.
	Made bool
}

// attempts bounds how often a Secret that keeps changing is read again. The
// change that matters, another Init, comes once.
const attempts = 5

// Init sees to it that the Secret holds a private key (base64, as of wg genkey)
// under the given name. It never overwrites anything: a key that is there stays,
// and what is there but no key is an error that does not quote it. Of several at
// once the first wins and the others find its key.
func Init(ctx context.Context, secrets Secrets, secret, name string) (Initialized, error) {
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
	return Initialized{}, fmt.Errorf("secret %s: %w, %d times in a row; find out who keeps writing to it", secret, ErrConflict, attempts)
}
