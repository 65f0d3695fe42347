package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// ours is a replica of the gateway.
type ours struct{ *gateway.Gateway }

func (r *replicas) startOurs(ctx context.Context) (server, error) {
	c := gateway.Config{Values: r.values()}
	for i, k := range r.keys {
		c.Peers = append(c.Peers, gateway.Peer{
			Name: fmt.Sprintf("client-%03d", i), PublicKey: k.Public(), Addresses: []string{tunnelAddress(i).String()},
		})
	}
	g, err := gateway.Start(ctx, gateway.Options{Config: c, Binary: r.agent, Topology: r.topology, PrivateKey: r.key, LogDir: r.dir})
	if err != nil {
		return nil, err
	}
	return ours{g}, g.WaitReady(ctx)
}

// known waits until all replicas of ours know of each other.
func (r *replicas) known(ctx context.Context, n int) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		missing := ""
		for i, s := range r.running {
			o, isOurs := s.(ours)
			if !isOurs || len(o.Container().Exits()) > 0 {
				continue
			}
			if f, err := o.Fleet(ctx); err != nil || f.Replicas != n {
				missing = fmt.Sprintf("replica %d knows of %d, want %d (%v)", i, f.Replicas, n, err)
			}
		}
		if missing == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New(missing)
		}
	}
}

func (o ours) retire(ctx context.Context, unready func() error) error {
	if err := o.Container().Signal(unix.SIGTERM); err != nil {
		return err
	}
	if _, err := o.Await(ctx, "the replica to be unready", func(r gateway.Readiness) bool { return !r.Ready }); err != nil {
		return err
	}
	if err := unready(); err != nil {
		return err
	}
	select {
	case <-o.Container().Done():
		return nil
	case <-time.After(time.Minute):
		return errors.New("the replica does not leave")
	}
}

func (o ours) kill() error {
	_, err := o.Container().Kill()
	return err
}

func (o ours) network() *netns.NS { return o.Pod.Network() }

func (o ours) close() error { return o.Pod.Close() }

// awaitDead waits until a replica of ours knows that another one is dead.
func (r *replicas) awaitDead(ctx context.Context, survivor, dead int) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		f, err := r.running[survivor].(ours).Fleet(ctx)
		if err != nil {
			return err
		}
		if f.Member(r.topology.PodIP(dead)).State == "dead" {
			return nil
		}
	}
	return errors.New("nobody has noticed the death")
}

// bareReplica is one of several wireguard-go with the same key and peers.
type bareReplica struct{ *bare }

func (r *replicas) startBareReplica(ctx context.Context) (server, error) {
	g, _, err := r.startBareGateway(ctx, r.topology)
	if err != nil {
		return nil, err
	}
	private, _, err := rawKeys(r.key, r.key.Public())
	if err != nil {
		return nil, err
	}
	port := gateway.Port
	c := wgtypes.Config{PrivateKey: &private, ListenPort: &port}
	for i, k := range r.keys {
		_, public, err := rawKeys(k, k.Public())
		if err != nil {
			return nil, err
		}
		c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: public, AllowedIPs: ipNets(hostNetwork(tunnelAddress(i)))})
	}
	if err := errors.Join(g.configure(c), g.up(netip.MustParsePrefix(bareGateway))); err != nil {
		return nil, errors.Join(err, g.close())
	}
	return bareReplica{g}, nil
}

// retire ends at once, as wireguard-go does on SIGTERM.
func (b bareReplica) retire(_ context.Context, unready func() error) error {
	return errors.Join(b.process.Kill(), unready())
}

func (b bareReplica) kill() error        { return b.process.Kill() }
func (b bareReplica) network() *netns.NS { return b.ns }
