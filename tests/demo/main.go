// Command demo shows what vpn-gateway does, in a minute: the gateway Pod that the
// chart describes, a stock WireGuard client outside and a service inside. While
// the client streams, a peer is added and its own pre-shared key is changed.
//
//	demo            in network namespaces of this machine, with no cluster
//	demo -cluster   on a Kubernetes of the project's own (tests/cluster)
//
// It needs root. What it makes it removes, on an interrupt as well; the cluster
// stays up for another look, until `make demo-down`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

func main() {
	podrun.Main()
	onCluster := flag.Bool("cluster", false, "on a Kubernetes of the project's own")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second interrupt ends the program at once.
	context.AfterFunc(ctx, stop)
	err := run(ctx, *onCluster)
	var left leftover
	switch {
	case err == nil:
	case errors.Is(ctx.Err(), context.Canceled) && !errors.As(err, &left):
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; what it made was removed")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

// leftover says that something could not be removed.
type leftover struct{ error }

func (l leftover) Unwrap() error { return l.error }

func run(ctx context.Context, onCluster bool) error {
	var p place = &local{}
	if onCluster {
		p = &remote{}
	}
	if err := refuse(p); err != nil {
		return err
	}
	logs, removeLogs, err := logDir()
	if err != nil {
		return err
	}
	out := newScreen(os.Stdout)
	err = tell(ctx, story{place: p, out: out, logs: logs})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w\nlogs: %s", err, logs)
	}
	return errors.Join(err, removeLogs())
}

// refuse names everything at once that the machine lacks.
func refuse(p place) error {
	missing := testenv.Missing(append([]testenv.Requirement{
		testenv.Linux(), testenv.Root(), testenv.NetNS(), testenv.TUN(),
		testenv.Tool("wg"), testenv.Tool("wireguard-go"),
	}, p.needs()...)...)
	if len(missing) == 0 {
		return nil
	}
	text := "cannot run here, for this machine lacks:\n  - " + strings.Join(missing, "\n  - ")
	var packages []string
	for _, pkg := range testenv.Packages() {
		if _, err := testenv.FindTool(pkg.Command); err != nil && (pkg.Command == "wg" || pkg.Command == "wireguard-go") {
			packages = append(packages, pkg.Name)
		}
	}
	if len(packages) > 0 {
		text += "\nOn Debian and its kin, as root: apt-get install " + strings.Join(packages, " ")
	}
	return errors.New(text)
}

// logDir is where logs go: the artifacts of a test run, or a directory that is
// removed when all went well.
func logDir() (dir string, remove func() error, err error) {
	if root := os.Getenv(testenv.EnvArtifacts); root != "" {
		dir = root + "/demo"
		return dir, func() error { return nil }, os.MkdirAll(dir, 0o755)
	}
	dir, err = os.MkdirTemp("", "vpngw-demo-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}
