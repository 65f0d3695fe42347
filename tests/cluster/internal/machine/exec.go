package machine

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// Command is something to run on a machine.
type Command struct {
	// Args are the program, looked up in the machine's PATH, and its arguments.
	Args []string
	// Env is its whole environment.
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exec runs a command on the machine, in all of its namespaces, and returns
// the command's exit status. An error means that it did not run.
func (r Ref) Exec(c Command) (status int, err error) {
	if !r.Alive() {
		return 0, errors.New("the machine does not run")
	}
	pidfd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return 0, fmt.Errorf("pid %d: %w", r.PID, err)
	}
	defer unix.Close(pidfd)
	// env(1) looks the program up, by the machine's PATH and file system.
	cmd := exec.Command("/usr/bin/env", append([]string{"--"}, c.Args...)...)
	cmd.Env, cmd.Dir = c.Env, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr

	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		done <- func() error {
			// A thread that shares its working directory with others cannot
			// change its mount namespace.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
			if err := unix.Setns(pidfd, all); err != nil {
				return fmt.Errorf("enter namespaces of pid %d: %w", r.PID, err)
			}
			return cmd.Run()
		}()
	}()
	err = <-done
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode(), nil
	case errors.As(err, &exit):
		return 128 + int(exit.Sys().(unix.WaitStatus).Signal()), nil // as a shell reports it
	}
	return 0, err
}
