//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
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
