//go:build e2e

package e2e

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testGitOps applies the chart as Argo CD and Flux do: rendered without a look at
// the cluster, applied by the server, and compared again and again. There must
// never be a difference, and the key, which is in no manifest, must stay.
func testGitOps(t *testing.T, c *cluster) {
	g := c.newGateway(t, "GitOps", nil)
	alice := newClient(t, "alice", 2)
	render := func() string {
		// Argo CD does not take the Pod of `helm test` for a part of the application.
		return g.run(t, g.helmWith(t, peers(alice), "template", release, chartDir, "--skip-tests")).stdout
	}
	manifests := render()
	apply := g.kubectl("apply", "--server-side", "--field-manager=argocd-controller", "--namespace", g.namespace, "--filename=-")
	diff := g.kubectl("diff", "--server-side", "--field-manager=argocd-controller", "--namespace", g.namespace, "--filename=-")
	apply.stdin, diff.stdin = manifests, manifests

	g.run(t, apply)
	key, lives := g.key, g.lives
	g.pod(t)
	before, livesBefore, state := key(t), lives(t), g.state(t)
	for range 2 {
		if d := cmp.Diff(manifests, render()); d != "" {
			t.Errorf("rendered again (-before +after):\n%s", d)
		}
		g.run(t, diff) // fails where there is a difference
		g.run(t, apply)
	}
	g.run(t, diff)
	g.sameKey(t, before)
	g.untouched(t, livesBefore)
	if d := cmp.Diff(state, g.state(t)); d != "" {
		t.Errorf("/readyz (-before +after):\n%s", d)
	}
	// What an upgrade by helm does to a release, a sync does to the application.
	bob := newClient(t, "bob", 3)
	apply.stdin = g.run(t, g.helmWith(t, peers(alice, bob), "template", release, chartDir, "--skip-tests")).stdout
	g.run(t, apply)
	g.reached(t, "bob in force", func(r readiness) bool { return r.Hash != state.Hash })
	g.untouched(t, livesBefore)
	g.sameKey(t, before)
}
