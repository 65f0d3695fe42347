package key

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestParse(t *testing.T) {
	valid := "IAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHl8="
	tests := []struct {
		name, text string
		want       error
	}{
		{"valid", valid, nil},
		{"valid with newline", valid + "\n", nil},
		{"empty", "", ErrFormat},
		{"31 bytes", base64.StdEncoding.EncodeToString(make([]byte, 31)), ErrFormat},
		{"33 bytes", base64.StdEncoding.EncodeToString(make([]byte, 33)), ErrFormat},
		{"64 bytes", base64.StdEncoding.EncodeToString(make([]byte, 64)), ErrFormat},
		{"no padding", strings.TrimRight(valid, "="), ErrFormat},
		{"hex", strings.Repeat("ab", 32), ErrFormat},
		{"trailing bits set", valid[:42] + "9=", ErrFormat},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, errPub := ParsePublic(tt.text)
			_, errPriv := ParsePrivate(tt.text)
			_, errPSK := ParsePreshared(tt.text)
			for _, err := range []error{errPub, errPriv, errPSK} {
				if !errors.Is(err, tt.want) {
					t.Errorf("got error %v, want %v", err, tt.want)
				}
			}
		})
	}
}

// RFC 7748 section 6.1: Alice's key pair.
func TestPublic(t *testing.T) {
	rfc, _ := hex.DecodeString("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
	want, _ := hex.DecodeString("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
	got := NewPrivate([Len]byte(rfc)).Public()
	if got != Public(want) {
		t.Errorf("public key: got %s, want %s", hex.EncodeToString(got[:]), hex.EncodeToString(want))
	}
	if !(Private{}).Public().IsZero() {
		t.Error("the zero private key has a public key")
	}
}

func TestSecretsRedactThemselves(t *testing.T) {
	priv, psk := GeneratePrivate(), GeneratePreshared()
	type exported struct {
		Key Private
		PSK Preshared
	}
	type hidden struct {
		key Private
		psk *Preshared
	}
	var log strings.Builder
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("x", "key", priv, "psk", psk, "both", exported{priv, psk}, "hidden", hidden{priv, &psk})
	js, err := json.Marshal(exported{priv, psk})
	if err != nil {
		t.Fatal(err)
	}
	ym, err := yaml.Marshal(exported{priv, psk})
	if err != nil {
		t.Fatal(err)
	}
	outputs := []string{log.String(), string(js), string(ym), priv.String(), psk.GoString()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b"} {
		outputs = append(outputs, fmt.Sprintf(verb, priv), fmt.Sprintf(verb, &psk),
			fmt.Sprintf(verb, exported{priv, psk}), fmt.Sprintf(verb, hidden{priv, &psk}),
			fmt.Sprintf(verb, []Private{priv}), fmt.Sprintf(verb, map[string]Preshared{"a": psk}))
	}
	for _, secret := range [][Len]byte{priv.Bytes(), psk.Bytes()} {
		forms := []string{
			base64.StdEncoding.EncodeToString(secret[:]),
			hex.EncodeToString(secret[:]), strings.ToUpper(hex.EncodeToString(secret[:])),
			strings.Trim(fmt.Sprint(secret), "[]"), string(secret[:]),
		}
		for _, out := range outputs {
			for _, form := range forms {
				if strings.Contains(out, form) {
					t.Errorf("key material in %q", out)
				}
			}
		}
	}
}

func TestPrivateIsClamped(t *testing.T) {
	raw := [Len]byte{0: 0xff, 1: 1, 31: 0xff}
	clamped := [Len]byte{0: 0xf8, 1: 1, 31: 0x7f}
	if NewPrivate(raw) != NewPrivate(clamped) {
		t.Error("a key and its clamped form, which a device reports, differ")
	}
	if got := NewPrivate(raw).Bytes(); got != clamped {
		t.Errorf("got first byte %#x and last %#x", got[0], got[31])
	}
}

func TestEqualityAndReveal(t *testing.T) {
	a := GeneratePrivate()
	b, err := ParsePrivate(a.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Error("a key is not equal to its own copy")
	}
	if a == GeneratePrivate() {
		t.Error("two generated keys are equal")
	}
	if !NewPreshared([Len]byte{}).IsZero() || !NewPrivate([Len]byte{}).IsZero() {
		t.Error("32 zero bytes are not 'no key'")
	}
}
