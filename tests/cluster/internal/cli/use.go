package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/machine"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/progress"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

func kubeconfigCommand(p *progress.Printer) *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "print the path of the administrator's kubeconfig (of use inside of `cluster run`)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := open(p)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), c.Kubeconfig())
			return err
		},
	}
}

func kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl [ARGUMENT…]",
		Short:              "run kubectl as the administrator",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return become(topology.ControlPlane, append([]string{"kubectl"}, args...))
		},
	}
}

func runCommand(_ *progress.Printer) *cobra.Command {
	client := false
	cmd := &cobra.Command{
		Use:   "run [--client] -- COMMAND [ARGUMENT…]",
		Short: "run a command of this host in the network of the control plane, with KUBECONFIG set, or of the client outside",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if client {
				return become(topology.Client, args)
			}
			return become(topology.ControlPlane, args)
		},
	}
	cmd.Flags().BoolVar(&client, "client", false, "in the network of the client outside of the cluster")
	cmd.Flags().SetInterspersed(false) // flags after COMMAND are its own
	return cmd
}

// become replaces this program by a command of the host inside of a network
// namespace of the cluster. It returns only when that fails.
func become(name string, args []string) error {
	c, err := open(nil)
	if err != nil {
		return err
	}
	// The cluster's kubectl goes before any other.
	path := c.Bin() + string(filepath.ListSeparator) + os.Getenv("PATH")
	env := map[string]string{"PATH": path, "KUBECONFIG": c.Kubeconfig(), "KUBECACHEDIR": c.KubectlCache()}
	for key, value := range env {
		if err := os.Setenv(key, value); err != nil {
			return err
		}
	}
	file, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	// The thread that calls execve decides on the namespace: this is the main
	// one, and Main has locked it.
	if err := netns.Enter(topology.Netns(name)); err != nil {
		return err
	}
	if err := unix.Exec(file, args, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", file, err)
	}
	return nil
}

func execCommand(p *progress.Printer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec MACHINE -- COMMAND [ARGUMENT…]",
		Short: "run a command on a machine (cp, n1, n2…), in all of its namespaces",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := open(p)
			if err != nil {
				return err
			}
			command := args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return errors.New("exec: no command after --")
			}
			status, err := c.Exec(args[0], machine.Command{
				Args: command, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
			})
			if err != nil {
				return err
			}
			if status != 0 {
				return exitStatus(status)
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func loadCommand(p *progress.Printer) *cobra.Command {
	return &cobra.Command{
		Use:   "load IMAGE.tar…",
		Short: "import image archives (OCI or docker format) into every running node",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := open(p)
			if err != nil {
				return err
			}
			for _, file := range args {
				if err := c.Load(cmd.Context(), file); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func balanceCommand(p *progress.Printer) *cobra.Command {
	var namespace, service, ip string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "lb --service NAME [--namespace NS] [--ip ADDRESS]",
		Short: "play the cloud's load balancer for a Service: the client outside reaches it at the address",
		Long: `Play the cloud's load balancer for a Service: write the address into its status,
and make the client outside reach it by a running node that has a ready endpoint
(waits for one). Prints that node's name. Call it again when endpoints move.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			addr, err := netip.ParseAddr(ip)
			if err != nil {
				return fmt.Errorf("--ip %q: %w", ip, err)
			}
			c, err := open(p)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			node, err := c.Balance(ctx, namespace, service, addr)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), node.Name)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&namespace, "namespace", "default", "namespace of the Service")
	flags.StringVar(&service, "service", "", "name of the Service")
	flags.StringVar(&ip, "ip", "203.0.113.1", "address of the load balancer")
	flags.DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for a ready endpoint")
	if err := cmd.MarkFlagRequired("service"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}
