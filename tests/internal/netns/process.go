package netns

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Process is a running command. It is killed when the process that started it
// dies, unless its SysProcAttr says otherwise.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; read it after done is closed
}

// Start starts cmd inside the namespace. It is the file system of the caller
// that it sees, /sys and /run included.
func (n *NS) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// Pdeathsig follows the thread, not the process: Do keeps this one
		// locked, and thereby alive, until the child is gone.
		err := n.Do(func() error {
			err := cmd.Start()
			started <- err
			if err == nil {
				p.err = cmd.Wait()
				close(p.done)
			}
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", filepath.Base(cmd.Path), err)
	}
	return p, nil
}

// Watch wraps a command that was started elsewhere. Nobody else may wait for it.
func Watch(cmd *exec.Cmd) *Process {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p
}

// PID returns the process's ID as this process sees it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and its output was read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and returns what exec.Cmd.Wait does. Any number of
// goroutines may call it.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal; one that comes too late is no error.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && p.Running() {
		return fmt.Errorf("sending %s to %s: %w", sig, filepath.Base(p.cmd.Path), err)
	}
	return nil
}

// Kill kills the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Run runs cmd in the namespace to its end and returns its standard output. The
// error carries what it wrote to standard error. cmd must have neither set.
func (n *NS) Run(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	p, err := n.Start(cmd)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(); err != nil {
		var exit *exec.ExitError
		if text := strings.TrimSpace(stderr.String()); errors.As(err, &exit) && text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return stdout.Bytes(), fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	return stdout.Bytes(), nil
}
