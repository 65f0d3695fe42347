//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

const (
	chartDir = "./charts/vpn-gateway" // from the project's directory
	release  = "vpn-gateway"
	// selector finds the gateway's Pods of a release, and not those of its Jobs.
	selector = "app.kubernetes.io/name=vpn-gateway,app.kubernetes.io/instance=" + release
	// keySecret is the Secret that the Job fills, privateKey the key in it.
	keySecret  = release + "-key"
	privateKey = "privateKey"
	// clientPort is the port that clients dial.
	clientPort = 51820
)

// gateway is a release of the chart in a namespace.
type gateway struct {
	*cluster
	scenario, namespace string
	// address is that of the load balancer which is played for it.
	address netip.Addr
}

// newGateway is a gateway for t, not installed yet, in a namespace of its own.
func (c *cluster) newGateway(t *testing.T, scenario string, labels map[string]string) *gateway {
	t.Helper()
	return &gateway{
		cluster: c, scenario: scenario,
		namespace: c.namespace(t, strings.ToLower(scenario), labels),
		// 203.0.113.1 is that of the README.
		address: netip.AddrFrom4([4]byte{203, 0, 113, byte(2 + c.endpoints.Add(1))}),
	}
}

// values are the release's values: what every scenario has, and more over it.
func (g *gateway) values(more map[string]any) map[string]any {
	values := map[string]any{
		// No flow that others need a drain for: do not wait for one.
		"server": map[string]any{"publicEndpoint": netip.AddrPortFrom(g.address, clientPort).String(), "drain": "1s"},
		// For the artifacts, and for what searches them for keys.
		"logLevel": "debug",
	}
	maps.Copy(values, more)
	return values
}

// helmWith is a call of helm for the release with values in a file.
func (g *gateway) helmWith(t *testing.T, values map[string]any, args ...string) command {
	t.Helper()
	text := must[[]byte](t)(yaml.Marshal(g.values(values)))
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return g.helm(append(args, "--namespace", g.namespace, "--values", file)...)
}

// install installs the release and waits, as helm does with --wait, until it is
// ready. The gateway waits for its key and helm for the gateway, and for the
// Service's address, which a cloud would give it.
func (g *gateway) install(t *testing.T, values map[string]any) {
	t.Helper()
	g.helmInstall(t, values)
	g.key(t) // which is recorded by this
}

// helmInstall is install for a gateway whose key is not the Job's.
func (g *gateway) helmInstall(t *testing.T, values map[string]any) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var cloud sync.WaitGroup
	cloud.Go(func() {
		for ctx.Err() == nil {
			if _, err := g.try(ctx, g.balancer()); err == nil {
				return
			}
			time.Sleep(pollInterval)
		}
	})
	defer cloud.Wait()
	defer cancel()
	took := g.run(t, g.helmWith(t, values, "install", release, chartDir, "--wait", "--timeout", patience.String())).took
	g.times.add(g.scenario, "helm install --wait", took)
}

// upgrade gives the release other values.
func (g *gateway) upgrade(t *testing.T, values map[string]any) {
	t.Helper()
	g.run(t, g.helmWith(t, values, "upgrade", release, chartDir))
}

// pods are the release's Pods that are not on their way out.
func (g *gateway) pods(ctx context.Context) ([]corev1.Pod, error) {
	list, err := g.client.CoreV1().Pods(g.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	var pods []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			pods = append(pods, p)
		}
	}
	return pods, nil
}

// pod waits for the gateway's one Pod to be ready.
func (g *gateway) pod(t *testing.T) corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	eventually(t, "one ready gateway Pod", func(ctx context.Context) (bool, string) {
		pods, err := g.pods(ctx)
		if err != nil || len(pods) != 1 {
			return false, fmt.Sprintf("%d Pods, %v", len(pods), err)
		}
		pod = pods[0]
		return isReady(&pod), fmt.Sprintf("%+v", pod.Status.ContainerStatuses)
	})
	return pod
}

// lives are the Pods of the release with the restarts of their containers: equal
// before and after a change that restarted nothing.
func (g *gateway) lives(t *testing.T) map[types.UID]int32 {
	t.Helper()
	lives := map[types.UID]int32{}
	for _, p := range must[[]corev1.Pod](t)(g.pods(t.Context())) {
		lives[p.UID] = 0
		for _, s := range p.Status.ContainerStatuses {
			lives[p.UID] += s.RestartCount
		}
	}
	return lives
}

// untouched fails t if a Pod came, went or restarted since before.
func (g *gateway) untouched(t *testing.T, before map[types.UID]int32) {
	t.Helper()
	if diff := cmp.Diff(before, g.lives(t)); diff != "" {
		t.Errorf("Pods and their restarts (-before +after):\n%s", diff)
	}
}

// readiness is what /readyz answers.
type readiness struct {
	Ready      bool
	Conditions []condition
	Hash       string
	Generation uint64
	DataPlane  string
	Reason     string
	PublicKey  string
	Identities []identity
}

// identity is a server key that the gateway answers to.
type identity struct {
	PublicKey, Slot string
	InForce         bool
	From, Retires   time.Time
}

type condition struct {
	Name   string
	OK     bool
	Detail string
}

// knows reports whether the gateway answers to a key, in force or not.
func (r readiness) knows(publicKey string) bool {
	return slices.ContainsFunc(r.Identities, func(i identity) bool { return i.PublicKey == publicKey })
}

// condition returns the one with that name.
func (r readiness) condition(name string) condition {
	for _, c := range r.Conditions {
		if c.Name == name {
			return c
		}
	}
	return condition{Detail: "there is no condition " + name}
}

// readyz asks a gateway's Pod how it is.
func (g *gateway) readyz(ctx context.Context, pod corev1.Pod) (readiness, error) {
	_, body, err := g.get(ctx, "http://"+net.JoinHostPort(pod.Status.PodIP, "8080")+"/readyz")
	if err != nil {
		return readiness{}, err
	}
	var r readiness
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		return readiness{}, fmt.Errorf("/readyz answers %q: %w", body, err)
	}
	return r, nil
}

// state is readyz for what must answer.
func (g *gateway) state(t *testing.T) readiness {
	t.Helper()
	return must[readiness](t)(g.readyz(t.Context(), g.pod(t)))
}

// metric returns the value of a series of a Pod, given as in the exposition;
// false where there is none.
func (g *gateway) metric(t *testing.T, series string) (float64, bool) {
	t.Helper()
	pod := g.pod(t)
	_, body, err := g.get(t.Context(), "http://"+net.JoinHostPort(pod.Status.PodIP, "8080")+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if text, ok := strings.CutPrefix(line, series+" "); ok {
			return must[float64](t)(strconv.ParseFloat(strings.TrimSpace(text), 64)), true
		}
	}
	return 0, false
}

// hurry touches an annotation of the gateway's Pod, upon which the kubelet renews
// the Pod's Secrets and ConfigMaps at once.
func (g *gateway) hurry(ctx context.Context, pod corev1.Pod) error {
	patch := fmt.Sprintf(`{"metadata":{"annotations":{"vpn-gateway.test/touched":%q}}}`, time.Now().Format(time.RFC3339Nano))
	_, err := g.client.CoreV1().Pods(g.namespace).Patch(ctx, pod.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// reached waits until /readyz satisfies f, hurrying the kubelet along, and fails t
// if the gateway is not ready for a moment. It returns that answer.
func (g *gateway) reached(t *testing.T, what string, f func(readiness) bool) readiness {
	t.Helper()
	return g.await(t, what, f, 2*time.Second)
}

// await is reached with the time between two touches of the Pod's annotation; 0
// leaves the kubelet to itself.
func (g *gateway) await(t *testing.T, what string, f func(readiness) bool, hurry time.Duration) readiness {
	t.Helper()
	pod := g.pod(t)
	var last readiness
	var touched time.Time
	eventually(t, what, func(ctx context.Context) (bool, string) {
		if hurry > 0 && time.Since(touched) >= hurry {
			touched = time.Now()
			if err := g.hurry(ctx, pod); err != nil {
				return false, err.Error()
			}
		}
		r, err := g.readyz(ctx, pod)
		if err != nil {
			return false, err.Error()
		}
		if !r.Ready {
			t.Errorf("while waiting for %s the gateway was not ready: %+v", what, r.Conditions)
		}
		last = r
		return f(r), fmt.Sprintf("%+v", r)
	})
	return last
}

// inForce waits for a configuration other than before, and returns the time from
// since to when the agent had it in force.
func (g *gateway) inForce(t *testing.T, what string, since time.Time, before readiness) time.Duration {
	t.Helper()
	g.reached(t, what, func(r readiness) bool { return r.Hash != before.Hash })
	return g.lastReload(t).Sub(since)
}

// lastReload is when the agent last put a configuration in force, by its own word.
func (g *gateway) lastReload(t *testing.T) time.Time {
	t.Helper()
	const series = "vpn_gateway_config_last_reload_success_timestamp_seconds"
	seconds, ok := g.metric(t, series)
	if !ok {
		t.Fatalf("there is no metric %s", series)
	}
	return time.UnixMilli(int64(seconds * 1000))
}

// knows reports whether the device has a peer of that name.
func (g *gateway) knows(t *testing.T, peer client) bool {
	t.Helper()
	_, ok := g.metric(t, fmt.Sprintf("wireguard_peer_info{device=%q,name=%q,public_key=%q}", "wg0", peer.name, peer.private.Public()))
	return ok
}

// secret reads a Secret of the release's namespace.
func (g *gateway) secret(t *testing.T, name string) *corev1.Secret {
	t.Helper()
	return must[*corev1.Secret](t)(g.client.CoreV1().Secrets(g.namespace).Get(t.Context(), name, metav1.GetOptions{}))
}

// key reads the Secret that the Job filled. Never print it.
func (g *gateway) key(t *testing.T) *corev1.Secret {
	t.Helper()
	s := g.secret(t, keySecret)
	if len(s.Data) != 1 || len(s.Data[privateKey]) == 0 {
		t.Fatalf("Secret %s has %d keys, want one, %s", keySecret, len(s.Data), privateKey)
	}
	testenv.RecordSecret(t, string(s.Data[privateKey]))
	return s
}

// sameKey fails t if the key Secret was written since before.
func (g *gateway) sameKey(t *testing.T, before *corev1.Secret) {
	t.Helper()
	now := g.key(t)
	if string(now.Data[privateKey]) != string(before.Data[privateKey]) {
		t.Error("the private key in the Secret has changed")
	}
	if diff := cmp.Diff(before.ResourceVersion, now.ResourceVersion); diff != "" {
		t.Errorf("resourceVersion of Secret %s (-before +after):\n%s", keySecret, diff)
	}
}
