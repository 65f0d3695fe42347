package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/rotate"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

func newKeysCommand(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Look after the gateway's keys in the cluster",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeysInitCommand(env), newKeysRotateCommand(env), newKeysShowCommand(env))
	return cmd
}

// defaultOverlap is a week: time for whoever is away to come back.
const defaultOverlap = 168 * time.Hour

// clusterOptions are those of every verb that speaks to the API server.
type clusterOptions struct {
	rotate.APIOptions
	timeout time.Duration
}

func (o *clusterOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Namespace, "namespace", "", "namespace of the Secret; default: the Pod's own, or that of the kubeconfig's current context")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig file; default: the service account of the Pod")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to try")
}

// overlapUsage is for --overlap, whose default differs.
const overlapUsage = "how long a server key is answered after the next one came in force"

// publishOptions are those of every verb that fills the ConfigMap, but for
// --overlap.
type publishOptions struct{ rotate.Publication }

func (o *publishOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.ConfigMap, "publish", "", "ConfigMap that exists, to write the gateway's public keys to")
	f.StringVar(&o.Endpoints.Blue, "endpoint", "", "host:port of slot blue, for --publish")
	f.StringVar(&o.Endpoints.Green, "green-endpoint", "", "host:port of slot green, for --publish")
}

func (o *publishOptions) validate() error {
	for _, flag := range []struct{ name, value string }{{"--endpoint", o.Endpoints.Blue}, {"--green-endpoint", o.Endpoints.Green}} {
		if flag.value == "" {
			continue
		}
		if _, err := spec.ParseEndpoint(flag.value); err != nil {
			return fmt.Errorf("%s %q: %w; write it like vpn.example.com:51820", flag.name, flag.value, err)
		}
	}
	return nil
}

type keysInitOptions struct {
	clusterOptions
	publishOptions
	secret, source, key string
	makeAfter           time.Duration
}

// target is the Secret that is written.
func (o keysInitOptions) target() string { return cmp.Or(o.source, o.secret) }

func newKeysInitCommand(env environment) *cobra.Command {
	var o keysInitOptions
	cmd := &cobra.Command{
		Use:   "init --secret NAME",
		Short: "Make the gateway's private key in a Secret, once",
		Long: "Make the gateway's private key in a Secret that exists, and do nothing where it has one. Nothing is ever " +
			"overwritten, so that it may run any number of times and many at once. The public key is logged.\n\n" +
			"With --source, where keys are pushed to a backend, the key that this has comes first: it is copied from --secret, " +
			"and one is made only where --make-after says so.\n\n" +
			"It is what the chart's Job runs. It needs the verbs get and patch on that one Secret, by the service account of the " +
			"Pod or by --kubeconfig, and with --publish on the ConfigMap too. With --source these are for that one, and get for --secret.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout+o.makeAfter)
			defer cancel()
			return keysInit(ctx, env, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.secret, "secret", "", "name of the Secret (required)")
	f.StringVar(&o.source, "source", "", "Secret to write to instead, which a PushSecret pushes to where that of --secret comes from")
	f.DurationVar(&o.makeAfter, "make-after", 0, "with --source: how long to wait for a key in --secret before one is made; 0s: none is made")
	f.StringVar(&o.key, "key", "privateKey", "key of the Secret to write the private key to")
	f.DurationVar(&o.Overlap, "overlap", defaultOverlap, overlapUsage)
	o.clusterOptions.register(cmd)
	o.publishOptions.register(cmd)
	return cmd
}

func keysInit(ctx context.Context, env environment, o keysInitOptions) error {
	if o.secret == "" || o.key == "" {
		return errors.New("keys init needs --secret NAME, the Secret to write to, and a --key that is not empty")
	}
	switch {
	case o.ConfigMap != "" && o.Endpoints.Blue == "":
		return errors.New("--publish needs --endpoint, where clients reach the gateway")
	case o.source == o.secret:
		return fmt.Errorf("--source %q is --secret already; leave it out", o.source)
	case o.makeAfter < 0 || o.makeAfter > 0 && o.source == "":
		return fmt.Errorf("--make-after %s is for --source, and not less than zero; without --source a key is made at once", o.makeAfter)
	}
	if err := o.validate(); err != nil {
		return err
	}
	api, err := rotate.NewAPI(o.APIOptions)
	if err != nil {
		return err
	}
	done, err := o.run(ctx, api.Secrets())
	if err != nil {
		return err
	}
	log := telemetry.NewLogger(env.Err, slog.LevelInfo).
		With("secret", api.Namespace()+"/"+o.target(), "publicKey", done.Public.String())
	if done.Made {
		log.Info("private key made")
	} else {
		log.Info("private key was there already, nothing to do")
	}
	if o.ConfigMap == "" {
		return nil
	}
	return rotate.PublishServer(ctx, api.Secrets(), api.ConfigMaps(), o.target(), o.key, time.Now(), o.Publication)
}

func (o keysInitOptions) run(ctx context.Context, secrets rotate.Store) (rotate.Initialized, error) {
	if o.source == "" {
		return rotate.Init(ctx, secrets, o.secret, o.key)
	}
	return rotate.Adopt(ctx, secrets, rotate.AdoptOptions{
		Secret: o.secret, Source: o.source, Key: o.key, MakeAfter: o.makeAfter, Now: time.Now, Sleep: sleep,
	})
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
