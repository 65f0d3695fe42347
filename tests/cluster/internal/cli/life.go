package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/build"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/cluster"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/layout"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/preflight"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/progress"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

func buildCommand(p *progress.Printer) *cobra.Command {
	return &cobra.Command{
		Use:   "build [PART…]",
		Short: "build all programs and images of a cluster that are not in the cache, or optional parts",
		Long: `Build all programs and images of a cluster that are not in the cache.

With arguments: build these optional parts instead, and print the paths of their
images' archives, to be loaded by ` + "`cluster load`" + `. There is one: external-secrets.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dirs, err := layout.FromEnv(os.Getenv)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				_, err = buildParts(cmd.Context(), dirs, build.Parts(), p)
				return err
			}
			parts, err := build.Select(args)
			if err != nil {
				return err
			}
			built, err := buildParts(cmd.Context(), dirs, parts, p)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.Join(built.Images, "\n"))
			return err
		},
	}
}

// buildParts builds what the cache has not, after a look at what that needs.
func buildParts(ctx context.Context, dirs layout.Dirs, parts []build.Part, p *progress.Printer) (build.Result, error) {
	wd, err := os.Getwd()
	if err != nil {
		return build.Result{}, err
	}
	source, err := build.FindSource(wd)
	if err != nil {
		return build.Result{}, err
	}
	b := &build.Builder{Source: source, Cache: dirs.Parts(), Progress: p}
	missing, err := b.Missing(ctx, parts)
	if err != nil {
		return build.Result{}, err
	}
	if len(missing) > 0 {
		p.Say("not in %s: %s", dirs.Parts(), strings.Join(missing, ", "))
		if b.Env, err = preflight.Build(ctx, dirs, p); err != nil {
			return build.Result{}, err
		}
	}
	return b.Build(ctx, parts)
}

func upCommand(p *progress.Printer) *cobra.Command {
	settings := cluster.Settings{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "start the cluster, or what of it does not run; builds before if need be",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dirs, err := layout.FromEnv(os.Getenv)
			if err != nil {
				return err
			}
			if _, err := topology.New(settings.Nodes); err != nil {
				return err // before building for a quarter of an hour
			}
			if err := preflight.Run(cmd.Context(), dirs); err != nil {
				return err
			}
			built, err := buildParts(cmd.Context(), dirs, build.Parts(), p)
			if err != nil {
				return err
			}
			err = cluster.Up(cmd.Context(), cluster.UpOptions{Settings: settings, Dirs: dirs, Built: built}, p)
			if err != nil {
				return err
			}
			p.Say("the cluster is up: `cluster kubectl get pods -A`, `cluster run -- helm list`, `cluster down`")
			return nil
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&settings.Nodes, "nodes", 2, "number of nodes")
	flags.StringToStringVar(&settings.KubeletSet, "kubelet-set", nil, "field of KubeletConfiguration, as in syncFrequency=5s (repeatable)")
	flags.StringArrayVar(&settings.Flags.Kubelet, "kubelet-flag", nil, "further flag of the kubelets, as in --name=value (repeatable)")
	flags.StringArrayVar(&settings.Flags.APIServer, "apiserver-flag", nil, "further flag of kube-apiserver (repeatable)")
	flags.StringArrayVar(&settings.Flags.ControllerManager, "controller-manager-flag", nil, "further flag of kube-controller-manager (repeatable)")
	flags.StringArrayVar(&settings.Flags.Scheduler, "scheduler-flag", nil, "further flag of kube-scheduler (repeatable)")
	return cmd
}

func downCommand(p *progress.Printer) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "end the cluster and remove everything of it but what was built",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := preflight.Root(); err != nil {
				return err
			}
			dirs, err := layout.FromEnv(os.Getenv)
			if err != nil {
				return err
			}
			if err := cluster.Down(cmd.Context(), dirs.State(), p); err != nil {
				return err
			}
			p.Say("the cluster is down")
			return nil
		},
	}
}

func statusCommand(p *progress.Printer) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "tell how the cluster is; fails where none is up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := open(p)
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				out := json.NewEncoder(cmd.OutOrStdout())
				out.SetIndent("", "  ")
				return out.Encode(s)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tADDRESS\tPODS\tNETNS\tRUNNING\tREADY")
			fmt.Fprintf(w, "cp\t%s\t-\t%s\t%t\t%t\n", s.APIServer.Address, s.Netns["cp"], s.APIServer.Running, s.APIServer.Ready)
			for _, n := range s.Nodes {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%t\t%t\n", n.Name, n.IP, n.Pods, n.Netns, n.Running, n.Ready)
			}
			fmt.Fprintf(w, "client\t%s\t-\t%s\t-\t-\n", s.ClientIP, s.Netns["client"])
			if err := w.Flush(); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "\nkubeconfig %s\nlogs       %s/*/log\n", s.Kubeconfig, s.State)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func nodeCommand() *cobra.Command {
	node := &cobra.Command{Use: "node", Short: "crash and start single nodes"}
	node.AddCommand(
		&cobra.Command{
			Use:   "crash NAME",
			Short: "end a node as a power cut does; its disk stays",
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := preflight.Root(); err != nil {
					return err
				}
				return cluster.Crash(cmd.Context(), args[0])
			},
		},
		&cobra.Command{
			Use:   "start NAME",
			Short: "start a node that has crashed; does not wait until it is ready",
			Args:  cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				if err := preflight.Root(); err != nil {
					return err
				}
				return cluster.StartNode(args[0])
			},
		},
	)
	return node
}

// open takes up the running cluster, for root.
func open(p *progress.Printer) (*cluster.Cluster, error) {
	if err := preflight.Root(); err != nil {
		return nil, err
	}
	return cluster.Open(p)
}
