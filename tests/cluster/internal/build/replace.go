package build

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Replacement has files of ours built in the place of files of a dependency: for
// what a project does not let its users choose, by build tags or otherwise.
type Replacement struct {
	// Module is the dependency's module path.
	Module string
	// Files are paths of ours, relative to the part's directory, by the paths
	// inside of Module of those that they replace.
	Files map[string]string
}

// apply copies the module, as the part's go.mod and go.sum have it, to the
// directory to, with our files in it. It returns the go.mod to build with.
func (r *Replacement) apply(ctx context.Context, part, to string) (modfile string, err error) {
	from, err := moduleDir(ctx, part, r.Module)
	if err != nil {
		return "", err
	}
	copied := filepath.Join(to, "module")
	if err := copySources(copied, from); err != nil {
		return "", fmt.Errorf("copy of %s: %w", r.Module, err)
	}
	for theirs, ours := range r.Files {
		target := filepath.Join(copied, theirs)
		if _, err := os.Stat(target); err != nil {
			return "", fmt.Errorf("to replace in %s: %w", r.Module, err) // it has moved: nothing would come of ours
		}
		if err := copyFile(target, filepath.Join(part, ours)); err != nil {
			return "", err
		}
	}
	text, err := os.ReadFile(filepath.Join(part, "go.mod"))
	if err != nil {
		return "", err
	}
	modfile = filepath.Join(to, "go.mod")
	text = fmt.Appendf(text, "\nreplace %s => %s\n", r.Module, copied)
	if err := os.WriteFile(modfile, text, 0o600); err != nil {
		return "", err
	}
	return modfile, copyFile(filepath.Join(to, "go.sum"), filepath.Join(part, "go.sum"))
}

// moduleDir is where Go keeps the sources of a dependency of the module in a
// directory, checked against its go.sum.
func moduleDir(ctx context.Context, dir, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go mod download %s in %s: %w: %s%s", module, dir, err, out, &stderr)
	}
	var downloaded struct{ Dir string }
	if err := json.Unmarshal(out, &downloaded); err != nil {
		return "", fmt.Errorf("go mod download %s in %s: %w", module, dir, err)
	}
	return downloaded.Dir, nil
}

// copySources copies what building takes of a module: go.mod and the Go files.
func copySources(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if name != "go.mod" && (filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go")) {
			return nil
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return copyFile(target, path)
	})
}

func copyFile(to, from string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o600)
}
