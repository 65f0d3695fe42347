package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

const module = "module example.test\n\ngo 1.26.0\n"

func TestRun(t *testing.T) {
	tests := []struct {
		name   string
		source string
		args   []string
		counts string
		shows  []string
		hides  []string
		fails  bool
	}{
		{
			name:   "passes",
			source: `func TestA(t *testing.T) { t.Log("quiet"); for _, n := range []string{"x", "y"} { t.Run(n, func(t *testing.T) {}) } }`,
			counts: "2 passed, 0 failed, 0 skipped",
			shows:  []string{"ok  \texample.test"},
			hides:  []string{"quiet", "PASS\n", "=== RUN"},
		},
		{
			name:   "verbose",
			source: `func TestA(t *testing.T) { t.Log("loud") }`,
			args:   []string{"-v"},
			counts: "1 passed, 0 failed, 0 skipped",
			shows:  []string{"loud", "=== RUN   TestA"},
		},
		{
			name:   "skips",
			source: `func TestA(t *testing.T) {}; func TestB(t *testing.T) { t.Skip("no root here") }`,
			counts: "1 passed, 0 failed, 1 skipped",
			shows:  []string{"no root here", "--- SKIP: TestB"},
		},
		{
			name:   "a subtest fails",
			source: `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) { t.Error("broken") }); t.Run("y", func(t *testing.T) {}) }`,
			counts: "1 passed, 1 failed, 0 skipped",
			shows:  []string{"broken", "--- FAIL: TestA/x", "FAIL\texample.test"},
			fails:  true,
		},
		{
			name:   "a parent fails by itself",
			source: `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) {}); t.Error("after") }`,
			counts: "1 passed, 1 failed, 0 skipped",
			shows:  []string{"after"},
			fails:  true,
		},
		{
			name:   "panics",
			source: `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) { panic("boom") }) }; func TestB(t *testing.T) {}`,
			counts: "0 passed, 1 failed, 0 skipped",
			shows:  []string{"panic: boom"},
			fails:  true,
		},
		{
			name:   "exits within a test",
			source: `func TestA(t *testing.T) { t.Log("going"); os.Exit(3) }; var _ = os.Args`,
			counts: "0 passed, 1 failed, 0 skipped",
			fails:  true,
		},
		{
			name:   "does not build",
			source: `func TestA(t *testing.T) { undefined() }`,
			counts: "0 passed, 1 failed, 0 skipped",
			shows:  []string{"undefined: undefined", "[build failed]"},
			fails:  true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, artifacts := t.TempDir(), t.TempDir()
			t.Setenv(testenv.EnvArtifacts, artifacts)
			t.Setenv("GOFLAGS", "")
			imports := `import "testing"`
			if strings.Contains(tt.source, "os.") {
				imports = `import ("os"; "testing")`
			}
			for name, content := range map[string]string{"go.mod": module, "a_test.go": "package a\n" + imports + "\n" + tt.source + "\n"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			args := append([]string{"-C", dir, "-name", "unit", "--", "-vet=off"}, tt.args...)
			err := run(context.Background(), args, &out)
			if failed := errors.Is(err, errTests); failed != tt.fails || err != nil && !failed {
				t.Errorf("error = %v, want failed tests: %v", err, tt.fails)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			closing, _, _ := strings.Cut(lines[len(lines)-1], " in ")
			if diff := cmp.Diff("gotest unit: "+tt.counts, closing); diff != "" {
				t.Errorf("closing line (-want +got):\n%s\noutput:\n%s", diff, out.String())
			}
			for _, s := range tt.shows {
				if strings.Count(out.String(), s) != 1 {
					t.Errorf("output shows %q %d times, want once:\n%s", s, strings.Count(out.String(), s), out.String())
				}
			}
			for _, s := range tt.hides {
				if strings.Contains(out.String(), s) {
					t.Errorf("output shows %q:\n%s", s, out.String())
				}
			}
			log, err := os.ReadFile(filepath.Join(artifacts, "gotest-unit.log"))
			if err != nil {
				t.Fatal(err)
			}
			if tt.name == "passes" && !strings.Contains(string(log), "quiet") {
				t.Errorf("the log lacks what a passing test wrote:\n%s", log)
			}
		})
	}
}
