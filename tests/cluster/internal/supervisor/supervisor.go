// Package supervisor is the first process of a machine: it starts the
// machine's daemons in their order, starts them again when they end, and
// reaps every orphan, as the kernel expects of pid 1.
package supervisor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// restartDelay keeps a daemon that cannot start from eating the machine.
	restartDelay = time.Second
	pollInterval = 50 * time.Millisecond
)

// Process is one daemon of a machine.
type Process struct {
	// Name is the name of its log file, without .log.
	Name string `json:"name"`
	// Args are the program, looked up in PATH, and its arguments.
	Args []string `json:"args"`
	// After must answer before the process is started: tcp://host:port and
	// unix:///path accept a connection, https://host:port/path says 200, with
	// whatever certificate.
	After []string `json:"after,omitempty"`
}

// Supervisor runs processes. Make it with New; it must be pid 1 of its pid
// namespace (or a child subreaper), since it waits for any child.
type Supervisor struct {
	logs string
	log  *slog.Logger

	mu    sync.Mutex          // held from a process's start until it is in exits
	exits map[int]chan string // by pid: receives how the process ended
}

// New makes a supervisor that writes each process's output to a file in the
// directory logs, and its own to log.
func New(logs string, log *slog.Logger) *Supervisor {
	return &Supervisor{logs: logs, log: log, exits: map[int]chan string{}}
}

// Run keeps the processes running until the context ends. It does not stop
// them then: with pid 1 the kernel ends every process of the namespace.
func (s *Supervisor) Run(ctx context.Context, processes []Process) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	var wg sync.WaitGroup
	for _, p := range processes {
		path, err := exec.LookPath(p.Args[0])
		if err != nil {
			return fmt.Errorf("process %s: %w", p.Name, err)
		}
		wg.Go(func() { s.keep(ctx, p, path) })
	}
	for {
		select {
		case <-children:
			s.reap()
		case <-ctx.Done():
			wg.Wait()
			return ctx.Err()
		}
	}
}

// keep starts one process again and again.
func (s *Supervisor) keep(ctx context.Context, p Process, path string) {
	for ctx.Err() == nil {
		if err := Await(ctx, p.After...); err != nil {
			return
		}
		ended, pid, err := s.start(p, path)
		if err != nil {
			s.log.Error("start", "process", p.Name, "error", err)
		} else {
			s.log.Info("started", "process", p.Name, "pid", pid)
			select {
			case how := <-ended:
				s.log.Error("ended", "process", p.Name, "pid", pid, "how", how)
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-time.After(restartDelay):
		case <-ctx.Done():
		}
	}
}

func (s *Supervisor) start(p Process, path string) (ended <-chan string, pid int, err error) {
	out, err := os.OpenFile(filepath.Join(s.logs, p.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, 0, fmt.Errorf("log of %s: %w", p.Name, err)
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, 0, fmt.Errorf("standard input of %s: %w", p.Name, err)
	}
	defer null.Close()

	// Not os/exec: it would wait for the child itself, in a race with reap.
	s.mu.Lock()
	defer s.mu.Unlock()
	process, err := os.StartProcess(path, p.Args, &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{null, out, out},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, 0, fmt.Errorf("start %s: %w", p.Name, err)
	}
	pid = process.Pid
	done := make(chan string, 1)
	s.exits[pid] = done
	return done, pid, process.Release()
}

// reap collects every child that has ended: ours and the orphans that fell to
// pid 1.
func (s *Supervisor) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		s.mu.Lock()
		done, ours := s.exits[pid]
		delete(s.exits, pid)
		s.mu.Unlock()
		if !ours {
			continue
		}
		how := fmt.Sprintf("exit status %d", status.ExitStatus())
		if status.Signaled() {
			how = "signal " + status.Signal().String()
		}
		done <- how
	}
}

// Await returns when each address (see Process.After) answers, or with an error
// when the context ends or an address is malformed.
func Await(ctx context.Context, addresses ...string) error {
	for _, address := range addresses {
		u, err := parse(address)
		if err != nil {
			return err
		}
		for {
			err := ask(ctx, u)
			if err == nil {
				break
			}
			select {
			case <-time.After(pollInterval):
			case <-ctx.Done():
				return fmt.Errorf("wait for %s: %w (last: %w)", address, context.Cause(ctx), err)
			}
		}
	}
	return nil
}

func parse(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("address: %w", err)
	}
	switch {
	case (u.Scheme == "tcp" || u.Scheme == "https") && u.Host != "":
		return u, nil
	case u.Scheme == "unix" && u.Path != "":
		return u, nil
	}
	return nil, fmt.Errorf("address %q: use tcp://host:port, unix:///path or https://host:port/path", address)
}

// ask tries an address once.
func ask(ctx context.Context, u *url.URL) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if u.Scheme != "https" {
		conn, err := (&net.Dialer{}).DialContext(ctx, u.Scheme, u.Host+u.Path)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	transport := &http.Transport{
		// It is asked whether it serves, and told nothing.
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", u, resp.Status)
	}
	return nil
}
