package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

const docsFile = "../../../docs/cli.md"

const docsIntro = `# Command line

<!-- Made from agent/cmd/vpn-agent by
     go test ./agent/cmd/vpn-agent -run TestDocs -update; do not edit. -->

One binary, ` + "`/vpn-agent`" + ` in the image, runs the gateway and everything around it.
The exit status is 0, or 1 with the reason on standard error.

| command | what for |
|---|---|
`

// TestDocs holds docs/cli.md to the commands. The generator is here and not a
// command, so that the agent does not carry it.
func TestDocs(t *testing.T) {
	root := newRootCommand(environment{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard})
	var index, text strings.Builder
	for _, c := range verbs(root) {
		path := c.CommandPath()
		fmt.Fprintf(&index, "| [`%s`](#%s) | %s |\n", path, strings.ReplaceAll(path, " ", "-"), c.Short)
		writeVerb(&text, c)
	}
	want := docsIntro + index.String() + text.String()
	if *update {
		if err := os.WriteFile(docsFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/cli.md is stale; go test ./agent/cmd/vpn-agent -run TestDocs -update (-want +got):\n%s", diff)
	}
}

// verbs are the commands that do something, in the order of their names.
func verbs(c *cobra.Command) []*cobra.Command {
	if !c.HasSubCommands() {
		return []*cobra.Command{c}
	}
	var out []*cobra.Command
	for _, sub := range c.Commands() {
		if !sub.Hidden {
			out = append(out, verbs(sub)...)
		}
	}
	return out
}

func writeVerb(b *strings.Builder, c *cobra.Command) {
	about := c.Long
	if about == "" {
		about = c.Short + "."
	}
	fmt.Fprintf(b, "\n## %s\n\n    %s\n\n%s\n", c.CommandPath(), c.UseLine(), about)
	if c.Example != "" {
		fmt.Fprintf(b, "\n```\n%s\n```\n", strings.TrimRight(c.Example, "\n"))
	}
	if flags := c.LocalFlags(); flags.HasFlags() {
		fmt.Fprintf(b, "\n```\n%s```\n", flags.FlagUsages())
	}
}
