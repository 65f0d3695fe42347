package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// counts sums up tests. A test with subtests is not counted beside them, unless
// it failed by itself.
type counts struct{ passed, failed, skipped int }

func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}

// testID names a test; the package itself has an empty test.
type testID struct{ pkg, test string }

// result is what is known of a test so far.
type result struct {
	action string // the last of run, pass, fail, skip
	output []string
}

// report reads the events of `go test -json` and prints what `go test` prints.
type report struct {
	out, log io.Writer
	verbose  bool
	results  map[testID]*result
	order    []testID
}

// newReport prints to out and writes the output of every test to log. With
// verbose the output of passing tests is printed as well, as it comes.
func newReport(out, log io.Writer, verbose bool) *report {
	return &report{out: out, log: log, verbose: verbose, results: map[testID]*result{}}
}

// read consumes events up to the end. A line that is no event is printed as is.
func (r *report) read(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				e = event{Action: "output", Output: string(line)}
			}
			r.add(e)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the output of go test: %w", err)
		}
	}
}

func (r *report) add(e event) {
	id := testID{e.Package, e.Test}
	res := r.results[id]
	if res == nil {
		res = &result{}
		r.results[id] = res
		r.order = append(r.order, id)
	}
	switch e.Action {
	case "build-output":
		r.print(e.Output)
	case "output":
		_, _ = io.WriteString(r.log, e.Output)
		switch {
		case r.verbose || id.test == "" && e.Output != "PASS\n":
			_, _ = io.WriteString(r.out, e.Output)
		case id.test != "":
			res.output = append(res.output, e.Output)
		}
	case "run", "pass", "skip":
		res.action = e.Action
		if e.Action != "run" && !r.verbose {
			if e.Action == "skip" && id.test != "" {
				r.print(strings.Join(trim(res.output), ""))
			}
			res.output = nil
		}
	case "fail":
		res.action = e.Action
		r.flush(res)
	}
}

// print writes to the terminal's and the log's end.
func (r *report) print(s string) {
	_, _ = io.WriteString(r.out, s)
}

// flush prints what a failed test wrote, once.
func (r *report) flush(res *result) {
	r.print(strings.Join(trim(res.output), ""))
	res.output = nil
}

// trim drops the lines by which the testing package tells a test's progress.
func trim(lines []string) []string {
	return slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "=== ") })
}

// close prints the output of tests that never ended (their process did) and
// returns the sums.
func (r *report) close() counts {
	parents := map[testID]bool{}
	failedBelow := map[testID]bool{}
	for _, id := range r.order {
		res := r.results[id]
		if res.action == "run" {
			fmt.Fprintf(r.out, "--- FAIL: %s did not end\n", id.test)
			res.action = "fail"
			r.flush(res)
		}
		for parent := id; parent.test != ""; {
			i := strings.LastIndex(parent.test, "/")
			parent.test = parent.test[:max(i, 0)]
			if parent.test != "" {
				parents[parent] = true
			}
			if res.action == "fail" {
				failedBelow[parent] = true
			}
		}
	}
	var c counts
	for _, id := range r.order {
		switch action := r.results[id].action; {
		case action == "fail" && !failedBelow[id]:
			c.failed++
		case id.test == "" || parents[id]:
		case action == "pass":
			c.passed++
		case action == "skip":
			c.skipped++
		}
	}
	return c
}
