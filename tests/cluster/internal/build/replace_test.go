package build

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The part is this program itself, the dependency one of its own.
func TestReplacement(t *testing.T) {
	const part, module = "../..", "github.com/google/go-cmp"
	to := t.TempDir()
	r := Replacement{Module: module, Files: map[string]string{"cmp/path.go": "main.go"}}
	modfile, err := r.apply(t.Context(), part, to)
	if err != nil {
		t.Fatal(err)
	}
	ours := read(t, filepath.Join(part, "main.go"))
	if diff := cmp.Diff(ours, read(t, filepath.Join(to, "module", "cmp", "path.go"))); diff != "" {
		t.Errorf("the replaced file (-ours +got):\n%s", diff)
	}
	for file, want := range map[string]bool{
		"go.mod": true, "cmp/compare.go": true, "cmp/internal/diff/diff.go": true,
		"cmp/compare_test.go": false, "LICENSE": false,
	} {
		if _, err := os.Stat(filepath.Join(to, "module", file)); (err == nil) != want {
			t.Errorf("%s is copied: %t, want %t", file, err == nil, want)
		}
	}
	// What is built from is the copy, with all other dependencies as they are.
	want := read(t, filepath.Join(part, "go.mod")) + "\nreplace " + module + " => " + filepath.Join(to, "module") + "\n"
	if diff := cmp.Diff(want, read(t, modfile)); diff != "" {
		t.Errorf("go.mod (-want +got):\n%s", diff)
	}
	sum := strings.TrimSuffix(modfile, "mod") + "sum"
	if diff := cmp.Diff(read(t, filepath.Join(part, "go.sum")), read(t, sum)); diff != "" {
		t.Errorf("go.sum (-want +got):\n%s", diff)
	}
}

func TestReplacementNeedsTheFile(t *testing.T) {
	r := Replacement{Module: "github.com/google/go-cmp", Files: map[string]string{"cmp/moved.go": "main.go"}}
	if _, err := r.apply(t.Context(), "../..", t.TempDir()); err == nil || !strings.Contains(err.Error(), "cmp/moved.go") {
		t.Errorf("error %v, want one with cmp/moved.go", err)
	}
}

func TestSelect(t *testing.T) {
	parts, err := Select([]string{"external-secrets"})
	if err != nil || len(parts) != 1 || parts[0].Name != "external-secrets" {
		t.Errorf("%+v, %v, want the part external-secrets", parts, err)
	}
	// A part of every cluster is none to choose.
	if _, err := Select([]string{"kubernetes"}); err == nil || !strings.Contains(err.Error(), "external-secrets") {
		t.Errorf("error %v, want one that names the parts to choose from", err)
	}
}

// A cluster has none of the optional parts' programs and images.
func TestImages(t *testing.T) {
	var refs []string
	for _, spec := range images(map[string]string{"pause": "p", "coredns": "c", "echo": "e"}) {
		refs = append(refs, spec.Ref)
	}
	if slices.ContainsFunc(refs, func(ref string) bool { return strings.Contains(ref, "external-secrets") }) || len(refs) != 3 {
		t.Errorf("images %v, want those of pause, coredns and echo", refs)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
