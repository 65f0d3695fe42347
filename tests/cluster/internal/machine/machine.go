// Package machine makes machines out of namespaces: each has a network
// namespace (made before it, see package network) and mount, pid, UTS and IPC
// namespaces of its own, with private /run, /var, /tmp and /sys. Its pid 1 is
// this very program, called again (see Init); when that dies, the kernel kills
// all that runs on the machine, just as pulling a plug would.
package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/supervisor"
)

// Paths as a machine itself sees them, the same on every host.
const (
	// Root is where the directory of the machine is mounted.
	Root = "/run/machine"
	// Bin holds the cluster's binaries.
	Bin = Root + "/bin"
	// Etc holds the machine's configuration.
	Etc = Root + "/etc"
	// Log holds the output of its processes, a file each.
	Log = Root + "/log"
)

// InitVerb is the command line verb by which the program becomes pid 1 of a
// machine; its argument is the file that Start wrote.
const InitVerb = "node-init"

// Spec describes a machine to start.
type Spec struct {
	// Name is the host name.
	Name string `json:"name"`
	// Netns is the name of its network namespace.
	Netns string `json:"netns"`
	// Dir is the machine's directory on the host: etc, log, var, tmp.
	Dir string `json:"dir"`
	// Bin is the host's directory of binaries.
	Bin string `json:"bin"`
	// Env is the environment of every process, NAME=value.
	Env []string `json:"env"`
	// Setup are commands that run once, in order, before the processes.
	Setup [][]string `json:"setup,omitempty"`
	// Processes are the machine's daemons.
	Processes []supervisor.Process `json:"processes"`
}

// Ref identifies a running machine: its pid 1, by the host's count.
type Ref struct {
	PID int `json:"pid"`
	// Started is when that process started, in clock ticks since boot (field
	// 22 of /proc/PID/stat): it tells the process from a later one of equal pid.
	Started uint64 `json:"started"`
}

// Start boots a machine and returns at once; its processes start by themselves.
func Start(spec Spec) (Ref, error) {
	if err := prepare(spec.Dir); err != nil {
		return Ref{}, fmt.Errorf("machine %s: %w", spec.Name, err)
	}
	text, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return Ref{}, fmt.Errorf("machine %s: %w", spec.Name, err)
	}
	file := filepath.Join(spec.Dir, "machine.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return Ref{}, fmt.Errorf("machine %s: %w", spec.Name, err)
	}
	log, err := os.OpenFile(filepath.Join(spec.Dir, "log", "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return Ref{}, fmt.Errorf("machine %s: %w", spec.Name, err)
	}
	defer log.Close()

	cmd := exec.Command("/proc/self/exe", InitVerb, file)
	cmd.Args[0] = spec.Netns // what the host's ps shows
	cmd.Env = spec.Env
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	if err := netns.Do(spec.Netns, cmd.Start); err != nil {
		return Ref{}, fmt.Errorf("machine %s: %w", spec.Name, err)
	}
	pid := cmd.Process.Pid
	// Nobody waits for it: the host's pid 1 reaps it once this program has ended.
	if err := cmd.Process.Release(); err != nil {
		return Ref{}, fmt.Errorf("machine %s: %w", spec.Name, err)
	}
	started, _, err := stat(pid)
	if err != nil {
		return Ref{}, fmt.Errorf("machine %s ended at once, see %s: %w", spec.Name, log.Name(), err)
	}
	return Ref{PID: pid, Started: started}, nil
}

// prepare makes the directories that Init mounts.
func prepare(dir string) error {
	for _, sub := range []string{"bin", "etc", "log", "sysctl", "var/lib", "var/log", "var/cache"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	for _, sub := range []string{"tmp", "var/tmp"} {
		path := filepath.Join(dir, sub)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o1777); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"var/run": "/run", "var/lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// Alive tells whether the machine runs.
func (r Ref) Alive() bool {
	if r.PID == 0 {
		return false
	}
	started, state, err := stat(r.PID)
	return err == nil && started == r.Started && state != 'Z' && state != 'X'
}

// Path is where the host finds a path of the machine's own file system.
func (r Ref) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(r.PID), "root", path)
}

// Kill ends the machine at once, as a power cut would, and returns when
// nothing of it runs any more. A machine that does not run is no error.
func (r Ref) Kill(ctx context.Context) error {
	if !r.Alive() {
		return nil
	}
	fd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return fmt.Errorf("pid %d: %w", r.PID, err)
	}
	defer unix.Close(fd)
	if !r.Alive() { // it ended before the descriptor was taken, which may be a stranger's
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill pid %d: %w", r.PID, err)
	}
	for {
		// Readable once the whole pid namespace has gone: pid 1 ends last.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((100 * time.Millisecond).Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for pid %d: %w", r.PID, err)
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("pid %d was killed and still runs: %w", r.PID, ctx.Err())
		}
	}
}

// stat reads the start time and the state letter of a process.
func stat(pid int) (started uint64, state byte, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(string(text))
}

// parseStat takes fields 3 and 22 of proc_pid_stat(5). The second field, the
// program's name in brackets, may hold blanks and brackets itself.
func parseStat(text string) (started uint64, state byte, err error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const state3, start22 = 0, 19 // indices in what follows the second field
	if len(fields) <= start22 {
		return 0, 0, fmt.Errorf("stat %q: too short", text)
	}
	started, err = strconv.ParseUint(fields[start22], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("stat: start time: %w", err)
	}
	return started, fields[state3][0], nil
}
