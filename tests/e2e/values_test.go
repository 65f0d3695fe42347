//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// testValues shows every scenario of values/ to the API server, which checks each
// object as if it were to be made: unknown fields, validation and admission. Those
// of External Secrets are made, for its controller to write to them.
func testValues(t *testing.T, c *cluster) {
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
			namespace := c.namespace(t, "values", nil)
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
				// There is one for all namespaces, which another scenario may have made.
				if o.Kind == "APIService" && apierrors.IsAlreadyExists(err) {
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", o.Template, err)
					continue
				}
				if kind.Group == externalSecretsGroup {
					c.checkDrift(t, mapping.Resource, object)
				}
			}
		})
	}
	for _, kind := range []string{
		"ServiceMonitor", "PrometheusRule", "NetworkPolicy", "PodDisruptionBudget", "CronJob", "ExternalSecret", "PushSecret", "SecretStore",
		"HorizontalPodAutoscaler", "APIService", "ValidatingAdmissionPolicy", "Lease",
	} {
		if !kinds[kind] {
			t.Errorf("no scenario has a %s", kind)
		}
	}
}

// checkDrift makes an object of External Secrets and compares it with its manifest, as
// Argo CD does: fields that no manifest has may come, but a list counts as a whole.
// The API server fills in defaults, and the controller writes an ExternalSecret back
// with its finalizer, the spec as Go prints it.
func (c *cluster) checkDrift(t *testing.T, kind schema.GroupVersionResource, manifest *unstructured.Unstructured) {
	t.Helper()
	objects := c.dynamic.Resource(kind).Namespace(manifest.GetNamespace())
	if _, err := objects.Create(t.Context(), manifest.DeepCopy(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var live *unstructured.Unstructured
	eventually(t, "the controller to take up "+manifest.GetName(), func(ctx context.Context) (ok bool, detail string) {
		var err error
		if live, err = objects.Get(ctx, manifest.GetName(), metav1.GetOptions{}); err != nil {
			return false, err.Error()
		}
		return kind.Resource != "externalsecrets" || len(live.GetFinalizers()) > 0, "no finalizer"
	})
	if diff := drift("spec", manifest.Object["spec"], live.Object["spec"]); diff != "" {
		t.Errorf("%s %s (-manifest +live):\n%s", manifest.GetKind(), manifest.GetName(), diff)
	}
}

// drift tells where a live object is not as its manifest, by the fields of that.
func drift(path string, manifest, live any) string {
	fields, ok := manifest.(map[string]any)
	if !ok {
		// Through JSON, where numbers are of one kind.
		return cmp.Diff(path+": "+asJSON(manifest), path+": "+asJSON(live))
	}
	diff := ""
	others, _ := live.(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		diff += drift(path+"."+name, fields[name], others[name])
	}
	return diff
}

func asJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
