//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	serviceCIDR = "10.96.0.0/16"
	clusterDNS  = "10.96.0.10"
	streamRate  = 100 // packets a second
)

// client is a peer of a gateway: what its owner knows.
type client struct {
	name    string
	private wgclient.Secret
	psk     wgclient.Secret
	address netip.Addr // in the tunnel
}

// newClient makes a client with a key of its own and the tunnel address 10.8.0.NUMBER.
func newClient(t *testing.T, name string, number byte) client {
	t.Helper()
	return client{
		name: name, address: netip.AddrFrom4([4]byte{10, 8, 0, number}),
		private: must[wgclient.Secret](t)(wgclient.NewPrivateKey()),
	}
}

// entry is the client as an element of the values' peers.
func (p client) entry() map[string]any {
	return map[string]any{"name": p.name, "publicKey": p.private.Public(), "addresses": []string{p.address.String()}}
}

// peers are values with clients as the gateway's peers.
func peers(clients ...client) map[string]any {
	entries := []map[string]any{}
	for _, p := range clients {
		entries = append(entries, p.entry())
	}
	return map[string]any{"peers": entries}
}

// config is the client's own file, as its owner would write it.
func (p client) config(g *gateway, server string) wgclient.Config {
	return wgclient.Config{
		PrivateKey: p.private,
		Addresses:  []netip.Prefix{netip.PrefixFrom(p.address, p.address.BitLen())},
		Peers: []wgclient.Peer{{
			PublicKey: server, PresharedKey: p.psk,
			Endpoint:   netip.AddrPortFrom(g.address, clientPort).String(),
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix(serviceCIDR)},
		}},
	}
}

// machine makes a network namespace outside of the cluster, behind the cluster's
// own client, which routes for it. A machine of its own is for clients of which
// several are up at a time: each sends the same destinations into its tunnel.
func (g *gateway) machine(t *testing.T) *netns.NS {
	t.Helper()
	ns := netns.ForTest(t)
	number := g.machines.Add(1)
	raw := g.status.ClientIP.As4()
	raw[3] += byte(number)
	address, router := netip.PrefixFrom(netip.AddrFrom4(raw), 32), netip.MustParsePrefix("198.51.100.1/32")
	port := fmt.Sprintf("e2e%d", number)
	steps := []func() error{
		func() error {
			return netns.Veth(
				netns.End{NS: ns, Interface: "eth0", Addresses: []netip.Prefix{address}},
				netns.End{NS: g.outside, Interface: port, Addresses: []netip.Prefix{router}}, 0)
		},
		func() error { return ns.AddRoute(netns.Route{To: router, Interface: "eth0"}) },
		func() error { return ns.AddRoute(netns.DefaultRoute(router.Addr())) },
		func() error { return g.outside.AddRoute(netns.Route{To: address, Interface: port}) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return ns
}

// becomeRouter has the cluster's own client route for the machines behind it, and
// answer for their addresses on the network that it shares with the nodes.
func (c *cluster) becomeRouter(t *testing.T) {
	t.Helper()
	for name, value := range map[string]string{
		"net.ipv4.ip_forward":             "1",
		"net.ipv4.conf.eth0.proxy_arp":    "1",
		"net.ipv4.neigh.eth0.proxy_delay": "0",
	} {
		if err := c.outside.SetSysctl(name, value); err != nil {
			t.Fatal(err)
		}
	}
}

// balancer is a call of the played load balancer. It waits for a ready Pod, and
// fails where there is no Service yet.
func (g *gateway) balancer() command {
	return command{args: []string{g.program, "lb", "--namespace", g.namespace, "--service", release, "--ip", g.address.String()}}
}

// balance plays the cloud's load balancer: it leads the gateway's address to the
// node of a ready Pod.
func (g *gateway) balance(t *testing.T) {
	t.Helper()
	g.run(t, g.balancer())
}

// dial sets up a client on a machine of its own and waits until it reaches the
// echo service.
func (g *gateway) dial(t *testing.T, p client) *wgclient.Client {
	t.Helper()
	g.balance(t)
	c := wgclient.ForTest(t, p.config(g, g.state(t).PublicKey), wgclient.Options{NS: g.machine(t)})
	g.reachesEcho(t, c)
	return c
}

// reachesEcho waits until the client gets an answer of the echo service, asked for
// by its DNS name at the cluster's DNS, all through the tunnel. It returns what
// the service saw: its own name, its client's address and the path.
func (c *cluster) reachesEcho(t *testing.T, from *wgclient.Client) string {
	t.Helper()
	var answer string
	eventually(t, "the echo service through the tunnel", func(ctx context.Context) (bool, string) {
		ctx, cancel := context.WithTimeout(ctx, 6*time.Second) // a handshake is tried again after 5 s
		defer cancel()
		text, err := c.askEcho(ctx, from.NS())
		if err != nil {
			return false, err.Error()
		}
		answer = text
		return true, ""
	})
	return answer
}

// askEcho resolves the echo service's name and asks it once.
func (c *cluster) askEcho(ctx context.Context, ns *netns.NS) (string, error) {
	host, port, err := net.SplitHostPort(c.echo)
	if err != nil {
		return "", err
	}
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return ns.DialContext(ctx, network, net.JoinHostPort(clusterDNS, "53"))
	}}
	addresses, err := resolver.LookupNetIP(ctx, "ip4", host+".")
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(addresses[0].String(), port)+"/hello", nil)
	if err != nil {
		return "", err
	}
	response, err := ns.HTTPClient().Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return strings.TrimSpace(string(body)), err
}

// startStream sends 100 packets a second from a client through the tunnel to a
// Service of the cluster and back. Behind that Service, which has an endpoint
// instead of a selector, an echo counts along in the control plane's network.
func (g *gateway) startStream(t *testing.T, from *wgclient.Client) *stream.Stream {
	t.Helper()
	echo, err := stream.ListenEcho(g.control, netip.AddrPortFrom(g.status.APIServer.Address.Addr(), 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = echo.Close() })
	const name = "stream"
	port, udp := int32(echo.Addr().Port()), corev1.ProtocolUDP
	service, err := g.client.CoreV1().Services(g.namespace).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: name, Port: port, Protocol: udp}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	portName := name
	_, err = g.client.DiscoveryV1().EndpointSlices(g.namespace).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{echo.Addr().Addr().String()}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &udp}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	target := netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), echo.Addr().Port())
	g.programmed(t, from.NS(), target)
	s, err := stream.Start(stream.Options{From: from.NS(), To: target, Rate: streamRate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(0) })
	flows(t, s, streamRate/2)
	return s
}

// programmed waits until the Service answers: kube-proxy takes a moment, and the
// first packets would be lost.
func (g *gateway) programmed(t *testing.T, ns *netns.NS, target netip.AddrPort) {
	t.Helper()
	eventually(t, "the stream's Service", func(ctx context.Context) (bool, string) {
		conn, err := ns.DialContext(ctx, "udp", target.String())
		if err != nil {
			return false, err.Error()
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return false, err.Error()
		}
		if _, err := conn.Write([]byte("ping")); err != nil {
			return false, err.Error()
		}
		_, err = conn.Read(make([]byte, 16))
		return err == nil, fmt.Sprint(err)
	})
}

// flows waits until n more packets have come back.
func flows(t *testing.T, s *stream.Stream, n uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Await(ctx, n); err != nil {
		t.Fatal(err)
	}
}

// lostNothing ends a stream and fails t unless every packet came back.
func (g *gateway) lostNothing(t *testing.T, s *stream.Stream, while string) {
	t.Helper()
	flows(t, s, streamRate)
	report := s.Stop(10 * time.Second)
	g.times.note(g.scenario, "stream while "+while, report.String())
	if report.Lost != 0 {
		t.Errorf("the stream while %s: %s (%d not sent; the longest outage %s), want none lost", while, report, report.SendErrors, report.LongestLoss)
	}
}
