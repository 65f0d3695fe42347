package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

// Options describe a machine.
type Options struct {
	// Program is run as the machine's first process, with Args and Env. It must
	// call [Main].
	Program   string
	Args, Env []string
	// Files that it needs: path in the machine → file or directory here.
	Files map[string]string
	// Modules of the kernel that are loaded before it starts.
	Modules []string
	// Memory in MiB; 0: 1,024.
	Memory int
	// ConsoleLog is the file that the kernel's messages go to.
	ConsoleLog string
	// Output takes what the program writes to standard output and error.
	Output io.Writer
}

// guestConfig is what the program is told, in configFile.
type guestConfig struct {
	Modules   []string // paths, in order
	Args, Env []string
}

const (
	configFile = "/vm.json"
	moduleDir  = "/modules"
	// exitLine begins the last line that the program's machine writes.
	exitLine = "vm: ended with status "
)

// Run boots a machine and waits until its program has ended. The error says so
// where that was not with status 0, with the kernel's last words where the
// program did not come to an end at all.
func Run(ctx context.Context, o Options) error {
	dir, err := os.MkdirTemp("", "vpngw-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	kernel, err := FindKernel()
	if err != nil {
		return err
	}
	initrd := filepath.Join(dir, "initrd")
	if err := o.writeRoot(initrd, kernel); err != nil {
		return fmt.Errorf("root file system of the virtual machine: %w", err)
	}
	qemu, err := testenv.FindTool("qemu-system-x86_64")
	if err != nil {
		return err
	}
	memory := o.Memory
	if memory == 0 {
		memory = 1024
	}
	cmd := exec.CommandContext(ctx, qemu,
		"-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", fmt.Sprint(memory),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-kernel", kernel.Image, "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 mitigations=off tsc=reliable rdinit=/init",
		"-serial", "file:"+o.ConsoleLog, "-serial", "stdio")
	// QEMU ends with the thread that started it, which waits for it here.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	status, readErr := relay(o.Output, stdout)
	err = errors.Join(readErr, cmd.Wait())
	switch {
	case err != nil:
		return fmt.Errorf("virtual machine: %w: %s", errors.Join(context.Cause(ctx), err), strings.TrimSpace(stderr.String()))
	case status == "":
		return fmt.Errorf("virtual machine: it ended before its program; the kernel's last words:\n%s", lastWords(o.ConsoleLog))
	case status != "0":
		return fmt.Errorf("virtual machine: its program ended with status %s", status)
	}
	return nil
}

// relay copies what comes over the serial line and returns the program's status.
func relay(w io.Writer, r io.Reader) (status string, err error) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		line = strings.ReplaceAll(line, "\r", "")
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), exitLine); ok {
			status = s
		} else if _, err := io.WriteString(w, line); err != nil {
			return status, err
		}
		if errors.Is(err, io.EOF) {
			return status, nil
		}
		if err != nil {
			return status, err
		}
	}
}

func lastWords(file string) string {
	const most = 3000
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-most):])
}

// writeRoot writes the root file system.
func (o Options) writeRoot(file string, kernel Kernel) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	a := newArchive(f)
	if err := a.add("/init", o.Program); err != nil {
		return err
	}
	for name, source := range o.Files {
		if err := a.add(name, source); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/tmp", "/run"} {
		if err := a.directory(dir); err != nil {
			return err
		}
	}
	if err := a.link("/var/run", "../run"); err != nil {
		return err
	}
	// Go does not start without these; what is mounted over /dev has more.
	if err := errors.Join(a.device("/dev/console", 5, 1), a.device("/dev/null", 1, 3)); err != nil {
		return err
	}
	config := guestConfig{Args: o.Args, Env: o.Env}
	modules, err := kernel.modules(o.Modules)
	if err != nil {
		return err
	}
	for _, module := range modules {
		content, err := readModule(module)
		if err != nil {
			return err
		}
		name := filepath.Join(moduleDir, normal(filepath.Base(module))+".ko")
		config.Modules = append(config.Modules, name)
		if err := a.file(name, 0o644, content); err != nil {
			return err
		}
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := a.file(configFile, 0o644, text); err != nil {
		return err
	}
	return a.close()
}
