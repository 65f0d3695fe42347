//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// External Secrets: its Go module, and the optional part of the cluster that
// builds the controller of the same version.
const (
	externalSecretsModule = "github.com/external-secrets/external-secrets"
	externalSecretsPart   = "external-secrets"
	externalSecretsGroup  = "external-secrets.io"
	externalSecretsImage  = "vpn-gateway.test/external-secrets:1" // as that part names it
)

// externalSecretsKind is a kind of External Secrets, by its plural.
func externalSecretsKind(resource string) schema.GroupVersionResource {
	kind := schema.GroupVersionResource{Group: externalSecretsGroup, Version: "v1", Resource: resource}
	switch resource {
	case "pushsecrets":
		kind.Version = "v1alpha1"
	case "generatorstates":
		kind.Group, kind.Version = "generators."+externalSecretsGroup, "v1alpha1"
	}
	return kind
}

// installExternalSecrets runs the controller of External Secrets, with what its own
// chart gives it: rights, arguments, security context. Its definitions of kinds
// have no conversion, and nothing here needs what its webhook refuses, so that
// neither the webhook nor what makes certificates for that runs beside it.
func (c *cluster) installExternalSecrets(t *testing.T) {
	t.Helper()
	part := filepath.Join(c.root, "tests", "cluster", "parts", externalSecretsPart)
	dir := c.module(t, part, externalSecretsModule).Dir
	for _, resource := range []string{"externalsecrets", "pushsecrets", "secretstores", "generatorstates"} {
		kind := externalSecretsKind(resource)
		c.define(t, filepath.Join(dir, "config", "crds", "bases", kind.Group+"_"+kind.Resource+".yaml"), kind)
	}
	repository, tag, _ := strings.Cut(externalSecretsImage, ":")
	rendered, err := chart.Render(chart.Options{
		ChartDir: filepath.Join(dir, "deploy", "charts", "external-secrets"), ReleaseName: "external-secrets",
		Namespace: c.namespace(t, "external-secrets", nil),
		Values: map[string]any{
			"image":       map[string]any{"repository": repository, "tag": tag},
			"installCRDs": false, "webhook": map[string]any{"create": false}, "certController": map[string]any{"create": false},
			// Kinds of the whole cluster are of no use here, and not defined.
			"processClusterStore": false, "processClusterExternalSecret": false, "processClusterPushSecret": false,
			"concurrent": 4,                                // as many scenarios may have something for it
			"log":        map[string]any{"level": "debug"}, // for what searches the artifacts for keys
			"resources":  map[string]any{"requests": map[string]any{"cpu": "10m", "memory": "64Mi"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	apply := c.kubectl("apply", "--server-side", "--filename=-")
	apply.stdin = string(rendered.Manifest())
	c.run(t, apply)
}
