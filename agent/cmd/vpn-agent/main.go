// Command vpn-agent runs WireGuard gateways on Kubernetes. Every role and every
// verb is a file of its own in this folder and one line in the list below.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// version is set at build time: -ldflags "-X main.version=0.1.0".
var version = "0.0.0-dev"

// environment is what a command may touch of the process it runs in.
type environment struct {
	In       io.Reader
	Out, Err io.Writer
}

func main() {
	env := environment{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	if err := newRootCommand(env).ExecuteContext(context.Background()); err != nil {
		if !errors.As(err, &reportedError{}) {
			fmt.Fprintln(env.Err, "vpn-agent:", err)
		}
		os.Exit(1)
	}
}

// reportedError is one that stands in the log already.
type reportedError struct{ error }

// newRootCommand registers every verb.
func newRootCommand(env environment) *cobra.Command {
	root := &cobra.Command{
		Use:           "vpn-agent",
		Short:         "Run and look after WireGuard gateways on Kubernetes",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	root.AddCommand(
		newGatewayCommand(env),
		newKeysCommand(env),
		newPeerCommand(env),
		newProbeCommand(env),
		newRenderCommand(env),
		newValidateCommand(env),
		newVersionCommand(env),
	)
	return root
}
