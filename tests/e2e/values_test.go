//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// The Prometheus operator, for the schemas of its own kinds.
const (
	operator    = "github.com/prometheus-operator/prometheus-operator"
	operatorTag = "v0.85.0"
	operatorSum = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
)

// testValues shows every scenario of values/ to the API server, which checks each
// object as if it were to be made: unknown fields, validation and admission.
func testValues(t *testing.T, c *cluster) {
	namespace := c.namespace(t, "values", nil)
	groups, err := restmapper.GetAPIGroupResources(c.client.Discovery())
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	version, err := c.client.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	files := must[[]string](t)(filepath.Glob(filepath.Join(c.root, "values", "*.yaml")))
	if len(files) == 0 {
		t.Fatal("no files in values/")
	}
	kinds := map[string]bool{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			rendered, err := chart.Render(chart.Options{
				ChartDir: filepath.Join(c.root, chartDir), Namespace: namespace,
				ValuesFiles: []string{file}, KubeVersion: version.GitVersion,
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range rendered.Objects {
				object := &unstructured.Unstructured{}
				if err := yaml.Unmarshal(o.YAML, &object.Object); err != nil {
					t.Fatalf("%s: %v", o.Template, err)
				}
				kinds[o.Kind] = true
				kind := object.GroupVersionKind()
				mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
				if err != nil {
					t.Errorf("%s: %v", o.Template, err)
					continue
				}
				_, err = c.dynamic.Resource(mapping.Resource).Namespace(o.Namespace).Create(t.Context(), object, metav1.CreateOptions{
					DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict,
				})
				if err != nil {
					t.Errorf("%s: %v", o.Template, err)
				}
			}
		})
	}
	for _, kind := range []string{"ServiceMonitor", "NetworkPolicy", "PodDisruptionBudget"} {
		if !kinds[kind] {
			t.Errorf("no scenario has a %s", kind)
		}
	}
}

// defineMonitors makes the kinds of the Prometheus operator known to the cluster.
// Their definitions are taken from the operator's own Go module.
func (c *cluster) defineMonitors(t *testing.T) {
	t.Helper()
	// Outside of any module, so that no go.mod or go.sum is written to.
	out := c.run(t, command{args: []string{"go", "mod", "download", "-json", operator + "@" + operatorTag}, dir: t.TempDir(), env: []string{"GOFLAGS="}})
	var module struct{ Dir, Sum string }
	if err := json.Unmarshal([]byte(out.stdout), &module); err != nil {
		t.Fatalf("go mod download: %v", err)
	}
	if module.Sum != operatorSum {
		t.Fatalf("%s %s has the sum %s, want %s", operator, operatorTag, module.Sum, operatorSum)
	}
	for _, kind := range []string{"servicemonitors", "podmonitors"} {
		file := filepath.Join(module.Dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+kind+".yaml")
		c.run(t, c.kubectl("apply", "--server-side", "--filename", file))
		monitors := schema.GroupVersionResource{Group: "monitoring.coreos.com", Version: "v1", Resource: kind}
		eventually(t, kind+" to be served", func(ctx context.Context) (bool, string) {
			if _, err := c.dynamic.Resource(monitors).List(ctx, metav1.ListOptions{}); err != nil {
				return false, err.Error()
			}
			list, err := c.client.Discovery().ServerResourcesForGroupVersion(monitors.GroupVersion().String())
			if err != nil {
				return false, err.Error()
			}
			known := slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == kind })
			return known, fmt.Sprint(list.APIResources)
		})
	}
}
