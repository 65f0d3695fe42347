package tools

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const root = "../.."

// TestPins fails when a tool's module lost its pin: every plan needs the tool's
// version, and Helm's the Kubernetes version too.
func TestPins(t *testing.T) {
	t.Setenv(EnvCache, "/cache")
	for _, tool := range All() {
		t.Run(tool.Name, func(t *testing.T) {
			plan, err := tool.plan(root)
			if err != nil {
				t.Fatal(err)
			}
			dir, name := filepath.Split(plan.output)
			if name != tool.Name || !strings.HasPrefix(dir, "/cache/tools/"+tool.Name+"-") {
				t.Errorf("output = %s, want it under /cache/tools/%s-<hash>", plan.output, tool.Name)
			}
		})
	}
}

// TestHelmKnowsTheClustersVersion compares the Kubernetes version that Helm is
// told with the one that the project itself builds against.
func TestHelmKnowsTheClustersVersion(t *testing.T) {
	gomod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := moduleVersion(string(gomod), "k8s.io/client-go")
	if err != nil {
		t.Fatal(err)
	}
	helm, err := os.ReadFile(filepath.Join(root, "ci", "tools", "helm", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := helmLDFlags(string(helm))
	if err != nil {
		t.Fatal(err)
	}
	minor := strings.Split(ours, ".")[1]
	want := []string{
		"helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1",
		"helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=" + minor,
		"helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1",
		"helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=" + minor,
	}
	if diff := cmp.Diff(want, got[1:]); diff != "" {
		t.Errorf("linker flags (-want +got):\n%s", diff)
	}
}

func TestKeyFollowsInputs(t *testing.T) {
	t.Setenv(EnvCache, "/cache")
	output := func(gomod, gosum string) string {
		dir := t.TempDir()
		toolDir := filepath.Join(dir, "ci", "tools", "golangci-lint")
		if err := os.MkdirAll(toolDir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{"go.mod": gomod, "go.sum": gosum} {
			if err := os.WriteFile(filepath.Join(toolDir, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		tool, err := Lookup("golangci-lint")
		if err != nil {
			t.Fatal(err)
		}
		plan, err := tool.plan(dir)
		if err != nil {
			t.Fatal(err)
		}
		return plan.output
	}
	const gomod = "require github.com/golangci/golangci-lint/v2 v2.15.0\n"
	first := output(gomod, "sums")
	if diff := cmp.Diff(first, output(gomod, "sums")); diff != "" {
		t.Errorf("same inputs, other key (-first +second):\n%s", diff)
	}
	for _, changed := range []string{output(gomod+"// \n", "sums"), output(gomod, "other sums")} {
		if changed == first {
			t.Error("other inputs, same key")
		}
	}
}

func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  func() error
		want string
	}{
		{"unknown tool", func() error { _, err := Lookup("ko"); return err }, `unknown tool "ko"; the project pins golangci-lint, helm, helm-docs`},
		{"not required", func() error { _, err := moduleVersion("module x\n", "y"); return err }, "go.mod does not require y"},
		{"client-go", func() error {
			_, err := helmLDFlags("require helm.sh/helm/v3 v3.0.0\nrequire k8s.io/client-go v11\n")
			return err
		}, "k8s.io/client-go v11: want a version v0.MINOR.PATCH"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, fmt.Sprint(tt.err())); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}
