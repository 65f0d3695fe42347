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

type keysRotateOptions struct {
	clusterOptions
	publishOptions
	job          rotate.JobOptions
	overlapGiven bool
}

func newKeysRotateCommand(env environment) *cobra.Command {
	var o keysRotateOptions
	cmd := &cobra.Command{
		Use:   "rotate --kind server|preshared --secret NAME",
		Short: "Put the next key beside the one in force, to take over at a time",
		Long: "Put a next key into a Secret, beside the one in force. Its name says when it comes in force, --lead from now; " +
			"gateway and clients switch by the clock. Of kind server, the gateway answers for the old key until --overlap " +
			"after that. Of kind preshared, every peer of the Secret gets a next key.\n\n" +
			"Where a next key is waiting already, or an old server key is still answered, nothing is done, which is no error. A Secret " +
			"changes in one patch or not at all, so that the verb may be run at any time, many at once, and be ended at any time. A " +
			"Secret with a fault is not touched: every fault is named, and no key is ever printed.\n\n" +
			"It is what the chart's CronJobs run. It needs the verbs get and patch on the Secret (of --source where that is given, " +
			"and then get on the one of --secret), the same on the ConfigMap of --publish, and list and patch on Pods for --annotate-pods.",
		Example: "  kubectl create job --from=cronjob/vpn-gateway-rotate-server rotate-now",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.overlapGiven = cmd.Flags().Changed("overlap")
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			return keysRotate(ctx, env, o)
		},
	}
	f := cmd.Flags()
	f.StringVar((*string)(&o.job.Kind), "kind", "", "server or preshared (required)")
	f.StringVar(&o.job.Secret, "secret", "", "Secret that the gateway mounts (required)")
	f.StringVar(&o.job.Source, "source", "", "Secret to write to instead, which a PushSecret pushes to where that of --secret comes from; where it is empty, it first gets the keys of that one")
	f.StringVar(&o.job.Key, "key", "privateKey", "key of the Secret with the server key that has no time")
	f.DurationVar(&o.job.Lead, "lead", 10*time.Minute, "when the next key comes in force, from now; more than mounts take to be renewed everywhere")
	f.StringVar(&o.job.AnnotatePods, "annotate-pods", "", "label selector of Pods to annotate with "+rotate.ChangedAnnotation+", so that the kubelet renews their mounts at once")
	f.StringSliceVar(&o.job.PresharedSecrets, "preshared-secrets", nil, "all Secrets of pre-shared keys that are rotated, empty for none: what --publish says of runs for others is dropped; default: nothing is")
	f.DurationVar(&o.Overlap, "overlap", 0, overlapUsage+": keyRotation.server.overlap of the values (required for --kind server)")
	o.clusterOptions.register(cmd)
	o.publishOptions.register(cmd)
	return cmd
}

func keysRotate(ctx context.Context, env environment, o keysRotateOptions) error {
	o.job.Publication = o.Publication
	if err := o.job.Validate(); err != nil {
		return err
	}
	// No default: one that is shorter than the gateway's would take a key away that
	// clients are still answered for.
	if o.job.Kind == rotate.Server && !o.overlapGiven {
		return errors.New("--overlap is missing; give keyRotation.server.overlap of the gateway's values, such as 168h")
	}
	if o.ConfigMap != "" && o.job.Kind == rotate.Server && (o.Endpoints.Blue == "" || o.Endpoints.Green == "") {
		return errors.New("--publish needs --endpoint and --green-endpoint, where clients reach the two slots of the gateway")
	}
	if err := o.validate(); err != nil {
		return err
	}
	api, err := rotate.NewAPI(o.APIOptions)
	if err != nil {
		return err
	}
	log := telemetry.NewLogger(env.Err, slog.LevelInfo).With("secret", api.Namespace()+"/"+o.job.Secret)
	if o.job.Source != "" {
		log = log.With("written", api.Namespace()+"/"+o.job.Source)
	}
	return rotate.Job{
		JobOptions: o.job, Secrets: api.Secrets(), ConfigMaps: api.ConfigMaps(), Pods: api.Pods(), Log: log, Now: time.Now,
	}.Run(ctx)
}
