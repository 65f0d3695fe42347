package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// outputDevice is the machine's second serial line: the first one has the
// kernel's messages.
const outputDevice = "/dev/ttyS1"

// Main runs the rest of the program, and where it is the first process of a
// virtual machine, prepares that for it and switches the machine off afterwards.
// run returns the exit status; so does Main, in every other case.
func Main(run func() int) int {
	if _, err := os.Stat(configFile); os.Getpid() != 1 || err != nil {
		return run()
	}
	status := 1
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
	} else {
		status = run()
	}
	fmt.Fprintf(os.Stdout, "%s%d\n", exitLine, status)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	return status // never: there is no machine any more
}

// prepare does what the init of a distribution does, as far as it is needed.
func prepare() error {
	if err := os.MkdirAll("/proc", 0o755); err != nil {
		return err
	}
	for _, m := range []struct{ kind, target string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
	} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	if err := redirect(); err != nil {
		return err
	}
	for name, target := range map[string]string{"fd": "", "stdin": "0", "stdout": "1", "stderr": "2"} {
		if err := os.Symlink(filepath.Join("/proc/self/fd", target), filepath.Join("/dev", name)); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(configFile)
	if err != nil {
		return err
	}
	var config guestConfig
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	for _, module := range config.Modules {
		if err := load(module); err != nil {
			return err
		}
	}
	os.Args = append(os.Args[:1], config.Args...)
	config.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"}, config.Env...)
	for _, variable := range config.Env {
		for i := range variable {
			if variable[i] == '=' {
				if err := os.Setenv(variable[:i], variable[i+1:]); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// redirect makes the serial line standard output and error, as it is: without the
// terminal's translations.
func redirect() error {
	line, err := os.OpenFile(outputDevice, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer line.Close()
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(line.Fd()), fd, 0); err != nil {
			return fmt.Errorf("standard output: %w", err)
		}
	}
	return nil
}

func load(module string) error {
	f, err := os.Open(module)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading %s: %w", module, err)
	}
	return nil
}
