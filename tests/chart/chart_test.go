// Package chart tests the Helm chart without a cluster: what it renders from
// which values, and what it refuses.
package chart

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

const (
	chartDir  = "../../charts/vpn-gateway"
	valuesDir = "../../values"
)

// endpoint is the one value that has to be given.
const endpoint = "server.publicEndpoint=203.0.113.1:51820"

var update = flag.Bool("update", false, "write the golden files anew")

// render renders the chart with the endpoint set and the YAML text over it.
func render(t *testing.T, text string) *chart.Rendered {
	t.Helper()
	r, err := chart.Render(chart.Options{ChartDir: chartDir, Values: values(t, text), Set: []string{endpoint}})
	if err != nil {
		t.Fatalf("render with\n%s\n%v", text, err)
	}
	return r
}

// values reads YAML.
func values(t *testing.T, text string) map[string]any {
	t.Helper()
	out := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(text), &out); err != nil {
		t.Fatalf("values %q: %v", text, err)
	}
	return out
}

// generic returns an object as maps and slices.
func generic(t *testing.T, o chart.Object) *unstructured.Unstructured {
	t.Helper()
	out := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(o.YAML, &out.Object); err != nil {
		t.Fatalf("%s: %v", o.Template, err)
	}
	return out
}

// only returns the one object of a kind.
func only(t *testing.T, r *chart.Rendered, kind string) chart.Object {
	t.Helper()
	of := slices.DeleteFunc(slices.Clone(r.Objects), func(o chart.Object) bool { return o.Kind != kind })
	if len(of) != 1 {
		t.Fatalf("%d objects of kind %s, want 1", len(of), kind)
	}
	return of[0]
}

// scenarios are the files under values/, by name without ending.
func scenarios(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(valuesDir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range files {
		out[strings.TrimSuffix(filepath.Base(f), ".yaml")] = f
	}
	if want := []string{"autoscaling", "external-secrets", "key-rotation", "minimal", "nodeport", "production", "site-to-site", "sriov", "vault"}; !cmp.Equal(slices.Sorted(maps.Keys(out)), want) {
		t.Fatalf("values files (-want +got):\n%s", cmp.Diff(want, slices.Sorted(maps.Keys(out))))
	}
	return out
}

// golden compares with, or with -update writes, a file below testdata/golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (make it with: go test ./tests/chart -update)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-golden +rendered; accept with: go test ./tests/chart -update)\n%s", file, diff)
	}
}
