// Package testenv says what a test or a demo needs of the machine it runs on,
// and where what it leaves behind goes.
//
// A requirement is asked for once, by [Need] in a test and by [Missing] in a
// program. What is missing skips a test, and fails it where REQUIRE_INTEGRATION=1
// is set: continuous integration never mistakes 'not run' for 'passed'.
package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// EnvRequire names the environment variable that turns a missing requirement
// from a skip into a failure, when its value is "1".
const EnvRequire = "REQUIRE_INTEGRATION"

// Requirement checks one thing the machine must have. It returns "" when the
// machine has it, otherwise what is missing and how to get it, in one clause.
type Requirement func() string

// Need skips t, naming everything that is missing, unless all of reqs hold.
// Where REQUIRE_INTEGRATION=1 is set it fails t instead.
func Need(t testing.TB, reqs ...Requirement) {
	t.Helper()
	missing := Missing(reqs...)
	if len(missing) == 0 {
		return
	}
	reason := "this machine lacks: " + strings.Join(missing, "; ")
	if os.Getenv(EnvRequire) == "1" {
		t.Fatalf("%s (and %s=1 forbids to skip)", reason, EnvRequire)
	} else {
		t.Skip(reason)
	}
}

// Missing returns what each unmet requirement says, in the order asked for;
// empty when all of reqs hold. Programs use it to refuse politely.
func Missing(reqs ...Requirement) []string {
	var missing []string
	for _, req := range reqs {
		if m := req(); m != "" {
			missing = append(missing, m)
		}
	}
	return missing
}

// Root is the need for uid 0, which making network namespaces and mounts takes.
func Root() Requirement {
	return func() string {
		if os.Geteuid() != 0 {
			return fmt.Sprintf("root (uid is %d; run as root or with sudo)", os.Geteuid())
		}
		return ""
	}
}

// Linux is the need for a Linux kernel.
func Linux() Requirement {
	return func() string {
		if runtime.GOOS != "linux" {
			return "Linux (this is " + runtime.GOOS + ")"
		}
		return ""
	}
}

// NetNS is the need for the right to make a network namespace. It makes one, on
// a thread of its own that ends with the check.
func NetNS() Requirement {
	return func() string {
		result := make(chan error)
		go func() {
			// Never unlocked: the runtime ends a locked thread with its
			// goroutine, and the namespace with the thread.
			runtime.LockOSThread()
			result <- unix.Unshare(unix.CLONE_NEWNET)
		}()
		if err := <-result; err != nil {
			return fmt.Sprintf("the right to make network namespaces (unshare: %v; needs root, and in a container CAP_SYS_ADMIN)", err)
		}
		return ""
	}
}

// Device is the need for a device node that opens for reading and writing, such
// as /dev/net/tun.
func Device(path string) Requirement {
	return func() string {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return fmt.Sprintf("device %s (%v)", path, errors.Unwrap(err))
		}
		_ = f.Close()
		return ""
	}
}

// TUN is the need for a usable /dev/net/tun.
func TUN() Requirement { return Device("/dev/net/tun") }

// Tool is the need for the named commands, each found as by [FindTool].
func Tool(names ...string) Requirement {
	return func() string {
		var missing []string
		for _, name := range names {
			if _, err := FindTool(name); err != nil {
				missing = append(missing, err.Error())
			}
		}
		return strings.Join(missing, "; ")
	}
}

// FindTool returns the path of the named command. It looks in PATH, then in the
// sbin directories, which are not in every user's PATH on Debian. The error says
// which Debian package brings the command.
func FindTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	if pkg := PackageOf(name); pkg != "" {
		return "", fmt.Errorf("command %s (Debian package %s; `make deps` installs it)", name, pkg)
	}
	return "", fmt.Errorf("command %s", name)
}

// MustTool returns the path of the named command; a test without it is skipped
// or failed as by [Need].
func MustTool(t testing.TB, name string) string {
	t.Helper()
	Need(t, Tool(name))
	path, err := FindTool(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
