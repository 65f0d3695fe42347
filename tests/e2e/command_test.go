//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

// command is a call of a program.
type command struct {
	args  []string
	stdin string
	dir   string   // empty: the project's directory
	env   []string // beside our own, NAME=value
	// secret says that what it reads or prints holds keys: nothing but the
	// call itself is logged.
	secret bool
	// watched is for what takes long: standard error is ours, to be watched.
	watched bool
}

// output is what a program printed.
type output struct {
	stdout, stderr string
	took           time.Duration
}

// commandLog notes every call with its output.
type commandLog struct {
	mu   sync.Mutex
	file *os.File
}

func newCommandLog(t *testing.T) *commandLog {
	t.Helper()
	return &commandLog{file: testenv.LogFile(t, "commands.log")}
}

func (l *commandLog) note(c command, out output, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.file, "%s %s\n", time.Now().Format(time.TimeOnly), strings.Join(c.args, " "))
	if !c.secret {
		for _, text := range []string{out.stdout, out.stderr} {
			if text != "" {
				fmt.Fprintf(l.file, "%s\n", strings.TrimRight(text, "\n"))
			}
		}
	}
	fmt.Fprintf(l.file, "→ %v after %s\n\n", err, out.took.Round(time.Millisecond))
}

// try runs a program to its end. The error holds what it wrote to standard error.
func (c *cluster) try(ctx context.Context, call command) (output, error) {
	cmd := exec.CommandContext(ctx, call.args[0], call.args[1:]...)
	cmd.Dir = c.root
	if call.dir != "" {
		cmd.Dir = call.dir
	}
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Env = append(cmd.Env, call.env...)
	cmd.Stdin = strings.NewReader(call.stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if call.watched {
		cmd.Stderr = os.Stderr
	}
	// Asked to end before it is killed: what it started is its to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	start := time.Now()
	err := cmd.Run()
	out := output{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(start)}
	c.log.note(call, out, err)
	if err != nil {
		said := strings.TrimSpace(out.stderr)
		if call.secret {
			said = "(not shown, it may hold keys)"
		}
		return out, fmt.Errorf("%s: %w: %s", strings.Join(call.args, " "), err, said)
	}
	return out, nil
}

// run is try for what must succeed.
func (c *cluster) run(t *testing.T, call command) output {
	t.Helper()
	out, err := c.try(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// inside is a call of a program of this host from inside of the cluster's
// network, where it finds the API server.
func (c *cluster) inside(args ...string) command {
	return command{args: append([]string{c.program, "run", "--"}, args...)}
}

// kubectl is a call of kubectl as the administrator.
func (c *cluster) kubectl(args ...string) command {
	return c.inside(append([]string{"kubectl"}, args...)...)
}

// helm is a call of helm as the administrator.
func (c *cluster) helm(args ...string) command {
	return c.inside(append([]string{"helm"}, args...)...)
}

// shell is a command line as a user types it, in a directory that has the
// project's charts.
func (c *cluster) shell(dir, line string) command {
	call := c.inside("sh", "-c", line)
	call.dir = dir
	return call
}

// workDir is an empty directory from which ./charts/vpn-gateway is the chart, as
// from the project's own.
func (c *cluster) workDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(c.root, "charts"), filepath.Join(dir, "charts")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// eventually waits until what is true, no longer than patience. The failure
// tells the last detail.
func eventually(t *testing.T, what string, f func(ctx context.Context) (ok bool, detail string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	last := ""
	for {
		ok, detail := f(ctx)
		if ok {
			return
		}
		if ctx.Err() == nil { // else it is that
			last = detail
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting for %s: not within %s: %s", what, patience, last)
		}
	}
}

// must returns the value of a call that has to succeed.
func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
