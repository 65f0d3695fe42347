package integration

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// patience is how long to wait for what normally takes a moment.
const patience = time.Minute

// world is a network with a gateway in it.
type world struct {
	*netns.Topology
	*gateway.Gateway
	kernelClients bool // else Debian's wireguard-go
}

// newWorld makes a network and starts a gateway in it.
func newWorld(t *testing.T, plan netns.Plan, c gateway.Config) *world {
	t.Helper()
	need(t)
	return makeWorld(t, plan, c)
}

func makeWorld(t *testing.T, plan netns.Plan, c gateway.Config) *world {
	t.Helper()
	w := &world{Topology: netns.TopologyForTest(t, plan)}
	w.Gateway = startGateway(t, w.Topology, gateway.Options{Config: c})
	return w
}

// startGateway adds a gateway to the network. Its Pod starts like one that no
// administrator has helped: without forwarding.
func startGateway(t *testing.T, topology *netns.Topology, o gateway.Options) *gateway.Gateway {
	t.Helper()
	binary, err := agent()
	if err != nil {
		t.Fatal(err)
	}
	o.Binary, o.Topology = binary, topology
	prepare := o.Prepare
	o.Prepare = func(pod *netns.NS) error {
		// New namespaces take the first three from the machine, whatever it is set
		// to. The others let a test be refused more often than once a second.
		for _, name := range []string{
			"net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.eth0.rp_filter",
			"net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit",
		} {
			if err := pod.SetSysctl(name, "0"); err != nil {
				return err
			}
		}
		if prepare == nil {
			return nil
		}
		return prepare(pod)
	}
	return gateway.ForTest(t, o)
}

// person is somebody with a key pair and an address in the tunnel.
type person struct {
	name      string
	addresses []netip.Addr
	key, psk  wgclient.Secret
}

// newPerson makes somebody without pre-shared key.
func newPerson(t *testing.T, name string, addresses ...string) person {
	t.Helper()
	p := person{name: name}
	for _, a := range addresses {
		p.addresses = append(p.addresses, netip.MustParseAddr(a))
	}
	var err error
	if p.key, err = wgclient.NewPrivateKey(); err != nil {
		t.Fatal(err)
	}
	return p
}

// newPSK makes a pre-shared key.
func newPSK(t *testing.T) wgclient.Secret {
	t.Helper()
	psk, err := wgclient.NewPresharedKey()
	if err != nil {
		t.Fatal(err)
	}
	return psk
}

// entry is the person's entry in the gateway's list of peers.
func (p person) entry() gateway.Peer {
	out := gateway.Peer{Name: p.name, PublicKey: p.key.Public()}
	for _, a := range p.addresses {
		out.Addresses = append(out.Addresses, a.String())
	}
	return out
}

// file is the person's wg-quick file for a gateway, with routes into the tunnel.
func (p person) file(g *gateway.Gateway, routes ...string) wgclient.Config {
	c := wgclient.Config{
		PrivateKey: p.key,
		Peers:      []wgclient.Peer{{PublicKey: g.PublicKey(), PresharedKey: p.psk, Endpoint: g.Endpoint.String()}},
	}
	for _, a := range p.addresses {
		c.Addresses = append(c.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, r := range routes {
		c.Peers[0].AllowedIPs = append(c.Peers[0].AllowedIPs, netip.MustParsePrefix(r))
	}
	return c
}

// connect brings the person's stock client up on the machine of that number.
func (p person) connect(t *testing.T, w *world, machine int, routes ...string) *wgclient.Client {
	t.Helper()
	return wgclient.ForTest(t, p.file(w.Gateway, routes...), wgclient.Options{NS: w.Clients[machine], Kernel: w.kernelClients})
}

// echo starts a UDP echo at the machine behind the gateway.
func (w *world) echo(t *testing.T) *stream.Echo {
	t.Helper()
	return echoAt(t, w.Service, w.ServiceIP())
}

// echoAt starts a UDP echo at an address of a machine.
func echoAt(t *testing.T, ns *netns.NS, a netip.Addr) *stream.Echo {
	t.Helper()
	e, err := stream.ListenEcho(ns, netip.AddrPortFrom(a, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// startStream sends rate packets a second from a machine to the echo and waits
// until the first come back: the session is there.
func startStream(t *testing.T, from *netns.NS, to netip.AddrPort, rate int) *stream.Stream {
	t.Helper()
	s, err := stream.Start(stream.Options{From: from, To: to, Rate: rate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(0) })
	await(t, s, uint64(rate)/10)
	return s
}

// await waits until n more packets of the stream have come back.
func await(t *testing.T, s *stream.Stream, n uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Await(ctx, n); err != nil {
		t.Fatal(err)
	}
}

// eventually asks until wanted returns "", for patience at most; otherwise what
// it returns says what is wrong.
func eventually(t *testing.T, what string, wanted func() string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		problem := wanted()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s", what, problem)
		}
	}
}
