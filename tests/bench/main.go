// Command bench measures a gateway against named peers in the same run and prints
// one table in Markdown, with the machine beside it.
//
//	bench                    measure everything, in about a quarter of an hour
//	bench -write README.md   and put the table between <!-- bench --> and <!-- /bench --> of that file
//	bench -only reload       measure some of it: reload, swap, rotation, throughput, replicas, convergence,
//	                         autoscaling (with commas between)
//
// The gateway is the Pod that the chart describes, run as a container in network
// namespaces of this machine, with userspace WireGuard. What it is compared with is
// wireguard-go's own program, built from the same version of the library that the
// agent has inside: Debian's is years older, and slower. What needs a cluster is
// measured by tests/e2e on one of its own, which the first run builds.
//
// Ratios mean something on any machine, absolute times on an idle one only. A goal
// that is missed is shown as such and is no error: this is no test. It needs root;
// what it makes it removes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

func main() {
	podrun.Main()
	write := flag.String("write", "", "file to put the table into, between "+startMark+" and "+endMark)
	only := flag.String("only", "", "what to measure, comma-separated: "+strings.Join(sectionNames(), ", ")+"; empty: everything")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second interrupt ends the program at once
	if err := run(ctx, *write, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// section is a part of the table that can be measured by itself.
type section struct {
	name    string
	measure func(context.Context, *bench) ([]row, error)
}

func sections() []section {
	return []section{
		{"reload", manyPeers},
		{"swap", fileSwaps},
		{"rotation", keyRotation},
		{"throughput", throughput},
		{"replicas", manyReplicas},
		{"convergence", convergence},
		{"autoscaling", autoscaling},
	}
}

func sectionNames() []string {
	var out []string
	for _, s := range sections() {
		out = append(out, s.name)
	}
	return out
}

// bench is what all measurements share.
type bench struct {
	agent string // binary
	bare  string // wireguard-go's own program
	wg    string
	dir   string // for logs and other files
}

// progress says on standard error what goes on; the table alone goes to
// standard output.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

func run(ctx context.Context, write, only string) error {
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	if write != "" && only != "" {
		return errors.New("-write takes the whole table; leave -only out")
	}
	if missing := testenv.Missing(
		testenv.Linux(), testenv.Root(), testenv.NetNS(), testenv.TUN(), wgclient.Tools(), testenv.Tool("go"),
	); len(missing) > 0 {
		return errors.New("cannot run here, for this machine lacks:\n  - " + strings.Join(missing, "\n  - "))
	}
	dir, err := os.MkdirTemp("", "vpngw-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{dir: dir}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	report := newReport()
	for _, s := range chosen {
		rows, err := s.measure(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		report.rows = append(report.rows, rows...)
	}
	report.finish()
	fmt.Print(report.markdown())
	if write == "" {
		return nil
	}
	return report.writeInto(write)
}

func choose(only string) ([]section, error) {
	if only == "" {
		return sections(), nil
	}
	var out []section
	for name := range strings.SplitSeq(only, ",") {
		i := slices.Index(sectionNames(), name)
		if i < 0 {
			return nil, fmt.Errorf("-only %s: use any of %s", name, strings.Join(sectionNames(), ", "))
		}
		out = append(out, sections()[i])
	}
	return out, nil
}

func (b *bench) prepare(ctx context.Context) (err error) {
	b.progress("building the agent and wireguard-go")
	if b.agent, err = gateway.Build(ctx, b.dir); err != nil {
		return err
	}
	if b.bare, err = buildBare(ctx, filepath.Join(b.dir, "wireguard-go")); err != nil {
		return err
	}
	b.wg, err = testenv.FindTool("wg")
	return err
}
