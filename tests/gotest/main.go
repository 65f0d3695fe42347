// Command gotest runs `go test`, prints what it prints, and says at the end how
// many tests passed, failed and were skipped, and why they were skipped.
//
//	gotest [-C DIR] [-name NAME] -- [go test arguments]
//
// Where $VPN_GATEWAY_ARTIFACTS is set, the output of every test, passed ones
// included, is kept there as gotest-NAME.log.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

func main() {
	// go test gets the terminal's interrupt itself and ends its tests, whose
	// results are still wanted; it's only killed at the second one.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	signal.Ignore(os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(1)
	}
}

// errTests says that tests failed, which the output has told already.
var errTests = errors.New("tests failed")

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("gotest", flag.ContinueOnError)
	dir := flags.String("C", ".", "`directory` of the module to test")
	name := flags.String("name", "test", "`name` of this run in the closing line and the log file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	log := io.Discard
	if artifacts := os.Getenv(testenv.EnvArtifacts); artifacts != "" {
		if err := os.MkdirAll(artifacts, 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(artifacts, "gotest-"+*name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		log = f
	}

	start := time.Now()
	goTest := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, flags.Args()...)...)
	goTest.Dir = *dir
	goTest.Stderr = os.Stderr
	goTest.Cancel = func() error { return goTest.Process.Signal(os.Interrupt) }
	goTest.WaitDelay = time.Minute
	events, err := goTest.StdoutPipe()
	if err != nil {
		return err
	}
	if err := goTest.Start(); err != nil {
		return err
	}
	report := newReport(out, log, slices.Contains(flags.Args(), "-v"))
	readErr := report.read(events)
	waitErr := goTest.Wait()
	counts := report.close()
	fmt.Fprintf(out, "gotest %s: %s in %s\n", *name, counts, time.Since(start).Round(time.Second))
	if readErr != nil {
		return readErr
	}
	var exit *exec.ExitError
	if errors.As(waitErr, &exit) {
		return errTests
	}
	if waitErr == nil && counts.failed > 0 {
		return fmt.Errorf("go test succeeded, but %d tests did not end well", counts.failed)
	}
	return waitErr
}
