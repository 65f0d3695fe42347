package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// write makes a chart of one template, and returns its directory.
func write(t *testing.T, template string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Chart.yaml":             "{apiVersion: v2, name: tiny, version: 0.0.1, kubeVersion: '>=1.29.0-0'}",
		"values.yaml":            "{a: chart, b: chart, c: chart, d: {e: chart, f: chart}}",
		"templates/objects.yaml": template,
		"templates/NOTES.txt":    "{{ .Release.Name }} in {{ .Release.Namespace }} of {{ .Capabilities.KubeVersion }}",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const object = `
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Values.a }}-{{ .Values.b }}-{{ .Values.c }}
data: {{ toJson .Values.d }}
---
# nothing but a comment
---
apiVersion: example.com/v1
kind: Thing
metadata:
  name: thing
  annotations:
    helm.sh/hook: test
`

// What is set on the command line wins over values, those over files, a later
// file over an earlier one, and all over the chart; maps are merged.
func TestRender(t *testing.T) {
	dir := write(t, object)
	var files []string
	for _, text := range []string{"{a: one, b: one, c: one, d: {e: one}}", "{a: two, b: two}"} {
		file := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	given := map[string]any{"b": "values", "d": map[string]any{"g": "values"}}
	r, err := Render(Options{ChartDir: dir, ReleaseName: "edge", Namespace: "vpn", ValuesFiles: files, Values: given, Set: []string{"a=set,d.h=set"}, KubeVersion: "v1.30.1"})
	if err != nil {
		t.Fatal(err)
	}
	config, err := Get[*corev1.ConfigMap](r, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("set-values-one", config.Name); diff != "" {
		t.Errorf("name (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"e": "one", "f": "chart", "g": "values", "h": "set"}, config.Data); diff != "" {
		t.Errorf("data (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("edge in vpn of v1.30.1", r.Notes); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"b": "values", "d": map[string]any{"g": "values"}}, given); diff != "" {
		t.Errorf("the caller's values were changed (-before +after):\n%s", diff)
	}
	thing, err := Get[*unstructured.Unstructured](r, "thing")
	if err != nil || thing.GetKind() != "Thing" {
		t.Errorf("object of a foreign kind: %v, %v", thing, err)
	}
	if len(r.Objects) != 2 || r.Objects[1].Hook != "test" || r.Objects[1].Template != "templates/objects.yaml" {
		t.Errorf("objects %+v, want two, the second a hook", r.Objects)
	}
	if text := string(r.Manifest()); strings.Contains(text, "Thing") || !strings.Contains(text, "ConfigMap") {
		t.Errorf("manifest has the hook or lacks the object:\n%s", text)
	}
}

func TestGetWantsOne(t *testing.T) {
	r, err := Render(Options{ChartDir: write(t, object)})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"other", ""} {
		if got, err := Get[*corev1.Secret](r, name); err == nil {
			t.Errorf("Get(%q) = %v, want an error", name, got)
		}
	}
}

// What a lenient decoder would swallow is an error.
func TestRenderRefuses(t *testing.T) {
	const head = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n"
	for name, c := range map[string]struct{ template, want string }{
		"unknown field":  {head + "spec: {portz: []}", `unknown field "spec.portz"`},
		"repeated field": {head + "spec: {type: ClusterIP, type: NodePort}", `key "type" already set`},
		"wrong type":     {head + "spec: {type: 1}", "cannot unmarshal number"},
		"no name":        {"apiVersion: v1\nkind: Service\n", "Service has no metadata.name"},
		"no kind":        {"metadata: {name: a}\n", "Kind"},
		"no YAML":        {"a: b: c", "not YAML"},
		"bad template":   {"{{ .Values.x.y }}", "nil pointer"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Render(Options{ChartDir: write(t, c.template)})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want in it %s", err, c.want)
			}
		})
	}
	for name, o := range map[string]Options{
		"no chart":    {ChartDir: t.TempDir()},
		"no file":     {ChartDir: write(t, object), ValuesFiles: []string{"/nonexistent"}},
		"no set":      {ChartDir: write(t, object), Set: []string{"a[=1"}},
		"no version":  {ChartDir: write(t, object), KubeVersion: "new"},
		"old version": {ChartDir: write(t, object), KubeVersion: "v1.20.0"},
	} {
		if _, err := Render(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
