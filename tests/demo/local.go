package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/google/nftables"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgdevice"
)

const (
	// valuesFile is what the chart is rendered from, less its peers.
	valuesFile = "values/minimal.yaml"
	// keysSecret holds the pre-shared keys; `vpn-agent peer new` proposes that name.
	keysSecret = "vpn-gateway-psk"
	webPort    = 80
	echoPort   = 7
	// lookEvery is how often the device is looked at when its change is timed.
	lookEvery = time.Millisecond
)

// local is the place with no cluster: namespaces of this machine.
type local struct {
	topology *netns.Topology
	gateway  *gateway.Gateway
	config   gateway.Config
	server   *http.Server
	echoes   *stream.Echo
}

func (l *local) needs() []testenv.Requirement {
	return []testenv.Requirement{testenv.Tool("go"), nftNAT()}
}

// nftNAT is the need for nftables in the kernel, for the gateway and for the node
// around it. It makes and drops a chain in a namespace of its own.
func nftNAT() testenv.Requirement {
	return func() string {
		if os.Geteuid() != 0 {
			return "" // cannot be told, and root is missing anyway
		}
		ns, err := netns.New("")
		if err != nil {
			return "" // likewise
		}
		defer ns.Close()
		c, err := nftables.New(nftables.WithNetNSFd(ns.Fd()))
		if err == nil {
			table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "check"})
			c.AddChain(&nftables.Chain{
				Name: "nat", Table: table, Type: nftables.ChainTypeNAT,
				Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
			})
			err = c.Flush()
		}
		if err != nil {
			return fmt.Sprintf("nftables with NAT in the kernel (%v; load the modules nf_tables and nft_nat)", err)
		}
		return ""
	}
}

func (l *local) title() string {
	return "The Pod that the chart describes, a stock client and a service, in network namespaces of this machine"
}

func (l *local) open(ctx context.Context, out *screen, logs string) error {
	binary, err := l.build(ctx, out)
	if err != nil {
		return err
	}
	return errors.Join(
		out.step("network", "making it", func(func(string)) (string, error) { return l.makeNetwork() }),
		out.step("gateway", "starting it", func(func(string)) (string, error) { return l.startGateway(ctx, binary, logs) }),
	)
}

func (l *local) build(ctx context.Context, out *screen) (binary string, err error) {
	err = out.step("agent", "building it", func(func(string)) (string, error) {
		cache, err := testCache("agent")
		if err != nil {
			return "", err
		}
		start := time.Now()
		if binary, err = gateway.Build(ctx, cache); err != nil {
			return "", err
		}
		info, err := os.Stat(binary)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("built in %s: one static binary of %.1f MB", short(time.Since(start)), float64(info.Size())/1e6), nil
	})
	return binary, err
}

func (l *local) makeNetwork() (string, error) {
	var err error
	if l.topology, err = netns.NewTopology(netns.Plan{Clients: 1}); err != nil {
		return "", err
	}
	listener, err := l.topology.Service.Listen(netip.AddrPortFrom(l.topology.ServiceIP(), webPort))
	if err != nil {
		return "", err
	}
	l.server = &http.Server{Handler: http.HandlerFunc(greet), ReadHeaderTimeout: patience}
	go func() { _ = l.server.Serve(listener) }()
	l.echoes, err = stream.ListenEcho(l.topology.Service, netip.AddrPortFrom(l.topology.ServiceIP(), echoPort))
	return fmt.Sprintf("client %s ─ Internet ─ node %s ─ Pod %s ─ service %s",
		l.topology.ClientIP(0), l.topology.PublicIP(), l.topology.PodIP(0), l.topology.ServiceIP()), err
}

// greet is the service behind the gateway.
func greet(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	fmt.Fprintf(w, "hello, %s", host)
}

func (l *local) startGateway(ctx context.Context, binary, logs string) (string, error) {
	root, err := gateway.Root()
	if err != nil {
		return "", err
	}
	values, err := os.ReadFile(filepath.Join(root, valuesFile))
	if err != nil {
		return "", err
	}
	l.config = gateway.Config{
		Values:        string(values),
		PresharedKeys: map[string]map[string]wgclient.Secret{keysSecret: {}},
	}
	start := time.Now()
	l.gateway, err = gateway.Start(ctx, gateway.Options{Config: l.config, Binary: binary, Topology: l.topology, LogDir: logs})
	if err != nil {
		return "", err
	}
	if err := l.gateway.WaitReady(ctx); err != nil {
		return "", err
	}
	took := time.Since(start)
	now, err := l.gateway.Readiness(ctx)
	return fmt.Sprintf("the chart's Pod of %s, ready after %s\ndata plane %s: %s", valuesFile, short(took), now.DataPlane, now.Reason), err
}

func (l *local) exec(ctx context.Context, args ...string) ([]byte, error) {
	return l.gateway.Container().Exec(ctx, args...)
}

func (l *local) addPeers(ctx context.Context, peers ...peer) (string, error) {
	for _, p := range peers {
		l.config.Peers = append(l.config.Peers, p.entry)
		if !p.psk.IsZero() {
			l.config.PresharedKeys[keysSecret][p.entry.Name] = p.psk
		}
	}
	return l.update(ctx, "the files changed", func(d wgdevice.Device) bool {
		for _, p := range peers {
			if have, ok := d.Peers[p.entry.PublicKey]; !ok || !holds(have, p.psk) {
				return false
			}
		}
		return true
	})
}

func (l *local) changeKey(ctx context.Context, p peer, psk wgclient.Secret) (string, error) {
	l.config.PresharedKeys[keysSecret][p.entry.Name] = psk
	return l.update(ctx, "the Secret's files were swapped", func(d wgdevice.Device) bool {
		return holds(d.Peers[p.entry.PublicKey], psk)
	})
}

// holds tells whether the device has that pre-shared key for the peer; the zero
// key is none.
func holds(p wgdevice.Peer, psk wgclient.Secret) bool {
	want, err := wgdevice.ParseKey(psk.Reveal())
	return err == nil && p.PresharedKey == want
}

// update renders and swaps the files as kubelet does, and waits until the device
// is as wanted.
func (l *local) update(ctx context.Context, event string, wanted func(wgdevice.Device) bool) (string, error) {
	swapped, err := l.gateway.Update(l.config)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		device, err := l.device(ctx)
		if err == nil && wanted(device) {
			return fmt.Sprintf("in force %s after %s", short(time.Since(swapped)), event), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", errors.Join(fmt.Errorf("waiting for the change to be in force: %w", context.Cause(ctx)), err)
		}
	}
}

// device reads the gateway's device from outside of the Pod.
func (l *local) device(ctx context.Context) (wgdevice.Device, error) {
	socket := filepath.Join(l.gateway.Pod.VolumePath("wireguard"), l.gateway.Interface+".sock")
	if _, err := os.Stat(socket); err == nil {
		return wgdevice.Userspace(socket)
	}
	return wgdevice.Kernel(l.gateway.Pod.Network(), l.gateway.Interface)
}

func (l *local) client() *netns.NS { return l.topology.Clients[0] }

func (l *local) web(context.Context) (string, netip.AddrPort, error) {
	return fmt.Sprintf("http://%s/", l.topology.ServiceIP()), netip.AddrPortFrom(l.topology.ServiceIP(), webPort), nil
}

func (l *local) echo(context.Context) (netip.AddrPort, error) { return l.echoes.Addr(), nil }

func (l *local) identity(context.Context) (string, error) {
	status, err := l.gateway.Container().Status()
	if err != nil {
		return "", err
	}
	return describe(status), nil
}

func (l *local) restarts(context.Context) (int, error) {
	c := l.gateway.Container()
	if !c.Running() {
		return 0, fmt.Errorf("the agent has ended: %v", c.Exits())
	}
	return c.Restarts() + len(c.Exits()), nil
}

func (l *local) farewell() string { return "Nothing of it is left." }

func (l *local) close() error {
	var errs []error
	if l.gateway != nil && l.gateway.Pod != nil {
		errs = append(errs, l.gateway.Pod.Close())
	}
	if l.echoes != nil {
		errs = append(errs, l.echoes.Close())
	}
	if l.server != nil {
		errs = append(errs, l.server.Close())
	}
	if l.topology != nil {
		errs = append(errs, l.topology.Close())
	}
	return errors.Join(errs...)
}
