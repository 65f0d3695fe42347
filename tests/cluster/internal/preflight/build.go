package preflight

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/debian"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/layout"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/progress"
)

// buildSpace is what a cold build writes: 5 GB into Go's build cache, 1 GB of
// modules, half a GB of programs.
const buildSpace = 8 << 30

// Build checks what building needs and returns the variables (NAME=value) by
// which cgo finds libseccomp. Where that is missing it is fetched into the cache.
func Build(ctx context.Context, dirs layout.Dirs, p *progress.Printer) (env []string, err error) {
	var l list
	if _, err := exec.LookPath("go"); err != nil {
		l.add("no go in PATH", "every part is built from source", "install Go, see https://go.dev/doc/install")
	}
	compiler := os.Getenv("CC")
	if compiler == "" {
		compiler = "gcc"
	}
	if _, err := exec.LookPath(strings.Fields(compiler)[0]); err != nil {
		l.add("no C compiler ("+compiler+")", "runc has a part in C", "on Debian: apt-get install gcc libc6-dev")
	}
	env, err = seccomp(ctx, dirs, p)
	if err != nil {
		l.add("no static libseccomp", "runc filters system calls by it: "+err.Error(),
			"on Debian: apt-get install libseccomp-dev pkg-config; on Fedora: dnf install libseccomp-devel libseccomp-static pkgconf")
	}
	if err := space(dirs.Root, buildSpace); err != nil {
		l.add("too little disk space", err.Error(), "make room, or set VPN_GATEWAY_CACHE and GOCACHE to a larger disk")
	}
	return env, l.err()
}

// seccomp makes sure that there is a libseccomp to link statically: the
// machine's own, else the distribution's package, unpacked.
func seccomp(ctx context.Context, dirs layout.Dirs, p *progress.Printer) ([]string, error) {
	out, err := exec.CommandContext(ctx, "pkg-config", "--variable=libdir", "libseccomp").Output()
	if err == nil {
		if _, err := os.Stat(filepath.Join(strings.TrimSpace(string(out)), "libseccomp.a")); err == nil {
			return nil, nil
		}
	}
	if !debian.Available() {
		return nil, fmt.Errorf("pkg-config finds none")
	}
	p.Say("this machine has no libseccomp-dev: unpacking the distribution's package into the cache")
	tree, err := debian.Unpack(ctx, dirs.Debian(), "libseccomp-dev")
	if err != nil {
		return nil, err
	}
	libraries, err := tree.Libraries()
	if err != nil {
		return nil, err
	}
	flags := make([]string, 0, len(libraries)+1)
	for _, dir := range libraries {
		flags = append(flags, "-L"+dir)
	}
	// cgo asks pkg-config, and takes the program of that name from this variable.
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in\n*--cflags*) echo -I%s/usr/include ;;\n*--libs*) echo %s -lseccomp ;;\nesac\n",
		tree.Root, strings.Join(flags, " "))
	file := filepath.Join(dirs.Debian(), "pkg-config")
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		return nil, err
	}
	return []string{"PKG_CONFIG=" + file}, nil
}

// space fails where the file system of a directory, or of the nearest one
// above that exists, has less than the given number of bytes free.
func space(dir string, need uint64) error {
	var fs unix.Statfs_t
	for unix.Statfs(dir, &fs) != nil && dir != "/" {
		dir = filepath.Dir(dir)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < need {
		return fmt.Errorf("%s has %d GB free, of %d GB needed", dir, free>>30, need>>30)
	}
	return nil
}
