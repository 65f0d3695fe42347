// Package vm boots a small virtual machine around one program, for what the
// kernel of this machine lacks: QEMU, a stock Debian kernel with the modules that
// are asked for, and a root file system in memory that holds the program and the
// files it needs. Nothing of it is installed, and it needs no rights.
//
// The program calls [Main] first thing. With /dev/kvm it runs at full speed;
// without, QEMU emulates the processor, 10 to 50 times slower.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

// metaPackage is Debian's package that depends on its newest kernel for virtual
// machines.
const metaPackage = "linux-image-cloud-amd64"

// Kernel is an unpacked kernel package in the cache.
type Kernel struct {
	Image   string // the file to boot
	Modules string // the directory lib/modules/RELEASE
}

// FindKernel returns the newest kernel in the cache.
func FindKernel() (Kernel, error) {
	cache, err := testenv.Cache("kernel")
	if err != nil {
		return Kernel{}, err
	}
	images, err := filepath.Glob(filepath.Join(cache, "linux-image-*", "boot", "vmlinuz-*"))
	if err != nil {
		return Kernel{}, err
	}
	if len(images) == 0 {
		return Kernel{}, fmt.Errorf("no kernel in %s; `make deps` fetches Debian's %s", cache, metaPackage)
	}
	slices.Sort(images)
	image := images[len(images)-1]
	release := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
	k := Kernel{Image: image, Modules: filepath.Join(filepath.Dir(image), "..", "lib", "modules", release)}
	if _, err := os.Stat(k.Modules); err != nil {
		return Kernel{}, fmt.Errorf("kernel %s without its modules: %w", release, err)
	}
	return k, nil
}

// FetchKernel makes sure that there is a kernel in the cache: it downloads
// Debian's package, 26 MB, and unpacks it there. It installs nothing.
func FetchKernel(ctx context.Context) error {
	if _, err := FindKernel(); err == nil {
		return nil
	}
	if missing := testenv.Missing(testenv.Tool("apt-get", "apt-cache", "dpkg-deb"), amd64()); len(missing) > 0 {
		return fmt.Errorf("cannot fetch a kernel: this machine lacks: %s", strings.Join(missing, "; "))
	}
	cache, err := testenv.Cache("kernel")
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	name, err := kernelPackage(ctx)
	if err != nil {
		return err
	}
	root := filepath.Join(scratch, "root")
	for _, args := range [][]string{
		{"apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name},
		{"sh", "-c", `dpkg-deb -x "$1"*.deb "$2"`, "sh", name, root},
	} {
		if _, err := output(ctx, scratch, args...); err != nil {
			return fmt.Errorf("fetching kernel package %s: %w", name, err)
		}
	}
	// In one step: whoever looks finds a whole kernel or none.
	if err := os.Rename(root, filepath.Join(cache, name)); err != nil {
		return fmt.Errorf("fetching kernel package %s: %w", name, err)
	}
	return nil
}

// kernelPackage returns the name of the newest kernel's package.
func kernelPackage(ctx context.Context) (string, error) {
	for range 2 {
		text, err := output(ctx, "", "apt-cache", "depends", "--important", metaPackage)
		for line := range strings.Lines(text) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
				return name, nil
			}
		}
		if err != nil && !errors.As(err, new(*exec.ExitError)) {
			return "", err
		}
		// Fresh containers have no lists of packages.
		if _, err := output(ctx, "", "apt-get", "update", "-qq"); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("no package %s: this is not Debian, or its package lists lack it", metaPackage)
}

func output(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s: %w: %s", args[0], err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}

// Needs are the requirements for a virtual machine.
func Needs() testenv.Requirement {
	return func() string {
		missing := testenv.Missing(amd64(), testenv.Tool("qemu-system-x86_64"), func() string {
			if _, err := FindKernel(); err != nil {
				return err.Error()
			}
			return ""
		})
		return strings.Join(missing, "; ")
	}
}

func amd64() testenv.Requirement {
	return func() string {
		if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
			return "linux/amd64 (this is " + runtime.GOOS + "/" + runtime.GOARCH + ")"
		}
		return ""
	}
}
