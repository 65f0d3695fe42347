// Package watch reads the configuration directory and says when it may have
// changed. It knows how the kubelet swaps mounted files: all at once, by a
// symbolic link named ..data (pkg/volume/util/atomic_writer.go in Kubernetes).
package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// attempts bounds how often a directory that is swapped while it is being read is
// read again. The kubelet swaps once a minute.
const attempts = 10

// Read returns all files below dir. Of a directory that the kubelet keeps, the
// ..data link is resolved once and everything is read from its target; where the
// link leads elsewhere at the end, everything is read again. So a swap in
// mid-reading can neither mix two versions nor leave out files that the kubelet
// has just removed with the old one. Hidden names are left out. A directory stands
// there too, with a slash at its end and no content: an empty Secret is not one
// that is not mounted. The error is that of the operating system, with the path.
func Read(dir string) (spec.Files, error) {
	files := spec.Files{}
	if err := readInto(files, dir, ""); err != nil {
		return nil, err
	}
	return files, nil
}

func readInto(files spec.Files, dir, prefix string) error {
	problem := fmt.Errorf("%s: swapped %d times while it was being read", dir, attempts)
	for range attempts {
		version, err := filepath.EvalSymlinks(filepath.Join(dir, dataLink))
		switch {
		case errors.Is(err, fs.ErrNotExist) && !isLink(filepath.Join(dir, dataLink)):
			return readDir(files, dir, prefix) // not one of the kubelet's
		case errors.Is(err, fs.ErrNotExist):
			problem = err // swapped in this moment, or it leads nowhere
			continue
		case err != nil:
			return err
		}
		read := spec.Files{}
		err = readDir(read, version, prefix)
		if now, _ := filepath.EvalSymlinks(filepath.Join(dir, dataLink)); now != version {
			continue // what was read, and what could not be, is of the past
		}
		maps.Copy(files, read)
		return err
	}
	return problem
}

func readDir(files spec.Files, dir, prefix string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if prefix != "" {
		files[prefix] = nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		full := filepath.Join(dir, e.Name())
		info, err := os.Stat(full) // follows links: hand-made trees may have some
		switch {
		case errors.Is(err, fs.ErrNotExist) && !isLink(full):
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

// isLink tells a link that leads nowhere, which is a fault, from a file that is
// gone, which is none.
func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}
