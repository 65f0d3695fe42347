// Package watch reads the configuration directory and says when it may have
// changed. It knows how the kubelet swaps mounted files: all at once, by a
// symbolic link named ..data (pkg/volume/util/atomic_writer.go in Kubernetes).
package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// dataLink is the kubelet's link to the volume's current files.
const dataLink = "..data"

// maxFile is above the 1 MiB that a ConfigMap or Secret can hold, with room
// for directories that are not mounted from one.
const maxFile = 16 << 20

// Read returns all files below dir. Of a directory that the kubelet keeps, the
// ..data link is resolved once and everything is read from its target, so that
// a swap in mid-reading cannot mix two versions. Hidden names are left out.
// The error is that of the operating system, with the path.
func Read(dir string) (spec.Files, error) {
	files := spec.Files{}
	if err := readInto(files, dir, ""); err != nil {
		return nil, err
	}
	return files, nil
}

func readInto(files spec.Files, dir, prefix string) error {
	real := dir
	if target, err := filepath.EvalSymlinks(filepath.Join(dir, dataLink)); err == nil {
		real = target
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		full := filepath.Join(real, e.Name())
		info, err := os.Stat(full) // follows links: hand-made trees may have some
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // gone between the listing and now: the watcher calls again
		case err != nil:
			return err
		case info.IsDir():
			if err := readInto(files, full, prefix+e.Name()+"/"); err != nil {
				return err
			}
		case info.Size() > maxFile:
			return fmt.Errorf("%s: %d bytes, more than the %d that a file may have", full, info.Size(), maxFile)
		default:
			content, err := os.ReadFile(full)
			if err != nil {
				return err
			}
			files[prefix+e.Name()] = content
		}
	}
	return nil
}
