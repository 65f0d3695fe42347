//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testFaults makes mistakes under a stream: none of them reaches the tunnel.
func testFaults(t *testing.T, c *cluster) {
	g := c.newGateway(t, "Faults", nil)
	alice := newClient(t, "alice", 2)
	g.install(t, peers(alice))
	stream := g.startStream(t, g.dial(t, alice))
	lives, good := g.lives(t), g.state(t)

	t.Run("values that the chart refuses", func(t *testing.T) { g.checkRefused(t, alice) })
	g.same(t, good)

	// As somebody in a hurry does it.
	g.edit(t, "s/publicKey:/pubicKey:/")
	bad := g.reached(t, "the misspelt field to be refused", func(r readiness) bool { return !r.condition("config").OK })
	g.keptGood(t, good, bad, "pubicKey")
	g.edit(t, "s/pubicKey:/publicKey:/")
	g.reached(t, "the mended ConfigMap to be taken up", func(r readiness) bool { return r.condition("config").OK })
	g.same(t, good)

	// What the chart cannot see: addresses are the agent's to judge.
	outside := newClient(t, "bob", 3)
	outside.address = outside.address.Prev().Prev().Prev().Prev() // 10.7.255.255
	g.upgrade(t, peers(alice, outside))
	bad = g.reached(t, "the address to be refused", func(r readiness) bool { return !r.condition("config").OK })
	g.keptGood(t, good, bad, outside.address.String())
	g.run(t, g.helm("rollback", release, "--namespace", g.namespace))
	g.reached(t, "the rolled back ConfigMap to be taken up", func(r readiness) bool { return r.condition("config").OK })
	g.same(t, good)

	g.lostNothing(t, stream, "values and files were broken")
	g.untouched(t, lives)
	// Mended, it takes up changes as before.
	bob := newClient(t, "bob", 3)
	g.upgrade(t, peers(alice, bob))
	g.reached(t, "bob in force", func(r readiness) bool { return r.condition("config").OK && r.Hash != good.Hash })
	g.dial(t, bob)
}

// checkRefused tries values that helm or the chart refuses, and expects to be told
// why, and the release to stay as it is.
func (g *gateway) checkRefused(t *testing.T, alice client) {
	secret := alice.entry()
	secret["presharedKey"] = "not here"
	tests := []struct {
		name   string
		values map[string]any
		want   string
	}{
		{"no endpoint", map[string]any{"server": map[string]any{"publicEndpoint": ""}}, "server.publicEndpoint is not set"},
		{"no port", map[string]any{"server": map[string]any{"publicEndpoint": "203.0.113.1"}}, `server.publicEndpoint "203.0.113.1"`},
		{"misspelt", map[string]any{"peer": []any{}}, "additional properties 'peer' not allowed"},
		{"two of a name", peers(alice, alice), `peers[1].name "alice" is that of peers[0] too`},
		{"a secret in the values", map[string]any{"peers": []any{secret}}, "peers[0].presharedKey is a secret"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := g.try(t.Context(), g.helmWith(t, tt.values, "upgrade", release, chartDir))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	history := g.run(t, g.helm("history", release, "--namespace", g.namespace, "--output", "json")).stdout
	if strings.Count(history, `"revision"`) != 1 || !strings.Contains(history, `"status":"deployed"`) {
		t.Errorf("history of the release: %s, want one revision, deployed", history)
	}
}

// edit edits the gateway's ConfigMap by `kubectl edit`, with sed for an editor.
func (g *gateway) edit(t *testing.T, script string) {
	t.Helper()
	call := g.kubectl("edit", "configmap", release, "--namespace", g.namespace)
	call.env = []string{fmt.Sprintf("KUBE_EDITOR=sed -i %s", script)}
	g.run(t, call)
}

// keptGood checks a gateway that was given bad files: it has the last good ones in
// force, and says what is wrong, once readably.
func (g *gateway) keptGood(t *testing.T, good, now readiness, fault string) {
	t.Helper()
	if diff := cmp.Diff([]any{good.Hash, good.Generation}, []any{now.Hash, now.Generation}); diff != "" {
		t.Errorf("hash and generation in force (-before +after):\n%s", diff)
	}
	detail := now.condition("config").Detail
	if !strings.Contains(detail, fault) || !strings.Contains(detail, "the last good state stays") {
		t.Errorf("condition config: %q, want it to name %q", detail, fault)
	}
	if value, ok := g.metric(t, "vpn_gateway_config_last_reload_successful"); !ok || value != 0 {
		t.Errorf("vpn_gateway_config_last_reload_successful = %v, %t, want 0", value, ok)
	}
}

// same fails t unless what is in force is what was.
func (g *gateway) same(t *testing.T, want readiness) {
	t.Helper()
	now := g.state(t)
	if diff := cmp.Diff(want, now); diff != "" {
		t.Errorf("/readyz (-before +after):\n%s", diff)
	}
}
