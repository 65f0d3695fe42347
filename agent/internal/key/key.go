// Package key holds WireGuard's key types. A secret key redacts itself
// wherever Go might print it: fmt verbs, slog, JSON, YAML and even
// reflection-based dumps, so that key material cannot leak by accident. The one
// way out is [Private.Reveal] and [Preshared.Reveal], easy to find by grep.
package key

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Len is the length of every WireGuard key in bytes: Curve25519 points and
// scalars (RFC 7748) and pre-shared symmetric keys alike.
const Len = 32

// Redacted is what any secret key prints instead of itself.
const Redacted = "[redacted]"

// ErrFormat says that a text is not the base64 of exactly 32 bytes. It never
// quotes the text, which may be most of a real key.
var ErrFormat = errors.New("not the base64 of 32 bytes")

// Public is a Curve25519 public key. It is no secret and prints as base64.
type Public [Len]byte

// ParsePublic reads the base64 form that `wg pubkey` prints; surrounding white
// space is ignored. The error is [ErrFormat].
func ParsePublic(text string) (Public, error) {
	b, err := parse([]byte(text))
	return Public(b), err
}

// String returns the padded standard base64 form (RFC 4648 section 4).
func (p Public) String() string { return base64.StdEncoding.EncodeToString(p[:]) }

// IsZero reports whether no key was set.
func (p Public) IsZero() bool { return p == Public{} }

// MarshalText returns the base64 form.
func (p Public) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the base64 form; the error is [ErrFormat].
func (p *Public) UnmarshalText(text []byte) error {
	b, err := parse(text)
	if err == nil {
		*p = b
	}
	return err
}

// Compare orders keys by their bytes, for stable output.
func (p Public) Compare(o Public) int { return bytes.Compare(p[:], o[:]) }

// secret keeps 32 bytes masked with a pad of this process: two secrets are
// equal (==) if their bytes are, while a printer that walks unexported fields
// by reflection, where no method of ours is called, shows nothing of the key.
type secret struct {
	masked [Len]byte
	set    bool
}

// pad never changes once the process runs.
var pad = random() //nolint:gochecknoglobals // a constant that no source may hold

func newSecret(b [Len]byte) secret {
	if b == [Len]byte{} {
		return secret{}
	}
	return secret{masked: xor(b, pad), set: true}
}

// IsZero reports whether no key was set.
func (s secret) IsZero() bool { return !s.set }

// Bytes returns the key: 32 zero bytes where none was set, which is how
// WireGuard itself says 'no pre-shared key'.
func (s secret) Bytes() [Len]byte {
	if !s.set {
		return [Len]byte{}
	}
	return xor(s.masked, pad)
}

// Reveal returns the base64 form of the secret. Only what hands a key to its
// owner (a client's file, a Secret) may call it.
func (s secret) Reveal() string {
	b := s.Bytes()
	return base64.StdEncoding.EncodeToString(b[:])
}

// String returns [Redacted].
func (secret) String() string { return Redacted }

// GoString returns [Redacted].
func (secret) GoString() string { return Redacted }

// Format writes [Redacted] whatever the verb, %x and %d included.
func (secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Redacted) }

// LogValue returns [Redacted].
func (secret) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText returns [Redacted], and so do JSON and YAML encoders.
func (secret) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// Private is a Curve25519 private key (RFC 7748). Comparable with ==.
type Private struct{ secret }

// ParsePrivate reads the base64 form that `wg genkey` prints. The error is
// [ErrFormat] and never quotes the text.
func ParsePrivate(text string) (Private, error) {
	var p Private
	err := p.UnmarshalText([]byte(text))
	return p, err
}

// NewPrivate wraps the 32 bytes of a key as a device reports it. All zero
// means 'none' and gives the zero Private. Any other key is clamped as RFC 7748
// section 5 has it, as WireGuard does with what it stores: one made by other
// means than `wg genkey` would never equal what the device says it has.
func NewPrivate(b [Len]byte) Private {
	if b == [Len]byte{} {
		return Private{}
	}
	b[0] &= 248
	b[31] = b[31]&127 | 64
	return Private{newSecret(b)}
}

// GeneratePrivate makes a new key from the system's random source.
func GeneratePrivate() Private { return NewPrivate(random()) }

// UnmarshalText reads the base64 form; the error is [ErrFormat].
func (p *Private) UnmarshalText(text []byte) error {
	b, err := parse(text)
	if err == nil {
		*p = NewPrivate(b)
	}
	return err
}

// Public derives the public key. The zero Private has the zero Public.
func (p Private) Public() Public {
	if p.IsZero() {
		return Public{}
	}
	b := p.Bytes()
	// crypto/ecdh accepts any 32 bytes as an X25519 private key.
	k, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		return Public{}
	}
	return Public(k.PublicKey().Bytes())
}

// Equal is for cmp.Diff, which does not look into unexported fields.
func (p Private) Equal(o Private) bool { return p == o }

// Preshared is a symmetric key mixed into the handshake (the psk2 modifier of
// the Noise protocol). The zero value means 'none'. Comparable with ==.
type Preshared struct{ secret }

// ParsePreshared reads the base64 form that `wg genpsk` prints. The error is
// [ErrFormat] and never quotes the text.
func ParsePreshared(text string) (Preshared, error) {
	var p Preshared
	err := p.UnmarshalText([]byte(text))
	return p, err
}

// NewPreshared wraps the 32 bytes of a key as a device reports it. All zero
// means 'none' and gives the zero Preshared.
func NewPreshared(b [Len]byte) Preshared { return Preshared{newSecret(b)} }

// GeneratePreshared makes a new key from the system's random source.
func GeneratePreshared() Preshared { return Preshared{newSecret(random())} }

// UnmarshalText reads the base64 form; the error is [ErrFormat].
func (p *Preshared) UnmarshalText(text []byte) error {
	b, err := parse(text)
	if err == nil {
		*p = NewPreshared(b)
	}
	return err
}

// Equal is for cmp.Diff, which does not look into unexported fields.
func (p Preshared) Equal(o Preshared) bool { return p == o }

func parse(text []byte) ([Len]byte, error) {
	var out [Len]byte
	var buf [Len + 3]byte // room for a key that is a little too long
	text = bytes.TrimSpace(text)
	if base64.StdEncoding.DecodedLen(len(text)) > len(buf) {
		return out, ErrFormat
	}
	n, err := base64.StdEncoding.Strict().Decode(buf[:], text)
	if err != nil || n != Len {
		return out, ErrFormat
	}
	copy(out[:], buf[:Len])
	return out, nil
}

func xor(a, b [Len]byte) [Len]byte {
	for i := range a {
		a[i] ^= b[i]
	}
	return a
}

func random() [Len]byte {
	var b [Len]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	return b
}
