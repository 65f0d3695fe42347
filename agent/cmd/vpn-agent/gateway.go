package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/device"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/reconcile"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/watch"
)

const (
	// debounce is short against the 150 ms that a reload may take and long
	// against the microseconds between the kubelet's steps of one swap.
	debounceQuiet   = 20 * time.Millisecond
	debounceLongest = 100 * time.Millisecond
	// pollInterval stands in for inotify on nodes that have none left.
	pollInterval = 2 * time.Second
	// sessionsInterval is how soon a peer that came or went is logged.
	sessionsInterval = 5 * time.Second
	// externalInterval is how soon it is known that a Secret is not refreshed any
	// more, or is again.
	externalInterval = 15 * time.Second
	shutdownTimeout  = 2 * time.Second
)

type gatewayOptions struct {
	configDir, httpAddress, healthAddress string
	logLevel                              slog.LevelVar
	resync                                time.Duration
	externalSecrets                       []string
	fleet                                 fleetOptions
	gate                                  readinessOptions
}

func newGatewayCommand(env environment) *cobra.Command {
	var o gatewayOptions
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run a WireGuard gateway that follows the mounted files",
		Long: "Run a WireGuard gateway. It renders the files of --config-dir into a device, routes and a firewall, " +
			"and from then on keeps them equal to the files without ever restarting.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			log := telemetry.NewLogger(env.Err, &o.logLevel)
			if err := runGateway(cmd.Context(), log, &o); err != nil {
				telemetry.LogFatal(log, err)
				return reportedError{err}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.configDir, "config-dir", "/etc/vpn-gateway", "directory with config/, key/, psk/ and peers.d/")
	f.StringVar(&o.httpAddress, "http-address", ":8080", "where to serve /healthz, /readyz, /metrics and, with --fleet-port, /fleet: how many peers are connected to all replicas")
	f.StringVar(&o.healthAddress, "health-address", "", "TCP address that accepts only while ready, for load balancers that cannot probe UDP; empty is off")
	f.TextVar(&o.logLevel, "log-level", &o.logLevel, "least level to log: debug, info, warn or error")
	f.StringSliceVar(&o.externalSecrets, "external-secrets", nil, "ExternalSecrets of the Pod's namespace to report on, by name: whether they are still refreshed; it takes the right to get them")
	o.fleet.register(f)
	o.gate.register(f)
	f.DurationVar(&o.resync, "resync", 30*time.Second, "how often to compare everything without an event")
	return cmd
}

// check refuses flags that nothing can be made of.
func (o *gatewayOptions) check() error {
	o.gate.podName, o.gate.hasFleet = o.fleet.podName, o.fleet.port != 0
	errs := []error{o.fleet.check(), o.gate.check()}
	if o.resync < time.Second {
		errs = append(errs, fmt.Errorf("--resync=%s: too short; use 1s or more, such as 30s", o.resync))
	}
	for _, flag := range []struct{ name, address string }{
		{"http-address", o.httpAddress}, {"health-address", o.healthAddress},
	} {
		if _, _, err := net.SplitHostPort(flag.address); err != nil && (flag.address != "" || flag.name == "http-address") {
			errs = append(errs, fmt.Errorf("--%s=%s: not host:port; use one such as :8080", flag.name, flag.address))
		}
	}
	return errors.Join(errs...)
}

// runGateway wires the flow together: files → spec → desired → plan → device.
func runGateway(ctx context.Context, log *slog.Logger, o *gatewayOptions) error {
	dir, err := filepath.EvalSymlinks(o.configDir) // a watch does not follow links
	if err != nil {
		return err
	}
	o.configDir = dir
	mem := newMemory()
	files, err := watch.Read(o.configDir)
	if err != nil {
		return err
	}
	loader := spec.NewLoader()
	initial, err := loader.Load(files)
	if err != nil {
		return err
	}
	gateway := initial.Gateway
	dev, err := device.Open(device.Options{
		Names: o.fleet.deviceNames(&gateway),
		First: state.Identities(initial, time.Now())[0].Slot, DataPlane: gateway.Server.DataPlane, Log: log,
	})
	if err != nil {
		return err
	}
	log.Info("data plane", "interface", gateway.Server.Interface, "dataPlane", dev.DataPlane(), "reason", dev.Reason())
	fw, err := firewall.New(log)
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	handshakes, err := firewall.Handshakes(ctx, log)
	if err != nil {
		log.Warn("cannot see handshakes, looking for them instead", "error", err, "every", sessionsInterval.String())
	}
	others, err := startFleet(ctx, o, initial, dev, mem.move, log)
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	registry := telemetry.NewRegistry()
	telemetry.RegisterStopped(registry, stoppedPackets(fw))
	gate := telemetry.NewGate(o.healthAddress, log)
	defer gate.Close()
	loopOptions := reconcile.Options{
		Initial:     initial,
		Files:       files,
		Read:        func() (spec.Files, error) { return watch.Read(o.configDir) },
		Load:        loader.Load,
		Device:      dev,
		Firewall:    fw,
		Uplink:      device.Uplink,
		Resolve:     resolveHost,
		Resync:      o.resync,
		Sessions:    sessionsInterval,
		Handshakes:  handshakes,
		Now:         time.Now,
		Log:         log,
		Instruments: telemetry.NewInstruments(registry),
		Base: telemetry.Status{
			Version: version, DataPlane: string(dev.DataPlane()), DataPlaneReason: dev.Reason(),
		},
		Published: func(s telemetry.Status) { gate.Set(s.Ready()) },
		Reloading: mem.busy,
	}
	if others != nil {
		loopOptions.Fleet = others
	}
	loop := reconcile.New(loopOptions)
	status, err := withExternalSecrets(ctx, o.externalSecrets, log, registry, loop.Status)
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	handler := mem.whileScraped(telemetry.NewHandler(telemetry.Options{Status: status, EachPeer: dev.EachPeer, Registry: registry, Log: log, Fleet: others.metrics(registry)}))
	gates, closeGates := context.WithCancel(context.WithoutCancel(ctx)) // the drain included
	defer closeGates()
	gatesDone, err := startReadiness(gates, o.gate, others.membership(), log, registry)
	if err != nil {
		return errors.Join(err, others.leave(), dev.Close())
	}
	if err := serve(ctx, serveOptions{gatewayOptions: o, log: log, loop: loop, handler: handler, others: others}); err != nil {
		return errors.Join(err, dev.Close())
	}
	closeGates()
	<-gatesDone
	log.Info("leaving")
	return errors.Join(others.leave(), dev.Remove(), fw.Remove())
}

type serveOptions struct {
	*gatewayOptions
	log     *slog.Logger
	loop    *reconcile.Reconciler
	handler http.Handler
	others  *replicas
}

// serve runs the loop and the HTTP server until a SIGTERM has been drained or
// one of them fails. A second signal ends the drain at once.
func serve(parent context.Context, o serveOptions) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	listener, err := new(net.ListenConfig).Listen(parent, "tcp", o.httpAddress)
	if err != nil {
		return err
	}
	server := telemetry.NewServer(o.httpAddress, o.handler, o.log)
	running, stop := context.WithCancel(parent)
	defer stop()
	group, ctx := errgroup.WithContext(running)
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error { return o.loop.Run(ctx, changes(ctx, o.gatewayOptions, o.log)) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
		case s := <-signals:
			drain := o.loop.Drain()
			o.log.Info("draining", "signal", s.String(), "for", drain.String())
			select {
			case <-o.others.drained(ctx, drain):
				o.log.Info("all peers have gone to other replicas")
			case <-time.After(drain):
			case <-signals:
			case <-ctx.Done():
			}
		}
		stop()
		done, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err := server.Shutdown(done); err != nil {
			// A client that holds on to its connection must not keep the device
			// from being removed.
			return server.Close()
		}
		return nil
	})
	return group.Wait()
}

// changes watches the files, or polls where the node has no inotify left.
func changes(ctx context.Context, o *gatewayOptions, log *slog.Logger) <-chan struct{} {
	w, err := watch.New(watch.Options{Dir: o.configDir, Quiet: debounceQuiet, Longest: debounceLongest, Log: log})
	if err == nil {
		go w.Run(ctx)
		return w.Changed()
	}
	log.Warn("cannot watch files, polling instead", "error", err, "every", pollInterval.String())
	polls := make(chan struct{}, 1)
	go func() {
		tick := time.NewTicker(pollInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				select {
				case polls <- struct{}{}:
				default:
				}
			}
		}
	}()
	return polls
}

// stoppedPackets are the firewall's counters by the names of their reasons.
func stoppedPackets(fw *firewall.Firewall) telemetry.StoppedFunc {
	return func() (map[string]uint64, error) {
		counts, err := fw.Stopped()
		out := make(map[string]uint64, len(counts))
		for reason, count := range counts {
			out[string(reason)] = count.Packets
		}
		return out, err
	}
}

// resolveHost returns the addresses of a name, the one to try first in front
// (RFC 6724).
func resolveHost(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}
