package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

// Plan says what a [Topology] is made of.
type Plan struct {
	// Clients is the number of machines on the Internet that dial in.
	Clients int
	// IPv6 gives every link and machine an address of that family, too.
	IPv6 bool
	// MTU of the gateway Pod's link in bytes; 0: 1500.
	MTU int
	// NamePrefix, where set, binds the namespaces to /run/netns as
	// vpngw-PREFIX-client0, …-internet, …-node, …-pod0, …-service.
	NamePrefix string
}

// Topology is the world around a gateway, each machine a namespace:
//
//	client0 198.51.100.10 ┐
//	client1 198.51.100.11 ┤ internet ── node 203.0.113.1 ┬ pod0     10.244.0.10 eth0
//	…                     ┘                              ├ pod1     10.244.0.11 eth0
//	                                                     └ service  10.244.1.10
//
// The Internet knows no route to Pods and services: they are reached through the
// node's public address, as with a Service of Kubernetes ([Topology.Publish]),
// or through a tunnel. What Pods send to the Internet leaves with the node's
// address. With IPv6 the same numbers stand in 2001:db8:1::/64 (clients),
// 2001:db8:113::1 (the node), fd00:244:0::/64 (Pods) and fd00:244:1::/64.
type Topology struct {
	Clients  []*NS
	Internet *NS
	Node     *NS
	Service  *NS

	plan  Plan
	all   []*NS
	pods  int
	known map[netip.Addr][]uint16 // UDP ports of clients, see KnowFlows
}

// The networks of a [Topology] that are not told from an address alone.
const (
	// UplinkInterface is the name of a Pod's network card.
	UplinkInterface = "eth0"
	podBridge       = "cni0"
	clientBridge    = "inet0"
)

// NewTopology makes the namespaces and the links between them. Needs root.
func NewTopology(plan Plan) (*Topology, error) {
	t := &Topology{plan: plan}
	if err := t.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("making the test network: %w", err), t.Close())
	}
	return t, nil
}

// TopologyForTest makes a topology that ends with t.
func TopologyForTest(t testing.TB, plan Plan) *Topology {
	t.Helper()
	topology, err := NewTopology(plan)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := topology.Close(); err != nil {
			t.Error(err)
		}
	})
	return topology
}

// Close removes everything.
func (t *Topology) Close() error {
	var errs []error
	for _, n := range t.all {
		errs = append(errs, n.Close())
	}
	t.all = nil
	return errors.Join(errs...)
}

// PublicIP is the node's address on the Internet.
func (t *Topology) PublicIP() netip.Addr { return netip.MustParseAddr("203.0.113.1") }

// PublicIP6 is the node's IPv6 address on the Internet.
func (t *Topology) PublicIP6() netip.Addr { return netip.MustParseAddr("2001:db8:113::1") }

// ClientIP is the address of the client with that index.
func (t *Topology) ClientIP(i int) netip.Addr { return numbered("198.51.100.0", 10+i) }

// PodIP is the address of the Pod with that index.
func (t *Topology) PodIP(i int) netip.Addr { return numbered("10.244.0.0", 10+i) }

// PodIP6 is the IPv6 address of the Pod with that index.
func (t *Topology) PodIP6(i int) netip.Addr { return numbered("fd00:244::", 10+i) }

// ServiceIP is the address of the machine behind the gateway.
func (t *Topology) ServiceIP() netip.Addr { return netip.MustParseAddr("10.244.1.10") }

// ServiceIP6 is its IPv6 address.
func (t *Topology) ServiceIP6() netip.Addr { return netip.MustParseAddr("fd00:244:1::10") }

func (t *Topology) build() (err error) {
	for name, ns := range map[string]**NS{"internet": &t.Internet, "node": &t.Node, "service": &t.Service} {
		if *ns, err = t.add(name); err != nil {
			return err
		}
	}
	for _, router := range []*NS{t.Internet, t.Node} {
		if err := router.Forward(); err != nil {
			return err
		}
	}
	if err := t.buildRouters(); err != nil {
		return err
	}
	err = t.machine(t.Service, UplinkInterface, t.addresses("10.244.1.10/24", "fd00:244:1::10/64"),
		End{NS: t.Node, Interface: "service", Addresses: t.addresses("10.244.1.1/24", "fd00:244:1::1/64")})
	if err != nil {
		return err
	}
	for range t.plan.Clients {
		if _, err := t.AddClient(); err != nil {
			return err
		}
	}
	return nil
}

// buildRouters connects the Internet with the node.
func (t *Topology) buildRouters() error {
	if err := t.Internet.AddBridge(clientBridge, t.addresses("198.51.100.1/24", "2001:db8:1::1/64")...); err != nil {
		return err
	}
	if err := t.Node.AddBridge(podBridge, t.addresses("10.244.0.1/24", "fd00:244::1/64")...); err != nil {
		return err
	}
	err := Veth(
		End{NS: t.Internet, Interface: "node", Addresses: t.addresses("192.0.2.1/30", "2001:db8:2::1/64")},
		End{NS: t.Node, Interface: UplinkInterface, Addresses: t.addresses("192.0.2.2/30", "2001:db8:2::2/64")}, 0)
	if err != nil {
		return err
	}
	for _, public := range t.addresses("203.0.113.1/32", "2001:db8:113::1/128") {
		if err := t.Node.AddAddress("lo", public); err != nil {
			return err
		}
	}
	for _, via := range t.addresses("192.0.2.1/30", "2001:db8:2::1/64") {
		if err := t.Node.AddRoute(DefaultRoute(via.Addr())); err != nil {
			return err
		}
	}
	publics := t.addresses("203.0.113.0/24", "2001:db8:113::/64")
	for i, via := range t.addresses("192.0.2.2/30", "2001:db8:2::2/64") {
		if err := t.Internet.AddRoute(Route{To: publics[i], Via: via.Addr()}); err != nil {
			return err
		}
	}
	return t.masquerade()
}

// AddClient adds one more machine to the Internet and to t.Clients.
func (t *Topology) AddClient() (*NS, error) {
	i := len(t.Clients)
	client, err := t.add(fmt.Sprintf("client%d", i))
	if err != nil {
		return nil, err
	}
	t.Clients = append(t.Clients, client)
	err = t.machine(client, UplinkInterface, t.addresses(t.ClientIP(i).String()+"/24", numbered("2001:db8:1::", 10+i).String()+"/64"),
		End{NS: t.Internet, Interface: fmt.Sprintf("client%d", i), Bridge: clientBridge})
	return client, err
}

// AddPod adds the network of one more Pod to the node, as a CNI plugin would: a
// namespace with eth0, an address and a default route. It returns the
// namespace and the Pod's index for [Topology.PodIP].
func (t *Topology) AddPod() (*NS, int, error) {
	i := t.pods
	pod, err := t.add(fmt.Sprintf("pod%d", i))
	if err != nil {
		return nil, 0, err
	}
	t.pods++
	err = t.machine(pod, UplinkInterface, t.addresses(t.PodIP(i).String()+"/24", t.PodIP6(i).String()+"/64"),
		End{NS: t.Node, Interface: fmt.Sprintf("pod%d", i), Bridge: podBridge})
	return pod, i, err
}

// machine connects ns to far with a cable, at first in the far network's
// addressing, and routes everything through that network's first address.
func (t *Topology) machine(ns *NS, card string, addresses []netip.Prefix, far End) error {
	mtu := 0
	if far.NS == t.Node {
		mtu = t.plan.MTU
	}
	if err := Veth(End{NS: ns, Interface: card, Addresses: addresses}, far, mtu); err != nil {
		return err
	}
	for _, a := range addresses {
		if err := ns.AddRoute(DefaultRoute(a.Masked().Addr().Next())); err != nil {
			return err
		}
	}
	return nil
}

func (t *Topology) add(name string) (*NS, error) {
	if t.plan.NamePrefix == "" {
		name = ""
	} else {
		name = t.plan.NamePrefix + "-" + name
	}
	n, err := New(name)
	if err != nil {
		return nil, err
	}
	t.all = append(t.all, n)
	return n, nil
}

// addresses parses an interface's address of each family that the plan has.
func (t *Topology) addresses(v4, v6 string) []netip.Prefix {
	out := []netip.Prefix{netip.MustParsePrefix(v4)}
	if t.plan.IPv6 {
		out = append(out, netip.MustParsePrefix(v6))
	}
	return out
}

// numbered is the address with the given last byte in a network.
func numbered(network string, last int) netip.Addr {
	raw := netip.MustParseAddr(network).AsSlice()
	raw[len(raw)-1] = byte(last)
	a, _ := netip.AddrFromSlice(raw)
	return a
}
