//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// pskSecret is the Secret of the scenarios' pre-shared keys.
const pskSecret = "vpn-psk"

// withPSK are values with clients as peers and the Secret of pre-shared keys.
func withPSK(clients ...client) map[string]any {
	values := peers(clients...)
	values["presharedKeys"] = map[string]any{"existingSecrets": []string{pskSecret}}
	return values
}

// makePSK gives a client a pre-shared key, in its own hands and in the Secret.
func (g *gateway) makePSK(t *testing.T, p *client) {
	t.Helper()
	p.psk = must[wgclient.Secret](t)(wgclient.NewPresharedKey())
	_, err := g.client.CoreV1().Secrets(g.namespace).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: pskSecret},
		StringData: map[string]string{p.name: p.psk.Reveal()},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// changePSK gives a client another pre-shared key, at both ends.
func (g *gateway) changePSK(t *testing.T, p *client, device *wgclient.Client) {
	t.Helper()
	p.psk = must[wgclient.Secret](t)(wgclient.NewPresharedKey())
	patch := fmt.Sprintf(`{"stringData":{%q:%q}}`, p.name, p.psk.Reveal())
	_, err := g.client.CoreV1().Secrets(g.namespace).Patch(t.Context(), pskSecret, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal("patching the Secret of pre-shared keys failed") // the error may quote the patch
	}
	if err := device.SetPresharedKey(device.Config().Peers[0].PublicKey, p.psk); err != nil {
		t.Fatal(err)
	}
}

// testUpgrade changes a running release by helm, to and fro, under a stream.
func testUpgrade(t *testing.T, c *cluster) {
	g := c.newGateway(t, "Upgrade", nil)
	alice, bob := newClient(t, "alice", 2), newClient(t, "bob", 3)
	g.makePSK(t, &alice)
	g.install(t, withPSK(alice)) // with --wait, for which the key must not be made too late
	device := g.dial(t, alice)
	stream := g.startStream(t, device)
	key, lives, first := g.key(t), g.lives(t), g.state(t)
	t.Logf("data plane: %s (%s)", first.DataPlane, first.Reason)

	start := time.Now()
	g.upgrade(t, withPSK(alice, bob))
	g.times.add(g.scenario, "helm upgrade adds a peer, in force", g.inForce(t, "bob in force", start, first))
	g.dial(t, bob)
	if !g.knows(t, alice) || !g.knows(t, bob) {
		t.Error("the gateway does not know both alice and bob by name")
	}
	flows(t, stream, streamRate)

	before, start := g.state(t), time.Now()
	g.changePSK(t, &alice, device)
	g.times.add(g.scenario, "pre-shared key changed, in force", g.inForce(t, "the pre-shared key in force", start, before))
	flows(t, stream, streamRate)

	start, before = time.Now(), g.state(t)
	g.run(t, g.helm("rollback", release, "1", "--namespace", g.namespace))
	g.times.add(g.scenario, "helm rollback, in force", g.inForce(t, "the first revision in force", start, before))
	if !g.knows(t, alice) || g.knows(t, bob) {
		t.Error("after the rollback the gateway does not know alice alone")
	}
	// The same again: nothing changes, and so nothing is written.
	g.upgrade(t, withPSK(alice))
	g.lostNothing(t, stream, "a peer came and went and the pre-shared key changed")

	g.untouched(t, lives)
	g.sameKey(t, key)
	if diff := cmp.Diff(first.PublicKey, g.state(t).PublicKey); diff != "" {
		t.Errorf("public key in force (-before +after):\n%s", diff)
	}
	// A device that starts anew shakes hands with the new pre-shared key.
	if err := device.Close(); err != nil {
		t.Fatal(err)
	}
	g.dial(t, alice)
}

// testRefresh leaves the kubelet to itself: a changed Secret gets to the gateway
// when the kubelet renews the Pod's mounts by itself.
func testRefresh(t *testing.T, c *cluster) {
	g := c.newGateway(t, "Refresh", nil)
	alice := newClient(t, "alice", 2)
	g.makePSK(t, &alice)
	g.install(t, withPSK(alice))
	device := g.dial(t, alice)
	stream := g.startStream(t, device)
	lives, before := g.lives(t), g.state(t)

	start := time.Now()
	g.changePSK(t, &alice, device)
	g.await(t, "the kubelet's own refresh", func(r readiness) bool { return r.Hash != before.Hash }, 0)
	g.times.add(g.scenario, "Secret changed, in force by the kubelet's own refresh", g.lastReload(t).Sub(start))
	g.lostNothing(t, stream, "waiting for the kubelet")
	g.untouched(t, lives)
}
