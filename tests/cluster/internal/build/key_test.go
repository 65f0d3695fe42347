package build

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestKey(t *testing.T) {
	part := Part{Name: "p", Dir: "p", Packages: []string{"."}, Sources: []string{"p"}}
	files := map[string]string{"p/go.mod": "module p", "p/sub/x.go": "package x", "q/y.go": "package y"}
	base := key(t, part, files, "go1")

	same := []struct {
		name  string
		files map[string]string
	}{
		{"the same inputs in another place", files},
		{"a file that is no source", with(files, "q/y.go", "package z")},
	}
	for _, tt := range same {
		if got := key(t, part, tt.files, "go1"); got != base {
			t.Errorf("%s: key %s, want %s", tt.name, got, base)
		}
	}

	tagged, linked, cgo, replaced := part, part, part, part
	tagged.Tags = "x"
	replaced.Replaced = &Replacement{Module: "m"}
	linked.LDFlags = "-X a=b"
	cgo.CGO = true
	other := []struct {
		name      string
		part      Part
		files     map[string]string
		goVersion string
	}{
		{"another text", part, with(files, "p/sub/x.go", "package z"), "go1"},
		{"another file", part, with(files, "p/new.go", ""), "go1"},
		{"text moved from one file to the next", part, with(with(files, "p/go.mod", "module"), "p/sub/x.go", " ppackage x"), "go1"},
		{"another toolchain", part, files, "go2"},
		{"tags", tagged, files, "go1"},
		{"linker flags", linked, files, "go1"},
		{"cgo", cgo, files, "go1"},
		{"files of a dependency", replaced, files, "go1"},
	}
	for _, tt := range other {
		if got := key(t, tt.part, tt.files, tt.goVersion); got == base {
			t.Errorf("%s: the key is the same", tt.name)
		}
	}
}

func TestKeyNeedsSources(t *testing.T) {
	if _, err := Key(Part{Sources: []string{"nowhere"}}, t.TempDir(), "go1"); err == nil {
		t.Error("no error for sources that do not exist")
	}
}

// Every part has its sources, and no program has the name of another's.
func TestParts(t *testing.T) {
	const source = "../.."
	owner := map[string]string{}
	for _, part := range slices.Concat(Parts(), OptionalParts()) {
		if _, err := Key(part, source, "go1"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(source, part.Dir, "go.mod")); err != nil {
			t.Errorf("%s: %v", part.Name, err)
		}
		if part.Replaced != nil {
			for _, ours := range part.Replaced.Files {
				if _, err := os.Stat(filepath.Join(source, part.Dir, ours)); err != nil {
					t.Errorf("%s: %v", part.Name, err)
				}
			}
		}
		for _, program := range part.Programs() {
			if other := owner[program]; other != "" {
				t.Errorf("%s is made by %s and by %s", program, other, part.Name)
			}
			owner[program] = part.Name
		}
	}
}

func key(t *testing.T, part Part, files map[string]string, goVersion string) string {
	t.Helper()
	source := t.TempDir()
	for name, text := range files {
		file := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k, err := Key(part, source, goVersion)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func with(files map[string]string, name, text string) map[string]string {
	changed := map[string]string{name: text}
	for n, x := range files {
		if n != name {
			changed[n] = x
		}
	}
	return changed
}
