//go:build lint

// Package lint proves that .golangci.yaml bites: it lints a small tree that
// breaks every rule of the house once. `make lint-selftest` runs it.
package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/cloud-native-vpn/vpn-gateway/ci/tools"
)

const root = "../.."

func TestFloors(t *testing.T) {
	archive, err := txtar.ParseFile(filepath.Join("testdata", "floors.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var want []string
	wanted := regexp.MustCompile(`// want (\w+)$`)
	for _, file := range archive.Files {
		path := filepath.Join(dir, file.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, file.Data, 0o644); err != nil {
			t.Fatal(err)
		}
		for n, line := range bytes.Split(file.Data, []byte("\n")) {
			if m := wanted.FindSubmatch(line); m != nil {
				want = append(want, fmt.Sprintf("%s:%d: %s", file.Name, n+1, m[1]))
			}
		}
	}
	config, err := os.ReadFile(filepath.Join(root, ".golangci.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".golangci.yaml"), config, 0o644); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, lint(t, dir)); diff != "" {
		t.Errorf("issues (-want +got):\n%s", diff)
	}
}

// lint returns the issues of the tree in dir as file:line: linter, sorted.
func lint(t *testing.T, dir string) []string {
	t.Helper()
	tool, err := tools.Lookup("golangci-lint")
	if err != nil {
		t.Fatal(err)
	}
	path, err := tool.Path(t.Context(), root, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, "run",
		"--output.json.path=stdout", "--show-stats=false", "--max-issues-per-linter=0", "--max-same-issues=0", "./agent/...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOLANGCI_LINT_CACHE="+t.TempDir())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	// Exit code 1 is 'there are issues'.
	var exit *exec.ExitError
	if hasIssues := errors.As(err, &exit) && exit.ExitCode() == 1; err != nil && !hasIssues {
		t.Fatalf("golangci-lint: %v\n%s%s", err, out, stderr.String())
	}
	var report struct {
		Issues []struct {
			FromLinter string
			Text       string
			Pos        struct {
				Filename string
				Line     int
			}
		}
	}
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&report); err != nil {
		t.Fatalf("golangci-lint printed no JSON: %v\n%s%s", err, out, stderr.String())
	}
	var issues []string
	for _, issue := range report.Issues {
		t.Logf("%s:%d: %s: %s", issue.Pos.Filename, issue.Pos.Line, issue.FromLinter, issue.Text)
		issues = append(issues, fmt.Sprintf("%s:%d: %s", issue.Pos.Filename, issue.Pos.Line, issue.FromLinter))
	}
	slices.Sort(issues)
	return issues
}
