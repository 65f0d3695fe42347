package chart

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// What looks like a number, a boolean or nothing to YAML stays text.
func TestTextStaysText(t *testing.T) {
	for _, word := range []string{"123", "1e3", "0x1f", "true", "null", "no"} {
		quoted := `"` + word + `"`
		text := strings.ReplaceAll(everything, "serviceAccount: {", "serviceAccount: {name: "+quoted+", ")
		text = strings.ReplaceAll(text, "deviceResource: intel.com/sriov}", "deviceResource: intel.com/sriov}\nnameOverride: "+quoted+"\nnamespaceOverride: "+quoted+"\nfullnameOverride: gateway\nschedulerName: "+quoted)
		for _, change := range []struct{ from, to string }{
			{"{name: pull}", "{name: " + quoted + "}"},
			{"[peers-a, peers-b]", "[" + quoted + "]"},
			{"[psk-a, psk.b]", `["7"]`},
			{"priorityClassName: high", "priorityClassName: " + quoted},
			{"runtimeClassName: fast", "runtimeClassName: " + quoted},
			{"loadBalancerClass: example.com/lb", "loadBalancerClass: " + quoted},
			{"{team: network}", "{team: " + quoted + "}"},
			{"{a: b}", "{a: " + quoted + "}"},
			{"{c: d}", "{c: " + quoted + "}"},
			{"serviceMonitor: {", "serviceMonitor: {namespace: " + quoted + ", "},
		} {
			if !strings.Contains(text, change.from) {
				t.Fatalf("nothing to replace: %s", change.from)
			}
			text = strings.ReplaceAll(text, change.from, change.to)
		}
		for _, variant := range []string{text, strings.ReplaceAll(text, "serviceMonitor", "podMonitor"), strings.ReplaceAll(text, "{keep: true}", "{existingSecret: \"8\", key: "+quoted+"}")} {
			// Decoding is strict: a number in the place of a string is an error.
			r, err := chart.Render(chart.Options{ChartDir: chartDir, ReleaseName: word, Namespace: word, Values: withEndpoint(t, variant)})
			if err != nil {
				t.Errorf("%s: %v", word, err)
				continue
			}
			for _, o := range r.Objects {
				if strings.HasPrefix(o.Kind, "ValidatingAdmissionPolicy") { // of the cluster
					if !strings.HasSuffix(o.Name, "."+word) {
						t.Errorf("%s: %s is called %q, want it to be the namespace's", word, o.Template, o.Name)
					}
				} else if o.Template != "templates/extra-objects.yaml" && o.Namespace != word {
					t.Errorf("%s: %s is in the namespace %q", word, o.Template, o.Namespace)
				}
			}
			want := map[string]string{"app.kubernetes.io/name": word, "app.kubernetes.io/instance": word}
			if diff := cmp.Diff(want, get[*appsv1.Deployment](t, r, "").Spec.Selector.MatchLabels); diff != "" {
				t.Errorf("%s: selector (-want +got):\n%s", word, diff)
			}
		}
	}
}

// The annotation by which the Pods follow what an agent cannot take up is not
// for users to set.
func TestDeviceAnnotation(t *testing.T) {
	r := render(t, "podAnnotations: {cloud-native-vpn.github.io/device: mine}")
	got := get[*appsv1.Deployment](t, r, "").Spec.Template.Annotations["cloud-native-vpn.github.io/device"]
	if want := "wg0 auto"; got != want {
		t.Errorf("annotation is %q, want %q", got, want)
	}
}

// null takes a default away. What cannot do without says so, by its path;
// nothing else fails.
func TestNulls(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var refused []string
	var try func(path []string, value any)
	try = func(path []string, value any) {
		if len(path) > 0 {
			name := strings.Join(path, ".")
			_, err := chart.Render(chart.Options{ChartDir: chartDir, Set: []string{endpoint, name + "=null"}})
			switch {
			case err == nil:
			case strings.Contains(err.Error(), "missing property '"+path[len(path)-1]+"'"), name == "server.publicEndpoint":
				refused = append(refused, name)
			default:
				t.Errorf("%s=null: %v", name, err)
			}
		}
		if m, isMap := value.(map[string]any); isMap {
			for key, v := range m {
				try(append(slices.Clone(path), key), v)
			}
		}
	}
	try(nil, values(t, string(text)))
	for _, want := range []string{"server", "peersFrom", "podDisruptionBudget", "server.listenPort", "replicaCount"} {
		if !slices.Contains(refused, want) {
			t.Errorf("%s=null is accepted", want)
		}
	}
	for _, not := range []string{"resources", "securityContext", "commonLabels", "podAnnotations", "keyJob.podLabels", "peers", "routing.routes", "livenessProbe"} {
		if slices.Contains(refused, not) {
			t.Errorf("%s=null is refused", not)
		}
	}
}
