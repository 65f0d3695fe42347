package podrun

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// Exec runs a command in the container beside its process, as `kubectl exec`
// does: in its namespaces, with its identity and environment. It returns
// standard output; the error carries what went to standard error.
func (c *Container) Exec(ctx context.Context, args ...string) ([]byte, error) {
	if len(args) == 0 {
		return nil, errors.New("exec: no command")
	}
	config, err := c.pod.containerConfig(c.spec, c.Restarts())
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.spec.Name, err)
	}
	config.Args, config.Join = args, c.PID()
	var stdout, stderr bytes.Buffer
	cmd := initCommand()
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	process, err := c.pod.launch(cmd, config)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.spec.Name, err)
	}
	select {
	case <-process.Done():
		err = process.Wait()
	case <-ctx.Done():
		err = errors.Join(context.Cause(ctx), process.Kill())
	}
	if err != nil {
		if text := strings.TrimSpace(stderr.String()); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return stdout.Bytes(), fmt.Errorf("exec in container %s: %w", c.spec.Name, err)
	}
	return stdout.Bytes(), nil
}

// initCommand is this program once more, to become something in a container.
func initCommand() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{initName}
	cmd.Env = []string{}
	// No parent death signal here but in assume: Go's own, set before exec, ends
	// a child that doesn't know its parent, as is the rule in another process
	// namespace. The terminal's interrupt is for us, hence a session of its own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// launch starts an initCommand as a child of the sandbox, hands it config and
// waits until it has become the program.
func (p *Pod) launch(cmd *exec.Cmd, config *initConfig) (*netns.Process, error) {
	configRead, configWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer configRead.Close()
	defer configWrite.Close()
	failureRead, failureWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer failureRead.Close()
	defer failureWrite.Close()
	cmd.ExtraFiles = []*os.File{configRead, failureWrite}

	err = p.sandbox.do(func() error {
		if config.Join == 0 {
			return cmd.Start()
		}
		return startBeside(config.Join, cmd)
	})
	if err != nil {
		return nil, err
	}
	process := netns.Watch(cmd)
	_ = failureWrite.Close()
	if err := json.NewEncoder(configWrite).Encode(config); err != nil {
		return nil, errors.Join(err, process.Kill())
	}
	_ = configWrite.Close()
	failure, err := io.ReadAll(failureRead) // ends with exec, which closes it
	if err == nil && len(failure) > 0 {
		err = errors.New(string(failure))
	}
	if err != nil {
		return nil, errors.Join(err, process.Kill())
	}
	return process, nil
}

// startBeside starts cmd in the process namespace of pid. It is the parent that
// has to choose that namespace for its children.
func startBeside(pid int, cmd *exec.Cmd) error {
	target, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return err
	}
	defer target.Close()
	home, err := openNamespaces("pid")
	if err != nil {
		return err
	}
	defer home.restore()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("entering the process namespace: %w", err)
	}
	return cmd.Start()
}

// join moves the calling thread to the other namespaces of a container's process.
// It must be done before the thread's /proc is that of the container.
func join(pid int) error {
	// A thread can change its mount namespace only if it shares its root and
	// working directories with no other.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	var files []*os.File
	for _, name := range []string{"ipc", "uts", "mnt"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		if err != nil {
			return err
		}
		defer f.Close()
		files = append(files, f)
	}
	for _, f := range files {
		if err := unix.Setns(int(f.Fd()), 0); err != nil {
			return fmt.Errorf("entering %s: %w", f.Name(), err)
		}
	}
	return nil
}
