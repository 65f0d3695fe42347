package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/crowd"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	// beat is how often each of the many clients sends a packet: 100 a second.
	beat = 10 * time.Millisecond
	// crowdSize are the clients of the events that move many.
	crowdSize = 50
	flowMoves = 10
	// mostPods are those that a gateway of several replicas may ever have had.
	mostPods = 8
	// pastSecondHandshake is when a session in a lab is as sessions are elsewhere:
	// where the first handshake takes less than a millisecond, wireguard-go may begin
	// another after 5 s.
	pastSecondHandshake = 6 * time.Second

	moveGoal    = 150 * time.Millisecond
	moveLost    = 5 // of 100 a second
	killGoal    = 3 * time.Second
	nodeGoal    = 5 * time.Second
	nativeWaits = 20 * time.Second // for WireGuard's own 15
)

// server is a replica, ours or a bare wireguard-go.
type server interface {
	// retire tells it to go. unready is called once no new packets should be sent to it.
	retire(ctx context.Context, unready func() error) error
	kill() error
	network() *netns.NS
	close() error
}

// replicas are servers of one key behind a load balancer, and clients of theirs.
type replicas struct {
	*bench
	topology *netns.Topology
	balancer *netns.Balancer
	key      wgclient.Secret
	keys     []wgclient.Secret // of the clients
	setting
	running []server
	crowd   []*crowd.Client
	from    []netip.Addr
	closers closeAll
	stop    context.CancelFunc
	pinging sync.WaitGroup
}

// setting is what to start.
type setting struct {
	servers, clients int
	// native takes wireguard-go alone, each with the same key, peers and firewall.
	native bool
	// nat puts the clients behind a NAT, as most are. Without one, what a replica still
	// sends once the load balancer has forgotten the flow draws a client away.
	nat bool
}

// startReplicas starts servers and clients, and returns when all clients are
// connected.
func (b *bench) startReplicas(ctx context.Context, s setting) (*replicas, error) {
	topology, err := netns.NewTopology(netns.Plan{Clients: 1})
	if err != nil {
		return nil, err
	}
	r := &replicas{
		bench: b, topology: topology, setting: s,
		balancer: netns.NewBalancer(topology, netip.AddrPortFrom(topology.PublicIP(), gateway.Port)),
	}
	r.closers.add(topology.Close)
	if err := r.start(ctx); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *replicas) start(ctx context.Context) (err error) {
	if r.key, err = wgclient.NewPrivateKey(); err != nil {
		return err
	}
	for range r.clients {
		k, err := wgclient.NewPrivateKey()
		if err != nil {
			return err
		}
		r.keys = append(r.keys, k)
	}
	for range r.servers {
		if err := r.grow(ctx); err != nil {
			return err
		}
	}
	if err := r.known(ctx, r.servers); err != nil {
		return err
	}
	return nil
}

// connect brings the clients up and waits until all are connected.
func (r *replicas) connectAll(ctx context.Context) error {
	pinging, stop := context.WithCancel(ctx)
	r.stop = stop
	pinger := crowd.NewPinger(r.topology.ServiceIP())
	r.pinging.Go(func() { pinger.Ping(pinging, beat) })
	for i := range r.keys {
		c, err := r.connectOne(i)
		if err != nil {
			return err
		}
		pinger.Add(c)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		silent := slices.ContainsFunc(r.crowd, func(c *crowd.Client) bool { _, n, _ := c.Counts(); return n == 0 })
		if !silent {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("not all clients have connected")
		}
	}
	time.Sleep(pastSecondHandshake)
	return r.balancer.KnowFlows()
}

// tunnelAddress is that of a client in the tunnel.
func tunnelAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 128, 1, byte(i + 1)}) }

func (r *replicas) connectOne(i int) (*crowd.Client, error) {
	from := netip.AddrFrom4([4]byte{198, 51, 100, byte(20 + i)})
	if err := r.topology.Clients[0].AddAddress(netns.UplinkInterface, netip.PrefixFrom(from, 24)); err != nil {
		return nil, err
	}
	if err := r.balancer.Client(from); err != nil {
		return nil, err
	}
	c, err := crowd.Start(crowd.Options{
		NS: r.topology.Clients[0], From: from, PrivateKey: r.keys[i], Address: tunnelAddress(i),
		Gateway: crowd.Identity{PublicKey: r.key.Public(), Endpoint: r.public()}, NAT: r.nat,
	})
	if err != nil {
		return nil, err
	}
	r.crowd, r.from = append(r.crowd, c), append(r.from, from)
	return c, nil
}

// public is what clients dial.
func (r *replicas) public() netip.AddrPort {
	return netip.AddrPortFrom(r.topology.PublicIP(), gateway.Port)
}

// pod is where a server listens.
func (r *replicas) pod(i int) netip.AddrPort {
	return netip.AddrPortFrom(r.topology.PodIP(i), gateway.Port)
}

// grow adds a server and takes it into service.
func (r *replicas) grow(ctx context.Context) error {
	start := r.startOurs
	if r.native {
		start = r.startBareReplica
	}
	s, err := start(ctx)
	if err != nil {
		return err
	}
	r.running = append(r.running, s)
	r.balancer.Add(r.pod(len(r.running) - 1))
	return nil
}

// retire ends a server, and sends its clients elsewhere once it is unready.
func (r *replicas) retire(ctx context.Context, i int) error {
	return r.running[i].retire(ctx, func() error {
		_, err := r.balancer.Remove(r.pod(i))
		return err
	})
}

// cost is what an event cost the clients.
type cost struct {
	outages    []time.Duration // of those that lost anything, sorted
	sent, lost uint64
}

// during measures what an event costs, until some time after it.
func (r *replicas) during(event func() error, after time.Duration) (c cost, err error) {
	for _, client := range r.crowd {
		client.Reset()
	}
	if err := event(); err != nil {
		return c, err
	}
	time.Sleep(after)
	for i, client := range r.crowd {
		sent, lost, run := client.Loss(uint64(time.Second / beat))
		c.sent, c.lost = c.sent+sent, c.lost+lost
		if lost > 0 {
			c.outages = append(c.outages, time.Duration(run)*beat)
		}
		client.Reset()
		time.Sleep(2 * beat)
		if back := r.back(client); !back {
			return c, fmt.Errorf("client %d was left behind", i)
		}
	}
	slices.Sort(c.outages)
	return c, nil
}

// back reports whether a client gets answers.
func (r *replicas) back(c *crowd.Client) bool {
	for deadline := time.Now().Add(backAfter); time.Now().Before(deadline); time.Sleep(beat) {
		if _, n, _ := c.Counts(); n > 0 {
			return true
		}
	}
	return false
}

func (c cost) worst() time.Duration {
	if len(c.outages) == 0 {
		return 0
	}
	return c.outages[len(c.outages)-1]
}

func (c cost) median() time.Duration {
	if len(c.outages) == 0 {
		return 0
	}
	return c.outages[len(c.outages)/2]
}

// text is the cost of many clients in a cell of the table.
func (c cost) text() string {
	return fmt.Sprintf("%s / %s, %d of %d lost", ms(c.median()), ms(c.worst()), c.lost, c.sent)
}

func (r *replicas) close() error {
	if r.stop != nil {
		r.stop()
	}
	r.pinging.Wait()
	for _, c := range r.crowd {
		c.Close()
	}
	var errs []error
	for _, s := range r.running {
		errs = append(errs, s.close())
	}
	return errors.Join(append(errs, r.closers.close())...)
}

// replicasValues are those of our replicas. They have as long for their leave as a
// rollout has, and find each other without a cluster's DNS.
func (r *replicas) values() string {
	var where []string
	for i := range mostPods {
		where = append(where, r.topology.PodIP(i).String())
	}
	return values + "  drain: 20s\nextraArgs: [--fleet-link-port=51840, \"--fleet-join=" + strings.Join(where, ",") + "\"]\n"
}
