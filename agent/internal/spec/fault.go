package spec

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Fault is one thing wrong with what the user wrote.
type Fault struct {
	File    string // path below the configuration directory
	Line    int    // 1-based; 0 where it is the whole file
	Path    string // field, as in "peers[3].publicKey"; may be empty
	Value   string // what was written; empty where it is missing or secret
	Problem string // what is wrong with it
	Fix     string // what to do
}

// Error returns one line: file:line: path: "value": problem; fix.
func (f Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	if f.Path != "" {
		b.WriteString(": " + f.Path)
	}
	if f.Value != "" {
		fmt.Fprintf(&b, ": %q", f.Value)
	}
	b.WriteString(": " + f.Problem)
	if f.Fix != "" {
		b.WriteString("; " + f.Fix)
	}
	return b.String()
}

// Faults is every fault of a reading, in the order of file and line. It is the
// error that [Load] returns.
type Faults []Fault

// Error returns one line a fault.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes every fault reachable for errors.As.
func (fs Faults) Unwrap() []error {
	out := make([]error, len(fs))
	for i, f := range fs {
		out[i] = f
	}
	return out
}

func (fs Faults) sort() {
	slices.SortStableFunc(fs, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
}

// Summary returns the first limit faults, one a line, and how many more there
// are: a broken file may have thousands.
func (fs Faults) Summary(limit int) []string {
	var out []string
	for _, f := range fs[:min(limit, len(fs))] {
		out = append(out, f.Error())
	}
	if more := len(fs) - limit; more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return out
}

// show returns a scalar for a message: shortened, and without anything that has
// the looks of a key, for a private key pasted into the wrong field must not end
// in a log.
func show(value string) string {
	const most = 64
	value = keyLike.ReplaceAllString(value, key.Redacted)
	if len(value) > most {
		return value[:most] + "…"
	}
	return value
}

// keyLike errs on the side of caution: any long run of base64 (RFC 4648 sections
// 4 and 5) or hex. Names with dashes may be longer than the one, not the other.
var keyLike = regexp.MustCompile(`[A-Za-z0-9+/=]{20,}|[A-Za-z0-9_=-]{40,}`)
