package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/machine"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/network"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

// Balance plays the cloud's load balancer for a Service: it writes the address
// into the Service's status, and makes the outside client reach that address
// by a node that runs and has a ready endpoint, as a balancer does for
// externalTrafficPolicy Local. It waits for such a node, and returns it. When
// the endpoints move, it must be called again: nothing watches them.
func (c *Cluster) Balance(ctx context.Context, namespace, service string, ip netip.Addr) (topology.Node, error) {
	api, err := c.api()
	if err != nil {
		return topology.Node{}, err
	}
	if c.plan.Link.Contains(ip) || c.plan.Pods.Contains(ip) || c.plan.Services.Contains(ip) {
		return topology.Node{}, fmt.Errorf("ip %s: it belongs to the cluster's own ranges: use one of 203.0.113.0/24", ip)
	}
	if err := api.SetLoadBalancer(ctx, namespace, service, ip.String()); err != nil {
		return topology.Node{}, err
	}
	var node topology.Node
	err = c.await(ctx, "ready endpoint of "+namespace+"/"+service, func() (bool, error) {
		ready, err := api.ReadyOn(ctx, namespace, service)
		if err != nil {
			return false, err
		}
		node, err = choose(c.plan, ready, func(name string) bool { return c.record.Machines[name].Alive() })
		return err == nil, err
	})
	if err != nil {
		return topology.Node{}, err
	}
	// A packet that comes before kube-proxy knows the address leaves a flow behind
	// that is translated to nowhere, and each retry of a client keeps it alive.
	err = c.await(ctx, "kube-proxy of "+node.Name+" to know "+ip.String(), func() (bool, error) {
		return c.translates(node.Name, ip)
	})
	if err != nil {
		return topology.Node{}, err
	}
	return node, network.RouteClient(ip, node.IP)
}

// translates looks for the address among the Services of the node's kube-proxy
// (pkg/proxy/nftables in Kubernetes: table kube-proxy, map service-ips).
func (c *Cluster) translates(node string, ip netip.Addr) (bool, error) {
	family := "ip"
	if ip.Is6() {
		family = "ip6"
	}
	var listing, complaint strings.Builder
	status, err := c.Exec(node, machine.Command{
		Args:   []string{"nft", "list", "map", family, "kube-proxy", "service-ips"},
		Stdout: &listing, Stderr: &complaint,
	})
	switch {
	case err != nil:
		return false, err
	case status != 0:
		return false, fmt.Errorf("nft: %s", strings.TrimSpace(complaint.String()))
	}
	return strings.Contains(listing.String(), ip.String()+" . "), nil
}

// choose picks the first node by name that has a ready endpoint and runs.
func choose(plan topology.Topology, ready map[string]bool, runs func(string) bool) (topology.Node, error) {
	for _, name := range slices.Sorted(maps.Keys(ready)) {
		if ready[name] && runs(name) {
			return plan.Node(name)
		}
	}
	return topology.Node{}, errors.New("no running node has a ready endpoint")
}
