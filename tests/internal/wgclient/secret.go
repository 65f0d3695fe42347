package wgclient

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

// Secret is a private or pre-shared key. It prints as [redacted]; every one that
// is made or parsed is recorded for the search for leaks after the run.
type Secret struct {
	raw [32]byte
}

// NewPrivateKey makes a Curve25519 private key, clamped as `wg genkey` does.
func NewPrivateKey() (Secret, error) {
	s := random()
	s.raw[0] &= 248
	s.raw[31] = s.raw[31]&127 | 64
	return s, testenv.AppendSecret(s.Reveal())
}

// NewPresharedKey makes a pre-shared key.
func NewPresharedKey() (Secret, error) {
	s := random()
	return s, testenv.AppendSecret(s.Reveal())
}

func random() Secret {
	var s Secret
	_, _ = rand.Read(s.raw[:]) // never fails since Go 1.24
	return s
}

// ParseSecret reads a key in base64. The error never quotes it.
func ParseSecret(text string) (Secret, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != 32 {
		return Secret{}, fmt.Errorf("not 32 bytes in base64")
	}
	return Secret{raw: [32]byte(raw)}, testenv.AppendSecret(text)
}

// IsZero reports whether there is no key.
func (s Secret) IsZero() bool { return s == Secret{} }

// Reveal returns the key in base64, for a Secret or for wg.
func (s Secret) Reveal() string { return base64.StdEncoding.EncodeToString(s.raw[:]) }

// Public returns the public key of a private one, in base64.
func (s Secret) Public() string {
	// crypto/ecdh accepts any 32 bytes as an X25519 private key.
	k, err := ecdh.X25519().NewPrivateKey(s.raw[:])
	if err != nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(k.PublicKey().Bytes())
}

// Format writes [redacted], whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// MarshalText writes [redacted].
func (Secret) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }
