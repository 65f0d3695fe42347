package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/device"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/fleet"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/readiness"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// fleetOptions are the flags of a gateway that is one of several replicas.
type fleetOptions struct {
	port, linkPort uint16
	join           []string
	podName, podIP string
	sessions       string
}

func (o *fleetOptions) register(f *pflag.FlagSet) {
	f.Uint16Var(&o.port, "fleet-port", 0, "TCP and UDP port, at --pod-ip, for messages of the gateway's other replicas; 0: there are none")
	f.StringSliceVar(&o.join, "fleet-join", nil, "where to find them: names, which are looked up again and again, or IP addresses, with or without a port")
	f.Uint16Var(&o.linkPort, "fleet-link-port", 0, "UDP port, at --pod-ip, by which replicas pass packets for each other's peers on, encrypted; 0: they do not")
	f.StringVar(&o.sessions, "sessions-file", "", "file to note in whose sessions there are, without keys, for the next process in this Pod to call the peers at once; empty: none")
	f.StringVar(&o.podName, "pod-name", "", "the Pod's name, by which replicas know each other")
	f.StringVar(&o.podIP, "pod-ip", "", "the Pod's IP address")
}

func (o *fleetOptions) check() error {
	if o.port == 0 {
		if o.linkPort != 0 {
			return errors.New("--fleet-link-port takes --fleet-port: without it nobody knows of other replicas")
		}
		return nil
	}
	var errs []error
	if _, err := o.address(); err != nil {
		errs = append(errs, fmt.Errorf("--pod-ip=%s: not an IP address, which --fleet-port takes; use the Pod's, such as 10.244.1.7", o.podIP))
	}
	if o.linkPort == o.port {
		errs = append(errs, fmt.Errorf("--fleet-link-port=%d: is that of --fleet-port; use another one, such as 51840", o.linkPort))
	}
	if o.podName == "" {
		errs = append(errs, errors.New("--pod-name is missing, which --fleet-port takes: replicas know each other by name"))
	}
	return errors.Join(errs...)
}

// address is where other replicas reach this one.
func (o *fleetOptions) address() (netip.AddrPort, error) {
	a, err := netip.ParseAddr(o.podIP)
	return netip.AddrPortFrom(a, o.port), err
}

// link is this replica's end of the link to the others; nil where there is none. Its
// key lives as long as the process, and is never written anywhere.
func (o *fleetOptions) link(g *spec.Gateway) (*state.LinkConfig, error) {
	if o.linkPort == 0 {
		return nil, nil
	}
	for _, slot := range []key.Slot{key.Blue, key.Green} {
		if port := g.ListenPort(slot); port == o.linkPort {
			return nil, fmt.Errorf("--fleet-link-port=%d: WireGuard's clients have that port (slot %s); use another one, such as 51840", port, slot)
		}
	}
	address, err := o.address()
	return &state.LinkConfig{PrivateKey: key.GeneratePrivate(), ListenPort: o.linkPort, Address: address.Addr()}, err
}

// deviceNames are those of the devices that this gateway may have.
func (o *fleetOptions) deviceNames(g *spec.Gateway) map[key.Slot]string {
	names := map[key.Slot]string{key.Blue: g.Interface(key.Blue), key.Green: g.Interface(key.Green)}
	if o.port != 0 {
		names[state.Interlink] = state.InterlinkName(g)
	}
	return names
}

// replicas is this replica's part in the fleet.
type replicas struct {
	*fleet.Fleet
	sessions *firewall.Sessions
}

// startFleet joins the other replicas; nil where there are none.
func startFleet(ctx context.Context, o *gatewayOptions, initial *spec.Snapshot, dev *device.Tunnels, moving func(), log *slog.Logger) (*replicas, error) {
	if o.fleet.port == 0 {
		return nil, nil
	}
	address, err := o.fleet.address()
	if err != nil {
		return nil, err // check saw to it
	}
	g := &initial.Gateway
	inherited, err := sessionsOf(dev, g)
	if err != nil {
		return nil, err
	}
	link, err := o.fleet.link(g)
	if err != nil {
		return nil, err
	}
	sessions, err := firewall.NewSessions([]uint16{g.ListenPort(key.Blue), g.ListenPort(key.Green)}, log)
	if err != nil {
		return nil, fmt.Errorf("a gateway of several replicas has to see WireGuard's handshakes (CONFIG_NFT_LOG): %w", err)
	}
	f, err := fleet.Start(ctx, fleet.Options{
		Name: o.fleet.podName, Address: address, Join: o.fleet.join,
		Initial: initial, Inherited: inherited, Link: link, Memory: o.fleet.sessions, Watch: sessions.Watch, Moving: moving, Log: log,
	})
	if err != nil {
		return nil, errors.Join(err, sessions.Remove())
	}
	r := &replicas{f, sessions}
	if err := sessions.Listen(ctx, f.Heard); err != nil {
		return nil, errors.Join(err, r.leave())
	}
	go r.keepTable(ctx, o.resync, log)
	if len(inherited) > 0 {
		go r.lookAgain(ctx, dev, g, log)
	}
	return r, nil
}

// underWay is how long a handshake may take that was begun before anybody listened.
const underWay = 2 * time.Second

// lookAgain takes up sessions that came of handshakes which were under way when the device
// was taken over.
func (r *replicas) lookAgain(ctx context.Context, dev *device.Tunnels, g *spec.Gateway, log *slog.Logger) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(underWay):
	}
	made, err := sessionsOf(dev, g)
	switch {
	case errors.Is(err, fs.ErrClosed): // it leaves
	case err != nil:
		log.Warn("cannot look for sessions that were begun before this process, whose clients wait for WireGuard's own timers where they move", "error", err)
	default:
		r.Unseen(made)
	}
}

// sessionsOf returns each peer's last session with the device, which may be a predecessor's.
func sessionsOf(dev *device.Tunnels, g *spec.Gateway) (made []fleet.Session, err error) {
	last := map[fleet.PeerID]fleet.Session{}
	for _, slot := range []key.Slot{key.Blue, key.Green} {
		err = errors.Join(err, dev.EachPeer(slot, func(p *state.ObservedPeer) {
			s := fleet.Session{Peer: fleet.IDOf(p.PublicKey), Since: p.LastHandshake, Port: g.ListenPort(slot), Endpoint: p.Endpoint}
			if s.Since.After(last[s.Peer].Since) {
				last[s.Peer] = s
			}
		}))
	}
	return slices.Collect(maps.Values(last)), err
}

// keepTable makes the table of sessions anew where somebody deletes it.
func (r *replicas) keepTable(ctx context.Context, every time.Duration, log *slog.Logger) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		switch made, err := r.sessions.Repair(); {
		case err != nil:
			log.Error("cannot see sessions", "error", err)
		case made:
			log.Warn("repaired what others had changed", "changes", []string{"table " + firewall.SessionsTable + " made anew"})
			r.WatchAll()
		}
	}
}

// membership is what the readiness gates follow.
func (r *replicas) membership() membership {
	if r == nil {
		return membership{}
	}
	return membership{
		changes: r.MembersChanged(), answering: r.Answering,
		members: func() []readiness.Member {
			var out []readiness.Member
			for _, m := range r.Members() {
				out = append(out, readiness.Member{Name: m.Name, State: readinessState(m.State), Since: m.Since})
			}
			return out
		},
	}
}

func readinessState(s fleet.MemberState) readiness.State {
	switch s {
	case fleet.Draining:
		return readiness.Draining
	case fleet.Dead:
		return readiness.Dead
	case fleet.Left:
		return readiness.Left
	case fleet.Alive:
	}
	return readiness.Alive
}

// leave says goodbye to the other replicas. A nil one has none.
func (r *replicas) leave() error {
	if r == nil {
		return nil
	}
	return errors.Join(r.Close(), r.sessions.Remove())
}

// metrics shows the fleet.
func (r *replicas) metrics(reg prometheus.Registerer) func() telemetry.FleetView {
	if r == nil {
		return nil
	}
	telemetry.RegisterFleet(reg, r.View, r.Counts)
	return r.View
}

// drained is closed when all connected peers have gone to other replicas; never where
// there are none. Those that stay are handed over.
func (r *replicas) drained(ctx context.Context, most time.Duration) <-chan struct{} {
	if r == nil {
		return nil
	}
	r.Drain()
	done := make(chan struct{})
	go func() {
		leaving := fleet.NewLeaving(time.Now(), most)
		ticker := time.NewTicker(fleet.LeaveLook)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-ticker.C:
				handOver, gone := leaving.Look(now, r.Held() > 0, r.Alone())
				if handOver {
					r.HandOver()
				}
				if gone {
					close(done)
					return
				}
			}
		}
	}()
	return done
}
