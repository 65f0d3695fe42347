//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The Prometheus operator, for the schemas of its own kinds.
const (
	operator    = "github.com/prometheus-operator/prometheus-operator"
	operatorTag = "v0.85.0"
	operatorSum = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
)

// defineMonitors makes the kinds of the Prometheus operator known to the cluster.
// Their definitions are taken from the operator's own Go module.
func (c *cluster) defineMonitors(t *testing.T) {
	t.Helper()
	// Outside of any module, so that no go.mod or go.sum is written to.
	module := c.module(t, t.TempDir(), operator+"@"+operatorTag)
	if module.Sum != operatorSum {
		t.Fatalf("%s %s has the sum %s, want %s", operator, operatorTag, module.Sum, operatorSum)
	}
	monitors := schema.GroupVersion{Group: "monitoring.coreos.com", Version: "v1"}
	for _, kind := range []string{"servicemonitors", "podmonitors", "prometheusrules"} {
		file := filepath.Join(module.Dir, "example", "prometheus-operator-crd", monitors.Group+"_"+kind+".yaml")
		c.define(t, file, monitors.WithResource(kind))
	}
}

// module is a Go module on this machine.
type module struct{ Dir, Sum string }

// module finds a module, PATH@VERSION or, in the version and with the sum that the
// module in dir has of it, PATH.
func (c *cluster) module(t *testing.T, dir, query string) module {
	t.Helper()
	out := c.run(t, command{args: []string{"go", "mod", "download", "-json", query}, dir: dir, env: []string{"GOFLAGS="}})
	var m module
	if err := json.Unmarshal([]byte(out.stdout), &m); err != nil {
		t.Fatalf("go mod download: %v", err)
	}
	return m
}

// define makes a kind known to the cluster, by the file of its definition, and
// waits until it is served.
func (c *cluster) define(t *testing.T, file string, kind schema.GroupVersionResource) {
	t.Helper()
	c.run(t, c.kubectl("apply", "--server-side", "--filename", file))
	eventually(t, kind.Resource+" to be served", func(ctx context.Context) (bool, string) {
		if _, err := c.dynamic.Resource(kind).List(ctx, metav1.ListOptions{}); err != nil {
			return false, err.Error()
		}
		list, err := c.client.Discovery().ServerResourcesForGroupVersion(kind.GroupVersion().String())
		if err != nil {
			return false, err.Error()
		}
		known := slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == kind.Resource })
		return known, fmt.Sprint(list.APIResources)
	})
}
