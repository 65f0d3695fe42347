// Package netns makes named network namespaces and runs code inside them.
//
// `ip netns` and its like find them by their names in /run/netns. What lies
// there are symbolic links; the namespaces themselves are mounted in a
// directory of our own. The first `ip netns add` on a machine mounts
// /run/netns on itself, which covers every namespace that was mounted there
// before by other means: it can be entered and deleted no more.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/layout"
)

const (
	dir   = layout.RuntimeDir + "/netns"
	names = "/run/netns"
)

// Path is the file that holds the namespace of that name.
func Path(name string) string { return filepath.Join(dir, name) }

// Exists tells whether there is a namespace of that name.
func Exists(name string) bool {
	_, err := os.Stat(Path(name))
	return err == nil
}

// Create makes the namespace; one that exists is left as it is.
func Create(name string) error {
	if Exists(name) {
		return nil
	}
	if err := create(name); err != nil {
		return errors.Join(fmt.Errorf("create network namespace %s: %w", name, err), Delete(name))
	}
	return nil
}

func create(name string) error {
	for _, d := range []string{dir, names} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink(Path(name), filepath.Join(names, name)); err != nil {
		return err
	}
	if err := os.WriteFile(Path(name), nil, 0o444); err != nil {
		return err
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", Path(name), "", unix.MS_BIND, "")
	})
}

// Delete removes the name; the namespace goes with its last process. One that
// does not exist is no error.
func Delete(name string) error {
	err := unix.Unmount(Path(name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) { // no mount: creating it failed half-way
		err = nil
	}
	for _, err := range []error{err, os.Remove(Path(name)), removeLink(name)} {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete network namespace %s: %w", name, err)
		}
	}
	return nil
}

// removeLink removes the link to a namespace of ours, not a stranger's
// namespace of the same name.
func removeLink(name string) error {
	link := filepath.Join(names, name)
	if target, err := os.Readlink(link); err != nil || target != Path(name) {
		return nil
	}
	return os.Remove(link)
}

// Do runs f inside the namespace. Sockets that f opens and processes that it
// starts belong to the namespace for good; goroutines that it starts do not.
func Do(name string, f func() error) error {
	return onThread(func() error {
		if err := Enter(name); err != nil {
			return err
		}
		return f()
	})
}

// Enter moves the calling thread into the namespace. The caller must have
// locked the goroutine to it, and must never unlock it.
func Enter(name string) error {
	h, err := Open(name)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := netns.Set(h); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return nil
}

// Open opens the namespace; the caller closes it.
func Open(name string) (netns.NsHandle, error) {
	h, err := netns.GetFromPath(Path(name))
	if err != nil {
		return h, fmt.Errorf("network namespace %s: %w", name, err)
	}
	return h, nil
}

// onThread runs f on an operating system thread that nobody uses afterwards:
// a goroutine that ends while locked takes its thread along.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
