package rotate

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Fault is one thing wrong with what a Secret holds. It has names and times, and
// never content.
type Fault struct {
	Entry   string // of the Secret; empty where it is the whole Secret
	Problem string // what is wrong
	Fix     string // what to do
}

// Error returns one line: entry "name": problem; fix.
func (f Fault) Error() string {
	if f.Entry == "" {
		return f.Problem + "; " + f.Fix
	}
	return fmt.Sprintf("entry %q: %s; %s", show(f.Entry), f.Problem, f.Fix)
}

// Faults is all that is wrong with a Secret, in the order of its entries.
type Faults []Fault

// faultsShown bounds an error: a Secret may have thousands of entries.
const faultsShown = 100

// Error returns one line a fault.
func (fs Faults) Error() string {
	var lines []string
	for _, f := range fs[:min(len(fs), faultsShown)] {
		lines = append(lines, f.Error())
	}
	if more := len(fs) - faultsShown; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

// orNil is nil, and not an interface of none, where there is no fault.
func (fs Faults) orNil() error {
	if len(fs) == 0 {
		return nil
	}
	return fs
}

// keyLike is what a key looks like in base64 (RFC 4648 sections 4 and 5), with or
// without its padding, and in hex.
var keyLike = regexp.MustCompile(`[A-Za-z0-9+/_-]{43,}=?`)

// show returns a text without what looks like a key: one may have been pasted
// where a name belongs.
func show(text string) string { return keyLike.ReplaceAllString(text, key.Redacted) }
