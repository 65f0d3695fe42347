package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Key is a short hash of everything that decides what comes out of building a
// part: its definition, the Go toolchain, the platform, and the names and texts
// of its sources. go.sum is among these, and with it every dependency.
func Key(part Part, source, goVersion string) (string, error) {
	h := sha256.New()
	definition, err := json.Marshal(part)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(h, "%s\n%s\n%s/%s\n", definition, goVersion, runtime.GOOS, runtime.GOARCH)
	for _, root := range part.Sources {
		err := filepath.WalkDir(filepath.Join(source, root), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(source, path)
			if err != nil {
				return err
			}
			// The length keeps two files from being taken for one.
			fmt.Fprintf(h, "%s %d\n%s\n", name, len(text), text)
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("sources of %s: %w", part.Name, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}
