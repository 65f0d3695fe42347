// Package netns makes named network namespaces (as `ip netns` does) and runs
// code inside them.
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
)

const dir = "/run/netns"

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
	if err := share(); err != nil {
		return err
	}
	return onThread(func() error {
		h, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("create network namespace %s: %w", name, err)
		}
		return h.Close()
	})
}

// share makes the directory of names a shared mount on itself, as `ip netns
// add` does. Done by that only later, it would cover the names made before:
// they could not be deleted any more. Therefore it is not done here either
// where somebody else has names there already.
func share() error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) { // which it is where dir is no mount
		return err
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) > 0 {
		return err
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
}

// Tidy removes the mount of the directory of names on itself if no name is
// left in it. What it had covered shows again.
func Tidy() error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // in use, or no mount, or not there
	}
	return err
}

// Delete removes the name; the namespace goes with its last process. One that
// does not exist is no error.
func Delete(name string) error {
	if err := netns.DeleteNamed(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
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
	h, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	defer h.Close()
	if err := netns.Set(h); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return nil
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
