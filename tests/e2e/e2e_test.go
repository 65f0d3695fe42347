//go:build e2e

// Package e2e tests the chart, the image and the agent on a real Kubernetes,
// which the project brings itself (tests/cluster), by the doors that users have:
// helm, kubectl, and a stock WireGuard client outside of the cluster.
//
//	make e2e
//	KEEP_CLUSTER=1 go test -tags e2e -v ./tests/e2e -run TestCluster/Upgrade
//
// The second form is for work on a scenario: it takes up the cluster that runs,
// or starts one, and leaves it up (`make demo-down` ends it).
//
// Scenarios have namespaces of their own and run side by side. A kubelet renews
// what it has mounted about once a minute. The scenario Refresh waits for that;
// the others touch an annotation of the Pod, upon which the kubelet looks at
// once ([gateway.hurry]).
//
// External Secrets runs in the cluster, the controller itself with its own chart's
// rights. The backend is another namespace, by its Kubernetes provider: there is no
// Vault server that could be built here, so that what the chart renders for Vault
// is shown to the API server, which knows the kinds, and to nobody else.
package e2e

import (
	"sync"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

func TestCluster(t *testing.T) {
	testenv.Need(t, testenv.Linux(), testenv.Root(), testenv.NetNS(), testenv.TUN(), testenv.Tool("go", "make", "git"), wgclient.Tools())
	c := startCluster(t)
	scenarios := []struct {
		name string
		run  func(t *testing.T, c *cluster)
	}{
		// The longest first: the others fit beside them.
		{"Install", testInstall},
		{"Refresh", testRefresh},
		{"Rotation", testRotation},
		{"BackendFaults", testBackendFaults},
		{"PushSecret", testPushSecret},
		{"ExternalSecrets", testExternalSecrets},
		{"Autoscaling", testAutoscaling},
		{"Upgrade", testUpgrade},
		{"Faults", testFaults},
		{"Disruption", testDisruption},
		{"GitOps", testGitOps},
		{"PodSecurity", testPodSecurity},
		{"ReadinessGate", testReadinessGate},
		{"Values", testValues},
	}
	var others sync.WaitGroup
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			others.Add(1)
			t.Cleanup(others.Done)
			t.Parallel()
			s.run(t, c)
		})
	}
	// Alone, one after the other, since what they measure would suffer from the others;
	// and a node is everybody's.
	var alone sync.Mutex
	for _, s := range []struct {
		name string
		run  func(t *testing.T, c *cluster)
	}{{"Replicas", testReplicas}, {"NodeGone", testNodeGone}} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			others.Wait()
			alone.Lock()
			t.Cleanup(alone.Unlock)
			s.run(t, c)
		})
	}
}
