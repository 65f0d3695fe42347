package chart

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// The two kinds of the Prometheus operator that scrape, as far as the chart uses them;
// the fields are those of its API monitoring.coreos.com/v1.
type monitor struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       struct {
		JobLabel            string              `json:"jobLabel"`
		NamespaceSelector   map[string][]string `json:"namespaceSelector"`
		Selector            map[string]any      `json:"selector"`
		Endpoints           []scrape            `json:"endpoints"`
		PodMetricsEndpoints []scrape            `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

type scrape struct {
	Port              string           `json:"port"`
	Path              string           `json:"path"`
	Interval          string           `json:"interval"`
	ScrapeTimeout     string           `json:"scrapeTimeout"`
	Relabelings       []map[string]any `json:"relabelings"`
	MetricRelabelings []map[string]any `json:"metricRelabelings"`
}

// And the one that has rules. tests/alerts reads them as Prometheus does.
type prometheusRule struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []rule `json:"rules"`
		} `json:"groups"`
	} `json:"spec"`
}

type rule struct {
	Alert       string            `json:"alert"`
	Record      string            `json:"record"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// Rendering decodes Kubernetes's own kinds strictly; what is left is decoded here,
// and External Secrets' in tests/externalsecrets.
func TestMonitorsDecodeStrictly(t *testing.T) {
	var seen []string
	for _, text := range []string{everything, strings.ReplaceAll(everything, "serviceMonitor", "podMonitor")} {
		for _, o := range render(t, text).Objects {
			if _, foreign := o.Object.(*unstructured.Unstructured); !foreign {
				continue
			}
			seen = append(seen, o.Kind)
			if o.Kind == "PrometheusRule" {
				if n := len(rules(t, o)); n < 10 {
					t.Errorf("%s: %d rules, want at least 10", o.Template, n)
				}
				continue
			}
			var m monitor
			if err := yaml.UnmarshalStrict(o.YAML, &m); err != nil {
				t.Errorf("%s: %v", o.Template, err)
			}
			if n := len(m.Spec.Endpoints) + len(m.Spec.PodMetricsEndpoints); n != 1 {
				t.Errorf("%s: %d endpoints, want 1", o.Template, n)
			}
		}
	}
	if diff := cmp.Diff([]string{"PrometheusRule", "ServiceMonitor", "PodMonitor", "PrometheusRule"}, seen); diff != "" {
		t.Errorf("kinds that Kubernetes does not have (-want +got):\n%s", diff)
	}
}

// rules returns those of a PrometheusRule.
func rules(t *testing.T, o chart.Object) []rule {
	t.Helper()
	var p prometheusRule
	if err := yaml.UnmarshalStrict(o.YAML, &p); err != nil {
		t.Fatalf("%s: %v", o.Template, err)
	}
	if len(p.Spec.Groups) != 1 {
		t.Fatalf("%s: %d groups, want 1", o.Template, len(p.Spec.Groups))
	}
	return p.Spec.Groups[0].Rules
}

// alerting are values of alerts, with more of prometheusRule.
func alerting(more string) string {
	return "metrics: {serviceMonitor: {enabled: true}, prometheusRule: {enabled: true, " + more + "}}"
}

func alertKnobs() []knob {
	const object, group = "PrometheusRule/vpn-gateway", ".spec.groups[0]"
	first := group + ".rules[0]"
	return []knob{
		{"metrics.prometheusRule.enabled", alerting(""), object, first + ".alert", "VPNGatewayAbsent"},
		{"metrics.prometheusRule.enabled", alerting(""), object, first + ".expr", `absent(vpn_gateway_ready{namespace="default",job="vpn-gateway",pod=~"vpn-gateway-[a-z0-9]+(-[a-z0-9]+)?"})`},
		{"metrics.prometheusRule.namespace", alerting("namespace: monitoring"), object, ".metadata.namespace", "monitoring"},
		{"metrics.prometheusRule.labels", alerting("labels: {a: b}"), object, ".metadata.labels.a", "b"},
		{"metrics.prometheusRule.annotations", alerting("annotations: {a: b}"), object, ".metadata.annotations.a", "b"},
		{"metrics.prometheusRule.alertLabels", alerting("alertLabels: {a: b}"), object, first + ".labels", `{"a":"b","severity":"critical"}`},
		{"metrics.prometheusRule.alertLabels", alerting("alertLabels: {severity: page}"), object, first + ".labels.severity", "page"},
		{"metrics.prometheusRule.disabled", alerting("disabled: [VPNGatewayAbsent]"), object, first + ".alert", "VPNGatewayNotForwarding"},
		{"metrics.prometheusRule.rules", alerting("rules: [{alert: Mine, expr: up == 0, annotations: {summary: '{{ $labels.pod }}'}}]"), object, group + ".rules[?(@.alert=='Mine')]", `{"alert":"Mine","annotations":{"summary":"{{ $labels.pod }}"},"expr":"up == 0"}`},
		{"nameOverride", "nameOverride: edge\n" + alerting(""), "PrometheusRule/vpn-gateway-edge", first + ".expr", `absent(vpn_gateway_ready{namespace="default",job="edge",pod=~"vpn-gateway-edge-[a-z0-9]+(-[a-z0-9]+)?"})`},
		{"namespaceOverride", "namespaceOverride: vpn\n" + alerting(""), object, first + ".expr", `absent(vpn_gateway_ready{namespace="vpn",job="vpn-gateway",pod=~"vpn-gateway-[a-z0-9]+(-[a-z0-9]+)?"})`},
	}
}

var alertRefusals = []refusal{
	{"alerts without a monitor", "metrics: {prometheusRule: {enabled: true}}", []string{
		"metrics.prometheusRule.enabled is true, and its alerts go by the labels of the chart's monitors, of which there is none; set metrics.serviceMonitor.enabled or metrics.podMonitor.enabled to true",
	}},
	{"an alert that there is not", alerting("disabled: [VPNGatewayLinkBroken, VPNGatewayDown]"), []string{
		`metrics.prometheusRule.disabled[1] "VPNGatewayDown" is none of the chart's alerts, which are ` + strings.Join(slices.Concat(
			alertsAlways, alertsOfKeys, alertsOfSecrets, alertsOfReplicas), ", ") + "; remove it",
	}},
	{"rules that are none", alerting("rules: [up == 0]"), []string{"at '/metrics/prometheusRule/rules/0': got string, want object"}},
}

// The alerts in the order of the chart, by what has to be there for them.
var (
	alertsAlways = []string{
		"VPNGatewayAbsent", "VPNGatewayNotForwarding", "VPNGatewayConfigRefused", "VPNGatewayPeersDrifted", "VPNGatewayDeviceUnreadable",
		"VPNGatewayNextKeyUnanswered", "VPNGatewayServerKeyRetires",
	}
	alertsOfKeys     = []string{"VPNGatewayKeyRotationFailed"}
	alertsOfSecrets  = []string{"VPNGatewaySecretNotRefreshed"}
	alertsOfReplicas = []string{
		"VPNGatewayReplicasMissing", "VPNGatewayReplicasApart", "VPNGatewayConfigsDiffer", "VPNGatewayLinkBroken", "VPNGatewayForeignMessages",
		"VPNGatewayReplicaDied", "VPNGatewayReplicaNotMarked",
	}
)

// allAlerts are values with which there is every alert.
const allAlerts = "replicaCount: 3\nkeyRotation: {enabled: true}" + external

// There are alerts on what the values switch on, and on nothing else.
func TestAlerts(t *testing.T) {
	without := func(names ...string) []string {
		return slices.DeleteFunc(slices.Concat(alertsAlways, alertsOfReplicas), func(n string) bool { return slices.Contains(names, n) })
	}
	for values, want := range map[string][]string{
		"": slices.Concat(alertsAlways, []string{"VPNGatewayForeignMessages"}),
		"fleet: {enabled: false}\nreplicaCount: 3":                      alertsAlways,
		"replicaCount: 3":                                               without(),
		"replicaCount: 0":                                               without("VPNGatewayAbsent", "VPNGatewayReplicasMissing"),
		"replicaCount: 0\nautoscaling: {enabled: true}":                 without("VPNGatewayReplicasMissing"),
		"replicaCount: 1\nautoscaling: {enabled: true, minReplicas: 2}": without(),
		"replicaCount: 3\nfleet: {link: {enabled: false}}":              without("VPNGatewayLinkBroken"),
		"replicaCount: 3\nfleet: {readinessGate: {enabled: false}}":     without("VPNGatewayReplicaDied", "VPNGatewayReplicaNotMarked"),
		"keyRotation: {enabled: true}":                                  slices.Concat(alertsAlways, alertsOfKeys, []string{"VPNGatewayForeignMessages"}),
		allAlerts:                                                       slices.Concat(alertsAlways, alertsOfKeys, alertsOfSecrets, alertsOfReplicas),
	} {
		o := only(t, render(t, values+"\n"+alerting("")), "PrometheusRule")
		var got []string
		for _, r := range rules(t, o) {
			got = append(got, r.Alert)
			if r.Expr == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" || !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
				t.Errorf("%s lacks something: %+v", r.Alert, r)
			}
			for _, token := range []string{"SCOPE", "<", "&lt;"} {
				if strings.Contains(r.Annotations["summary"]+r.Annotations["description"], token) || token == "SCOPE" && strings.Contains(r.Expr, token) {
					t.Errorf("%s has %s left: %+v", r.Alert, token, r)
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: alerts (-want +got):\n%s", values, diff)
		}
		if values == allAlerts {
			golden(t, "alerts.yaml", string(o.YAML)) // for tests/alerts
		}
	}
}

// The documentation has a line for each alert, with its severity and how long it waits,
// and for no other.
func TestAlertsAreDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(VPNGateway[A-Za-z]+)` \\| ([a-z]+) \\| (.*) \\|.*\\|$").FindAllStringSubmatch(string(text), -1) {
		within := regexp.MustCompile(`for ([0-9]+) minutes$`).FindStringSubmatch(row[3])
		rows[row[1]] = row[2]
		if within != nil {
			rows[row[1]] += " " + within[1] + "m"
		}
	}
	want := map[string]string{}
	for _, r := range rules(t, only(t, render(t, allAlerts+alerting("")), "PrometheusRule")) {
		want[r.Alert] = strings.TrimSpace(r.Labels["severity"] + " " + r.For)
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("alerts in docs/operations.md (-chart +documentation):\n%s", diff)
	}
}

// The alerts know the Pods of the Deployment by their names, which Kubernetes makes: that of
// a ReplicaSet has a hash of up to 10 characters, and a Pod's is cut to 58 before 5 more.
func TestAlertsKnowTheirPods(t *testing.T) {
	pod := func(deployment, hash string) string {
		name := deployment + "-" + hash + "-"
		return name[:min(len(name), 58)] + "x2k9q"
	}
	known := regexp.MustCompile(`pod=~"([^"]+)"`)
	for _, length := range []int{1, 11, 39, 45, 46, 47, 48, 49, 50, 60} {
		name := strings.Repeat("g", length)
		r := render(t, "fullnameOverride: "+name+"\n"+alerting(""))
		deployment := get[*appsv1.Deployment](t, r, "").Name
		pattern := regexp.MustCompile("^(?:" + known.FindStringSubmatch(rules(t, only(t, r, "PrometheusRule"))[0].Expr)[1] + ")$")
		for _, hash := range []string{"6d4f5c7b9d", "5c7b9d"} {
			if p := pod(deployment, hash); !pattern.MatchString(p) {
				t.Errorf("%s does not match %s", p, pattern)
			}
			for _, other := range []string{"a" + deployment, deployment + "-b"} {
				if p := pod(other, hash); len(deployment) < 40 && pattern.MatchString(p) {
					t.Errorf("%s of another release matches %s", p, pattern)
				}
			}
		}
	}
}
