package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	passedRate  = 100 // packets a second
	passedMoves = 6
)

// passedOn sends packets of the cluster for a stock client to one replica, while the
// client moves from one to the other.
func passedOn(ctx context.Context, b *bench) (row, error) {
	b.progress("sending from the cluster to a client by a replica that it is not at")
	ours, err := b.toClient(ctx, setting{servers: 3, clients: 1}, passedMoves, time.Second)
	if err != nil {
		return row{}, err
	}
	native, err := b.toClient(ctx, setting{servers: 3, clients: 1, native: true}, 1, nativeWaits)
	if err != nil {
		return row{}, err
	}
	each := (ours.Lost + passedMoves - 1) / passedMoves
	return row{
		what: fmt.Sprintf("Cluster → client by any replica, while the client moves %d times, at %d packets a second: packets lost, and the longest outage (wireguard-go: after one move)", passedMoves, passedRate),
		ours: fmt.Sprintf("%d of %d lost, %s", ours.Lost, ours.Sent, ms(ours.LongestLoss)),
		peer: fmt.Sprintf("%d of %d lost, for as long as the client stays", native.Lost, native.Sent),
		goal: fmt.Sprintf("≤ %s, %d packets for each move", ms(moveGoal), moveLost),
		met:  ours.LongestLoss <= moveGoal && each <= moveLost,
	}, nil
}

// toClient streams to a client through the first replica, and moves the client.
func (b *bench) toClient(ctx context.Context, s setting, moves int, every time.Duration) (out stream.Report, err error) {
	r, err := b.startReplicas(ctx, s)
	if err != nil {
		return out, err
	}
	var closers closeAll
	defer func() { err = errors.Join(err, closers.close(), r.close()) }()
	nft, err := testenv.FindTool("nft")
	if err != nil {
		return out, err
	}
	machine, from := r.topology.Clients[0], r.topology.ClientIP(0)
	if err := errors.Join(r.balancer.Move(from, r.pod(0)), machine.BehindNAT(nft, r.public())); err != nil {
		return out, err
	}
	// What a cluster's network would do for it.
	pool := netip.MustParsePrefix(bareGateway).Masked()
	if err := r.topology.Node.AddRoute(netns.Route{To: pool, Via: r.topology.PodIP(0)}); err != nil {
		return out, err
	}
	client, err := wgclient.Up(ctx, wgclient.Config{
		PrivateKey: r.keys[0], Addresses: []netip.Prefix{netip.PrefixFrom(tunnelAddress(0), 32)},
		Peers: []wgclient.Peer{{PublicKey: r.key.Public(), Endpoint: r.public().String(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}},
	}, wgclient.Options{NS: machine})
	if err != nil {
		return out, err
	}
	closers.add(client.Close)
	own, at, err := b.echoes(r, machine, &closers)
	if err != nil {
		return out, err
	}
	// What it sends by itself shows where it is.
	hers, err := stream.Start(stream.Options{From: machine, To: own, Rate: passedRate})
	if err != nil {
		return out, err
	}
	closers.add(func() error { hers.Stop(0); return nil })
	if err := through(ctx, hers, passedRate); err != nil {
		return out, err
	}
	time.Sleep(pastSecondHandshake)
	flow, err := stream.Start(stream.Options{From: r.topology.Service, To: at, Rate: passedRate})
	if err != nil {
		return out, err
	}
	for i := range moves {
		time.Sleep(time.Second)
		if err := r.balancer.Move(from, r.pod((i+1)%s.servers)); err != nil {
			return out, err
		}
		time.Sleep(every)
	}
	return flow.Stop(time.Second), through(ctx, hers, passedRate)
}

// echoes listens behind the gateway and at the client.
func (b *bench) echoes(r *replicas, machine *netns.NS, closers *closeAll) (behind, client netip.AddrPort, err error) {
	for _, e := range []struct {
		ns *netns.NS
		at netip.Addr
		to *netip.AddrPort
	}{{r.topology.Service, r.topology.ServiceIP(), &behind}, {machine, tunnelAddress(0), &client}} {
		echo, err := stream.ListenEcho(e.ns, netip.AddrPortFrom(e.at, 0))
		if err != nil {
			return behind, client, err
		}
		closers.add(echo.Close)
		*e.to = echo.Addr()
	}
	return behind, client, nil
}
