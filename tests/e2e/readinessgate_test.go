//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

// gateType is the readiness gate of the gateway's Pods.
const gateType = "cloud-native-vpn.github.io/serving"

// admissionPolicy is the name of the policy of a release in a namespace, and of its
// binding.
func admissionPolicy(namespace string) string { return release + "-fleet." + namespace }

// testReadinessGate does to Pods what a gateway's token might be used for, and
// expects the API server to let pass what the gateways do, and nothing else.
//
// The release has no replicas: nobody else is to touch the conditions while they
// are looked at. The Pods are stand-ins that no node runs, so that there is no
// kubelet that puts their status right.
func testReadinessGate(t *testing.T, c *cluster) {
	g := c.newGateway(t, "ReadinessGate", nil)
	g.run(t, g.helmWith(t, map[string]any{"replicaCount": 0, "podDisruptionBudget": map[string]any{"enabled": false}}, "install", release, chartDir))
	g.awaitPolicy(t)
	sibling := g.standIn(t, "sibling", map[string]string{"app.kubernetes.io/name": "vpn-gateway", "app.kubernetes.io/instance": release})
	stranger := g.standIn(t, "stranger", map[string]string{"app.kubernetes.io/name": "vpn-gateway", "app.kubernetes.io/instance": "another"})
	token := g.withToken(t, release)

	const marked = `{"type":"` + gateType + `","status":"False","reason":"MarkedDeadBySibling","message":"m","lastTransitionTime":"2026-03-01T12:00:00Z"},` +
		`{"type":"Ready","status":"False","reason":"MarkedDeadBySibling","message":"m","lastTransitionTime":"2026-03-01T12:00:00Z"}`
	// A binding is in force a moment after it was made; until then everything passes.
	eventually(t, "the policy to be in force", func(ctx context.Context) (bool, string) {
		// Each time another one: what changes nothing is never refused.
		err := g.patchStatus(ctx, token, sibling, fmt.Sprintf(`{"status":{"message":"at %d"}}`, time.Now().UnixNano()))
		return apierrors.IsForbidden(err), fmt.Sprint(err)
	})
	for _, tt := range []struct {
		name, pod, patch string
		// refused is what the answer says; empty where it passes.
		refused string
	}{
		{"the gate opened", sibling, `{"status":{"conditions":[{"type":"` + gateType + `","status":"True"}]}}`, ""},
		{"a proof of life", sibling, `{"status":{"conditions":[{"type":"` + gateType + `","lastProbeTime":"2026-03-01T12:00:00Z"}]}}`, ""},
		{"another one", sibling, `{"status":{"conditions":[{"type":"` + gateType + `","lastProbeTime":"2026-03-01T12:00:01Z"}]}}`, ""},
		{"marked dead", sibling, `{"status":{"conditions":[` + marked + `]}}`, ""},
		{"marked dead once more", sibling, `{"status":{"conditions":[` + marked + `]}}`, ""},
		{"ready", sibling, `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "only the kubelet says that a Pod is ready"},
		{"ready unknown", sibling, `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`, "only the kubelet says that a Pod is ready"},
		{"the gate taken away", sibling, `{"status":{"conditions":[{"$patch":"delete","type":"` + gateType + `"}]}}`, "a condition must not be taken away"},
		{"another condition", sibling, `{"status":{"conditions":[{"type":"ContainersReady","status":"False"}]}}`, "no condition but the readiness gate and Ready may change"},
		{"a new condition", sibling, `{"status":{"conditions":[{"type":"example.com/other","status":"True"}]}}`, "no condition but the readiness gate and Ready may change"},
		{"another condition beside the two", sibling, `{"status":{"conditions":[` + marked + `,{"type":"PodScheduled","status":"Unknown"}]}}`, "no condition but the readiness gate and Ready may change"},
		{"the phase", sibling, `{"status":{"phase":"Failed"}}`, "nothing of the status but conditions may change"},
		{"the address", sibling, `{"status":{"podIP":"192.0.2.9"}}`, "nothing of the status but conditions may change"},
		{"a label", sibling, `{"metadata":{"labels":{"app.kubernetes.io/instance":"another"}}}`, "nothing but the status may change"},
		{"an annotation", sibling, `{"metadata":{"annotations":{"a":"b"}}}`, "nothing but the status may change"},
		{"a Pod of another release", stranger, `{"status":{"conditions":[` + marked + `]}}`, "this is no Pod of the gateway"},
	} {
		err := g.patchStatus(t.Context(), token, tt.pod, tt.patch)
		switch {
		case tt.refused == "" && err != nil:
			t.Errorf("%s: %v, want it to pass", tt.name, err)
		case tt.refused != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tt.refused)):
			t.Errorf("%s: %v, want it refused because %q", tt.name, err, tt.refused)
		}
	}
	pod := must[*corev1.Pod](t)(g.client.CoreV1().Pods(g.namespace).Get(t.Context(), sibling, metav1.GetOptions{}))
	if isReady(pod) || pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP != standInIP {
		t.Errorf("status of the sibling after all that: %+v", pod.Status)
	}
	// A name that another Pod has by now: the agent names the UID that it has looked at.
	err := g.patchStatus(t.Context(), token, sibling, `{"metadata":{"uid":"00000000-0000-0000-0000-000000000000"},"status":{"conditions":[`+marked+`]}}`)
	if !apierrors.IsConflict(err) && !apierrors.IsInvalid(err) {
		t.Errorf("a patch for another UID: %v, want a conflict", err)
	}
	// RBAC: the Pod itself, and other objects.
	if _, err := token.CoreV1().Pods(g.namespace).Patch(t.Context(), sibling, types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a patch of the Pod: %v, want it refused", err)
	}
	g.checkLease(t, token)
	// Others are not held to it.
	if err := g.patchStatus(t.Context(), g.client, stranger, `{"status":{"phase":"Failed"}}`); err != nil {
		t.Errorf("an administrator's patch: %v", err)
	}
}

// awaitPolicy waits until the API server has checked the types in the policy, and
// fails t where it has found something.
func (g *gateway) awaitPolicy(t *testing.T) {
	t.Helper()
	eventually(t, "the policy to be checked", func(ctx context.Context) (bool, string) {
		p, err := g.client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(ctx, admissionPolicy(g.namespace), metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		checking := p.Status.TypeChecking
		if checking != nil {
			for _, w := range checking.ExpressionWarnings {
				t.Errorf("%s: %s", w.FieldRef, w.Warning)
			}
		}
		return p.Status.ObservedGeneration == p.Generation, fmt.Sprintf("%+v", p.Status)
	})
}

// checkLease takes the Lease as the agent does: of two who have read it, one wins.
func (g *gateway) checkLease(t *testing.T, token kubernetes.Interface) {
	t.Helper()
	leases, name := token.CoordinationV1().Leases(g.namespace), release+"-fleet"
	lease, err := leases.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	take := func(who string) error {
		patch := fmt.Sprintf(`{"metadata":{"resourceVersion":%q},"spec":{"holderIdentity":%q,"leaseDurationSeconds":15}}`, lease.ResourceVersion, who)
		_, err := leases.Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	if err := take("a"); err != nil {
		t.Errorf("the first one does not get the Lease: %v", err)
	}
	if err := take("b"); !apierrors.IsConflict(err) {
		t.Errorf("the second one: %v, want a conflict", err)
	}
	if err := leases.Delete(t.Context(), name, metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a deletion of the Lease: %v, want it refused", err)
	}
}

// standInIP is the address that stand-ins seem to have.
const standInIP = "192.0.2.1"

// standIn makes a Pod that runs and is ready by its status alone: its scheduler does
// not exist, and so no node has it.
func (g *gateway) standIn(t *testing.T, name string, labels map[string]string) string {
	t.Helper()
	pods := g.client.CoreV1().Pods(g.namespace)
	_, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			SchedulerName:                 "vpn-gateway.test-nobody",
			AutomountServiceAccountToken:  ptr.To(false),
			TerminationGracePeriodSeconds: ptr.To[int64](0),
			ReadinessGates:                []corev1.PodReadinessGate{{ConditionType: gateType}},
			Containers:                    []corev1.Container{{Name: "nothing", Image: "vpn-gateway.test/nothing"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	status, err := json.Marshal(map[string]any{"status": map[string]any{
		"phase": "Running", "podIP": standInIP, "podIPs": []map[string]string{{"ip": standInIP}},
		"conditions": []map[string]string{
			{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.patchStatus(t.Context(), g.client, name, string(status)); err != nil {
		t.Fatal(err)
	}
	return name
}

// patchStatus patches a Pod's status as the agent does.
func (g *gateway) patchStatus(ctx context.Context, client kubernetes.Interface, pod, patch string) error {
	_, err := client.CoreV1().Pods(g.namespace).Patch(ctx, pod, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	return err
}

// withToken is a client with a token of a ServiceAccount, as the kubelet mounts it,
// and not by impersonation: the policy goes by who the API server takes it for.
func (g *gateway) withToken(t *testing.T, account string) kubernetes.Interface {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(time.Hour / time.Second))}}
	token := must[*authenticationv1.TokenRequest](t)(g.client.CoreV1().ServiceAccounts(g.namespace).CreateToken(t.Context(), account, request, metav1.CreateOptions{}))
	config := rest.AnonymousClientConfig(g.config)
	config.Dial = g.config.Dial
	config.WarningHandler = rest.NoWarnings{}
	config.BearerToken = token.Status.Token
	return must[*kubernetes.Clientset](t)(kubernetes.NewForConfig(config))
}
