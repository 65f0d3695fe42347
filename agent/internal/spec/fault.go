package spec

import (
	"cmp"
	"encoding/base64"
	"fmt"
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

// show returns a scalar for a message: shortened, and redacted where it has the
// looks of a key, for a private key pasted into the wrong field must not end in
// a log.
func show(value string) string {
	const most = 64
	if len(value) >= key.Len && looksSecret(value) {
		return fmt.Sprintf("%s… (%d characters)", value[:4], len(value))
	}
	if len(value) > most {
		return value[:most] + "…"
	}
	return value
}

// looksSecret errs on the side of caution: any long run of base64 or hex.
func looksSecret(value string) bool {
	trimmed := strings.TrimRight(value, "=")
	_, err := base64.RawStdEncoding.DecodeString(trimmed[:len(trimmed)&^3])
	return err == nil
}
