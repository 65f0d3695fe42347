package podrun

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// Container is one container of a Pod. Its process is number 1 of a process
// namespace of its own.
type Container struct {
	pod  *Pod
	spec corev1.Container
	log  string
	// before is how long the log was before the first start: earlier runs may have left
	// something there.
	before int64

	mu      sync.Mutex
	process *netns.Process
	starts  int
	exits   []Exit
}

// Exit is how a container's process ended.
type Exit struct {
	Code   int            // exit status; -1 where a signal ended it
	Signal syscall.Signal // 0 where none did
	At     time.Time
}

// String says it in words.
func (e Exit) String() string {
	if e.Signal != 0 {
		return fmt.Sprintf("ended by signal %q", e.Signal.String())
	}
	return fmt.Sprintf("ended with status %d", e.Code)
}

// Start starts the container, or starts it again as the kubelet does after an
// exit: with a new root file system and new namespaces, in the same network
// namespace, and with the same volumes. Output is appended to the same log.
func (c *Container) Start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil && c.process.Running() {
		return fmt.Errorf("container %s: it runs already", c.spec.Name)
	}
	config, err := c.pod.containerConfig(c.spec, c.starts)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.spec.Name, err)
	}
	process, err := c.launch(config)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.spec.Name, err)
	}
	c.process = process
	c.starts++
	return nil
}

// launch starts the container's first process.
func (c *Container) launch(config *initConfig) (*netns.Process, error) {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	defer log.Close()
	cmd := initCommand()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
	process, err := c.pod.launch(cmd, config)
	if err != nil {
		return nil, err
	}
	go c.note(process)
	return process, nil
}

// note records how process ended.
func (c *Container) note(process *netns.Process) {
	exit := exitOf(process.Wait())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.exits = append(c.exits, exit)
}

func exitOf(err error) Exit {
	exit := Exit{At: time.Now()}
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		exit.Code = failed.ExitCode()
		if status, ok := failed.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			exit.Signal = status.Signal()
		}
	}
	return exit
}

// Name returns the container's name.
func (c *Container) Name() string { return c.spec.Name }

// LogPath returns the file that the container writes its output to. There may be more in
// it, of others and of earlier runs.
func (c *Container) LogPath() string { return c.log }

// Log returns what was written to the file since the container's first start.
func (c *Container) Log() ([]byte, error) {
	content, err := os.ReadFile(c.log)
	if err != nil {
		return nil, err
	}
	return content[min(c.before, int64(len(content))):], nil
}

// PID returns the ID of the container's process as this process sees it.
func (c *Container) PID() int { return c.current().PID() }

// Running reports whether the container's process runs.
func (c *Container) Running() bool { return c.current().Running() }

// Done is closed when the process that runs now has ended.
func (c *Container) Done() <-chan struct{} { return c.current().Done() }

func (c *Container) current() *netns.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.process
}

// Restarts is how often the container was started again.
func (c *Container) Restarts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starts - 1
}

// Exits returns how the container's processes ended, in order.
func (c *Container) Exits() []Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Exit(nil), c.exits...)
}

// Signal sends a signal to the container's process.
func (c *Container) Signal(sig syscall.Signal) error { return c.current().Signal(sig) }

// Kill kills the container with SIGKILL, as the kernel does when memory runs
// out, and returns when its process is gone. Start starts it again.
func (c *Container) Kill() (Exit, error) {
	p := c.current()
	if err := p.Kill(); err != nil {
		return Exit{}, err
	}
	return exitOf(p.Wait()), nil
}

// Terminate sends SIGTERM, and SIGKILL when grace is over or ctx is done, and
// returns how the container ended.
func (c *Container) Terminate(ctx context.Context, grace time.Duration) (Exit, error) {
	p := c.current()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return Exit{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	select {
	case <-p.Done():
		return exitOf(p.Wait()), nil
	case <-ctx.Done():
		return c.Kill()
	}
}

// waitForSuccess waits until an init container has done its work.
func (c *Container) waitForSuccess(ctx context.Context) error {
	p := c.current()
	select {
	case <-p.Done():
	case <-ctx.Done():
		return fmt.Errorf("container %s: %w", c.spec.Name, context.Cause(ctx))
	}
	if exit := exitOf(p.Wait()); exit.Code != 0 {
		return fmt.Errorf("container %s: %s; its last words:\n%s", c.spec.Name, exit, c.lastLines())
	}
	return nil
}

// isLongRunning tells init containers, which come to an end, from others.
func (c *Container) isLongRunning() bool {
	for _, spec := range c.pod.options.Spec.InitContainers {
		if spec.Name == c.spec.Name {
			return spec.RestartPolicy != nil && *spec.RestartPolicy == corev1.ContainerRestartPolicyAlways
		}
	}
	return true
}

// lastLines is the end of the container's log, for error messages.
func (c *Container) lastLines() string {
	const most = 2000
	content, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-most):])
}
