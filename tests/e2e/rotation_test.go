//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	// rotationLead is how long before its time a key is written where the kubelet
	// is hurried; pushLead where it goes through the backend, too.
	rotationLead, pushLead = 40 * time.Second, 50 * time.Second
	// refreshLead is the same where the kubelet is left to itself.
	refreshLead = 4 * time.Minute
	// hurried and unhurried say how often a test hurries the kubelet along.
	hurried, unhurried = 2 * time.Second, time.Duration(0)
	// rotateAccount is the ServiceAccount of the Jobs, publishedKeys the ConfigMap
	// that they publish in.
	rotateAccount, publishedKeys = release + "-rotate", release + "-keys"
	// greenPort is the port that clients of the second identity dial.
	greenPort = clientPort + 1
)

// entryTime is how the time at which a key comes in force stands in the name of
// its entry in a Secret.
const entryTime = "20060102T150405Z"

// datedEntry is the name of a key's entry: its slot or its peer, and its time.
func datedEntry(base string, from time.Time) string {
	return base + "." + from.UTC().Format(entryTime)
}

// rotating are values for Jobs that rotate the server key and the pre-shared keys
// when they are called by hand: no time comes by itself.
func rotating(annotatePods bool, lead time.Duration) map[string]any {
	return map[string]any{"keyRotation": map[string]any{
		"enabled": true, "suspend": true, "lead": lead.String(), "annotatePods": annotatePods,
	}}
}

// testRotation rotates keys in the release's own Secrets, by the Jobs of the
// CronJobs, under a stream.
func testRotation(t *testing.T, c *cluster) {
	t.Run("kubelet hurried by the Job", func(t *testing.T) {
		t.Parallel()
		rotateHurried(t, c)
	})
	t.Run("kubelet left to itself", func(t *testing.T) {
		t.Parallel()
		rotateUnhurried(t, c)
	})
}

func rotateHurried(t *testing.T, c *cluster) {
	g := c.newGateway(t, "Rotation", nil)
	alice := newClient(t, "alice", 2)
	g.makePSK(t, &alice)
	values := withPSK(alice)
	values["keyRotation"] = rotating(true, rotationLead)["keyRotation"]
	values["keyRotation"].(map[string]any)["presharedKeys"] = map[string]any{"schedule": "0 4 1 * *"}
	g.install(t, values)
	g.grants(t, rotateAccount,
		"get,patch /secrets "+keySecret+","+pskSecret, "get,patch /configmaps "+publishedKeys,
		"list,patch /pods ") // by keyRotation.annotatePods
	device := g.dial(t, alice)
	stream := g.startStream(t, device)
	lives, first := g.lives(t), g.state(t)

	start := time.Now()
	g.rotate(t, "server")
	next, from := g.pending(t)
	g.awaitIdentity(t, next, unhurried)
	g.times.add(g.scenario, "Job started, next server key known to the gateway, with keyRotation.annotatePods", time.Since(start))
	g.notYet(t, first.PublicKey, from)

	start = time.Now()
	g.rotate(t, "psk-0")
	psk, turn := g.nextPSK(t, alice)
	g.awaitPending(t, "preshared", turn)
	g.times.add(g.scenario, "Job started, next pre-shared key known to the gateway, with keyRotation.annotatePods", time.Since(start))
	g.awaitTurn(t, next, from)
	time.Sleep(time.Until(turn)) // both ends switch by the clock
	alice.psk = psk
	if err := device.SetPresharedKey(first.PublicKey, psk); err != nil {
		t.Fatal(err)
	}
	flows(t, stream, 3*streamRate)
	g.lostNothing(t, stream, "server key and pre-shared key were rotated")
	g.untouched(t, lives)

	g.checkKeysShow(t, next)
	g.moveByFile(t, device, stream, next)
	// Whoever has not moved is served still, and has to shake hands by now.
	if err := device.Close(); err != nil {
		t.Fatal(err)
	}
	g.dialAt(t, alice, first.PublicKey, clientPort)
}

// moveByFile gives a client the file that `peer update` makes of its own, under a
// stream of its own, and notes what that costs.
func (g *gateway) moveByFile(t *testing.T, device *wgclient.Client, before *stream.Stream, next string) {
	t.Helper()
	call := g.kubectl("exec", "--stdin", "--namespace", g.namespace, "deployment/"+release, "--", "/vpn-agent", "peer", "update")
	call.stdin, call.secret = clientFile(device.Config()), true
	updated := must[wgclient.Config](t)(wgclient.Parse(g.run(t, call).stdout))
	if got, want := updated.Peers[0].Endpoint, netip.AddrPortFrom(g.address, greenPort).String(); updated.Peers[0].PublicKey != next || got != want {
		t.Errorf("the new file names the gateway %s at %s, want %s at %s", updated.Peers[0].PublicKey, got, next, want)
	}
	s := must[*stream.Stream](t)(stream.Start(stream.Options{From: device.NS(), To: before.To(), Rate: streamRate}))
	t.Cleanup(func() { s.Stop(0) })
	flows(t, s, streamRate)
	if err := device.Sync(updated); err != nil {
		t.Fatal(err)
	}
	flows(t, s, streamRate) // with the new key, and the pre-shared key in force
	g.times.note(g.scenario, "stream while the client takes its new file (wg syncconf)", s.Stop(10*time.Second).String())
}

// clientFile is a client's file as wg-quick reads it. It holds keys.
func clientFile(c wgclient.Config) string {
	peer := c.Peers[0]
	return fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = %s\n\n[Peer]\nPublicKey = %s\nPresharedKey = %s\nEndpoint = %s\nAllowedIPs = %s\n",
		c.PrivateKey.Reveal(), c.Addresses[0], peer.PublicKey, peer.PresharedKey.Reveal(), peer.Endpoint, peer.AllowedIPs[0])
}

// checkKeysShow looks at what `keys show` tells of a gateway whose second server
// key is in force. Its output is among the artifacts, for what searches them for keys.
func (g *gateway) checkKeysShow(t *testing.T, next string) {
	t.Helper()
	shown := g.run(t, g.kubectl("exec", "--namespace", g.namespace, "deployment/"+release, "--", "/vpn-agent", "keys", "show")).stdout
	for line := range strings.Lines(shown) {
		if strings.Contains(line, next) && strings.Contains(line, "current") {
			return
		}
	}
	t.Errorf("keys show does not tell %s as current:\n%s", next, shown)
}

func rotateUnhurried(t *testing.T, c *cluster) {
	g := c.newGateway(t, "RotationByKubelet", nil)
	alice := newClient(t, "alice", 2)
	values := peers(alice)
	values["keyRotation"] = rotating(false, refreshLead)["keyRotation"]
	g.install(t, values)
	stream := g.startStream(t, g.dial(t, alice))
	lives, first := g.lives(t), g.state(t)

	start := time.Now()
	g.rotate(t, "server")
	next, from := g.pending(t)
	g.awaitIdentity(t, next, unhurried)
	g.times.add(g.scenario, "Job started, next server key known to the gateway, without keyRotation.annotatePods", time.Since(start))
	g.notYet(t, first.PublicKey, from)
	g.lostNothing(t, stream, "waiting for the kubelet to bring the next server key")
	g.untouched(t, lives)
}

// rotate rotates now, as an administrator does: by a Job of the CronJob, which has
// to succeed.
func (g *gateway) rotate(t *testing.T, what string) {
	t.Helper()
	cronJob := release + "-rotate-" + what
	name, start := fmt.Sprintf("%s-%d", cronJob, time.Now().Unix()), time.Now()
	g.run(t, g.kubectl("create", "job", "--namespace", g.namespace, "--from=cronjob/"+cronJob, name))
	eventually(t, "the Job "+name, func(ctx context.Context) (bool, string) {
		job, err := g.client.BatchV1().Jobs(g.namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		if job.Status.Failed > 0 {
			t.Fatalf("a Pod of the Job %s has failed: %+v", name, job.Status)
		}
		return job.Status.Succeeded == 1, fmt.Sprintf("%+v", job.Status)
	})
	g.times.add(g.scenario, "Job "+cronJob+", from kubectl create to its end", time.Since(start))
}

// pending is the next identity, and when it comes in force, as the newest one is
// published for clients.
func (g *gateway) pending(t *testing.T) (publicKey string, from time.Time) {
	t.Helper()
	published := must[*corev1.ConfigMap](t)(g.client.CoreV1().ConfigMaps(g.namespace).Get(t.Context(), publishedKeys, metav1.GetOptions{}))
	if published.Data["publicKey"] == "" || published.Data["from"] == "" {
		t.Fatalf("no next identity is published: %v", published.Data)
	}
	return published.Data["publicKey"], must[time.Time](t)(time.Parse(time.RFC3339, published.Data["from"]))
}

// nextPSK reads a client's next pre-shared key, and when it comes in force, as the
// client is told it by whatever brings it there.
func (g *gateway) nextPSK(t *testing.T, p client) (psk wgclient.Secret, from time.Time) {
	t.Helper()
	entries := record(t, g.secret(t, pskSecret))
	for name, value := range entries {
		if at, dated := strings.CutPrefix(name, p.name+"."); dated {
			psk, from = must[wgclient.Secret](t)(wgclient.ParseSecret(value)), must[time.Time](t)(time.Parse(entryTime, at))
		}
	}
	if psk.IsZero() || len(entries) != 2 || entries[p.name] != p.psk.Reveal() {
		t.Fatalf("Secret %s has %d entries, want the key in force and the next one", pskSecret, len(entries))
	}
	return psk, from
}

// record notes the keys of a Secret for the search for leaks, and returns its
// entries. Never print them.
func record(t *testing.T, s *corev1.Secret) map[string]string {
	t.Helper()
	entries := map[string]string{}
	for name, value := range s.Data {
		entries[name] = string(value)
		testenv.RecordSecret(t, string(value))
	}
	return entries
}

// awaitIdentity waits until the gateway says that it answers to an identity, in
// force or not; hurry is as of [gateway.await].
func (g *gateway) awaitIdentity(t *testing.T, publicKey string, hurry time.Duration) {
	t.Helper()
	g.await(t, "the next identity to be known", func(r readiness) bool { return r.knows(publicKey) }, hurry)
}

// notYet fails t if the server key in force is another one than before, and waits
// until metrics tell of the next one: all that before its time, which a busy machine
// may miss.
func (g *gateway) notYet(t *testing.T, before string, from time.Time) {
	t.Helper()
	now := g.state(t).PublicKey
	if now != before && time.Now().Before(from) {
		t.Errorf("the public key in force is %s before its time has come, want %s", now, before)
	}
	g.awaitPending(t, "server", from)
}

// awaitPending waits until the gateway's metrics tell that a key of the kind comes in
// force at a time, or that is over.
func (g *gateway) awaitPending(t *testing.T, kind string, from time.Time) {
	t.Helper()
	series := fmt.Sprintf("vpn_gateway_key_next_activation_timestamp_seconds{kind=%q}", kind)
	eventually(t, series, func(context.Context) (bool, string) {
		value, ok := g.metric(t, series)
		told := ok && int64(value) == from.Unix()
		return told || time.Now().After(from), fmt.Sprintf("%f, %t, want %d", value, ok, from.Unix())
	})
}

// awaitTurn waits until an identity is in force, and notes how long after its time
// the gateway said so.
func (g *gateway) awaitTurn(t *testing.T, publicKey string, from time.Time) {
	t.Helper()
	g.await(t, "the next identity in force", func(r readiness) bool { return r.PublicKey == publicKey }, unhurried)
	late := time.Since(from)
	if late < 0 {
		t.Errorf("the next identity is in force %s before its time", -late)
	}
	g.times.note(g.scenario, "next server key in force after its time", fmt.Sprintf("%d ms", late.Milliseconds()))
}

// dialAt is dial for an identity, at the port where that answers.
func (g *gateway) dialAt(t *testing.T, p client, publicKey string, port uint16) *wgclient.Client {
	t.Helper()
	g.balance(t)
	config := p.config(g, publicKey)
	config.Peers[0].Endpoint = netip.AddrPortFrom(g.address, port).String()
	device := wgclient.ForTest(t, config, wgclient.Options{NS: g.machine(t)})
	g.reachesEcho(t, device)
	return device
}

// serverSecret is the name of the Secret with the server key that the gateway mounts.
func (g *gateway) serverSecret(t *testing.T) string {
	t.Helper()
	d := must[*appsv1.Deployment](t)(g.client.AppsV1().Deployments(g.namespace).Get(t.Context(), release, metav1.GetOptions{}))
	for _, v := range d.Spec.Template.Spec.Volumes {
		if v.Name == "key" && v.Projected != nil {
			return v.Projected.Sources[0].Secret.Name
		}
	}
	t.Fatalf("no volume with the server key in %+v", d.Spec.Template.Spec.Volumes)
	return ""
}
