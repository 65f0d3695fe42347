// Command deps installs the system packages that the tests and demos need and
// the machine lacks, where that is Debian or a kin of it and the user is root.
// Elsewhere it names what is missing.
//
//	deps [-try] [-vm]
//
// With -vm it also installs QEMU, and fetches a kernel into the cache, for the
// tests that take a virtual machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/vm"
)

func main() {
	try := flag.Bool("try", false, "succeed even where packages stay missing: tests that need them are skipped")
	withVM := flag.Bool("vm", false, "also what the tests in a virtual machine need")
	flag.Parse()
	if err := run(context.Background(), *withVM); err != nil {
		fmt.Fprintln(os.Stderr, "deps:", err)
		if !*try {
			os.Exit(1)
		}
	}
}

func run(ctx context.Context, withVM bool) error {
	err := install(ctx, withVM)
	if withVM {
		err = errors.Join(err, vm.FetchKernel(ctx))
	}
	return err
}

func install(ctx context.Context, withVM bool) error {
	missing := missingPackages(withVM)
	if len(missing) == 0 {
		return nil
	}
	names := strings.Join(missing, " ")
	aptGet, err := exec.LookPath("apt-get")
	switch {
	case err != nil:
		return fmt.Errorf("missing packages (Debian's names): %s; this machine has no apt-get, install them by its own means", names)
	case os.Geteuid() != 0:
		return fmt.Errorf("missing packages: %s; run as root, or: sudo apt-get install %s", names, names)
	}
	for _, args := range [][]string{
		{"update", "-qq"},
		append([]string{"install", "-qq", "-y", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends"}, missing...),
	} {
		cmd := exec.CommandContext(ctx, aptGet, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("apt-get %s: %w", strings.Join(args, " "), err)
		}
	}
	if missing := missingPackages(withVM); len(missing) > 0 {
		return errors.New("installed, but their commands are not found: " + strings.Join(missing, " "))
	}
	return nil
}

// missingPackages returns the names of the packages whose command isn't there.
func missingPackages(withVM bool) []string {
	var missing []string
	for _, p := range testenv.Packages() {
		if p.VM && !withVM {
			continue
		}
		if _, err := testenv.FindTool(p.Command); err != nil {
			missing = append(missing, p.Name)
		}
	}
	return missing
}
