//go:build e2e

package e2e

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// podCIDR is what replicas have as the source of the cluster's packets to peers.
const podCIDR = "10.244.0.0/16"

// passesOn sends packets of a node to the client by a replica that the client is not at,
// and takes the one away that it is at.
func (g *gateway) passesOn(t *testing.T, s *stream.Stream, alice client, device *wgclient.Client) {
	t.Helper()
	holder := g.holder(t)
	var entry *corev1.Pod
	pods := must[[]corev1.Pod](t)(g.pods(t.Context()))
	for i := range pods {
		if pods[i].Name != holder.Name {
			entry = &pods[i]
		}
	}
	node := g.node(t, entry.Spec.NodeName)
	// What a cluster's network would be told of the gateway's pool.
	if err := node.AddRouteBy(netip.PrefixFrom(alice.address, 32), netip.MustParseAddr(entry.Status.PodIP)); err != nil {
		t.Fatal(err)
	}
	echo, err := stream.ListenEcho(device.NS(), netip.AddrPortFrom(alice.address, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = echo.Close() })
	flow, err := stream.Start(stream.Options{From: node, To: echo.Addr(), Rate: streamRate})
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Stop(0)
	flows(t, flow, streamRate)
	g.step(t, s, "the holder deleted, another replica passes on", moveOutage, func() {
		g.run(t, g.kubectl("delete", "pod", holder.Name, "--namespace", g.namespace, "--wait=false"))
		time.Sleep(3 * time.Second)
	})
	flows(t, flow, streamRate)
	lost, outage := flow.Loss(0)
	g.times.note(g.scenario, "cluster to client by a replica that it is not at, which changes", flow.Stop(time.Second).String())
	if outage > moveOutage {
		t.Errorf("cluster to client: longest outage %s, want %s at most (%d lost)", outage, moveOutage, lost)
	}
	g.settled(t, 3)
}

// node is a node's network namespace.
func (g *gateway) node(t *testing.T, name string) *netns.NS {
	t.Helper()
	for _, n := range g.status.Nodes {
		if n.Name == name {
			ns := must[*netns.NS](t)(netns.Open(n.Netns))
			t.Cleanup(func() { _ = ns.Close() })
			return ns
		}
	}
	t.Fatalf("no node %q", name)
	return nil
}
