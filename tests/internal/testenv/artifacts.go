package testenv

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	// EnvArtifacts names the environment variable that holds the directory
	// under which tests leave their logs. Everything there is searched for key
	// material after the run (tests/leakcheck), so logs go there and keys don't.
	EnvArtifacts = "VPN_GATEWAY_ARTIFACTS"
	// EnvSecrets names the environment variable that holds the file to which
	// every private or pre-shared key of a run is appended, one base64 key a line.
	// It must lie outside the artifacts.
	EnvSecrets = "VPN_GATEWAY_SECRETS_FILE"
)

// keyLen is the length in bytes of a WireGuard private or pre-shared key.
const keyLen = 32

// Artifacts returns an existing directory of t's own for logs: below
// $VPN_GATEWAY_ARTIFACTS where that is set, otherwise one that ends with t.
func Artifacts(t testing.TB) string {
	t.Helper()
	root := os.Getenv(EnvArtifacts)
	if root == "" {
		return t.TempDir()
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatalf("artifacts of %s: %v", t.Name(), err)
	}
	// go test runs a package's tests in the package's directory.
	unsafe := regexp.MustCompile(`[^A-Za-z0-9._/-]+`)
	dir := filepath.Join(root, filepath.Base(wd), unsafe.ReplaceAllString(t.Name(), "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("artifacts of %s: %v", t.Name(), err)
	}
	return dir
}

// LogFile opens name for appending in the artifacts of t and closes it when t
// ends. Give it to a process as standard output and error.
func LogFile(t testing.TB, name string) *os.File {
	t.Helper()
	path := filepath.Join(Artifacts(t), name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatalf("log file of %s: %v", t.Name(), err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// RecordSecret notes that key, a private or pre-shared key in base64 or hex, is
// in use, so that the search for leaks after the run looks for it. Every harness
// calls it for every key that it makes or reads. Public keys are not secret.
func RecordSecret(t testing.TB, key string) {
	t.Helper()
	if err := AppendSecret(key); err != nil {
		t.Fatal(err)
	}
}

// AppendSecret is [RecordSecret] for programs that are not tests. It does
// nothing unless $VPN_GATEWAY_SECRETS_FILE is set. The error never holds the key.
func AppendSecret(key string) error {
	path := os.Getenv(EnvSecrets)
	if path == "" {
		return nil
	}
	raw, err := decodeKey(key)
	if err != nil {
		return fmt.Errorf("recording a secret in %s: %w", path, err)
	}
	// One short write to a file opened for appending: tests of several
	// processes can record at the same time.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("recording a secret: %w", err)
	}
	if _, err := f.WriteString(base64.StdEncoding.EncodeToString(raw) + "\n"); err != nil {
		_ = f.Close()
		return fmt.Errorf("recording a secret in %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("recording a secret in %s: %w", path, err)
	}
	return nil
}

// decodeKey returns the 32 bytes of a key in base64 (as of wg) or hex (as of the
// WireGuard UAPI).
func decodeKey(key string) ([]byte, error) {
	key = strings.TrimSpace(key)
	if len(key) == hex.EncodedLen(keyLen) {
		if raw, err := hex.DecodeString(key); err == nil {
			return raw, nil
		}
	}
	if raw, err := base64.StdEncoding.DecodeString(key); err == nil && len(raw) == keyLen {
		return raw, nil
	}
	return nil, fmt.Errorf("not a key: want %d bytes in base64 or hex, got a text of %d characters", keyLen, len(key))
}
