package podrun

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// initName is the name (argument 0) by which a program knows that it is to
// become a container's process.
const initName = "vpngw-podrun-init"

// File descriptors of that process, after standard input, output and error.
const (
	configFD  = 3
	failureFD = 4
)

// Main turns this process into a container's when it was started as one, and
// then never returns. In every other case it does nothing.
func Main() {
	if len(os.Args) != 1 || os.Args[0] != initName {
		return
	}
	// Namespaces, capabilities and exec itself belong to one thread.
	runtime.LockOSThread()
	failure := os.NewFile(failureFD, "failure")
	unix.CloseOnExec(configFD)
	unix.CloseOnExec(failureFD)
	fmt.Fprint(failure, becomeContainer())
	os.Exit(1)
}

// becomeContainer returns only if it fails.
func becomeContainer() error {
	var config initConfig
	if err := json.NewDecoder(os.NewFile(configFD, "config")).Decode(&config); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	enter := buildContainer
	if config.Join != 0 {
		enter = func(initConfig) error { return join(config.Join) }
	}
	if err := enter(config); err != nil {
		return err
	}
	unix.Umask(0o022)
	if err := os.Chdir(path.Join("/", config.WorkDir)); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	if err := assume(config.Identity); err != nil {
		return err
	}
	err := unix.Exec(config.Args[0], config.Args, config.Env)
	return fmt.Errorf("exec %s: %w", config.Args[0], err)
}

// buildContainer makes the container's file system and enters it.
func buildContainer(config initConfig) error {
	unix.Umask(0)
	if err := makeRoot(config); err != nil {
		return err
	}
	if err := enterRoot(config.Root); err != nil {
		return err
	}
	if err := hideProc(); err != nil {
		return err
	}
	if config.Identity.ReadOnlyRootFS {
		if err := remountReadOnly("/"); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(config.Hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	return nil
}

// makeRoot builds the root file system at config.Root.
func makeRoot(config initConfig) error {
	root := config.Root
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	for _, target := range slices.Sorted(maps.Keys(config.Files)) {
		if err := bind(bindMount{Source: config.Files[target], Target: filepath.Join(root, target), ReadOnly: true}); err != nil {
			return fmt.Errorf("image: %w", err)
		}
	}
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		kind, target string
		flags        uintptr
		options      string
	}{
		{"proc", "/proc", quiet, ""},
		{"tmpfs", "/dev", unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=0755,size=65536k"},
		{"tmpfs", "/dev/shm", quiet, "mode=1777,size=65536k"},
		{"mqueue", "/dev/mqueue", quiet, ""},
		{"sysfs", "/sys", quiet | unix.MS_RDONLY, ""},
	} {
		target := filepath.Join(root, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		err := unix.Mount(m.kind, target, m.kind, m.flags, m.options)
		if err != nil && (m.kind != "mqueue" || !errors.Is(err, unix.ENODEV)) { // small kernels lack mqueue
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := bind(bindMount{Source: "/dev/" + name, Target: filepath.Join(root, "dev", name)}); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join(root, "dev", name)); err != nil {
			return err
		}
	}
	for _, m := range config.Mounts {
		m.Target = filepath.Join(root, m.Target)
		if err := bind(m); err != nil {
			return err
		}
	}
	return nil
}

// bind mounts m, making its target first.
func bind(m bindMount) error {
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(m.Target, 0o755)
	} else {
		err = makeFile(m.Target)
	}
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	if err := unix.Mount(m.Source, m.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", m.Source, m.Target, err)
	}
	if m.ReadOnly {
		return remountReadOnly(m.Target)
	}
	return nil
}

func makeFile(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// remountReadOnly leaves the mount's other flags as they are.
func remountReadOnly(target string) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, 0, attr); err != nil {
		return fmt.Errorf("making %s read-only: %w", target, err)
	}
	return nil
}

// enterRoot makes root the root directory and lets go of everything else.
func enterRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	err := unix.PivotRoot(".", ".")
	switch {
	case err == nil:
		// The old root lies over the new one at the same place now.
		err = unix.Unmount(".", unix.MNT_DETACH)
	case errors.Is(err, unix.EINVAL):
		// An initramfs cannot be pivoted away from: move over it instead.
		if err = unix.Mount(root, "/", "", unix.MS_MOVE, ""); err == nil {
			err = unix.Chroot(".")
		}
	}
	if err != nil {
		return fmt.Errorf("entering the root file system: %w", err)
	}
	return os.Chdir("/")
}

// hideProc hides and write-protects what runtimes do by default
// (containerd, oci/spec.go: MaskedPaths and ReadonlyPaths).
func hideProc() error {
	for _, name := range []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	} {
		info, err := os.Stat(name)
		if err != nil {
			continue
		}
		if info.IsDir() {
			err = unix.Mount("tmpfs", name, "tmpfs", unix.MS_RDONLY, "")
		} else {
			err = unix.Mount("/dev/null", name, "", unix.MS_BIND, "")
		}
		if err != nil {
			return fmt.Errorf("hiding %s: %w", name, err)
		}
	}
	for _, name := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		if _, err := os.Stat(name); err != nil {
			continue
		}
		if err := unix.Mount(name, name, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("protecting %s: %w", name, err)
		}
		if err := remountReadOnly(name); err != nil {
			return err
		}
	}
	return nil
}

// assume gives this thread the identity that exec passes on.
func assume(id identity) error {
	for number := range capabilityNames() {
		if id.Capabilities&(1<<number) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) { // a number newer than the kernel
			return fmt.Errorf("bounding set: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keepcaps: %w", err)
	}
	if err := setUser(id); err != nil {
		return err
	}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{}
	for i := range data {
		half := uint32(id.Capabilities >> (32 * i))
		data[i] = unix.CapUserData{Effective: half, Permitted: half}
	}
	if err := unix.Capset(header, &data[0]); err != nil {
		return fmt.Errorf("capabilities %s: %w", strings.Join(namesOf(id.Capabilities), ","), err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient set: %w", err)
	}
	if id.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no_new_privs: %w", err)
		}
	}
	// A change of user has cleared it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("parent death signal: %w", err)
	}
	return nil
}

// setUser changes all threads, which does no harm: the others end with exec.
func setUser(id identity) error {
	if err := syscall.Setgroups(id.Groups); err != nil {
		return fmt.Errorf("groups %v: %w", id.Groups, err)
	}
	if err := syscall.Setresgid(id.GID, id.GID, id.GID); err != nil {
		return fmt.Errorf("group %d: %w", id.GID, err)
	}
	if err := syscall.Setresuid(id.UID, id.UID, id.UID); err != nil {
		return fmt.Errorf("user %d: %w", id.UID, err)
	}
	return nil
}
