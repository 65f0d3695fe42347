package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/rotate"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

func newKeysCommand(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Look after the gateway's keys in the cluster",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeysInitCommand(env))
	return cmd
}

type keysInitOptions struct {
	rotate.APIOptions
	secret, key string
	timeout     time.Duration
}

func newKeysInitCommand(env environment) *cobra.Command {
	var o keysInitOptions
	cmd := &cobra.Command{
		Use:   "init --secret NAME",
		Short: "Make the gateway's private key in a Secret, once",
		Long: "Make the gateway's private key in a Secret that exists, and do nothing where it has one. Nothing is ever " +
			"overwritten, so that it may run any number of times and many at once. The public key is logged.\n\n" +
			"It is what the chart's Job runs. It needs the verbs get and patch on that one Secret, by the service account of the " +
			"Pod or by --kubeconfig.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			return keysInit(ctx, env, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.secret, "secret", "", "name of the Secret (required)")
	f.StringVar(&o.key, "key", "privateKey", "key of the Secret to write the private key to")
	f.StringVar(&o.Namespace, "namespace", "", "namespace of the Secret; default: the Pod's own, or that of the kubeconfig's current context")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig file; default: the service account of the Pod")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to try")
	return cmd
}

func keysInit(ctx context.Context, env environment, o keysInitOptions) error {
	if o.secret == "" || o.key == "" {
		return errors.New("keys init needs --secret NAME, the Secret to write to, and a --key that is not empty")
	}
	api, err := rotate.NewAPI(o.APIOptions)
	if err != nil {
		return err
	}
	done, err := rotate.Init(ctx, api.Secrets(), o.secret, o.key)
	if err != nil {
		return err
	}
	log := telemetry.NewLogger(env.Err, slog.LevelInfo).
		With("secret", api.Namespace()+"/"+o.secret, "publicKey", done.Public.String())
	if done.Made {
		log.Info("private key made")
	} else {
		log.Info("private key was there already, nothing to do")
	}
	return nil
}
