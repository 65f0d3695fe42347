package chart

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

const (
	adapter      = "Deployment/vpn-gateway-metrics"
	scaledObject = "ScaledObject/vpn-gateway"
	apiService   = "APIService/v1beta2.custom.metrics.k8s.io"
	caBundle     = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"
)

// scaled are values of an autoscaler with a source of its metric, and more in metric.
func scaled(source, more string) string {
	return "autoscaling: {enabled: true, metric: {source: " + source + ", " + more + "}}"
}

var scalingKnobs = []knob{
	{"autoscaling.metric.source", scaled("adapter", ""), scaler, ".spec.metrics", `[{"pods":{"metric":{"name":"vpn_gateway_connected_peers"},"target":{"averageValue":"200","type":"AverageValue"}},"type":"Pods"}]`},
	{"autoscaling.metric.source", scaled("adapter", ""), adapter, gateway + ".image", "ghcr.io/cloud-native-vpn/vpn-metrics-adapter:0.1.0"},
	{"autoscaling.metric.source", scaled("adapter", ""), apiService, ".spec.insecureSkipTLSVerify", "true"},
	{"autoscaling.metric.source", scaled("custom", ""), scaler, ".spec.metrics", `[{"pods":{"metric":{"name":"vpn_gateway_peers","selector":{"matchLabels":{"state":"connected"}}},"target":{"averageValue":"200","type":"AverageValue"}},"type":"Pods"}]`},
	{"autoscaling.metric.source", scaled("keda", ""), scaledObject, ".spec.triggers", `[{"metadata":{"targetValue":"200","url":"http://vpn-gateway-http.default.svc:8080/fleet","valueLocation":"connectedPeers"},"metricType":"AverageValue","type":"metrics-api"}]`},
	{"autoscaling.metric.source", scaled("keda", ""), "Service/vpn-gateway-http", ".spec.ports", `[{"name":"http","port":8080,"protocol":"TCP","targetPort":"http"}]`},
	{"autoscaling.metric.targetConnectionsPerReplica", scaled("adapter", "targetConnectionsPerReplica: 5"), scaler, ".spec.metrics[0].pods.target.averageValue", "5"},
	{"autoscaling.metric.targetConnectionsPerReplica", scaled("keda", "targetConnectionsPerReplica: 5"), scaledObject, ".spec.triggers[0].metadata.targetValue", "5"},
	{"autoscaling.metric.custom.name", scaled("custom", "custom: {name: peers}"), scaler, ".spec.metrics[0].pods.metric", `{"name":"peers"}`},
	{"autoscaling.metric.custom.selector", scaled("custom", "custom: {selector: {matchLabels: {a: b}}}"), scaler, ".spec.metrics[0].pods.metric.selector", `{"matchLabels":{"a":"b"}}`},
	{"autoscaling.metric.keda.pollingInterval", scaled("keda", "keda: {pollingInterval: 5}"), scaledObject, ".spec.pollingInterval", "5"},
	{"autoscaling.metric.keda.fallback", scaled("keda", "keda: {fallback: {failureThreshold: 1, replicas: 4}}"), scaledObject, ".spec.fallback", `{"failureThreshold":1,"replicas":4}`},
	{"autoscaling.metric.keda.fallback", "autoscaling: {enabled: true, minReplicas: 2, metric: {source: keda}}", scaledObject, ".spec.fallback", `{"behavior":"currentReplicasIfHigher","failureThreshold":3,"replicas":2}`},
	{"autoscaling.metric.keda.annotations", scaled("keda", "keda: {annotations: {a: b}}"), scaledObject, ".metadata.annotations.a", "b"},
	{"autoscaling.minReplicas", "autoscaling: {enabled: true, minReplicas: 2, metric: {source: keda}}", scaledObject, ".spec.minReplicaCount", "2"},
	{"autoscaling.maxReplicas", "autoscaling: {enabled: true, maxReplicas: 9, metric: {source: keda}}", scaledObject, ".spec.maxReplicaCount", "9"},
	{"autoscaling.behavior", "autoscaling: {enabled: true, metric: {source: keda}, behavior: {scaleUp: {selectPolicy: Max}}}", scaledObject, ".spec.advanced.horizontalPodAutoscalerConfig.behavior", `{"scaleUp":{"selectPolicy":"Max"}}`},
	{"autoscaling.metric.adapter.image.registry", scaled("adapter", "adapter: {image: {registry: example.com}}"), adapter, gateway + ".image", "example.com/cloud-native-vpn/vpn-metrics-adapter:0.1.0"},
	{"autoscaling.metric.adapter.image.repository", scaled("adapter", "adapter: {image: {repository: mirror/adapter}}"), adapter, gateway + ".image", "ghcr.io/mirror/adapter:0.1.0"},
	{"autoscaling.metric.adapter.image.tag", scaled("adapter", "adapter: {image: {tag: next}}"), adapter, gateway + ".image", "ghcr.io/cloud-native-vpn/vpn-metrics-adapter:next"},
	{"autoscaling.metric.adapter.image.digest", scaled("adapter", "adapter: {image: {digest: "+digest+"}}"), adapter, gateway + ".image", "ghcr.io/cloud-native-vpn/vpn-metrics-adapter@" + digest},
	{"autoscaling.metric.adapter.image.pullPolicy", scaled("adapter", "adapter: {image: {pullPolicy: Never}}"), adapter, gateway + ".imagePullPolicy", "Never"},
	{"global.imageRegistry", "{global: {imageRegistry: mirror.example.com}, " + scaled("adapter", "") + "}", adapter, gateway + ".image", "mirror.example.com/cloud-native-vpn/vpn-metrics-adapter:0.1.0"},
	{"autoscaling.metric.adapter.replicas", scaled("adapter", "adapter: {replicas: 2}"), adapter, ".spec.replicas", "2"},
	{"autoscaling.metric.adapter.replicas", scaled("adapter", "adapter: {replicas: 2}"), adapter, pod + ".topologySpreadConstraints[0].topologyKey", "kubernetes.io/hostname"},
	{"autoscaling.metric.adapter.replicas", scaled("adapter", "adapter: {replicas: 3}"), "PodDisruptionBudget/vpn-gateway-metrics", ".spec.maxUnavailable", "1"},
	{"podDisruptionBudget.unhealthyPodEvictionPolicy", scaled("adapter", "adapter: {replicas: 2}") + "\npodDisruptionBudget: {unhealthyPodEvictionPolicy: IfHealthyBudget}", "PodDisruptionBudget/vpn-gateway-metrics", ".spec.unhealthyPodEvictionPolicy", "IfHealthyBudget"},
	{"autoscaling.metric.adapter.resources", scaled("adapter", "adapter: {resources: {limits: {memory: 1Gi}}}"), adapter, gateway + ".resources.limits.memory", "1Gi"},
	{"autoscaling.metric.adapter.podAnnotations", scaled("adapter", "adapter: {podAnnotations: {a: b}}"), adapter, ".spec.template.metadata.annotations.a", "b"},
	{"autoscaling.metric.adapter.podLabels", scaled("adapter", "adapter: {podLabels: {a: b}}"), adapter, ".spec.template.metadata.labels.a", "b"},
	{"autoscaling.metric.adapter.tls.existingSecret", scaled("adapter", "adapter: {tls: {existingSecret: cert}}"), adapter, pod + ".volumes[0].secret.secretName", "cert"},
	{"autoscaling.metric.adapter.tls.existingSecret", scaled("adapter", "adapter: {tls: {existingSecret: cert}}"), adapter, gateway + ".args[5]", "--tls-cert-file=/etc/vpn-metrics-adapter/tls/tls.crt"},
	{"autoscaling.metric.adapter.tls.caBundle", scaled("adapter", "adapter: {tls: {existingSecret: cert, caBundle: \"-----BEGIN CERTIFICATE-----\\nMA==\\n-----END CERTIFICATE-----\\n\"}}"), apiService, ".spec.caBundle", base64.StdEncoding.EncodeToString([]byte(caBundle))},
	{"autoscaling.metric.adapter.apiServiceAnnotations", scaled("adapter", "adapter: {tls: {existingSecret: cert}, apiServiceAnnotations: {cert-manager.io/inject-ca-from: vpn/cert}}"), apiService, ".metadata.annotations.cert-manager\\.io/inject-ca-from", "vpn/cert"},
}

// scalingRefusals are those of what the gateway is scaled on.
var scalingRefusals = []refusal{
	{"metrics of one's own beside a source", "autoscaling: {enabled: true, metrics: [{type: Pods}], metric: {source: adapter}}", []string{
		`autoscaling.metrics has 1 of its own beside autoscaling.metric.source "adapter"; remove them, or set autoscaling.metric.source to cpu`,
	}},
	{"an unknown source", "autoscaling: {metric: {source: prometheus}}", []string{
		"at '/autoscaling/metric/source': value must be one of 'cpu', 'adapter', 'custom', 'keda'",
	}},
	{"a target of nothing", "autoscaling: {metric: {targetConnectionsPerReplica: 0}}", []string{
		"at '/autoscaling/metric/targetConnectionsPerReplica': minimum: got 0, want 1",
	}},
	{"a custom metric without a name", "autoscaling: {enabled: true, metric: {source: custom, custom: {name: ''}}}", []string{
		"autoscaling.metric.custom.name is empty; give the metric's name, such as vpn_gateway_peers",
	}},
	{"sections of other sources, all at once", "autoscaling: {enabled: true, minReplicas: 6, metric: {source: cpu, custom: {selector: {matchLabels: {a: b}}}, keda: {fallback: {replicas: 2}, annotations: {a: b}}, adapter: {tls: {existingSecret: cert}}}}", []string{
		"autoscaling.minReplicas 6 is greater than autoscaling.maxReplicas 5; raise the one or lower the other",
		`autoscaling.metric.custom.selector {"matchLabels":{"a":"b"}} is for autoscaling.metric.source custom, not cpu; set that or remove it`,
		`autoscaling.metric.keda.fallback {"replicas":2} is for autoscaling.metric.source keda, not cpu; set that or remove it`,
		`autoscaling.metric.keda.annotations {"a":"b"} is for autoscaling.metric.source keda, not cpu; set that or remove it`,
		`autoscaling.metric.adapter.tls.existingSecret "cert" is for autoscaling.metric.source adapter, not cpu; set that or remove it`,
	}},
	{"an authority without a certificate, and not PEM", scaled("adapter", "adapter: {tls: {caBundle: MA==}}"), []string{
		"autoscaling.metric.adapter.tls.caBundle verifies a certificate, and there is none; name its Secret in autoscaling.metric.adapter.tls.existingSecret",
		"autoscaling.metric.adapter.tls.caBundle is not PEM; it begins with -----BEGIN CERTIFICATE-----, do not encode it again",
	}},
	{"the adapter's digest", scaled("adapter", "adapter: {image: {digest: abc}}"), []string{
		`autoscaling.metric.adapter.image.digest "abc" is not a digest; write sha256: and 64 hex digits`,
	}},
	{"the adapter's rights for everybody", "{server: {privateKey: {existingSecret: mine}}, serviceAccount: {create: false}, " + scaled("adapter", "") + "}", []string{
		"serviceAccount.create is false and serviceAccount.name names none, so that the adapter's rights would go to every Pod of the namespace; set serviceAccount.name",
		"serviceAccount.create is false and serviceAccount.name names none, so that the right to take Pods out of service would go to every Pod of the namespace; set serviceAccount.name, or fleet.readinessGate.enabled to false",
	}},
	{"labels that select gateways", scaled("adapter", "adapter: {podLabels: {app.kubernetes.io/name: a}}"), []string{
		"autoscaling.metric.adapter.podLabels has app.kubernetes.io/name, by which the gateway's Pods are selected; remove it (nameOverride changes the name)",
	}},
}

// There is one autoscaler at most, and the Deployment leaves its count to it.
func TestOneAutoscaler(t *testing.T) {
	tests := map[string]struct {
		values string
		want   []string
	}{
		"none":               {"", nil},
		"a source, disabled": {"autoscaling: {metric: {source: keda}}", nil},
		"cpu":                {"autoscaling: {enabled: true}", []string{"HorizontalPodAutoscaler"}},
		"custom":             {scaled("custom", ""), []string{"HorizontalPodAutoscaler"}},
		"keda":               {scaled("keda", ""), []string{"ScaledObject"}},
		"adapter":            {scaled("adapter", ""), []string{"APIService", "APIService", "HorizontalPodAutoscaler"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := render(t, test.values)
			var got []string
			for _, o := range r.Objects {
				if slices.Contains([]string{"HorizontalPodAutoscaler", "ScaledObject", "APIService"}, o.Kind) {
					got = append(got, o.Kind)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("kinds (-want +got):\n%s", diff)
			}
			replicas := get[*appsv1.Deployment](t, r, "vpn-gateway").Spec.Replicas
			if (replicas == nil) != (test.want != nil) {
				t.Errorf("replicas is %v with %v", replicas, test.want)
			}
		})
	}
}

// Out at once and in slowly, unless the user says otherwise.
func TestScalingBehavior(t *testing.T) {
	policy := func(kind autoscalingv2.HPAScalingPolicyType, value, seconds int32) autoscalingv2.HPAScalingPolicy {
		return autoscalingv2.HPAScalingPolicy{Type: kind, Value: value, PeriodSeconds: seconds}
	}
	most := ptr.To(autoscalingv2.MaxChangePolicySelect)
	want := &autoscalingv2.HorizontalPodAutoscalerBehavior{
		ScaleUp: &autoscalingv2.HPAScalingRules{
			StabilizationWindowSeconds: ptr.To[int32](0), SelectPolicy: most,
			Policies: []autoscalingv2.HPAScalingPolicy{policy(autoscalingv2.PercentScalingPolicy, 100, 15), policy(autoscalingv2.PodsScalingPolicy, 10, 15)},
		},
		ScaleDown: &autoscalingv2.HPAScalingRules{
			StabilizationWindowSeconds: ptr.To[int32](300), SelectPolicy: most,
			Policies: []autoscalingv2.HPAScalingPolicy{policy(autoscalingv2.PodsScalingPolicy, 1, 60)},
		},
	}
	for _, source := range []string{"cpu", "custom", "adapter"} {
		got := get[*autoscalingv2.HorizontalPodAutoscaler](t, render(t, scaled(source, "")), "").Spec.Behavior
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", source, diff)
		}
	}
	given := "autoscaling: {enabled: true, behavior: {scaleDown: {stabilizationWindowSeconds: 60}}}"
	got := get[*autoscalingv2.HorizontalPodAutoscaler](t, render(t, given), "").Spec.Behavior
	want = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](60)}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", given, diff)
	}
}

// The adapter runs as anybody, with a file system that it cannot write to, and
// whatever selects gateways does not select it.
func TestAdapterPod(t *testing.T) {
	long := strings.Repeat("n", 63)
	for _, more := range []string{"", "fullnameOverride: " + long[:50] + ", nameOverride: " + long} {
		r := render(t, "{"+scaled("adapter", "")+", networkPolicy: {enabled: true}, "+more+"}")
		var d, gateway *appsv1.Deployment
		for _, o := range r.Objects {
			if x, ok := o.Object.(*appsv1.Deployment); ok && strings.HasPrefix(o.Template, "templates/metrics-") {
				d = x
			} else if ok {
				gateway = x
			}
		}
		pod := d.Spec.Template.Spec
		id := ptr.To[int64](65532)
		wantPod := &corev1.PodSecurityContext{
			RunAsNonRoot: ptr.To(true), RunAsUser: id, RunAsGroup: id, FSGroup: id,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}
		if diff := cmp.Diff(wantPod, pod.SecurityContext); diff != "" {
			t.Errorf("Pod security context (-want +got):\n%s", diff)
		}
		want := &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr.To(false), ReadOnlyRootFilesystem: ptr.To(true),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		}
		if diff := cmp.Diff(want, pod.Containers[0].SecurityContext); diff != "" {
			t.Errorf("security context (-want +got):\n%s", diff)
		}
		for _, selects := range []*metav1.LabelSelector{gateway.Spec.Selector, &get[*networkingv1.NetworkPolicy](t, r, "").Spec.PodSelector} {
			if s := selector(t, selects); s.Matches(labels.Set(d.Spec.Template.Labels)) {
				t.Errorf("%s selects the adapter", s)
			}
		}
		if s := selector(t, d.Spec.Selector); !s.Matches(labels.Set(d.Spec.Template.Labels)) || s.Matches(labels.Set(gateway.Spec.Template.Labels)) {
			t.Errorf("%s selects not the adapter, or the gateway", s)
		}
		// The one that the gateways' policy lets in.
		from := get[*networkingv1.NetworkPolicy](t, r, "").Spec.Ingress
		if !slices.ContainsFunc(from, func(rule networkingv1.NetworkPolicyIngressRule) bool {
			return len(rule.From) > 0 && rule.From[0].PodSelector != nil && selector(t, rule.From[0].PodSelector).Matches(labels.Set(d.Spec.Template.Labels))
		}) {
			t.Error("no rule lets the adapter in")
		}
		for name, value := range d.Spec.Template.Labels {
			if len(value) > 63 {
				t.Errorf("label %s has %d characters", name, len(value))
			}
		}
		for _, o := range r.Objects {
			if o.Kind == "Service" && len(o.Name) > 63 {
				t.Errorf("Service %s has %d characters", o.Name, len(o.Name))
			}
		}
		// What it is told to look for are the gateway's Pods.
		args := pod.Containers[0].Args
		told := strings.TrimPrefix(args[2], "--selector=")
		if s, err := labels.Parse(told); err != nil || !s.Matches(labels.Set(gateway.Spec.Template.Labels)) || s.Matches(labels.Set(d.Spec.Template.Labels)) {
			t.Errorf("%v: %q does not select the gateway's Pods alone", err, told)
		}
		if want := "--name=" + gateway.Name; args[1] != want {
			t.Errorf("argument %q, want %q", args[1], want)
		}
	}
}

// Several adapters are on several nodes where possible, and leave one after the other; of
// one there is nothing to spread, and a budget would keep its node from being drained.
func TestAdapterSpread(t *testing.T) {
	for values, want := range map[string]struct {
		spread bool
		budget bool
	}{
		scaled("adapter", ""):                       {false, false},
		scaled("adapter", "adapter: {replicas: 2}"): {true, true},
		scaled("adapter", "adapter: {replicas: 2}") + "\npodDisruptionBudget: {enabled: false}": {true, false},
		scaled("adapter", "adapter: {replicas: 2}") + "\ntopologySpreadConstraints: []":         {true, true},
		scaled("cpu", "adapter: {replicas: 2}"):                                                 {false, false},
	} {
		r := render(t, values)
		var spread []string
		if d, err := chart.Get[*appsv1.Deployment](r, "vpn-gateway-metrics"); err == nil {
			for _, c := range d.Spec.Template.Spec.TopologySpreadConstraints {
				spread = append(spread, fmt.Sprintf("%s %s %d %v", c.TopologyKey, c.WhenUnsatisfiable, c.MaxSkew, c.MatchLabelKeys))
				if s := selector(t, c.LabelSelector); s.String() != selector(t, d.Spec.Selector).String() {
					t.Errorf("%s: %s is spread by %s", values, c.TopologyKey, s)
				}
			}
		}
		var wantSpread []string
		if want.spread {
			wantSpread = []string{"kubernetes.io/hostname ScheduleAnyway 1 [pod-template-hash]", "topology.kubernetes.io/zone ScheduleAnyway 1 [pod-template-hash]"}
		}
		if diff := cmp.Diff(wantSpread, spread); diff != "" {
			t.Errorf("%s: spread (-want +got):\n%s", values, diff)
		}
		budget, err := chart.Get[*policyv1.PodDisruptionBudget](r, "vpn-gateway-metrics")
		if (err == nil) != want.budget {
			t.Errorf("%s: budget is %v (%v), want one: %t", values, budget, err, want.budget)
		}
		if err != nil {
			continue
		}
		if diff := cmp.Diff(ptr.To(intstr.FromInt(1)), budget.Spec.MaxUnavailable); diff != "" {
			t.Errorf("%s: maxUnavailable (-want +got):\n%s", values, diff)
		}
		for _, o := range r.Objects {
			if d, ok := o.Object.(*appsv1.Deployment); ok && selector(t, budget.Spec.Selector).Matches(labels.Set(d.Spec.Template.Labels)) != (d.Name == "vpn-gateway-metrics") {
				t.Errorf("%s: the adapter's budget and the Pods of %s", values, d.Name)
			}
		}
	}
}

// The adapter may list the Pods of its namespace and ask the API server who asks
// it; the autoscaler's controller may read the one metric. No rbac.create, none.
func TestAdapterRights(t *testing.T) {
	r := render(t, "{namespaceOverride: vpn, "+scaled("adapter", "")+"}")
	rules := map[string][]rbacv1.PolicyRule{}
	bindings := map[string]string{}
	bind := func(kind, name, namespace string, to rbacv1.RoleRef, subjects []rbacv1.Subject) {
		for _, s := range subjects {
			bindings[fmt.Sprintf("%s %s/%s", kind, namespace, name)] = fmt.Sprintf("%s %s: %s/%s", to.Kind, to.Name, s.Namespace, s.Name)
		}
	}
	for _, o := range r.Objects {
		if !strings.HasPrefix(o.Template, "templates/metrics-") {
			continue
		}
		switch x := o.Object.(type) {
		case *rbacv1.Role:
			rules[x.Name] = x.Rules
		case *rbacv1.RoleBinding:
			bind("RoleBinding", x.Name, x.Namespace, x.RoleRef, x.Subjects)
		case *rbacv1.ClusterRoleBinding:
			bind("ClusterRoleBinding", x.Name, x.Namespace, x.RoleRef, x.Subjects)
		}
	}
	const metric = "/vpn_gateway_connected_peers"
	wantRules := map[string][]rbacv1.PolicyRule{
		"vpn-gateway-metrics":        {{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}}},
		"vpn-gateway-metrics-reader": {{APIGroups: []string{"custom.metrics.k8s.io"}, Resources: []string{"pods" + metric, "services" + metric, "deployments.apps" + metric}, Verbs: []string{"get", "list"}}},
	}
	if diff := cmp.Diff(wantRules, rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	wantBindings := map[string]string{
		"RoleBinding vpn/vpn-gateway-metrics":             "Role vpn-gateway-metrics: vpn/vpn-gateway-metrics",
		"RoleBinding vpn/vpn-gateway-metrics-reader":      "Role vpn-gateway-metrics-reader: kube-system/horizontal-pod-autoscaler",
		"RoleBinding kube-system/vpn-vpn-gateway-metrics": "Role extension-apiserver-authentication-reader: vpn/vpn-gateway-metrics",
		"ClusterRoleBinding /vpn-vpn-gateway-metrics":     "ClusterRole system:auth-delegator: vpn/vpn-gateway-metrics",
	}
	if diff := cmp.Diff(wantBindings, bindings); diff != "" {
		t.Errorf("bindings (-want +got):\n%s", diff)
	}
	for _, o := range render(t, "{rbac: {create: false}, "+scaled("adapter", "")+"}").Objects {
		if strings.Contains(o.Kind, "Role") {
			t.Errorf("%s %s with rbac.create=false", o.Kind, o.Name)
		}
	}
}

// The API of kube-aggregator, as far as the chart uses it: apiregistration.k8s.io/v1.
type registration struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metav1.ObjectMeta `json:"metadata"`
	Spec       struct {
		Group, Version        string
		GroupPriorityMinimum  int32  `json:"groupPriorityMinimum"`
		VersionPriority       int32  `json:"versionPriority"`
		InsecureSkipTLSVerify bool   `json:"insecureSkipTLSVerify"`
		CABundle              []byte `json:"caBundle"`
		Service               struct {
			Name, Namespace string
			Port            int32
		}
	}
}

// Without a certificate nothing is verified; with one it is, by what is given or
// by what somebody injects.
func TestAPIServices(t *testing.T) {
	for _, test := range []struct {
		values   string
		insecure bool
		bundle   string
	}{
		{scaled("adapter", ""), true, ""},
		{scaled("adapter", "adapter: {tls: {existingSecret: cert}}"), false, ""},
		{scaled("adapter", "adapter: {tls: {existingSecret: cert, caBundle: "+fmt.Sprintf("%q", caBundle)+"}}"), false, caBundle},
	} {
		r := render(t, test.values)
		var versions []string
		for _, o := range r.Objects {
			if o.Kind != "APIService" {
				continue
			}
			var s registration
			if err := yaml.UnmarshalStrict(o.YAML, &s); err != nil {
				t.Fatal(err)
			}
			versions = append(versions, s.Spec.Version)
			if want := s.Spec.Version + ".custom.metrics.k8s.io"; s.Metadata.Name != want || s.Metadata.Namespace != "" {
				t.Errorf("name %q in %q, want %q in none", s.Metadata.Name, s.Metadata.Namespace, want)
			}
			if s.Spec.InsecureSkipTLSVerify != test.insecure || string(s.Spec.CABundle) != test.bundle {
				t.Errorf("%s: insecureSkipTLSVerify %t, caBundle %q", test.values, s.Spec.InsecureSkipTLSVerify, s.Spec.CABundle)
			}
			service := get[*corev1.Service](t, r, s.Spec.Service.Name)
			if service.Namespace != s.Spec.Service.Namespace || service.Spec.Ports[0].Port != s.Spec.Service.Port {
				t.Errorf("Service %+v, want %s %s", s.Spec.Service, service.Namespace, service.Name)
			}
		}
		if diff := cmp.Diff([]string{"v1beta1", "v1beta2"}, versions); diff != "" {
			t.Errorf("versions (-want +got):\n%s", diff)
		}
	}
}

// What KEDA is told to read is there: the agent answers with that document, by its own
// test, at the Service's port that leads to it.
func TestScaledObjectReadsTheFleet(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "agent", "internal", "telemetry", "testdata", "fleet.json"))
	if err != nil {
		t.Fatal(err)
	}
	var document map[string]any
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	r := render(t, "{namespaceOverride: vpn, "+scaled("keda", "")+", ports: {http: 8088}}")
	var object struct {
		Spec struct {
			Triggers []struct{ Metadata map[string]string }
		}
	}
	if err := yaml.Unmarshal(only(t, r, "ScaledObject").YAML, &object); err != nil {
		t.Fatal(err)
	}
	if len(object.Spec.Triggers) != 1 {
		t.Fatalf("triggers: %+v, want one", object.Spec.Triggers)
	}
	told := object.Spec.Triggers[0].Metadata
	// A name without dots: KEDA takes others for a path (GJSON).
	if value, ok := document[told["valueLocation"]].(float64); !ok || value != 5 {
		t.Errorf("valueLocation %q is %v of what the agent answers, want the 5 peers of all replicas:\n%s", told["valueLocation"], document[told["valueLocation"]], text)
	}
	service := get[*corev1.Service](t, r, "vpn-gateway-http")
	if want := fmt.Sprintf("http://%s.%s.svc:%d/fleet", service.Name, service.Namespace, service.Spec.Ports[0].Port); told["url"] != want {
		t.Errorf("url %q, want %q", told["url"], want)
	}
	deployment := get[*appsv1.Deployment](t, r, "vpn-gateway")
	ports := deployment.Spec.Template.Spec.Containers[0].Ports
	i := slices.IndexFunc(ports, func(p corev1.ContainerPort) bool { return p.Name == service.Spec.Ports[0].TargetPort.StrVal })
	if i < 0 || !slices.Contains(deployment.Spec.Template.Spec.Containers[0].Args, fmt.Sprintf("--http-address=:%d", ports[i].ContainerPort)) {
		t.Errorf("port %v of the Service is none at which the agent answers: %v", service.Spec.Ports[0].TargetPort, ports)
	}
}

// What is rendered for KEDA passes the schema of its own CRD, in which no unknown
// field is let pass.
func TestScaledObjectSchema(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "keda", "scaledobjects.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Name   string
				Schema struct{ OpenAPIV3Schema any }
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	if len(crd.Spec.Versions) != 1 || crd.Spec.Versions[0].Name != "v1alpha1" {
		t.Fatalf("versions of the CRD: %d", len(crd.Spec.Versions))
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("crd.json", closed(crd.Spec.Versions[0].Schema.OpenAPIV3Schema)); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("crd.json")
	if err != nil {
		t.Fatal(err)
	}
	check := func(values string) error {
		object := generic(t, only(t, render(t, values), "ScaledObject")).Object
		object["metadata"] = map[string]any{} // the API server's own
		return schema.Validate(object)
	}
	for _, values := range []string{scaled("keda", ""), scaled("keda", "keda: {pollingInterval: 5, fallback: {failureThreshold: 1, replicas: 4}}")} {
		if err := check(values); err != nil {
			t.Errorf("%s: %v", values, err)
		}
	}
	// The schema finds what is wrong.
	for _, values := range []string{
		scaled("keda", "keda: {fallback: {failureThreshold: 1, replicas: 4, behaviour: static}}"),
		scaled("keda", "keda: {fallback: {failureThreshold: 1, replicas: 4, behavior: none}}"),
		scaled("keda", "keda: {fallback: {replicas: 4}}"),
	} {
		if err := check(values); err == nil {
			t.Errorf("%s passes", values)
		}
	}
}

// closed refuses every property that an OpenAPI schema does not name.
func closed(schema any) any {
	switch s := schema.(type) {
	case map[string]any:
		out := map[string]any{}
		for name, value := range s {
			out[name] = closed(value)
		}
		if _, has := s["properties"]; has && s["additionalProperties"] == nil {
			out["additionalProperties"] = false
		}
		return out
	case []any:
		out := make([]any, len(s))
		for i := range s {
			out[i] = closed(s[i])
		}
		return out
	}
	return schema
}
