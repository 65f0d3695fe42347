package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testKey returns a key whose base64 has characters of both alphabets.
func testKey(seed byte) []byte {
	key := make([]byte, 32)
	for i := range key {
		key[i] = seed + byte(i)*37 | 0xc3
	}
	return key
}

func TestSearch(t *testing.T) {
	key, other := testKey(1), testKey(2)
	b64 := base64.StdEncoding.EncodeToString(key)
	secretData := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	found := func(form string) []hit { return []hit{{line: 2, key: 1, form: form}} }
	tests := []struct {
		name, line string
		want       []hit
	}{
		{"nothing", "peer alice connected", nil},
		{"another key", base64.StdEncoding.EncodeToString(testKey(3)), nil},
		{"raw", "x" + string(key) + "y", found("raw bytes")},
		{"lower hex", "private_key=" + hex.EncodeToString(key), found("hex")},
		{"upper hex", strings.ToUpper(hex.EncodeToString(key)), found("hex")},
		{"mixed hex", fmt.Sprintf("%X%x", key[:16], key[16:]), found("hex")},
		{"half of the hex", hex.EncodeToString(key[:16]), nil},
		{"base64", "PrivateKey = " + b64, found("base64")},
		{"unpadded base64", "k=" + strings.TrimRight(b64, "="), found("base64")},
		{"URL base64", base64.URLEncoding.EncodeToString(key), found("base64")},
		{"JSON", fmt.Sprintf(`{"key":%q}`, b64), found("base64")},
		{"Secret data", "privateKey: " + secretData(b64), found("base64 in base64")},
		{"Secret data with newline", secretData(b64 + "\n"), found("base64 in base64")},
		{"within Secret data, 1 off", secretData("x" + b64 + "yz"), found("base64 in base64")},
		{"within Secret data, 2 off", secretData("xx" + b64 + "yz"), found("base64 in base64")},
		{"raw within base64, 1 off", secretData("x" + string(key) + "yz"), found("base64")},
		{"raw within base64, 2 off", secretData("xx" + string(key) + "yz"), found("base64")},
		{"%v", fmt.Sprintf("%v", key), found("decimal bytes")},
		{"%v of an array", fmt.Sprintf("%v", [32]byte(key)), found("decimal bytes")},
		{"JSON array", strings.ReplaceAll(fmt.Sprint(key), " ", ","), found("decimal bytes in JSON")},
		{"%#v", fmt.Sprintf("%#v", key), found("Go syntax")},
	}
	s := newSearcher([][]byte{other, key})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := s.search([]byte("first line\n" + tt.line + "\nlast line\n"))
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(hit{})); diff != "" {
				t.Errorf("hits (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRun(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(testKey(1))
	tests := []struct {
		name, secrets string
		logs          map[string]string
		want          string // in the error; empty for success
	}{
		{"clean", key + "\n", map[string]string{"a/agent.log": "peer alice connected\n"}, ""},
		{"leak", key + "\n", map[string]string{"a/agent.log": "ok\n", "a/b/test.log": "key " + key + "\n"}, "1 places hold key material"},
		{"no logs", key + "\n", nil, "nothing was searched"},
		{"no keys", "", map[string]string{"agent.log": "ok\n"}, "holds no key"},
		{"bad key", "abc\n", map[string]string{"agent.log": "ok\n"}, ":1: not 32 bytes in base64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			secrets := filepath.Join(dir, "secrets")
			write(t, secrets, tt.secrets)
			logs := filepath.Join(dir, "logs")
			if err := os.Mkdir(logs, 0o755); err != nil {
				t.Fatal(err)
			}
			for name, content := range tt.logs {
				write(t, filepath.Join(logs, name), content)
			}
			var out bytes.Buffer
			err := run([]string{"-secrets", secrets, logs}, &out)
			if tt.want == "" && err != nil {
				t.Errorf("error = %v, want none", err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error = %v, want one with %q", err, tt.want)
			}
			if strings.Contains(out.String(), key) {
				t.Errorf("the report itself holds the key:\n%s", out.String())
			}
		})
	}
	if err := run(nil, io.Discard); err == nil {
		t.Error("no directory: want an error")
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
