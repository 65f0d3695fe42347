package fleet

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// messageKey derives what replicas encrypt their messages with from the gateway's
// private key, which all of them have and nobody else (HKDF, RFC 5869; AES-256-GCM).
// What it is derived for is part of it: the private key cannot be found from it, and
// no other use of the private key makes the same.
func messageKey(k key.Private) ([]byte, error) {
	secret := k.Bytes()
	derived, err := hkdf.Key(sha256.New, secret[:], nil, "vpn-gateway fleet messages 1", 32)
	if err != nil {
		return nil, fmt.Errorf("deriving the key of fleet messages: %w", err)
	}
	return derived, nil
}

// setKeys makes the ring understand messages under all keys, and write its own under
// one of them. A key that is there stays there in between.
func setKeys(ring *memberlist.Keyring, all []key.Private, use key.Private) error {
	want := make([][]byte, len(all))
	for i, k := range all {
		var err error
		if want[i], err = messageKey(k); err != nil {
			return err
		}
		if err := ring.AddKey(want[i]); err != nil {
			return err
		}
	}
	primary, err := messageKey(use)
	if err != nil {
		return err
	}
	if err := ring.UseKey(primary); err != nil {
		return err
	}
	for _, have := range ring.GetKeys() {
		if !slices.ContainsFunc(want, func(w []byte) bool { return bytes.Equal(w, have) }) {
			if err := ring.RemoveKey(have); err != nil {
				return err
			}
		}
	}
	return nil
}
