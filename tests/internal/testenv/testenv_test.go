package testenv

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorder is a testing.TB that notes how Need ended instead of ending a test.
type recorder struct {
	testing.TB
	outcome, message string
}

func (r *recorder) Helper() {}
func (r *recorder) Skip(args ...any) {
	r.outcome, r.message = "skip", fmt.Sprint(args...)
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.outcome, r.message = "fatal", fmt.Sprintf(format, args...)
}

func TestNeed(t *testing.T) {
	met := Requirement(func() string { return "" })
	unmet := func(what string) Requirement { return func() string { return what } }
	tests := []struct {
		name    string
		require string
		reqs    []Requirement
		outcome string
		message string
	}{
		{name: "nothing needed"},
		{name: "all met, required", require: "1", reqs: []Requirement{met, met}},
		{name: "unmet skips", reqs: []Requirement{unmet("root"), met, unmet("nft")}, outcome: "skip", message: "this machine lacks: root; nft"},
		{
			name: "unmet fails when required", require: "1", reqs: []Requirement{unmet("root")},
			outcome: "fatal", message: "this machine lacks: root (and REQUIRE_INTEGRATION=1 forbids to skip)",
		},
		{name: "only 1 requires", require: "0", reqs: []Requirement{unmet("root")}, outcome: "skip", message: "this machine lacks: root"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(EnvRequire, tt.require)
			r := &recorder{TB: t}
			Need(r, tt.reqs...)
			if diff := cmp.Diff([]string{tt.outcome, tt.message}, []string{r.outcome, r.message}); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFindToolNamesThePackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if path, err := FindTool("sh"); err == nil {
		t.Errorf("FindTool(sh) with an empty PATH found %s, want an error: sh is in no sbin", path)
	}
	for _, p := range Packages() {
		if got := PackageOf(p.Command); got != p.Name {
			t.Errorf("PackageOf(%q) = %q, want %q", p.Command, got, p.Name)
		}
	}
	_, err := FindTool("no-such-command")
	if diff := cmp.Diff("command no-such-command", fmt.Sprint(err)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestRecordSecret(t *testing.T) {
	raw := []byte("0123456789abcdefghijklmnopqrstuv")
	b64 := base64.StdEncoding.EncodeToString(raw)
	path := filepath.Join(t.TempDir(), "secrets")
	t.Setenv(EnvSecrets, path)
	RecordSecret(t, b64)
	RecordSecret(t, hex.EncodeToString(raw)+"\n")
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b64+"\n"+b64+"\n", string(got)); diff != "" {
		t.Errorf("secrets file (-want +got):\n%s", diff)
	}
	bad := b64[:40]
	err = AppendSecret(bad)
	if err == nil {
		t.Fatal("AppendSecret of a truncated key: want an error")
	}
	if strings.Contains(err.Error(), bad) {
		t.Errorf("the error holds the key: %v", err)
	}
}

func TestArtifacts(t *testing.T) {
	root := t.TempDir()
	t.Setenv(EnvArtifacts, root)
	t.Run("a b", func(t *testing.T) {
		f := LogFile(t, "agent.log")
		want := filepath.Join(root, "testenv", "TestArtifacts", "a_b", "agent.log")
		if f.Name() != want {
			t.Errorf("LogFile = %s, want %s", f.Name(), want)
		}
		if _, err := os.Stat(want); err != nil {
			t.Error(err)
		}
	})
}
