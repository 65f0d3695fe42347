package build

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWatcher(t *testing.T) {
	w := &watcher{}
	for _, text := range []string{
		"go: downloading k8s.io/api v0.37.2\n",
		"internal/abi\nk8s.io/api/co", "re/v1\n", // lines come in pieces
		"# k8s.io/api/core/v1\n./types.go:1:1: syntax error\n",
		"k8s.io/api/apps/v1\n",
	} {
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := w.detail(), "3 packages compiled, k8s.io/api/apps/v1"; got != want {
		t.Errorf("detail %q, want %q", got, want)
	}
	if diff := cmp.Diff("# k8s.io/api/core/v1\n./types.go:1:1: syntax error", w.errors()); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

func TestFindSource(t *testing.T) {
	repository := t.TempDir()
	source := filepath.Join(repository, "tests", "cluster")
	for _, dir := range []string{filepath.Join(source, "parts", "kubernetes"), filepath.Join(repository, "docs")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(source, "parts", "kubernetes", "go.mod"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{repository, source, filepath.Join(source, "parts"), filepath.Join(repository, "docs")} {
		got, err := FindSource(from)
		if err != nil {
			t.Error(err)
		}
		if got != source {
			t.Errorf("from %s: %s, want %s", from, got, source)
		}
	}
	if _, err := FindSource(t.TempDir()); err == nil {
		t.Error("no error outside of the repository")
	}
}
