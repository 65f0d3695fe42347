//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// enforce is the namespace label of Pod Security.
const enforce = "pod-security.kubernetes.io/enforce"

// What Pod Security says about the gateway's Pod: all that keeps it out, and
// nothing else. The first two are of the level baseline.
const (
	addsNetAdmin     = `non-default capabilities (container "gateway" must not include "NET_ADMIN" in securityContext.capabilities.add)`
	mountsHostPath   = `hostPath volumes (volume "tun")`
	restrictedAdds   = `unrestricted capabilities (container "gateway" must not include "NET_ADMIN" in securityContext.capabilities.add)`
	restrictedVolume = `restricted volume types (volume "tun" uses restricted volume type "hostPath")`
	notNonRoot       = `runAsNonRoot != true (pod or container "gateway" must set securityContext.runAsNonRoot=true)`
	asRoot           = `runAsUser=0 (container "gateway" must not set runAsUser=0)`
)

// testPodSecurity installs the chart where Pod Security keeps its Pods out, for
// exactly the reasons that the README gives, and lets them in.
func testPodSecurity(t *testing.T, c *cluster) {
	for level, want := range map[string][]string{
		"baseline":   {addsNetAdmin, mountsHostPath},
		"restricted": {restrictedAdds, restrictedVolume, notNonRoot, asRoot},
	} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			g := c.newGateway(t, "PodSecurity", map[string]string{enforce: level})
			notes := g.run(t, g.helmWith(t, nil, "install", release, chartDir)).stdout
			if diff := cmp.Diff(want, reasons(t, level, g.refusal(t))); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
			// The Job asks for nothing: the key is made all the same.
			g.awaitKeyJob(t)
			g.key(t)

			allow := "kubectl label namespace " + g.namespace + " " + enforce + "=privileged"
			if !strings.Contains(notes, allow+"\n") {
				t.Errorf("NOTES.txt does not tell %q:\n%s", allow, notes)
			}
			start := time.Now()
			g.run(t, g.shell(g.root, allow+" --overwrite"))
			g.pod(t)
			g.times.add(g.scenario, level+" made privileged, Pod ready", time.Since(start))
		})
	}
	t.Run("baseline with a device plugin", func(t *testing.T) {
		t.Parallel()
		namespace := c.namespace(t, "podsecurity", map[string]string{enforce: "baseline"})
		rendered, err := chart.Render(chart.Options{
			ChartDir: filepath.Join(c.root, chartDir), Namespace: namespace,
			Set: []string{"server.publicEndpoint=203.0.113.1:51820", "tun.deviceResource=devic.es/tun"},
		})
		if err != nil {
			t.Fatal(err)
		}
		// The ServiceAccount is looked up before the Pod is judged.
		_, err = c.client.CoreV1().ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{
			ObjectMeta: metav1.ObjectMeta{Name: release},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		template := must[*appsv1.Deployment](t)(chart.Get[*appsv1.Deployment](rendered, "")).Spec.Template
		_, err = c.client.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: release + "-", Labels: template.Labels},
			Spec:       template.Spec,
		}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if diff := cmp.Diff([]string{addsNetAdmin}, reasons(t, "baseline", fmt.Sprint(err))); diff != "" {
			t.Errorf("reasons (-want +got):\n%s", diff)
		}
	})
}

// refusal waits for the Deployment to say why it has no Pod.
func (g *gateway) refusal(t *testing.T) string {
	t.Helper()
	message := ""
	eventually(t, "the Pod to be refused", func(ctx context.Context) (bool, string) {
		d, err := g.client.AppsV1().Deployments(g.namespace).Get(ctx, release, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		for _, c := range d.Status.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure {
				message = c.Message
			}
		}
		return message != "", fmt.Sprintf("%+v", d.Status.Conditions)
	})
	return message
}

// reasons takes a refusal apart: … violates PodSecurity "LEVEL:latest": REASON (…), REASON (…)
func reasons(t *testing.T, level, refusal string) []string {
	t.Helper()
	_, list, found := strings.Cut(refusal, fmt.Sprintf("violates PodSecurity %q: ", level+":latest"))
	if !found {
		t.Fatalf("no refusal of Pod Security: %s", refusal)
	}
	all := strings.SplitAfter(list, "), ")
	for i := range all {
		all[i] = strings.TrimSuffix(all[i], ", ")
	}
	return all
}
