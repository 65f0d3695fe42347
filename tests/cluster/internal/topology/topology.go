// Package topology says which machines a cluster has and which addresses they
// use. It is arithmetic only: nothing here touches the system.
//
// Everything lives in network namespaces without a route out, so the ranges
// cannot clash with those of the host or of another such cluster. What is
// outside of the cluster uses the documentation ranges of RFC 5737.
package topology

import (
	"fmt"
	"net/netip"
	"strconv"
)

const (
	// ControlPlane is the name of the machine that runs etcd, the API server
	// and the controllers. It is the switch of the cluster's network too.
	ControlPlane = "cp"
	// Client is the name of the namespace that stands for the outside world.
	Client = "client"
	// MaxNodes bounds the node count: a node's number is a digit in its names.
	MaxNodes = 9
	// MTU of every link, in bytes.
	MTU = 1500
	// APIPort is the TCP port of the API server.
	APIPort = 6443
)

// Topology is the address plan of one cluster.
type Topology struct {
	// Link is the network that the control plane, the nodes and the client share.
	Link netip.Prefix
	// Members is the half of Link that belongs to the cluster; what Pods send
	// to any address outside of it and of Pods is masqueraded by their node.
	Members netip.Prefix
	// Pods is the range of all Pods.
	Pods netip.Prefix
	// Services is the range of cluster IPs.
	Services netip.Prefix
	// Nodes are the nodes by number, n1 first.
	Nodes []Node
}

// Node is one node's share of the plan.
type Node struct {
	// Name is the machine's and the Node object's name.
	Name string
	// IP is the node's InternalIP.
	IP netip.Addr
	// Pods is the range that its own Pods get their addresses from.
	Pods netip.Prefix
}

// New plans a cluster of the given number of nodes, 1 to MaxNodes.
func New(nodes int) (Topology, error) {
	if nodes < 1 || nodes > MaxNodes {
		return Topology{}, fmt.Errorf("nodes: %d is out of range: use 1 to %d", nodes, MaxNodes)
	}
	t := Topology{
		Link:     netip.MustParsePrefix("192.0.2.0/24"),
		Members:  netip.MustParsePrefix("192.0.2.0/25"),
		Pods:     netip.MustParsePrefix("10.244.0.0/16"),
		Services: netip.MustParsePrefix("10.96.0.0/16"),
	}
	for i := 1; i <= nodes; i++ {
		pods := t.Pods.Addr().As4()
		pods[2] = byte(i)
		t.Nodes = append(t.Nodes, Node{
			Name: "n" + strconv.Itoa(i),
			IP:   host(t.Link, byte(10+i)),
			Pods: netip.PrefixFrom(netip.AddrFrom4(pods), 24),
		})
	}
	return t, nil
}

// Node finds a node by name.
func (t Topology) Node(name string) (Node, error) {
	for _, n := range t.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("node %q: no such node: this cluster has n1 to n%d", name, len(t.Nodes))
}

// ControlPlaneIP is the address of the API server on the shared link.
func (t Topology) ControlPlaneIP() netip.Addr { return host(t.Link, 1) }

// APIServer is the API server's host:port on the shared link.
func (t Topology) APIServer() string {
	return netip.AddrPortFrom(t.ControlPlaneIP(), APIPort).String()
}

// ClientIP is the outside client's address on the shared link.
func (t Topology) ClientIP() netip.Addr { return host(t.Link, 200) }

// KubernetesIP is the cluster IP of the Service kubernetes.default, by
// definition the first of the range.
func (t Topology) KubernetesIP() netip.Addr { return host(t.Services, 1) }

// DNSIP is the cluster IP of the cluster's DNS.
func (t Topology) DNSIP() netip.Addr { return host(t.Services, 10) }

// Netns is the name of a machine's network namespace, as `ip netns` lists it.
func Netns(machine string) string { return "vpngw-" + machine }

// host is the address of the given number in the last byte of the prefix.
func host(p netip.Prefix, number byte) netip.Addr {
	b := p.Addr().As4()
	b[3] = number
	return netip.AddrFrom4(b)
}
