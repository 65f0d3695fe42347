package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/ci/tools"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
)

// stopTime is how long a program may take to end after an interrupt.
const stopTime = 30 * time.Second

// commands are the programs by which the cluster is used, as a person would.
type commands struct {
	root    string // of the project
	cluster string // the program of tests/cluster
	home    string // directory of Helm's own files and of values
	env     []string
	log     *os.File
}

func newCommands(logs string) (commands, error) {
	root, err := gateway.Root()
	if err != nil {
		return commands{}, err
	}
	log, err := os.OpenFile(filepath.Join(logs, "commands.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return commands{}, err
	}
	home, err := os.MkdirTemp("", "vpngw-demo-helm-")
	if err != nil {
		return commands{}, err
	}
	return commands{
		root: root, cluster: filepath.Join(root, "bin", "cluster"), home: home, log: log,
		env: append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home),
	}, nil
}

// prepare builds the cluster's program and Helm, unless they are there.
func (c *commands) prepare(ctx context.Context, progress func(string)) error {
	progress("building the programs for it")
	build := exec.CommandContext(ctx, "go", "build", "-o", c.cluster, ".")
	build.Dir = filepath.Join(c.root, "tests", "cluster")
	build.Env = append(os.Environ(), "GOFLAGS=") // the caller's are for this module
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building tests/cluster: %w\n%s", err, out)
	}
	helm, err := tools.Lookup("helm")
	if err != nil {
		return err
	}
	path, err := helm.Path(ctx, c.root, &lineWriter{line: progress})
	if err != nil {
		return err
	}
	c.env = append(c.env, "PATH="+filepath.Dir(path)+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return nil
}

// run runs a program in the project's directory to its end and returns what it
// printed. The error has what it wrote to standard error, and so has the log;
// what goes in and out is not kept, for it may hold keys.
func (c *commands) run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	err := c.call(ctx, stdin, &stdout, &stderr, append([]string{name}, args...))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(append([]string{filepath.Base(name)}, args...), " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// watched is run for what takes long and says how it goes, line by line.
func (c *commands) watched(ctx context.Context, progress func(string), name string, args ...string) error {
	var tail bytes.Buffer
	lines := &lineWriter{line: func(text string) {
		progress(text)
		fmt.Fprintln(&tail, text)
	}}
	err := c.call(ctx, "", io.Discard, lines, append([]string{name}, args...))
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(append([]string{filepath.Base(name)}, args...), " "), err, strings.TrimSpace(tail.String()))
	}
	return nil
}

func (c *commands) call(ctx context.Context, stdin string, stdout, stderr io.Writer, args []string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = c.root, c.env
	cmd.Stdin, cmd.Stdout = strings.NewReader(stdin), stdout
	cmd.Stderr = io.MultiWriter(stderr, c.log)
	// Asked to end before it is killed: what it started is its to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopTime
	start := time.Now()
	err := cmd.Run()
	fmt.Fprintf(c.log, "%s: %v after %s\n", strings.Join(args, " "), err, time.Since(start).Round(time.Millisecond))
	return err
}

func (c *commands) kubectl(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	return c.run(ctx, stdin, c.cluster, append([]string{"kubectl"}, args...)...)
}

func (c *commands) helm(ctx context.Context, args ...string) ([]byte, error) {
	return c.run(ctx, "", c.cluster, append([]string{"run", "--", "helm"}, args...)...)
}

func (c *commands) close() error {
	if c.log == nil {
		return nil
	}
	return errors.Join(c.log.Close(), os.RemoveAll(c.home))
}

// lineWriter calls line for every whole line that is written to it.
type lineWriter struct {
	line func(string)
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		n, text, _ := bufio.ScanLines(w.rest, false)
		if n == 0 {
			return len(p), nil
		}
		w.line(string(text))
		w.rest = w.rest[n:]
	}
}
