// Package chart renders the Helm chart the way `helm template` does, with Helm's
// own engine as a library: tests need no helm binary.
//
// The result is what a cluster would get, decoded strictly: an unknown or a
// repeated field in any manifest is an error. The key Secret, the Pods and their
// volumes can be taken from it by kind and name:
//
//	r, err := chart.Render(chart.Options{ChartDir: dir, Set: []string{"server.publicEndpoint=203.0.113.1:51820"}})
//	deployment, err := chart.Get[*appsv1.Deployment](r, "vpn-gateway")
package chart

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// Defaults of [Options].
const (
	DefaultRelease     = "vpn-gateway"
	DefaultNamespace   = "default"
	DefaultKubeVersion = "v1.37.2"
)

// Options are what one would give to `helm install`.
type Options struct {
	// ChartDir is the chart's directory. Required.
	ChartDir string
	// ReleaseName; empty: [DefaultRelease].
	ReleaseName string
	// Namespace; empty: [DefaultNamespace].
	Namespace string
	// Upgrade renders as `helm upgrade` would, not `helm install`.
	Upgrade bool
	// ValuesFiles are read in order, later ones win (--values).
	ValuesFiles []string
	// Values win over ValuesFiles. They are not changed.
	Values map[string]any
	// Set wins over both, in Helm's syntax: a.b=c,d[0]=e (--set).
	Set []string
	// KubeVersion of the cluster, such as v1.37.2; empty: [DefaultKubeVersion].
	KubeVersion string
}

// Rendered is a chart's output.
type Rendered struct {
	// Objects in the order of their templates' paths, then of their place in them.
	Objects []Object
	// Notes is NOTES.txt, as Helm prints it after an installation.
	Notes string
}

// Object is one manifest.
type Object struct {
	// Template is the path of its source below the chart, such as templates/service.yaml.
	Template string
	// YAML is the text as rendered, without the document separator.
	YAML []byte
	// Object is the typed object (*appsv1.Deployment, …), or
	// *unstructured.Unstructured for kinds that Kubernetes itself does not have.
	Object runtime.Object
	// Kind and Name of it; Namespace as in its metadata.
	Kind, Name, Namespace string
	// Hook is the value of its helm.sh/hook annotation, such as test; mostly empty.
	Hook string
}

// Render renders the chart. Errors are those of Helm: a value that the schema or
// the chart's own validation refuses, a template that fails, a cluster too old;
// or of the strict decoder.
func Render(o Options) (*Rendered, error) {
	files, err := render(o)
	if err != nil {
		return nil, err
	}
	out := &Rendered{}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		text := files[file]
		_, template, _ := strings.Cut(file, "/") // less the chart's name
		switch {
		case path.Base(file) == "NOTES.txt":
			out.Notes = text
		case path.Ext(file) == ".yaml":
			objects, err := split(template, text)
			if err != nil {
				return nil, err
			}
			out.Objects = append(out.Objects, objects...)
		}
	}
	return out, nil
}

// Get returns the one object of type T with that name. With an empty name, the
// only one of its type.
func Get[T runtime.Object](r *Rendered, name string) (T, error) {
	var found []T
	for _, o := range r.Objects {
		if t, ok := o.Object.(T); ok && (name == "" || o.Name == name) {
			found = append(found, t)
		}
	}
	if len(found) != 1 {
		var none T
		return none, fmt.Errorf("%d objects of type %T named %q in the rendered chart, want 1", len(found), none, name)
	}
	return found[0], nil
}

// Manifest returns everything as one text to apply: all objects that are no
// hooks, separated, each with its source above it.
func (r *Rendered) Manifest() []byte {
	var b bytes.Buffer
	for _, o := range r.Objects {
		if o.Hook == "" {
			// A template that chomps its end has no newline there.
			fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", o.Template, bytes.TrimRight(o.YAML, "\n"))
		}
	}
	return b.Bytes()
}

// render returns the path of each template, the chart's name first, → its output.
func render(o Options) (map[string]string, error) {
	loaded, err := loader.Load(o.ChartDir)
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", o.ChartDir, err)
	}
	values, err := o.values()
	if err != nil {
		return nil, err
	}
	kube, err := chartutil.ParseKubeVersion(or(o.KubeVersion, DefaultKubeVersion))
	if err != nil {
		return nil, fmt.Errorf("kube version %q: %w", o.KubeVersion, err)
	}
	if want := loaded.Metadata.KubeVersion; want != "" && !chartutil.IsCompatibleRange(want, kube.Version) {
		return nil, fmt.Errorf("chart requires kubeVersion: %s which is incompatible with Kubernetes %s", want, kube.Version)
	}
	if err := chartutil.ProcessDependenciesWithMerge(loaded, values); err != nil {
		return nil, fmt.Errorf("process dependencies: %w", err)
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *kube
	release := chartutil.ReleaseOptions{
		Name:      or(o.ReleaseName, DefaultRelease),
		Namespace: or(o.Namespace, DefaultNamespace),
		Revision:  1,
		IsInstall: !o.Upgrade,
		IsUpgrade: o.Upgrade,
	}
	top, err := chartutil.ToRenderValues(loaded, values, release, capabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Engine{}.Render(loaded, top)
	if err != nil {
		return nil, err
	}
	return files, nil
}

// values merges what the user gave, weakest first.
func (o Options) values() (map[string]any, error) {
	merged := map[string]any{}
	for _, file := range o.ValuesFiles {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read values: %w", err)
		}
		values, err := chartutil.ReadValues(text)
		if err != nil {
			return nil, fmt.Errorf("parse values %s: %w", file, err)
		}
		merged = overlay(merged, values)
	}
	merged = overlay(merged, o.Values)
	for _, set := range o.Set {
		if err := strvals.ParseInto(set, merged); err != nil {
			return nil, fmt.Errorf("set %q: %w", set, err)
		}
	}
	return merged, nil
}

// overlay returns a copy of base with the values of top over it, maps merged.
func overlay(base, top map[string]any) map[string]any {
	out := maps.Clone(base)
	for name, value := range top {
		upper, isMap := value.(map[string]any)
		lower, wasMap := out[name].(map[string]any)
		switch {
		case isMap && wasMap:
			out[name] = overlay(lower, upper)
		case isMap:
			out[name] = overlay(map[string]any{}, upper)
		default:
			out[name] = value
		}
	}
	return out
}

// separator is a line of its own between two documents.
var separator = regexp.MustCompile(`(?m)^---\s*$`)

// split decodes the documents of one rendered template.
func split(template, text string) ([]Object, error) {
	var out []Object
	for _, document := range separator.Split(text, -1) {
		document = strings.TrimLeft(document, "\n")
		var content any
		if err := yaml.Unmarshal([]byte(document), &content); err != nil {
			return nil, fmt.Errorf("%s: not YAML: %w", template, err)
		}
		if content == nil {
			continue // nothing, or comments alone
		}
		object, err := decode([]byte(document))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", template, err)
		}
		object.Template = template
		out = append(out, object)
	}
	return out, nil
}

// decode reads one document strictly.
func decode(document []byte) (Object, error) {
	text, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return Object{}, fmt.Errorf("decode: %w", err)
	}
	generic := &unstructured.Unstructured{}
	if err := generic.UnmarshalJSON(text); err != nil {
		return Object{}, fmt.Errorf("decode: %w", err)
	}
	if generic.GetName() == "" {
		return Object{}, fmt.Errorf("decode: %s has no metadata.name", generic.GetKind())
	}
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	typed, _, err := strict.Decode(text, nil, nil)
	switch {
	case runtime.IsNotRegisteredError(err):
		typed = generic
	case err != nil:
		return Object{}, fmt.Errorf("decode %s %s: %w", generic.GetKind(), generic.GetName(), err)
	}
	return Object{
		YAML:      document,
		Object:    typed,
		Kind:      generic.GetKind(),
		Name:      generic.GetName(),
		Namespace: generic.GetNamespace(),
		Hook:      generic.GetAnnotations()["helm.sh/hook"],
	}, nil
}

func or(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}
