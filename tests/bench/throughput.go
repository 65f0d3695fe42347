package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	rounds          = 15 // each way through each gateway
	roundTime       = time.Second
	throughputGoal  = 0.95
	idleGoal        = 30 << 20 // bytes
	barePort        = 51821    // on the node; the gateway has the usual one
	clientAddress   = "10.128.1.2"
	bareGateway     = "10.128.0.1/16"
	throughputPlace = "10.244.1.0/24" // where the service is
)

// way is a tunnel through one gateway, from a client of its own to the service.
type way struct {
	name   string
	client *netns.NS
	usage  func() (podrun.Usage, error) // of the gateway's process
	// Of each round, by direction.
	rate [2][]float64 // bits a second
	cpu  [2][]float64 // seconds of the gateway for each gigabyte
}

// Directions.
const (
	up   = 0 // client to service
	down = 1
)

// throughput measures an idle gateway's memory, then TCP streams through it and
// through a bare wireguard-go, turn and turn about. Both forward and masquerade;
// the gateway also checks who may reach what.
func throughput(ctx context.Context, b *bench) (rows []row, err error) {
	topology, err := netns.NewTopology(netns.Plan{Clients: 2})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, topology.Close()) }()
	b.progress("starting a gateway without peers")
	r, err := b.startGateway(ctx, gateway.Config{Values: values}, topology)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	idle, err := idleRow(r)
	if err != nil {
		return nil, err
	}
	var closers closeAll
	defer func() { err = errors.Join(err, closers.close()) }()
	ours, err := b.throughGateway(ctx, r, &closers)
	if err != nil {
		return nil, err
	}
	theirs, err := b.throughBare(ctx, topology, &closers)
	if err != nil {
		return nil, err
	}
	if err := b.race(ctx, topology, ours, theirs); err != nil {
		return nil, err
	}
	return append(throughputRows(ours, theirs), idle), nil
}

// closeAll is what ends with a measurement, last made first.
type closeAll []func() error

func (c *closeAll) add(f func() error) { *c = append(*c, f) }

func (c *closeAll) close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	return errors.Join(errs...)
}

func idleRow(r *rig) (row, error) {
	time.Sleep(settle)
	u, err := r.Container().Usage()
	if err != nil {
		return row{}, err
	}
	return row{
		what: "Resident memory of an idle gateway", ours: mib(u.RSS), peer: mib(idleGoal),
		goal: "≤ " + mib(idleGoal), met: u.RSS <= idleGoal,
	}, nil
}

// throughGateway adds a client to the gateway.
func (b *bench) throughGateway(ctx context.Context, r *rig, closers *closeAll) (*way, error) {
	key, err := wgclient.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	entry := gateway.Peer{Name: "client", PublicKey: key.Public(), Addresses: []string{clientAddress}}
	if err := r.Reload(ctx, gateway.Config{Values: values, Peers: []gateway.Peer{entry}}); err != nil {
		return nil, err
	}
	w := &way{name: "gateway", client: r.topology.Clients[0], usage: r.Container().Usage}
	return w, b.connect(ctx, w, dial{key: key, gateway: r.PublicKey(), endpoint: r.Endpoint}, closers)
}

// throughBare makes a gateway of a bare wireguard-go, with a client.
func (b *bench) throughBare(ctx context.Context, topology *netns.Topology, closers *closeAll) (*way, error) {
	g, index, err := b.startBareGateway(ctx, topology)
	if err != nil {
		return nil, err
	}
	closers.add(g.close)
	own, err := wgclient.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	key, err := wgclient.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	private, peer, err := rawKeys(own, key.Public())
	if err != nil {
		return nil, err
	}
	port := gateway.Port
	network := hostNetwork(netip.MustParseAddr(clientAddress))
	err = g.configure(wgtypes.Config{PrivateKey: &private, ListenPort: &port, Peers: []wgtypes.PeerConfig{
		{PublicKey: peer, AllowedIPs: ipNets(network)},
	}})
	if err != nil {
		return nil, err
	}
	if err := g.up(netip.MustParsePrefix(bareGateway)); err != nil {
		return nil, err
	}
	endpoint := netip.AddrPortFrom(topology.PublicIP(), barePort)
	if err := topology.Publish(endpoint, netip.AddrPortFrom(topology.PodIP(index), gateway.Port)); err != nil {
		return nil, err
	}
	w := &way{name: "wireguard-go", client: topology.Clients[1], usage: g.usage}
	return w, b.connect(ctx, w, dial{key: key, gateway: own.Public(), endpoint: endpoint}, closers)
}

// dial is what a client has to know.
type dial struct {
	key      wgclient.Secret
	gateway  string // public key
	endpoint netip.AddrPort
}

// connect brings a client up. It is a wireguard-go of the gateways' version: an
// old one could not keep up with them.
func (b *bench) connect(ctx context.Context, w *way, d dial, closers *closeAll) error {
	c, err := b.startBare(ctx, w.client)
	if err != nil {
		return err
	}
	closers.add(c.close)
	private, peer, err := rawKeys(d.key, d.gateway)
	if err != nil {
		return err
	}
	place := netip.MustParsePrefix(throughputPlace)
	network := hostNetwork(place.Addr())
	network.Mask = maskOf(place)
	err = c.configure(wgtypes.Config{PrivateKey: &private, Peers: []wgtypes.PeerConfig{
		{PublicKey: peer, Endpoint: udpAddr(d.endpoint), AllowedIPs: ipNets(network)},
	}})
	if err != nil {
		return err
	}
	return c.up(netip.PrefixFrom(netip.MustParseAddr(clientAddress), 32), place)
}

// masquerade is what a bare gateway needs of a firewall, and no more.
func masquerade(ns *netns.NS) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns.Fd()))
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "bare"})
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	uplink := make([]byte, unix.IFNAMSIZ)
	copy(uplink, netns.UplinkInterface)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: uplink},
		&expr.Masq{},
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("masquerading: %w", err)
	}
	return nil
}

func throughputRows(ours, theirs *way) []row {
	var out []row
	for _, direction := range []int{up, down} {
		name := [...]string{"client to service", "service to client"}[direction]
		ratio := medianRatio(ours.rate[direction], theirs.rate[direction])
		out = append(out, row{
			what: fmt.Sprintf("TCP throughput through the gateway, %s (medians of %d × %v in turn, and of their ratios)", name, rounds, roundTime),
			ours: mbit(median(ours.rate[direction])), peer: mbit(median(theirs.rate[direction])), ratio: times(ratio),
			goal: fmt.Sprintf("≥ %.2f ×", throughputGoal), met: ratio >= throughputGoal,
		}, row{
			what: fmt.Sprintf("… CPU time of the gateway's process for a gigabyte, %s", name),
			ours: fmt.Sprintf("%.1f s", median(ours.cpu[direction])), peer: fmt.Sprintf("%.1f s", median(theirs.cpu[direction])),
			ratio: times(medianRatio(ours.cpu[direction], theirs.cpu[direction])),
		})
	}
	return out
}

func mbit(bitsPerSecond float64) string { return fmt.Sprintf("%.0f Mbit/s", bitsPerSecond/1e6) }
