//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// peersSecret is the Secret that External Secrets makes of the backend's peers.
const peersSecret = "vpn-peers"

// fill puts a server key, a client's pre-shared key and the client as the one peer
// into the backend.
func (b *backend) fill(t *testing.T, p *client) (server wgclient.Secret) {
	t.Helper()
	server = must[wgclient.Secret](t)(wgclient.NewPrivateKey())
	p.psk = must[wgclient.Secret](t)(wgclient.NewPresharedKey())
	b.put(t, serverEntry, map[string]string{privateKey: server.Reveal()})
	b.put(t, pskEntry, map[string]string{p.name: p.psk.Reveal()})
	b.put(t, peersEntry, peersFile(t, *p))
	return server
}

// peersFile is a file for peers.d, in an entry of the backend.
func peersFile(t *testing.T, clients ...client) map[string]string {
	t.Helper()
	return map[string]string{"staff.yaml": string(must[[]byte](t)(yaml.Marshal(peers(clients...))))}
}

// testExternalSecrets changes what the backend holds, one thing after the other,
// under a stream: External Secrets makes Secrets of it, the kubelet files, the
// agent puts them in force, and no packet is lost on the way.
func testExternalSecrets(t *testing.T, c *cluster) {
	g := c.newGateway(t, "ExternalSecrets", nil)
	b := g.newBackend(t)
	alice, bob := newClient(t, "alice", 2), newClient(t, "bob", 3)
	server := b.fill(t, &alice)
	// The second port is open, and no Job rotates: somebody else's does, behind the backend.
	g.helmInstall(t, b.stored(map[string]any{
		"keyRotation": map[string]any{"enabled": true, "server": map[string]any{"schedule": ""}},
	}))
	device := g.dial(t, alice)
	stream := g.startStream(t, device)
	lives, first := g.lives(t), g.state(t)
	if diff := cmp.Diff(server.Public(), first.PublicKey); diff != "" {
		t.Fatalf("public key in force (-of the backend +got):\n%s", diff)
	}

	before, start := g.state(t), time.Now()
	b.put(t, peersEntry, peersFile(t, alice, bob))
	b.synced(t, "peer added in the backend", peersSecret, start, func(entries map[string][]byte) bool {
		return strings.Contains(string(entries["staff.yaml"]), bob.name)
	})
	g.times.add(g.scenario, "peer added in the backend, in force", g.inForce(t, "bob in force", start, before))
	g.dial(t, bob)

	before, start = g.state(t), time.Now()
	alice.psk = must[wgclient.Secret](t)(wgclient.NewPresharedKey())
	b.put(t, pskEntry, map[string]string{alice.name: alice.psk.Reveal()})
	if err := device.SetPresharedKey(device.Config().Peers[0].PublicKey, alice.psk); err != nil {
		t.Fatal(err)
	}
	b.synced(t, "pre-shared key changed in the backend", pskSecret, start, func(entries map[string][]byte) bool {
		return string(entries[alice.name]) == alice.psk.Reveal()
	})
	g.times.add(g.scenario, "pre-shared key changed in the backend, in force", g.inForce(t, "the pre-shared key in force", start, before))

	next := must[wgclient.Secret](t)(wgclient.NewPrivateKey())
	start = time.Now()
	from := start.Add(rotationLead).Truncate(time.Second)
	entry := datedEntry("green", from)
	b.put(t, serverEntry, map[string]string{privateKey: server.Reveal(), entry: next.Reveal()})
	b.synced(t, "next server key in the backend", g.serverSecret(t), start, func(entries map[string][]byte) bool {
		return string(entries[entry]) == next.Reveal()
	})
	g.awaitIdentity(t, next.Public(), hurried)
	g.times.add(g.scenario, "next server key in the backend, known to the gateway", time.Since(start))
	g.awaitTurn(t, next.Public(), from)
	flows(t, stream, streamRate)
	g.lostNothing(t, stream, "peers, pre-shared key and server key changed in the backend")
	g.untouched(t, lives)

	// The gateway has a token for this, and for nothing else.
	g.grants(t, release, "get external-secrets.io/externalsecrets "+strings.Join([]string{g.serverSecret(t), pskSecret, peersSecret}, ","))
	// The old identity was served all the time. The new one is at the other port.
	if err := device.Close(); err != nil {
		t.Fatal(err)
	}
	g.dialAt(t, alice, next.Public(), greenPort)
}

// testPushSecret rotates the server key by the Job where External Secrets owns the
// Secret: the Job writes another one, a PushSecret takes that to the backend, and
// from there the key comes back as every other does.
func testPushSecret(t *testing.T, c *cluster) {
	g := c.newGateway(t, "PushSecret", nil)
	b := g.newBackend(t)
	alice := newClient(t, "alice", 2)
	server := b.fill(t, &alice)
	values := b.stored(rotating(false, pushLead))
	values["externalSecrets"].(map[string]any)["pushSecret"] = map[string]any{"enabled": true, "refreshInterval": storeRefresh}
	g.helmInstall(t, values)
	device := g.dial(t, alice)
	stream := g.startStream(t, device)
	lives, first := g.lives(t), g.state(t)

	g.grants(t, rotateAccount,
		"get,patch /secrets "+keySecret, "get /secrets "+g.serverSecret(t), // and does not write to what External Secrets makes
		"get,patch /configmaps "+publishedKeys)
	start := time.Now()
	g.rotate(t, "server")
	next, from := g.pending(t)
	entry := datedEntry("green", from)
	eventually(t, "the next key in the backend", func(ctx context.Context) (bool, string) {
		keys := b.pushed(ctx, t, serverEntry)
		return keys[entry] != "" && keys[privateKey] == server.Reveal(), fmt.Sprintf("%d keys", len(keys))
	})
	g.times.add(g.scenario, "Job started, next server key in the backend", time.Since(start))
	b.synced(t, "Job started, next server key", g.serverSecret(t), start, func(entries map[string][]byte) bool {
		return len(entries[entry]) > 0
	})
	g.awaitIdentity(t, next, hurried)
	g.times.add(g.scenario, "Job started, next server key known to the gateway", time.Since(start))
	g.notYet(t, first.PublicKey, from)
	g.awaitTurn(t, next, from)
	g.lostNothing(t, stream, "the server key was rotated through the backend")
	g.untouched(t, lives)
	if err := device.Close(); err != nil {
		t.Fatal(err)
	}
	g.dialAt(t, alice, next, greenPort)
}

// testBackendFaults takes the backend away, and gives it back with nonsense in it:
// the gateway keeps what it has, says so, and recovers by itself.
func testBackendFaults(t *testing.T, c *cluster) {
	g := c.newGateway(t, "BackendFaults", nil)
	b := g.newBackend(t)
	alice := newClient(t, "alice", 2)
	server := b.fill(t, &alice)
	g.helmInstall(t, b.stored(nil))
	b.awaitReady(t, true)
	stream := g.startStream(t, g.dial(t, alice))
	g.reached(t, "the ExternalSecrets to be told as ready", func(r readiness) bool { return r.condition("externalSecrets").OK })
	lives, good := g.lives(t), g.state(t)

	faults := []struct {
		name, secret string // the Secret that is not renewed
		do, undo     func()
	}{
		{"permission lost", g.serverSecret(t), func() { b.revoke(t) }, func() { b.grant(t) }},
		{
			"entry gone", pskSecret, func() { b.remove(t, pskEntry) },
			func() { b.put(t, pskEntry, map[string]string{alice.name: alice.psk.Reveal()}) },
		},
	}
	for _, f := range faults {
		start := time.Now()
		f.do()
		b.awaitReady(t, false)
		g.times.add(g.scenario, f.name+", told by External Secrets", time.Since(start))
		// Others, which want the same permission, may be told first.
		bad := g.await(t, f.name+" to be told", func(r readiness) bool {
			told := r.condition("externalSecrets")
			return !told.OK && strings.Contains(told.Detail, f.secret)
		}, 0)
		g.times.add(g.scenario, f.name+", told by the gateway", time.Since(start))
		g.checkStale(t, good, bad, f.secret)

		start = time.Now()
		f.undo()
		b.awaitReady(t, true)
		g.times.add(g.scenario, f.name+", mended, External Secrets recovered", time.Since(start))
		g.await(t, f.name+" to be told as mended", func(r readiness) bool { return r.condition("externalSecrets").OK }, 0)
		g.times.add(g.scenario, f.name+", mended, told by the gateway", time.Since(start))
		g.same(t, good)
	}

	// A key that is cut short: the search for leaks finds it without its padding too.
	garbled := strings.TrimRight(server.Reveal(), "=")
	start := time.Now()
	b.put(t, serverEntry, map[string]string{privateKey: garbled})
	bad := g.reached(t, "the garbled key to be refused", func(r readiness) bool { return !r.condition("config").OK })
	g.times.add(g.scenario, "server key garbled in the backend, refused", time.Since(start))
	g.keptGood(t, good, bad, privateKey)
	g.logs(t, `"level":"ERROR"`, privateKey)
	start = time.Now()
	b.put(t, serverEntry, map[string]string{privateKey: server.Reveal()})
	g.reached(t, "the mended key to be taken up", func(r readiness) bool { return r.condition("config").OK })
	g.times.add(g.scenario, "server key mended in the backend, taken up", time.Since(start))
	g.same(t, good)

	g.lostNothing(t, stream, "the backend was down, closed and garbled")
	g.untouched(t, lives)
}

// checkStale checks a gateway whose Secret is not renewed: what it has stays in
// force, and condition, metric and log name the ExternalSecret.
func (g *gateway) checkStale(t *testing.T, good, now readiness, secret string) {
	t.Helper()
	if diff := cmp.Diff([]any{good.Hash, good.Generation}, []any{now.Hash, now.Generation}); diff != "" {
		t.Errorf("hash and generation in force (-before +after):\n%s", diff)
	}
	if value, ok := g.metric(t, fmt.Sprintf("vpn_gateway_external_secret_ready{name=%q}", secret)); !ok || value != 0 {
		t.Errorf("vpn_gateway_external_secret_ready of %s = %v, %t, want 0", secret, value, ok)
	}
	g.logs(t, `"level":"WARN"`, fmt.Sprintf(`"externalSecret":%q`, secret))
}

// logs fails t unless the gateway has logged a line that has all of the texts.
func (g *gateway) logs(t *testing.T, texts ...string) {
	t.Helper()
	pod := g.pod(t)
	log, err := g.client.CoreV1().Pods(g.namespace).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			return
		}
	}
	t.Errorf("the gateway has logged no line with %q", texts)
}
