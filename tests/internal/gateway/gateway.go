// Package gateway runs the gateway that the chart describes, without a cluster:
// it renders the chart from values, fills the Secret of the key as the chart's Job
// would, and runs the Pod of the rendered Deployment in a network of namespaces.
// From then on it stands in for `helm upgrade` and the kubelet, and reads what the
// agent tells of itself.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// ContainerName is the name of the agent's container in the chart.
const ContainerName = "gateway"

// Port is the UDP port of a gateway, in the Pod and outside, and GreenPort that of
// its server keys of slot green.
const (
	Port      = 51820
	GreenPort = 51821
)

// Root returns the repository's root directory, from anywhere inside it.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "charts", "vpn-gateway", "Chart.yaml")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("not inside the repository: no directory above has charts/vpn-gateway")
		}
		dir = filepath.Dir(dir)
	}
}

// Build builds the agent as the image has it, static, into dir, and returns the
// binary's path.
func Build(ctx context.Context, dir string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "vpn-agent")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", binary, "./agent/cmd/vpn-agent")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the agent: %w\n%s", err, out)
	}
	return binary, nil
}

// Options say what to run where.
type Options struct {
	// Config is what the user of the chart writes.
	Config Config
	// Binary is the agent, see [Build].
	Binary string
	// Topology is the network to add the Pod to. The node's public address leads
	// to the newest gateway.
	Topology *netns.Topology
	// Prepare, where not nil, changes the Pod's network before the Pod starts.
	Prepare func(pod *netns.NS) error
	// PrivateKey of the gateway; the zero key: a new one.
	PrivateKey wgclient.Secret
	// LogDir is where the agent's log goes.
	LogDir string
}

// Gateway is a gateway that runs. Its methods may be called from any goroutine.
type Gateway struct {
	Pod *podrun.Pod
	// Interface is the name of the tunnel's link in the Pod.
	Interface string
	// PrivateKey that the Secret holds.
	PrivateKey wgclient.Secret
	// Endpoint is what clients dial.
	Endpoint netip.AddrPort

	mu     sync.Mutex
	spec   corev1.PodSpec
	keys   []wgclient.Secret // all that it was ever given
	secret *corev1.Secret    // of the key
}

// Start starts a gateway. It returns when the process is there;
// [Gateway.WaitReady] waits until it works.
func Start(ctx context.Context, o Options) (*Gateway, error) {
	if o.PrivateKey.IsZero() {
		var err error
		if o.PrivateKey, err = wgclient.NewPrivateKey(); err != nil {
			return nil, err
		}
	}
	r, err := o.Config.render()
	if err != nil {
		return nil, err
	}
	secret, err := r.fillKey(o.PrivateKey)
	if err != nil {
		return nil, err
	}
	network, index, err := o.Topology.AddPod()
	if err != nil {
		return nil, err
	}
	if o.Prepare != nil {
		if err := o.Prepare(network); err != nil {
			return nil, err
		}
	}
	g := &Gateway{
		Interface: r.link, PrivateKey: o.PrivateKey,
		spec: r.spec, keys: append(o.Config.keys(), o.PrivateKey), secret: secret,
		Endpoint: netip.AddrPortFrom(o.Topology.PublicIP(), Port),
	}
	ip := o.Topology.PodIP(index)
	for _, port := range []uint16{Port, GreenPort} {
		if err := o.Topology.Publish(netip.AddrPortFrom(g.Endpoint.Addr(), port), netip.AddrPortFrom(ip, port)); err != nil {
			return nil, err
		}
	}
	g.Pod, err = podrun.Start(ctx, podrun.Options{
		Name: fmt.Sprintf("vpn-gateway-%d", index), Spec: r.spec, Objects: r.objects,
		Network: network, IP: ip, Image: podrun.AgentImage(o.Binary), LogDir: o.LogDir,
	})
	return g, err
}

// ForTest starts a gateway that is killed when t ends, and waits until it is
// ready. Where o has no LogDir, the logs go to t's artifacts. At the end, t fails
// where the gateway has told a secret key.
func ForTest(t testing.TB, o Options) *Gateway {
	t.Helper()
	if o.LogDir == "" {
		o.LogDir = testenv.Artifacts(t)
	}
	g, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.LookForKeys(context.WithoutCancel(t.Context())), g.Pod.Close()); err != nil {
			t.Error(err)
		}
	})
	if err := g.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g
}

// patience is how long anything may take that normally takes a second: machines
// that run tests are busy.
const patience = time.Minute

// WaitReady waits until the Pod's probes succeed, for a minute at most.
func (g *Gateway) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return g.Pod.WaitReady(ctx)
}

// Spec is the specification of the Pod.
func (g *Gateway) Spec() corev1.PodSpec { return *g.spec.DeepCopy() }

// Container is the agent's.
func (g *Gateway) Container() *podrun.Container { return g.Pod.Container(ContainerName) }

// PublicKey of the gateway, in base64.
func (g *Gateway) PublicKey() string { return g.PrivateKey.Public() }

// Update is `helm upgrade` with other values, and the refresh of the Pod's volumes
// by the kubelet some time later. It returns the moment of the first change; zero
// where no file differs. The error says so where the Deployment would have made a
// new Pod of it.
func (g *Gateway) Update(c Config) (time.Time, error) {
	objects, err := g.Upgrade(c)
	if err != nil {
		return time.Time{}, err
	}
	return g.Pod.Update(objects...)
}

// Reload is [Gateway.Update], one object after the other, and waits for each until
// it is in force.
func (g *Gateway) Reload(ctx context.Context, c Config) error {
	objects, err := g.Upgrade(c)
	if err != nil {
		return err
	}
	for _, o := range objects {
		before, err := g.Readiness(ctx)
		if err != nil {
			return err
		}
		swapped, err := g.Pod.Update(o)
		if err != nil {
			return err
		}
		if swapped.IsZero() {
			continue
		}
		_, err = g.Await(ctx, "the new files to be in force", func(now Readiness) bool {
			return now.Condition("config").OK && (now.Generation > before.Generation || !before.Condition("config").OK)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Upgrade renders c and returns the objects that the Pod's volumes show, for
// [podrun.Pod.Update]; but not the key's Secret, which stays as it is.
func (g *Gateway) Upgrade(c Config) ([]runtime.Object, error) {
	r, err := c.render()
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if diff := cmp.Diff(g.spec, r.spec); diff != "" {
		return nil, fmt.Errorf("the Deployment would replace the Pod (-running +rendered):\n%s", diff)
	}
	g.keys = append(g.keys, c.keys()...)
	return r.objects, nil
}

// rendered is a chart's output as far as it is of use to a Pod.
type rendered struct {
	chart   *chart.Rendered
	spec    corev1.PodSpec
	link    string
	objects []runtime.Object // ConfigMaps and the user's Secrets
}

// fillKey adds the Secret of the gateway's key, which the chart renders without
// data, as it is after the chart's Job has run.
func (r *rendered) fillKey(k wgclient.Secret) (*corev1.Secret, error) {
	secret, err := chart.Get[*corev1.Secret](r.chart, "")
	if err != nil {
		return nil, err
	}
	filled := secret.DeepCopy()
	filled.Data = map[string][]byte{"privateKey": []byte(k.Reveal())}
	r.objects = append(r.objects, filled)
	return filled, nil
}

func (c Config) render() (*rendered, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	values, err := c.values()
	if err != nil {
		return nil, err
	}
	out := &rendered{}
	out.chart, err = chart.Render(chart.Options{ChartDir: filepath.Join(root, "charts", "vpn-gateway"), Values: values})
	if err != nil {
		return nil, err
	}
	deployment, err := chart.Get[*appsv1.Deployment](out.chart, "")
	if err != nil {
		return nil, err
	}
	out.spec = deployment.Spec.Template.Spec
	out.link = c.link(values)
	if out.objects, err = c.secrets(); err != nil {
		return nil, err
	}
	for _, o := range out.chart.Objects {
		if m, ok := o.Object.(*corev1.ConfigMap); ok {
			out.objects = append(out.objects, m)
		}
	}
	return out, nil
}
