package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/mountinfo"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/supervisor"
)

// Init is pid 1 of a machine: it makes the file system that the machine sees,
// runs the set-up commands, and supervises the daemons until it is killed.
func Init(ctx context.Context, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if os.Getpid() != 1 {
		return fmt.Errorf("%s: this is pid %d: only a machine's pid 1 calls this verb", InitVerb, os.Getpid())
	}
	unix.Umask(0o022)
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := mounts(spec); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return err
	}
	for _, args := range spec.Setup {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	return supervisor.New(Log, log).Run(ctx, spec.Processes)
}

// hostSysctls are settings that the kubelet sets and that belong to the whole
// host: in a machine's /proc/sys, private files with the wanted values lie
// over them.
func hostSysctls() map[string]string {
	return map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	}
}

// mounts makes the machine's view of the file system. The host's is shared
// but for what the machine writes to.
func mounts(spec Spec) error {
	// From here on nothing that is mounted shows on the host, or the reverse.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE); err != nil {
		return err
	}
	// Take hold of what the next mounts cover.
	own, err := grab(spec.Dir)
	if err != nil {
		return err
	}
	bin, err := grab(spec.Bin)
	if err != nil {
		return err
	}
	cgroups, err := grab("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	// The host's /run would keep the other machines' network namespaces alive.
	if err := unmountBelow("/run"); err != nil {
		return err
	}

	const hardened = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	steps := []func() error{
		func() error { return mount("proc", "/proc", "proc", hardened) },  // of this pid namespace
		func() error { return mount("sysfs", "/sys", "sysfs", hardened) }, // of this network namespace
		func() error { return place(cgroups, "/sys/fs/cgroup") },
		func() error { return mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV) },
		func() error { return os.Chmod("/run", 0o755) },
		func() error { return os.MkdirAll("/run/lock", 0o755) },
		func() error { return os.MkdirAll(Root, 0o755) },
		func() error { return place(own, Root) },
		func() error { return place(bin, Bin) },
		func() error { return mount(Root+"/var", "/var", "", unix.MS_BIND) },
		func() error { return mount(Root+"/tmp", "/tmp", "", unix.MS_BIND) },
		coverSysctls,
		// The kernel lets a Pod with a user namespace mount a proc only where
		// a wholly visible one is mounted already, and parts of /proc are covered.
		func() error { return os.MkdirAll("/run/proc", 0o555) },
		func() error { return mount("proc", "/run/proc", "proc", hardened) },
		tun,
		// The kubelet needs mounts to spread to the containers' namespaces.
		func() error { return mount("", "/", "", unix.MS_REC|unix.MS_SHARED) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// coverSysctls mounts private files over hostSysctls.
func coverSysctls() error {
	for name, value := range hostSysctls() {
		target := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
			continue // not in this kernel
		}
		private := filepath.Join(Root, "sysctl", strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(private, []byte(value), 0o644); err != nil {
			return err
		}
		if err := mount(private, target, "", unix.MS_BIND); err != nil {
			return err
		}
	}
	return nil
}

// tun gives the machine a /dev/net/tun that every user may open, as udev makes
// it on real nodes.
func tun() error {
	if err := os.MkdirAll("/dev/net", 0o755); err != nil {
		return err
	}
	if err := mount("tmpfs", "/dev/net", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC); err != nil {
		return err
	}
	const path = "/dev/net/tun"
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return os.Chmod(path, 0o666) // whatever the umask
}

// grab takes hold of a directory and all that is mounted in it, as a mount of
// no place yet.
func grab(path string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("open tree %s: %w", path, err)
	}
	return fd, nil
}

// place mounts what grab took.
func place(fd int, path string) error {
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move mount to %s: %w", path, err)
	}
	return nil
}

func mount(source, target, kind string, flags uintptr) error {
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", strings.TrimSpace(kind+" "+source), target, err)
	}
	return nil
}

// unmountBelow detaches every mount strictly below a directory.
func unmountBelow(dir string) error {
	mounts, err := mountinfo.Read()
	if err != nil {
		return err
	}
	for _, target := range mountinfo.Below(mounts, dir) {
		// One that went along with another, or is stacked, is no matter.
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return nil
}
