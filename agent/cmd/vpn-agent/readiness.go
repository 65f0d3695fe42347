package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/readiness"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

type readinessOptions struct {
	enabled               bool
	podName, podNamespace string
	lease                 string
	hasFleet              bool
}

// register adds the flags.
func (o *readinessOptions) register(f *pflag.FlagSet) {
	f.BoolVar(&o.enabled, "readiness-gate", false, "open the readiness gate "+readiness.GateType+" of the own Pod, and close those of dead replicas; it takes the right to get Pods, to patch their status, and to get and patch the Lease of --readiness-lease")
	f.StringVar(&o.podNamespace, "pod-namespace", "", "namespace of the own Pod")
	f.StringVar(&o.lease, "readiness-lease", "vpn-gateway-fleet", "Lease of the Pod's namespace that decides between two halves of the replicas that do not see each other")
}

// check refuses flags that nothing can be made of.
func (o *readinessOptions) check() error {
	if !o.enabled {
		return nil
	}
	var errs []error
	if !o.hasFleet {
		errs = append(errs, errors.New("--readiness-gate takes --fleet-port: without it nobody knows of other replicas"))
	}
	for _, flag := range []struct{ name, value, from string }{
		{"pod-name", o.podName, "metadata.name"}, {"pod-namespace", o.podNamespace, "metadata.namespace"},
	} {
		if flag.value == "" {
			errs = append(errs, fmt.Errorf("--%s is empty, and --readiness-gate needs it; give %s by the downward API", flag.name, flag.from))
		}
	}
	if o.lease == "" {
		errs = append(errs, errors.New("--readiness-lease is empty, and --readiness-gate needs it; name a Lease that exists"))
	}
	return errors.Join(errs...)
}

// membership is the fleet as package readiness knows it.
type membership struct {
	members   func() []readiness.Member
	answering func(names []string) []string
	changes   <-chan struct{}
}

// startReadiness keeps the readiness gates until ctx is done, which should be when
// the drain is over: a replica that leaves still marks dead siblings. The channel
// that it returns is closed when the last request has been made.
func startReadiness(ctx context.Context, o readinessOptions, m membership, log *slog.Logger, reg prometheus.Registerer) (<-chan struct{}, error) {
	done := make(chan struct{})
	if !o.enabled {
		close(done)
		return done, nil
	}
	client, err := readiness.InCluster(readiness.ClientOptions{Namespace: o.podNamespace, Lease: o.lease})
	if err != nil {
		return nil, fmt.Errorf("--readiness-gate: %w", err)
	}
	controller := readiness.New(readiness.Options{
		API: client, Self: o.podName, Members: m.members, Answering: m.answering, Changes: m.changes,
		Now: time.Now, Log: log, Metrics: telemetry.NewReadinessCounters(reg, readiness.Refusals()),
	})
	go func() {
		defer close(done)
		controller.Run(ctx)
	}()
	return done, nil
}
