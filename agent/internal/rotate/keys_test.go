package rotate

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// The tests' clock stands at the end of a night of 2026.
var tests2026 = time.Date(2026, 12, 25, 3, 0, 0, 0, time.UTC)

const (
	lead    = 10 * time.Minute
	overlap = 168 * time.Hour
)

// at is the time in a name, from the tests' clock.
func at(d time.Duration) string { return tests2026.Add(d).Format(key.TimeLayout) }

// made is what generate makes: key 99 of the tests.
const made = "new"

// testKey is a key by its number, deterministic and of no use to anybody. The
// bytes are those of a clamped private key, and so good for both kinds.
func testKey(name string) string {
	b := [key.Len]byte{0: 8, 31: 64}
	copy(b[1:], "test key "+name)
	return base64.StdEncoding.EncodeToString(b[:])
}

func testPrivate(t testing.TB, name string) key.Private {
	t.Helper()
	k, err := key.ParsePrivate(testKey(name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testPreshared(t testing.TB, name string) key.Preshared {
	t.Helper()
	k, err := key.ParsePreshared(testKey(name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// literal marks what stands in a Secret as it is; everything else is the name of a
// key of the tests.
const literal = "="

// secretData is a Secret whose entries have keys of these names.
func secretData(named map[string]string) map[string][]byte {
	if named == nil {
		return nil
	}
	out := map[string][]byte{}
	for entry, name := range named {
		text, isLiteral := strings.CutPrefix(name, literal)
		if !isLiteral {
			text = testKey(name)
		}
		out[entry] = []byte(text)
	}
	return out
}

// secretTexts is [secretData] for the fake server.
func secretTexts(named map[string]string) map[string]string {
	out := map[string]string{}
	for entry, text := range secretData(named) {
		out[entry] = string(text)
	}
	return out
}

// keyNames is the way back from [secretData].
func keyNames(data map[string][]byte) map[string]string {
	out := map[string]string{}
	for entry, text := range data {
		name := literal + string(text)
		if raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text))); err == nil && len(raw) == key.Len {
			if _, after, ok := strings.Cut(strings.TrimRight(string(raw[1:31]), "\x00"), "test key "); ok {
				name = after
			}
		}
		out[entry] = name
	}
	return out
}

// patched is data after a merge patch.
func patched(data, patch map[string][]byte) map[string][]byte {
	out := maps.Clone(data)
	if out == nil {
		out = map[string][]byte{}
	}
	for entry, text := range patch {
		if text == nil {
			delete(out, entry)
		} else {
			out[entry] = text
		}
	}
	return out
}

// wantNoKeys fails where a text has a key of data in any form.
func wantNoKeys(t testing.TB, text string, datas ...map[string][]byte) {
	t.Helper()
	for _, data := range datas {
		for entry, content := range data {
			raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(content)))
			if err != nil || len(raw) != key.Len {
				continue
			}
			for _, form := range []string{
				base64.StdEncoding.EncodeToString(raw), base64.RawStdEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw),
				hex.EncodeToString(raw), string(raw), strings.Trim(fmt.Sprint(raw), "[]"),
			} {
				if strings.Contains(text, form) {
					t.Errorf("the key of entry %q is in %q", entry, text)
				}
			}
		}
	}
}
