// Package preflight finds out, before anything is started, whether this
// machine can run the cluster. It tries rather than looks up: what a kernel,
// a container engine or a security module forbids shows only so.
package preflight

import (
	"fmt"
	"strings"
)

// Problem is one thing that is missing.
type Problem struct {
	// What is missing, Why it is needed, Fix what to do about it.
	What, Why, Fix string
}

// Error lists every problem, so that one reading suffices.
type Error []Problem

func (e Error) Error() string {
	var b strings.Builder
	b.WriteString("this machine cannot do that yet:")
	for _, p := range e {
		fmt.Fprintf(&b, "\n  - %s (%s)\n    %s", p.What, p.Why, p.Fix)
	}
	return b.String()
}

// list collects problems.
type list []Problem

// err is nil where there are none.
func (l list) err() error {
	if len(l) == 0 {
		return nil
	}
	return Error(l)
}

func (l *list) add(what, why, fix string) { *l = append(*l, Problem{what, why, fix}) }
