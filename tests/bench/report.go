package main

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The marks in a file between which the table goes.
const (
	startMark = "<!-- bench -->"
	endMark   = "<!-- /bench -->"
)

// row is a line of the table.
type row struct {
	what, ours string
	peer       string // what ours is compared with, or the limit
	ratio      string // ours to the peer's, as the goal has it
	goal       string // empty: none, the figure is there to be known
	met        bool
}

// report is the table and what stands beside it.
type report struct {
	rows         []row
	start        time.Time
	took         time.Duration
	loadBefore   string
	loadAfter    string
	cpu, memory  string
	kernel, goes string
}

func newReport() *report {
	return &report{
		start: time.Now(), loadBefore: load(),
		cpu: cpuModel(), memory: memoryTotal(), kernel: kernelRelease(), goes: runtime.Version(),
	}
}

func (r *report) finish() {
	r.took = time.Since(r.start).Round(time.Second)
	r.loadAfter = load()
}

// markdown is the table, and a line about the machine.
func (r *report) markdown() string {
	var b strings.Builder
	b.WriteString("| what | ours | peer or limit | ratio | goal | met |\n|---|---|---|---|---|---|\n")
	for _, row := range r.rows {
		met := "no"
		switch {
		case row.goal == "":
			met = ""
		case row.met:
			met = "yes"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", row.what, row.ours, row.peer, row.ratio, row.goal, met)
	}
	fmt.Fprintf(&b, "\nMachine: %s, %d cores, %s of memory, Linux %s, %s; load average %s before and %s after, of which the benchmark itself is a part; %s, %s.\n",
		r.cpu, runtime.NumCPU(), r.memory, r.kernel, r.goes, r.loadBefore, r.loadAfter, r.start.Format(time.DateOnly), r.took)
	return b.String()
}

// writeInto replaces what stands between the marks in a file.
func (r *report) writeInto(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	out, err := splice(string(text), r.markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(out), 0o644)
}

// splice returns text with what stands between the marks replaced.
func splice(text, table string) (string, error) {
	head, rest, found := strings.Cut(text, startMark)
	_, tail, closed := strings.Cut(rest, endMark)
	if !found || !closed {
		return "", errors.New("no " + startMark + " with " + endMark + " after it")
	}
	return head + startMark + "\n" + table + endMark + tail, nil
}

// quantile returns the value that a share q of the sample does not exceed (the
// nearest rank), zero of an empty one.
func quantile[T int64 | float64 | time.Duration](sample []T, q float64) T {
	if len(sample) == 0 {
		return 0
	}
	sorted := slices.Clone(sample)
	slices.Sort(sorted)
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func median[T int64 | float64 | time.Duration](sample []T) T { return quantile(sample, 0.5) }

// medianRatio is the median of the ratios round by round: what the machine does
// besides lasts longer than the two turns of a round, and so falls out of each.
func medianRatio[T int64 | float64 | time.Duration](ours, theirs []T) float64 {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = float64(ours[i]) / float64(theirs[i])
	}
	return median(ratios)
}

// ms is a time in milliseconds with as many digits as mean something.
func ms(d time.Duration) string {
	v := float64(d) / float64(time.Millisecond)
	switch {
	case v < 10:
		return fmt.Sprintf("%.1f ms", v)
	default:
		return fmt.Sprintf("%.0f ms", v)
	}
}

func mib(bytes int64) string { return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20)) }

func times(ratio float64) string {
	if ratio >= 10 {
		return fmt.Sprintf("%.0f ×", ratio)
	}
	return fmt.Sprintf("%.2f ×", ratio)
}

func cpuModel() string { return field("/proc/cpuinfo", "model name", runtime.GOARCH) }

func memoryTotal() string {
	var kib int64
	if _, err := fmt.Sscanf(field("/proc/meminfo", "MemTotal", ""), "%d kB", &kib); err != nil {
		return "an unknown amount"
	}
	return fmt.Sprintf("%.1f GiB", float64(kib)/(1<<20))
}

// field returns the value of the first line "name : value" of a file.
func field(path, name, otherwise string) string {
	f, err := os.Open(path)
	if err != nil {
		return otherwise
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if n, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(n) == name {
			return strings.TrimSpace(value)
		}
	}
	return otherwise
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "of unknown release"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// load is the load average of the last minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
