// Command vpn-metrics-adapter serves the API custom.metrics.k8s.io with the number
// of peers that are connected to the Pods of a gateway, for a
// HorizontalPodAutoscaler. It asks the Pods themselves; nothing else is needed.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	basecmd "sigs.k8s.io/custom-metrics-apiserver/pkg/cmd"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/cmd/options"

	"github.com/cloud-native-vpn/vpn-gateway/agent/cmd/vpn-metrics-adapter/internal/connections"
	"github.com/cloud-native-vpn/vpn-gateway/agent/cmd/vpn-metrics-adapter/internal/replicas"
)

const (
	name = "vpn-metrics-adapter"
	// Bounds of asking: a replica that takes longer is as good as gone, and a
	// hundred of them that are all gone still fit into one look.
	replicaTimeout = time.Second
	parallel       = 32
	// fresh is how long an answer serves further questions.
	fresh = time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// gateway says whose Pods are asked.
type gateway struct {
	namespace, name, selector string
	port                      uint16
}

func run(ctx context.Context, args []string) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	klog.SetSlogLogger(log)

	server := options.NewCustomMetricsAdapterServerOptions()
	server.SecureServing.BindPort = 6443
	// Without a directory the certificate that it makes for itself, where it is given
	// none, stays in memory: the root file system is read-only.
	server.SecureServing.ServerCert.CertDirectory = ""
	base := &basecmd.AdapterBase{
		Name:                              name,
		FlagSet:                           pflag.NewFlagSet(name, pflag.ContinueOnError),
		CustomMetricsAdapterServerOptions: server,
	}
	var g gateway
	base.Flags().StringVar(&g.namespace, "namespace", "", "namespace of the gateway (required)")
	base.Flags().StringVar(&g.name, "name", "", "name of the gateway's Deployment and Service (required)")
	base.Flags().StringVar(&g.selector, "selector", "", "labels of the gateway's Pods, as key=value,… (required)")
	base.Flags().Uint16Var(&g.port, "port", 8080, "HTTP port of the gateway's Pods")
	if err := base.Flags().Parse(args); err != nil {
		return err
	}
	if err := g.check(base.Flags().Args()); err != nil {
		return err
	}
	config, err := base.ClientConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	base.WithCustomMetrics(connections.New(connections.Options{
		Namespace: g.namespace, Name: g.name, Port: g.port,
		Fresh: fresh, Now: time.Now, Log: log,
		Pods:  connections.NewClusterPods(client, g.namespace, g.selector),
		Asker: replicas.New(replicas.Options{Timeout: replicaTimeout, Parallel: parallel}),
	}))
	return base.Run(ctx)
}

// check names everything that is missing at once.
func (g gateway) check(args []string) error {
	var faults []error
	for _, f := range []struct{ flag, value, fix string }{
		{"namespace", g.namespace, "give the gateway's namespace"},
		{"name", g.name, "give the name of its Deployment"},
		{"selector", g.selector, "give the labels of its Pods, such as app.kubernetes.io/instance=vpn-gateway"},
	} {
		if f.value == "" {
			faults = append(faults, fmt.Errorf("--%s is empty; %s", f.flag, f.fix))
		}
	}
	if g.port == 0 {
		faults = append(faults, errors.New("--port is 0; give a port from 1 to 65535"))
	}
	if len(args) > 0 {
		faults = append(faults, fmt.Errorf("unexpected arguments %q; everything is a flag", args))
	}
	return errors.Join(faults...)
}
