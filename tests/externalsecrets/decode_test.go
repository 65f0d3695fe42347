// Package externalsecrets holds what the chart renders for External Secrets
// against that controller's own code: its types, its templates, and two of its
// providers. It is a module of its own because these do not compile beside the
// Kubernetes libraries that the project uses.
//
// What it reads are the golden files of tests/chart, which that package compares
// with what is rendered.
package externalsecrets

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	esv1 "github.com/external-secrets/external-secrets/apis/externalsecrets/v1"
	esv1alpha1 "github.com/external-secrets/external-secrets/apis/externalsecrets/v1alpha1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

const golden = "../chart/testdata/golden"

// document is one object of a golden file.
type document struct {
	file   string
	object runtime.Object
}

// documents decodes every object of External Secrets in the golden files, strictly:
// a field that the type does not have is an error, and so is a field twice.
func documents(t *testing.T) []document {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(golden, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	separator := regexp.MustCompile(`(?m)^---\s*$`)
	var out []document
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range separator.Split(string(text), -1) {
			object, err := decode([]byte(part))
			if err != nil {
				t.Errorf("%s: %v\n%s", file, err, part)
			}
			if object != nil {
				out = append(out, document{filepath.Base(file), object})
			}
		}
	}
	return out
}

// decode returns nil for what is not External Secrets'.
func decode(text []byte) (runtime.Object, error) {
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(text, &head); err != nil {
		return nil, err
	}
	if !strings.Contains(head.APIVersion, "external-secrets.io/") {
		return nil, nil
	}
	var object runtime.Object
	switch head.APIVersion + " " + head.Kind {
	case "external-secrets.io/v1 ExternalSecret":
		object = &esv1.ExternalSecret{}
	case "external-secrets.io/v1 SecretStore":
		object = &esv1.SecretStore{}
	case "external-secrets.io/v1alpha1 PushSecret":
		object = &esv1alpha1.PushSecret{}
	default:
		return nil, fmt.Errorf("%s %s is no kind that the chart is known to make", head.APIVersion, head.Kind)
	}
	return object, yaml.UnmarshalStrict(text, object)
}

// find returns the object of type T and that name in a golden file.
func find[T interface {
	runtime.Object
	GetName() string
}](t *testing.T, file, name string) T {
	t.Helper()
	for _, d := range documents(t) {
		if o, ok := d.object.(T); ok && d.file == file && o.GetName() == name {
			return o
		}
	}
	var none T
	t.Fatalf("%s has no %T %s", file, none, name)
	return none
}

// Every object has the shape of its type, and passes the controller's webhook.
func TestDecodeStrictly(t *testing.T) {
	seen := map[string]int{}
	for _, d := range documents(t) {
		seen[fmt.Sprintf("%T", d.object)]++
		if s, ok := d.object.(*esv1.ExternalSecret); ok {
			if _, err := (&esv1.ExternalSecretValidator{}).ValidateCreate(context.Background(), s); err != nil {
				t.Errorf("%s: ExternalSecret %s: %v", d.file, s.Name, err)
			}
			if s.Spec.SecretStoreRef.Name == "" || s.Spec.RefreshInterval == nil {
				t.Errorf("%s: ExternalSecret %s has no store or no refreshInterval", d.file, s.Name)
			}
		}
		if s, ok := d.object.(*esv1alpha1.PushSecret); ok && len(s.Spec.Data) != 1 {
			t.Errorf("%s: PushSecret %s has %d entries, which one after another would not be one change", d.file, s.Name, len(s.Spec.Data))
		}
	}
	for kind, least := range map[string]int{"*v1.ExternalSecret": 25, "*v1.SecretStore": 3, "*v1alpha1.PushSecret": 8} {
		if seen[kind] < least {
			t.Errorf("%d objects of %s, want at least %d", seen[kind], kind, least)
		}
	}
}

// The decoder refuses what it is there to refuse.
func TestDecodeRefuses(t *testing.T) {
	const head = "apiVersion: external-secrets.io/v1\nkind: ExternalSecret\nmetadata: {name: a}\n"
	for name, c := range map[string]struct{ text, want string }{
		"unknown field":   {head + "spec: {dataForm: []}", `unknown field "dataForm"`},
		"deep in a list":  {head + "spec: {dataFrom: [{extract: {key: a, propertty: b}}]}", `unknown field "propertty"`},
		"field twice":     {head + "spec: {refreshInterval: 1m, refreshInterval: 2m}", "already set"},
		"wrong type":      {head + "spec: {data: {}}", "cannot unmarshal"},
		"no duration":     {head + "spec: {refreshInterval: soon}", "invalid duration"},
		"version of old":  {strings.Replace(head, "/v1\n", "/v1beta1\n", 1), "no kind"},
		"another's kind":  {strings.Replace(head, "kind: ExternalSecret", "kind: ClusterExternalSecret", 1), "no kind"},
		"generators, too": {strings.Replace(head, "external-secrets.io/v1", "generators.external-secrets.io/v1alpha1", 1), "no kind"},
	} {
		if _, err := decode([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want in it %s", name, err, c.want)
		}
	}
}
