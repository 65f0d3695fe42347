//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/crowd"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

const (
	customMetricsGroup = "custom.metrics.k8s.io"
	// connectedMetric is what the metrics adapter serves.
	connectedMetric = "vpn_gateway_connected_peers"
	// perReplica is how many connections a gateway is to have, crowdSize those that
	// come: they fill scaledReplicas.
	perReplica, scaledReplicas = 5, 3
	crowdSize                  = perReplica * scaledReplicas
	pingInterval               = time.Second
)

// testAutoscaling has three times as many clients come as one gateway is to have:
// within two looks of the autoscaler there have to be three gateways.
func testAutoscaling(t *testing.T, c *cluster) {
	g := c.newGateway(t, "Autoscaling", nil)
	// The APIServices are no namespace's: left behind, they would lead nowhere, and
	// no namespace could be deleted any more.
	t.Cleanup(func() { g.uninstall(context.Background()) })
	var people []client
	for i := range crowdSize {
		people = append(people, newClient(t, fmt.Sprintf("client-%d", i), byte(2+i)))
	}
	values := peers(people...)
	values["autoscaling"] = map[string]any{
		"enabled": true, "minReplicas": 1, "maxReplicas": scaledReplicas,
		"metric": map[string]any{"source": "adapter", "targetConnectionsPerReplica": perReplica},
	}
	g.install(t, values)

	g.sees(t, "0")
	g.balance(t)
	connected := time.Now()
	g.startCrowd(t, people)
	eventually(t, "all clients to be connected", func(ctx context.Context) (bool, string) {
		f, err := g.fleet(ctx)
		connected = time.Now()
		return err == nil && f.ConnectedPeers == crowdSize, fmt.Sprintf("%+v, %v", f, err)
	})
	var scaled time.Duration
	eventually(t, "the autoscaler", func(ctx context.Context) (bool, string) {
		d, err := g.client.AppsV1().Deployments(g.namespace).Get(ctx, release, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		scaled = time.Since(connected)
		return *d.Spec.Replicas == scaledReplicas, fmt.Sprintf("%d replicas; %s", *d.Spec.Replicas, g.scalerConditions(ctx))
	})
	g.times.add(g.scenario, fmt.Sprintf("%d clients connected to scaled out (periods of %s)", crowdSize, scalingPeriod), scaled)
	// A cluster that is taken up may have been started with another period.
	if limit := 2 * scalingPeriod; scaled > limit && !keep() {
		t.Errorf("scaled out %s after the last client had connected, want two periods, %s, at most", scaled, limit)
	}
	eventually(t, "all gateways to be ready", func(ctx context.Context) (bool, string) {
		pods, err := g.pods(ctx)
		if err != nil {
			return false, err.Error()
		}
		ready := 0
		for i := range pods {
			if isReady(&pods[i]) {
				ready++
			}
		}
		return ready == scaledReplicas, fmt.Sprintf("%d of %d Pods", ready, len(pods))
	})
	g.times.add(g.scenario, "clients connected to all gateways ready", time.Since(connected))

	// Each Pod has a figure of its own, and together they are the clients.
	sum := 0
	eventually(t, "a figure of every Pod", func(ctx context.Context) (bool, string) {
		figures, err := g.connectedByPod(ctx)
		sum = 0
		for _, n := range figures {
			sum += n
		}
		return err == nil && len(figures) == scaledReplicas, fmt.Sprintf("%v, %v", figures, err)
	})
	if diff := cmp.Diff(crowdSize, sum); diff != "" {
		t.Errorf("%s of all Pods (-want +got):\n%s", connectedMetric, diff)
	}
	if events := g.restarts(t); events != 0 {
		t.Errorf("the metrics adapter was restarted %d times", events)
	}
}

// startCrowd brings the clients up, on one machine, and has them talk until t ends.
func (g *gateway) startCrowd(t *testing.T, people []client) {
	t.Helper()
	identity := crowd.Identity{PublicKey: g.state(t).PublicKey, Endpoint: netip.AddrPortFrom(g.address, clientPort)}
	ns := g.machine(t)
	ctx, cancel := context.WithCancel(context.Background())
	var talking sync.WaitGroup
	t.Cleanup(func() { cancel(); talking.Wait() })
	for _, p := range people {
		c := startOne(t, ns, p, identity)
		talking.Go(func() { c.Ping(ctx, g.status.APIServer.Address.Addr(), pingInterval) })
	}
}

func startOne(t *testing.T, ns *netns.NS, p client, identity crowd.Identity) *crowd.Client {
	t.Helper()
	// They share an address: fifteen handshakes a second are not too many of one.
	c, err := crowd.Start(crowd.Options{
		NS: ns, From: netip.IPv4Unspecified(), PrivateKey: p.private, Address: p.address, Gateway: identity,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// fleet is what a gateway answers for all of them, as far as it matters here.
type fleet struct{ ConnectedPeers int }

// fleet asks the first of the gateway's Pods.
func (g *gateway) fleet(ctx context.Context) (fleet, error) {
	pods, err := g.pods(ctx)
	if err != nil || len(pods) == 0 {
		return fleet{}, fmt.Errorf("%d Pods, %w", len(pods), err)
	}
	_, body, err := g.get(ctx, "http://"+net.JoinHostPort(pods[0].Status.PodIP, "8080")+"/fleet")
	if err != nil {
		return fleet{}, err
	}
	var f fleet
	if err := json.Unmarshal([]byte(body), &f); err != nil {
		return fleet{}, fmt.Errorf("/fleet answers %q: %w", body, err)
	}
	return f, nil
}

// sees waits until the autoscaler has a figure, and that one.
func (g *gateway) sees(t *testing.T, average string) {
	t.Helper()
	eventually(t, "the autoscaler to see "+average+" connections", func(ctx context.Context) (bool, string) {
		hpa, err := g.client.AutoscalingV2().HorizontalPodAutoscalers(g.namespace).Get(ctx, release, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		for _, m := range hpa.Status.CurrentMetrics {
			if m.Pods != nil && m.Pods.Metric.Name == connectedMetric && m.Pods.Current.AverageValue != nil {
				return m.Pods.Current.AverageValue.String() == average, m.Pods.Current.AverageValue.String()
			}
		}
		return false, g.scalerConditions(ctx)
	})
}

// scalerConditions are the autoscaler's, for who wonders.
func (g *gateway) scalerConditions(ctx context.Context) string {
	hpa, err := g.client.AutoscalingV2().HorizontalPodAutoscalers(g.namespace).Get(ctx, release, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	text := ""
	for _, condition := range hpa.Status.Conditions {
		text += fmt.Sprintf("%s=%s %s; ", condition.Type, condition.Status, condition.Message)
	}
	return text
}

// connectedByPod asks the API server, which asks the adapter.
func (g *gateway) connectedByPod(ctx context.Context) (map[string]int, error) {
	path := fmt.Sprintf("/apis/%s/v1beta2/namespaces/%s/pods/*/%s", customMetricsGroup, g.namespace, connectedMetric)
	body, err := g.client.Discovery().RESTClient().Get().AbsPath(path).DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			DescribedObject corev1.ObjectReference
			Value           json.Number
		}
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("%s answers %q: %w", path, body, err)
	}
	figures := map[string]int{}
	for _, item := range list.Items {
		n, err := item.Value.Int64()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", item.DescribedObject.Name, err)
		}
		figures[item.DescribedObject.Name] = int(n)
	}
	return figures, nil
}

// restarts are those of the metrics adapter's containers.
func (g *gateway) restarts(t *testing.T) int32 {
	t.Helper()
	list := must[*corev1.PodList](t)(g.client.CoreV1().Pods(g.namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=vpn-gateway-metrics"}))
	if len(list.Items) == 0 {
		t.Error("there is no Pod of the metrics adapter")
	}
	var restarts int32
	for _, pod := range list.Items {
		for _, s := range pod.Status.ContainerStatuses {
			restarts += s.RestartCount
		}
	}
	return restarts
}
