package podrun

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Status is what the kernel says about a container's process: the proof that it
// runs as the specification has it.
type Status struct {
	// Names of the capabilities in each set, in the order of their numbers,
	// without CAP_.
	Inheritable, Permitted, Effective, Bounding, Ambient []string
	NoNewPrivs                                           bool
	// Real, effective, saved and file-system ID.
	UIDs, GIDs [4]int
	Groups     []int
	// Mounts in the order in which they were made.
	Mounts []Mount
}

// Mount is a mount as the process sees it.
type Mount struct {
	Path, Type string
	Root       string // the part of the file system that is shown
	ReadOnly   bool   // by the mount or by its file system
}

// ReadOnly reports whether the mount that path lies on is read-only.
func (s Status) ReadOnly(path string) bool {
	path = filepath.Clean(path)
	best := Mount{}
	for _, m := range s.Mounts { // of two at one place the later one lies above
		inside := m.Path == "/" || path == m.Path || strings.HasPrefix(path, m.Path+"/")
		if inside && len(m.Path) >= len(best.Path) {
			best = m
		}
	}
	return best.ReadOnly
}

// Status reads /proc/PID/status and mountinfo of the container's process.
func (c *Container) Status() (Status, error) { return StatusOf(c.PID()) }

// StatusOf is [Container.Status] for any process, such as one in a cluster.
func StatusOf(pid int) (Status, error) {
	s, err := statusOf(pid)
	if err != nil {
		return s, fmt.Errorf("status of process %d: %w", pid, err)
	}
	return s, nil
}

func statusOf(pid int) (Status, error) {
	var s Status
	fields, err := readStatus(pid)
	if err != nil {
		return s, err
	}
	for name, set := range map[string]*[]string{
		"CapInh": &s.Inheritable, "CapPrm": &s.Permitted, "CapEff": &s.Effective, "CapBnd": &s.Bounding, "CapAmb": &s.Ambient,
	} {
		mask, err := strconv.ParseUint(fields[name], 16, 64)
		if err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
		*set = namesOf(mask)
	}
	s.NoNewPrivs = fields["NoNewPrivs"] == "1"
	for name, ids := range map[string]*[4]int{"Uid": &s.UIDs, "Gid": &s.GIDs} {
		if _, err := fmt.Sscan(fields[name], &ids[0], &ids[1], &ids[2], &ids[3]); err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, text := range strings.Fields(fields["Groups"]) {
		g, err := strconv.Atoi(text)
		if err != nil {
			return s, fmt.Errorf("groups: %w", err)
		}
		s.Groups = append(s.Groups, g)
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return s, err
	}
	s.Mounts = parseMounts(mounts)
	return s, nil
}

// Usage is what a container's process takes of the machine.
type Usage struct {
	FDs     int   // open file descriptors
	Threads int   // of the operating system
	RSS     int64 // resident memory in bytes (VmRSS)
	PeakRSS int64 // the most it ever was (VmHWM)
	CPU     time.Duration
}

// Usage reads /proc/PID of the container's process.
func (c *Container) Usage() (Usage, error) { return UsageOf(c.PID()) }

// UsageOf is [Container.Usage] for any process, to compare with.
func UsageOf(pid int) (Usage, error) {
	var u Usage
	fields, err := readStatus(pid)
	if err != nil {
		return u, err
	}
	for name, size := range map[string]*int64{"VmRSS": &u.RSS, "VmHWM": &u.PeakRSS} {
		if *size, err = strconv.ParseInt(strings.TrimSuffix(fields[name], " kB"), 10, 64); err != nil {
			return u, fmt.Errorf("%s of process %d: %w", name, pid, err)
		}
		*size <<= 10
	}
	if u.Threads, err = strconv.Atoi(fields["Threads"]); err != nil {
		return u, fmt.Errorf("threads of process %d: %w", pid, err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	u.FDs = len(fds)
	u.CPU, err = cpuTime(pid)
	return u, err
}

// cpuTime is user and system time of a process: fields 14 and 15 of
// /proc/PID/stat, in hundredths of a second (USER_HZ, fixed for user space).
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold spaces; the state, field 3, follows it.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}

// readStatus returns the lines of /proc/PID/status by name.
func readStatus(pid int) (map[string]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields, nil
}

func namesOf(mask uint64) []string {
	var names []string
	for number, name := range capabilityNames() {
		if mask&(1<<number) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// parseMounts reads mountinfo (proc_pid_mountinfo(5)).
func parseMounts(text []byte) []Mount {
	var mounts []Mount
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		dash := slices.Index(f, "-")
		if dash < 6 || len(f) < dash+4 {
			continue
		}
		readOnly := slices.Contains(strings.Split(f[5], ","), "ro") || slices.Contains(strings.Split(f[dash+3], ","), "ro")
		mounts = append(mounts, Mount{Path: unescape(f[4]), Root: unescape(f[3]), Type: f[dash+1], ReadOnly: readOnly})
	}
	return mounts
}

// unescape undoes the kernel's octal escapes of white space and backslashes.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
