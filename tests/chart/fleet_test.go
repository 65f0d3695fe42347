package chart

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

const admission = "ValidatingAdmissionPolicy/vpn-gateway-fleet.default"

var fleetKnobs = []knob{
	{"fleet.enabled", "fleet: {enabled: false}", deployment, gateway + ".ports[?(@.name=='fleet')].containerPort", ""},
	{"fleet.enabled", "fleet: {enabled: false}", headless, ".spec.ports[?(@.name=='fleet')].port", ""},
	{"fleet.enabled", "fleet: {enabled: false}", deployment, gateway + ".env", ""},
	{"fleet.port", "fleet: {port: 7000}", headless, ".spec.ports[1].port", "7000"},
	{"fleet.port", "fleet: {port: 7000}", deployment, gateway + ".args[7]", "--fleet-port=7000"},
	{"fleet.port", "fleet: {port: 7000}", deployment, gateway + ".ports[?(@.name=='fleet')].containerPort", "7000"},
	{"fleet.port", "fleet: {port: 7000}", deployment, gateway + ".ports[?(@.name=='fleet-udp')].containerPort", "7000"},
	{"networkPolicy.egress", "networkPolicy: {enabled: true, egress: [{ports: [{port: 443}]}]}", policy, ".spec.egress[2].ports", `[{"port":53,"protocol":"UDP"},{"port":53,"protocol":"TCP"}]`},
}

// replicated is what it takes for there to be other replicas.
const replicated = "replicaCount: 2\n"

// replicaKnobs turn what several replicas have.
var replicaKnobs = []knob{
	{"fleet.enabled", "fleet: {enabled: false}", deployment, pod + ".readinessGates", ""},
	{"fleet.link.enabled", "fleet: {link: {enabled: false}}", deployment, gateway + ".args[10]", "--readiness-gate"},
	{"fleet.link.enabled", "fleet: {link: {enabled: false}}", deployment, gateway + ".ports[?(@.name=='fleet-link')].containerPort", ""},
	{"fleet.link.port", "fleet: {link: {port: 7001}}", deployment, gateway + ".args[10]", "--fleet-link-port=7001"},
	{"fleet.link.port", "fleet: {link: {port: 7001}}", deployment, gateway + ".ports[?(@.name=='fleet-link')].containerPort", "7001"},
	{"fleet.link.port", "{fleet: {link: {port: 7001}}, networkPolicy: {enabled: true}}", policy, ".spec.ingress[2].ports[2].port", "7001"},
	{"fleet.link.port", "{fleet: {link: {port: 7001}}, networkPolicy: {enabled: true, egress: [{ports: [{port: 53, protocol: UDP}]}]}}", policy, ".spec.egress[1].ports[2].port", "7001"},
	{"fleet.readinessGate.enabled", "fleet: {readinessGate: {enabled: false}}", deployment, pod + ".readinessGates", ""},
	{"fleet.readinessGate.enabled", "fleet: {readinessGate: {enabled: false}}", deployment, pod + ".automountServiceAccountToken", "false"},
	{"fleet.readinessGate.enabled", "fleet: {readinessGate: {enabled: false}}", "Lease/vpn-gateway-fleet", ".metadata.name", ""},
	{"fleet.readinessGate.enabled", "fleet: {readinessGate: {enabled: false}}", admission, ".metadata.name", ""},
	{"fleet.readinessGate.admissionPolicy", "fleet: {readinessGate: {admissionPolicy: false}}", admission, ".metadata.name", ""},
}

var fleetRefusals = []refusal{
	{"the fleet's port taken", "{fleet: {port: 8080}, ports: {health: 8081}}", []string{
		"fleet.port 8080 is ports.http too; give it a port of its own, such as 7946",
	}},
	{"the fleet's port is the tunnel's", "fleet: {port: 51820}", []string{
		"fleet.port 51820 is server.listenPort too; give it a port of its own, such as 7946",
	}},
	{"the link's port taken", "{replicaCount: 2, fleet: {port: 7000, link: {port: 7000}}, ports: {http: 7000}}", []string{
		"fleet.port 7000 is ports.http too; give it a port of its own, such as 7946",
		"fleet.link.port 7000 is ports.http too; give it a port of its own, such as 51840",
		"fleet.link.port 7000 is fleet.port too; give it a port of its own, such as 51840",
	}},
	{"gates of the default ServiceAccount", "{replicaCount: 2, serviceAccount: {create: false}, server: {privateKey: {existingSecret: mine}}}", []string{
		"serviceAccount.create is false and serviceAccount.name names none, so that the right to take Pods out of service would go to every Pod of the namespace; set serviceAccount.name, or fleet.readinessGate.enabled to false",
	}},
	{"gateway that could write its key", "{replicaCount: 2, serviceAccount: {create: false, name: mine}}", []string{
		"serviceAccount.create is false, so that the gateway and the Jobs are one ServiceAccount, and with fleet.readinessGate.enabled the gateway has its token, by which it could write Secrets; set serviceAccount.create to true",
	}},
	{"no way to the API server", "{replicaCount: 2, networkPolicy: {enabled: true, egress: []}}", []string{
		"networkPolicy.egress lets the gateway send nowhere, so that it does not reach the API server and never becomes ready; let it go there, or set fleet.readinessGate.enabled to false",
	}},
	{"variables that are the chart's", "extraEnv: [{name: A, value: b}, {name: POD_NAME, value: c}]", []string{
		"extraEnv[1] is POD_NAME, which the Pod has for the fleet; remove it, or give it another name",
	}},
}

// What the replicas need of each other gets through wherever egress is cut down: who they
// are, which is a question of DNS, and their messages. Egress to everywhere has both.
func TestRestrictedEgress(t *testing.T) {
	tcp, udp := ptr.To(corev1.ProtocolTCP), ptr.To(corev1.ProtocolUDP)
	port := func(protocol *corev1.Protocol, number int) networkingv1.NetworkPolicyPort {
		return networkingv1.NetworkPolicyPort{Protocol: protocol, Port: ptr.To(intstr.FromInt(number))}
	}
	own := networkingv1.NetworkPolicyEgressRule{Ports: []networkingv1.NetworkPolicyPort{port(tcp, 6443)}}
	siblings := networkingv1.NetworkPolicyEgressRule{
		To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{
			MatchLabels: map[string]string{"app.kubernetes.io/name": "vpn-gateway", "app.kubernetes.io/instance": "vpn-gateway"},
		}}},
		Ports: []networkingv1.NetworkPolicyPort{port(tcp, 7946), port(udp, 7946), port(udp, 51840)},
	}
	dns := networkingv1.NetworkPolicyEgressRule{Ports: []networkingv1.NetworkPolicyPort{port(udp, 53), port(tcp, 53)}}
	const cutDown = "networkPolicy: {enabled: true, egress: [{ports: [{port: 6443, protocol: TCP}]}]}\n"
	for values, want := range map[string][]networkingv1.NetworkPolicyEgressRule{
		cutDown:                             {own, siblings, dns},
		cutDown + "fleet: {enabled: false}": {own},
		"networkPolicy: {enabled: true, egress: []}\nfleet: {readinessGate: {enabled: false}}": {siblings, dns},
		"networkPolicy: {enabled: true, egress: [{}]}":                                         {{}},
		"networkPolicy: {enabled: true, egress: [{ports: [{port: 6443, protocol: TCP}]}, {}]}": {own, {}},
	} {
		got := get[*networkingv1.NetworkPolicy](t, render(t, replicated+values), "").Spec.Egress
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: egress (-want +got):\n%s", values, diff)
		}
	}
	golden(t, "egress.yaml", string(only(t, render(t, replicated+cutDown), "NetworkPolicy").YAML))
}

// With the gate the Pods have a condition to become ready by, a token, and their
// name; without it nothing of all that is left.
func TestReadinessGate(t *testing.T) {
	for values, on := range map[string]bool{
		"":                        true,
		"fleet: {enabled: false}": false,
		"fleet: {readinessGate: {enabled: false}}":                        false,
		"fleet: {enabled: false, readinessGate: {enabled: true}}":         false,
		"fleet: {readinessGate: {enabled: true, admissionPolicy: false}}": true,
	} {
		r := render(t, replicated+values)
		pod := get[*appsv1.Deployment](t, r, "").Spec.Template.Spec
		var wantGates []corev1.PodReadinessGate
		var wantArgs, wantObjects []string
		if on {
			wantGates = []corev1.PodReadinessGate{{ConditionType: "cloud-native-vpn.github.io/serving"}}
			wantArgs = []string{"--readiness-gate", "--readiness-lease=vpn-gateway-fleet", "--pod-namespace=$(POD_NAMESPACE)"}
			wantObjects = []string{"Lease", "Role", "RoleBinding"}
		}
		if diff := cmp.Diff(wantGates, pod.ReadinessGates); diff != "" {
			t.Errorf("%s: readiness gates (-want +got):\n%s", values, diff)
		}
		if *pod.AutomountServiceAccountToken != on {
			t.Errorf("%s: the token is mounted: %v, want %v", values, !on, on)
		}
		var args, objects []string
		for _, a := range pod.Containers[0].Args {
			if strings.HasPrefix(a, "--readiness-") || strings.HasPrefix(a, "--pod-namespace") {
				args = append(args, a)
			}
		}
		if diff := cmp.Diff(wantArgs, args); diff != "" {
			t.Errorf("%s: arguments (-want +got):\n%s", values, diff)
		}
		for _, o := range r.Objects {
			if o.Name == "vpn-gateway-fleet" {
				objects = append(objects, o.Kind)
			}
		}
		if diff := cmp.Diff(wantObjects, objects); diff != "" {
			t.Errorf("%s: objects (-want +got):\n%s", values, diff)
		}
	}
}

// One replica has no sibling to take out of service, and needs no API server.
func TestSingleReplica(t *testing.T) {
	pod := get[*appsv1.Deployment](t, render(t, ""), "").Spec.Template.Spec
	if len(pod.ReadinessGates) > 0 || *pod.AutomountServiceAccountToken || slices.ContainsFunc(pod.Containers[0].Args, func(a string) bool {
		return strings.HasPrefix(a, "--fleet-link")
	}) {
		t.Errorf("a single replica has gates %v, a token %t, arguments %v", pod.ReadinessGates, *pod.AutomountServiceAccountToken, pod.Containers[0].Args)
	}
}

// The gateway may read Pods, patch their status, and take one Lease; the Lease has
// no spec, which is the agents' to write.
func TestFleetRights(t *testing.T) {
	r := render(t, replicated)
	lease := get[*coordinationv1.Lease](t, r, "")
	if diff := cmp.Diff(coordinationv1.LeaseSpec{}, lease.Spec); diff != "" {
		t.Errorf("spec of the Lease (-want +got):\n%s", diff)
	}
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"pods/status"}, Verbs: []string{"patch"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: []string{lease.Name}, Verbs: []string{"get", "patch"}},
	}
	if diff := cmp.Diff(want, get[*rbacv1.Role](t, r, "vpn-gateway-fleet").Rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	binding := get[*rbacv1.RoleBinding](t, r, "vpn-gateway-fleet")
	account := get[*appsv1.Deployment](t, r, "").Spec.Template.Spec.ServiceAccountName
	if diff := cmp.Diff([]rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: "default"}}, binding.Subjects); diff != "" {
		t.Errorf("subjects (-want +got):\n%s", diff)
	}
	if binding.RoleRef.Name != "vpn-gateway-fleet" {
		t.Errorf("binding refers to %s", binding.RoleRef.Name)
	}
}

// The policy is there where Kubernetes has such, unless it is not wanted, and says
// in the notes where it is not there.
func TestAdmissionPolicy(t *testing.T) {
	const note = "it may patch the status of every Pod of the namespace"
	for _, c := range []struct {
		version, values string
		policy, note    bool
	}{
		{"v1.29.9", "", false, true},
		{"v1.30.0", "", true, false},
		{"v1.30.0-eks-123", "", true, false},
		{"v1.37.2", "", true, false},
		{"v1.37.2", "fleet: {readinessGate: {admissionPolicy: false}}", false, true},
		{"v1.37.2", "fleet: {readinessGate: {enabled: false}}", false, false},
		{"v1.37.2", "fleet: {enabled: false}", false, false},
	} {
		r, err := chart.Render(chart.Options{ChartDir: chartDir, Values: withEndpoint(t, replicated+c.values), KubeVersion: c.version})
		if err != nil {
			t.Fatal(err)
		}
		var kinds, want []string
		if c.policy {
			want = []string{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
		}
		for _, o := range r.Objects {
			if strings.HasPrefix(o.Kind, "Validating") {
				kinds = append(kinds, o.Kind)
			}
		}
		if diff := cmp.Diff(want, kinds); diff != "" {
			t.Errorf("%s %s: kinds (-want +got):\n%s", c.version, c.values, diff)
		}
		if got := strings.Contains(r.Notes, note); got != c.note {
			t.Errorf("%s %s: the notes say that there is none: %v, want %v", c.version, c.values, got, c.note)
		}
	}
}

// The policy is about the ServiceAccount of the Pods and about what selects them,
// also where these are called otherwise; and its name is that of one release.
func TestAdmissionPolicyNames(t *testing.T) {
	r, err := chart.Render(chart.Options{
		ChartDir: chartDir, ReleaseName: "edge", Namespace: "vpn", Values: withEndpoint(t, replicated+"serviceAccount: {name: mine}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	p := get[*admissionv1.ValidatingAdmissionPolicy](t, r, "")
	binding := get[*admissionv1.ValidatingAdmissionPolicyBinding](t, r, "")
	for what, pair := range map[string][2]string{
		"name":      {p.Name, "edge-vpn-gateway-fleet.vpn"},
		"binding":   {binding.Spec.PolicyName, p.Name},
		"namespace": {p.Spec.MatchConstraints.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"], "vpn"},
		"user":      {p.Spec.MatchConditions[0].Expression, `request.userInfo.username == "system:serviceaccount:vpn:mine"`},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %q, want %q", what, pair[0], pair[1])
		}
	}
	if diff := cmp.Diff([]admissionv1.ValidationAction{admissionv1.Deny}, binding.Spec.ValidationActions); diff != "" {
		t.Errorf("actions (-want +got):\n%s", diff)
	}
	// Each label of the selector, with its value.
	got := map[string]string{}
	for _, m := range regexp.MustCompile(`\?labels\["([^"]+)"\]\.orValue\(""\) == "([^"]+)"`).FindAllStringSubmatch(p.Spec.Validations[0].Expression, -1) {
		got[m[1]] = m[2]
	}
	if diff := cmp.Diff(get[*appsv1.Deployment](t, r, "").Spec.Selector.MatchLabels, got); diff != "" {
		t.Errorf("labels (-of the Pods +of the policy):\n%s", diff)
	}
	if !slices.ContainsFunc(p.Spec.Variables, func(v admissionv1.Variable) bool {
		return strings.Contains(v.Expression, string(get[*appsv1.Deployment](t, r, "").Spec.Template.Spec.ReadinessGates[0].ConditionType))
	}) {
		t.Errorf("the policy does not know the gate: %v", p.Spec.Variables)
	}
}
