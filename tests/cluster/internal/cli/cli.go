// Package cli is the command line of the cluster.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/machine"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/progress"
)

// exitStatus is the exit status of a command that was run on behalf of the
// user: it becomes our own, and nothing more is said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Main runs the command line and returns the exit status.
func Main(args []string) int {
	// Goroutines that enter other namespaces take any thread but this one:
	// what /proc calls self is the main thread.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	root := command(progress.New(os.Stderr))
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintln(os.Stderr, "cluster:", err)
	return 1
}

func command(p *progress.Printer) *cobra.Command {
	root := &cobra.Command{
		Use:   "cluster",
		Short: "A Kubernetes cluster of its own, on this machine, built from source",
		Long: `A Kubernetes cluster of its own, on this machine, built from source: a control
plane and real nodes, each a machine made of namespaces. Nothing of it can be
reached from outside of its namespaces, and nothing in it can reach out.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddCommand(
		buildCommand(p), upCommand(p), downCommand(p), statusCommand(p),
		kubectlCommand(), kubeconfigCommand(p), runCommand(p), execCommand(p),
		loadCommand(p), balanceCommand(p), nodeCommand(),
		&cobra.Command{
			Use: machine.InitVerb + " FILE", Hidden: true, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return machine.Init(context.Background(), args[0]) },
		},
	)
	return root
}
