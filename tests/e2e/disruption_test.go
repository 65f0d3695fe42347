//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// testDisruption moves a gateway of one replica as administrators do.
func testDisruption(t *testing.T, c *cluster) {
	g := c.newGateway(t, "Disruption", nil)
	// A drain looks into every namespace: what it may take needs a label of its own.
	const label = "vpn-gateway.test/scenario"
	alice := newClient(t, "alice", 2)
	values := peers(alice)
	values["podLabels"] = map[string]any{label: "disruption"}
	g.install(t, values)
	first := g.state(t)

	t.Run("rolling restart", func(t *testing.T) {
		before := g.pod(t)
		ready := g.watchReady(t)
		start := time.Now()
		g.run(t, g.kubectl("rollout", "restart", "deployment/"+release, "--namespace", g.namespace))
		g.run(t, g.kubectl("rollout", "status", "deployment/"+release, "--namespace", g.namespace))
		g.successor(t, before.UID)
		g.times.add(g.scenario, "kubectl rollout restart", time.Since(start))
		// The new Pod serves before the old one leaves: 1, 2, 1.
		if least := ready(); least != 1 {
			t.Errorf("there were %d ready Pods for a while, want one at all times", least)
		}
	})
	t.Run("node drain", func(t *testing.T) {
		before := g.pod(t)
		t.Cleanup(func() {
			if _, err := g.try(context.Background(), g.kubectl("uncordon", before.Spec.NodeName)); err != nil {
				t.Error(err)
			}
		})
		start := time.Now()
		g.run(t, g.kubectl("drain", before.Spec.NodeName, "--pod-selector="+label+"=disruption", "--ignore-daemonsets",
			"--delete-emptydir-data", "--timeout", patience.String()))
		g.times.add(g.scenario, "kubectl drain", time.Since(start))
		after := g.successor(t, before.UID)
		if after.Spec.NodeName == before.Spec.NodeName {
			t.Errorf("the Pod is on %s again, which was drained", after.Spec.NodeName)
		}
	})
	t.Run("killed", func(t *testing.T) {
		s := g.startStream(t, g.dial(t, alice))
		time.Sleep(6 * time.Second) // in a lab, WireGuard may shake hands again after 5 s
		// More than it is without other scenarios beside this one, which keep the
		// kubelet from its work; WireGuard by itself takes 15 s and the start.
		g.step(t, s, "the only process is killed with SIGKILL, and started again", 4*killOutage, func() {
			pod := g.pod(t)
			kill(t, pod)
			g.moved(t, pod)
		})
	})
	if diff := cmp.Diff(first.PublicKey, g.state(t).PublicKey); diff != "" {
		t.Errorf("public key of the successors (-before +after):\n%s", diff)
	}
}

// successor waits for a ready Pod other than the one given.
func (g *gateway) successor(t *testing.T, before types.UID) corev1.Pod {
	t.Helper()
	var after corev1.Pod
	eventually(t, "another ready Pod", func(ctx context.Context) (bool, string) {
		pods, err := g.pods(ctx)
		if err != nil || len(pods) != 1 {
			return false, fmt.Sprintf("%d Pods, %v", len(pods), err)
		}
		after = pods[0]
		return after.UID != before && isReady(&after), after.Name
	})
	return after
}

// watchReady counts ready Pods at every change of any. The function that it
// returns ends that and returns the least number seen.
func (g *gateway) watchReady(t *testing.T) func() int {
	t.Helper()
	pods, err := g.client.CoreV1().Pods(g.namespace).Watch(t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	least := make(chan int)
	go func() {
		ready := map[types.UID]bool{}
		lowest := 1
		for event := range pods.ResultChan() {
			pod, ok := event.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			// A Pod that is told to leave serves on while it drains, but new
			// clients don't find it any more.
			ready[pod.UID] = event.Type != watch.Deleted && isReady(pod)
			count := 0
			for _, is := range ready {
				if is {
					count++
				}
			}
			lowest = min(lowest, count)
		}
		least <- lowest
	}()
	return func() int {
		pods.Stop()
		return <-least
	}
}
