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

	"golang.org/x/sys/unix"

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
	link := filepath.Join(dir, dataLink)
	for range attempts {
		version, err := os.Readlink(link)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EINVAL):
			return readDir(files, dir, prefix) // not one of the kubelet's
		case err != nil:
			return err
		}
		read := spec.Files{}
		err = readDir(read, link, prefix)
		if now, _ := os.Readlink(link); now != version {
			continue // what was read, and what could not be, is of the past
		}
		maps.Copy(files, read)
		return err
	}
	return fmt.Errorf("%s: swapped %d times while it was being read", dir, attempts)
}

func readDir(files spec.Files, dir, prefix string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return err
	}
	if prefix != "" {
		files[prefix] = nil
	}
	fd := int(d.Fd())
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		name, full := prefix+e.Name(), filepath.Join(dir, e.Name())
		content, err := readFile(fd, e.Name())
		switch {
		case errors.Is(err, unix.EISDIR):
			err = readInto(files, full, name+"/")
		case errors.Is(err, fs.ErrNotExist) && !isLink(full):
			err = nil // gone between the listing and now: the watcher calls again
		case err != nil:
			err = &fs.PathError{Op: "read", Path: full, Err: err}
		default:
			files[name] = content
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readFile returns what a file of a directory holds. It leaves package os out,
// which makes eleven system calls where four do: peers may have a file each, and
// nothing else takes as long between the kubelet's swap and the key in force.
// Links are followed, as hand-made trees may have some.
func readFile(dir int, name string) ([]byte, error) {
	// Without O_NONBLOCK, a pipe would wait for somebody to write into it.
	fd, err := retried(func() (int, error) { return unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) })
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var info unix.Stat_t
	switch err := unix.Fstat(fd, &info); {
	case err != nil:
		return nil, err
	case info.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, unix.EISDIR
	case info.Size > maxFile:
		return nil, fmt.Errorf("%d bytes, more than the %d that a file may have", info.Size, maxFile)
	}
	content := make([]byte, info.Size)
	for read := 0; read < len(content); {
		n, err := retried(func() (int, error) { return unix.Read(fd, content[read:]) })
		switch {
		case err != nil:
			return nil, err
		case n == 0:
			return content[:read], nil // cut off meanwhile: the watcher calls again
		}
		read += n
	}
	return content, nil
}

// retried calls again what a signal interrupts, such as those by which the Go
// runtime preempts goroutines.
func retried(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// isLink tells a link that leads nowhere, which is a fault, from a file that is
// gone, which is none.
func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}
