package podrun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Names that the kubelet gives to the parts of a volume
// (pkg/volume/util/atomic_writer.go in Kubernetes).
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
	stampLayout = "..2006_01_02_15_04_05."
)

// payload is what a volume is to hold: path in the volume → file.
type payload map[string]projectedFile

type projectedFile struct {
	content []byte
	mode    os.FileMode
}

// writeAtomic makes the volume at dir hold files and nothing else, in the
// kubelet's steps, and returns the moment just before the ..data link was
// swapped. Where dir holds just that already it does nothing and returns the
// zero time. gid, where not negative, becomes the group of all files, which may
// then read them (fsGroup).
func writeAtomic(dir string, files payload, gid int) (time.Time, error) {
	oldStamp, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, err
	}
	if oldStamp != "" {
		same, err := holdsAlready(filepath.Join(dir, oldStamp), files, gid)
		if same || err != nil {
			return time.Time{}, err
		}
	}
	stamp, err := writeStamp(dir, files, gid)
	if err != nil {
		return time.Time{}, err
	}
	next := filepath.Join(dir, newDataLink)
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, err
	}
	if err := os.Symlink(stamp, next); err != nil {
		return time.Time{}, err
	}
	swapped := time.Now()
	if err := os.Rename(next, filepath.Join(dir, dataLink)); err != nil {
		return time.Time{}, err
	}
	if err := linkVisible(dir, files); err != nil {
		return time.Time{}, err
	}
	if oldStamp != "" {
		if err := os.RemoveAll(filepath.Join(dir, oldStamp)); err != nil {
			return time.Time{}, err
		}
	}
	return swapped, nil
}

// holdsAlready reports whether the time-stamped directory holds files exactly.
func holdsAlready(stampDir string, files payload, gid int) (bool, error) {
	found := 0
	same := true
	err := filepath.WalkDir(stampDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(stampDir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		want, ok := files[name]
		found++
		same = same && ok && string(want.content) == string(content) && modeFor(want.mode, gid) == info.Mode().Perm()
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // somebody took the directory away: write it anew
	}
	return same && found == len(files), err
}

// writeStamp writes files into a new time-stamped directory and returns its name.
func writeStamp(dir string, files payload, gid int) (string, error) {
	stamp, err := os.MkdirTemp(dir, time.Now().UTC().Format(stampLayout))
	if err != nil {
		return "", err
	}
	if err := os.Chmod(stamp, 0o755); err != nil {
		return "", err
	}
	for name, file := range files {
		path := filepath.Join(stamp, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		mode := modeFor(file.mode, gid)
		if err := os.WriteFile(path, file.content, mode); err != nil {
			return "", err
		}
		// Once more, free of the process's umask.
		if err := os.Chmod(path, mode); err != nil {
			return "", err
		}
		if gid >= 0 {
			if err := os.Chown(path, -1, gid); err != nil {
				return "", err
			}
		}
	}
	return filepath.Base(stamp), nil
}

func modeFor(mode os.FileMode, gid int) os.FileMode {
	if gid >= 0 {
		return mode | 0o440
	}
	return mode
}

// linkVisible makes the names that users see: for each first path element a link
// through ..data; those of files that are gone are removed.
func linkVisible(dir string, files payload) error {
	wanted := map[string]bool{}
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		wanted[first] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for name := range wanted {
		if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name }) {
			continue
		}
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") || wanted[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("removing what is no longer in the volume: %w", err)
		}
	}
	return nil
}
