//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"helm.sh/helm/v3/pkg/chartutil"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/cloud-native-vpn/vpn-gateway/ci/tools"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

const (
	// patience bounds every wait. It is far above what anything takes.
	patience     = 4 * time.Minute
	pollInterval = 50 * time.Millisecond
	// downTime bounds the end of the cluster.
	downTime = 2 * time.Minute
	// scalingPeriod is how often the autoscaler's controller looks; a quarter of a
	// minute by default.
	scalingPeriod = 5 * time.Second

	// envKeep names the environment variable that, set to 1, has the tests take
	// up the cluster that runs, and leave it up.
	envKeep = "KEEP_CLUSTER"

	// namespaceLabel marks the namespaces of the scenarios.
	namespaceLabel = "vpn-gateway.test/e2e"
)

// cluster is the Kubernetes under test.
type cluster struct {
	root    string   // of the project
	program string   // tests/cluster
	env     []string // of every program that is called
	log     *commandLog
	times   *times
	status  clusterStatus

	// outside is the namespace of the client outside of the cluster, control
	// that of the control plane, from which API server, nodes and Pods can be reached.
	outside, control *netns.NS
	config           *rest.Config
	client           kubernetes.Interface
	dynamic          dynamic.Interface

	echo string // where the echo service is, host:port

	machines, endpoints atomic.Int32 // handed out so far
}

// clusterStatus is what `cluster status --json` says, as far as it matters here.
type clusterStatus struct {
	APIServer struct {
		Address netip.AddrPort
		Ready   bool
	}
	Nodes      []struct{ Name, Netns string }
	Netns      map[string]string
	ClientIP   netip.Addr
	Kubeconfig string
	State      string
}

// startCluster brings the cluster up, with the gateway's image and the service
// behind the gateway in it. It ends with t.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{log: newCommandLog(t), times: newTimes(t)}
	c.root = must[string](t)(filepath.Abs("../.."))
	c.program = filepath.Join(c.root, "bin", "cluster")
	// The caller's flags are for the module of the tests.
	c.run(t, command{args: []string{"go", "build", "-o", c.program, "."}, dir: filepath.Join(c.root, "tests", "cluster"), env: []string{"GOFLAGS="}})

	if !keep() {
		if _, err := c.try(t.Context(), command{args: []string{c.program, "status"}}); err == nil {
			t.Fatalf("a cluster is up already: end it with `make demo-down`, or set %s=1 to use it", envKeep)
		}
		t.Cleanup(func() { c.down(t) })
		c.downOnSignal(t)
	}
	archives := c.build(t)
	c.connect(t)
	c.becomeRouter(t)
	took := c.run(t, command{args: append([]string{c.program, "load"}, archives...), watched: true}).took
	c.times.add("cluster", "images loaded into every node", took)
	c.defineMonitors(t)
	c.installExternalSecrets(t)
	c.startEcho(t)
	return c
}

func keep() bool { return os.Getenv(envKeep) == "1" }

// build starts the cluster and, meanwhile, builds the images, External Secrets and
// helm. It returns the archives of the images and of External Secrets.
func (c *cluster) build(t *testing.T) []string {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	// The program looks for its sources in the directory that it is called in.
	ofCluster := func(args ...string) (output, error) {
		return c.try(ctx, command{
			args: append([]string{c.program}, args...), watched: true,
			dir: filepath.Join(c.root, "tests", "cluster"), env: []string{"GOFLAGS="},
		})
	}
	var externalSecrets string
	g.Go(func() error {
		out, err := ofCluster("up", "--controller-manager-flag=--horizontal-pod-autoscaler-sync-period="+scalingPeriod.String())
		c.times.add("cluster", "up", out.took)
		if err != nil {
			return err
		}
		// After that: both want all processors and the same lock.
		out, err = ofCluster("build", externalSecretsPart)
		c.times.add("cluster", "External Secrets built", out.took)
		externalSecrets = strings.TrimSpace(out.stdout)
		return err
	})
	var archives []string
	g.Go(func() error {
		chart, err := chartutil.LoadChartfile(filepath.Join(c.root, "charts", "vpn-gateway", chartutil.ChartfileName))
		if err != nil {
			return err
		}
		for name, args := range map[string][]string{
			"vpn-gateway": {"make", "image-gateway"},
			// For this machine alone: it has a thousand packages.
			"vpn-metrics-adapter": {"make", "image-adapter", "PLATFORMS=linux/" + runtime.GOARCH},
		} {
			out, err := c.try(ctx, command{args: args, watched: true})
			c.times.add("cluster", "image of "+name+" built", out.took)
			if err != nil {
				return err
			}
			archives = append(archives, filepath.Join(c.root, "dist", name+"-"+chart.AppVersion+".tar"))
		}
		return nil
	})
	var helm string
	g.Go(func() error {
		tool, err := tools.Lookup("helm")
		if err == nil {
			helm, err = tool.Path(ctx, c.root, os.Stderr)
		}
		return err
	})
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	// Helm's own files stay out of the user's home.
	home := t.TempDir()
	c.env = []string{
		"PATH=" + filepath.Dir(helm) + string(filepath.ListSeparator) + os.Getenv("PATH"),
		"HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home,
	}
	return append(archives, externalSecrets)
}

// connect opens the cluster's network namespaces and makes clients of its API.
func (c *cluster) connect(t *testing.T) {
	t.Helper()
	status := c.run(t, command{args: []string{c.program, "status", "--json"}}).stdout
	if err := json.Unmarshal([]byte(status), &c.status); err != nil {
		t.Fatalf("cluster status: %v", err)
	}
	open := func(role string) *netns.NS {
		ns := must[*netns.NS](t)(netns.Open(c.status.Netns[role]))
		t.Cleanup(func() { _ = ns.Close() })
		return ns
	}
	c.outside, c.control = open("client"), open("cp")

	config := must[*rest.Config](t)(clientcmd.BuildConfigFromFlags("", c.status.Kubeconfig))
	c.config = config
	config.Dial = c.control.DialContext
	config.QPS, config.Burst = 200, 400
	config.WarningHandler = rest.NoWarnings{} // the inventory asks for deprecated kinds too
	c.client = must[*kubernetes.Clientset](t)(kubernetes.NewForConfig(config))
	c.dynamic = must[*dynamic.DynamicClient](t)(dynamic.NewForConfig(config))
}

// down ends the cluster. What its machines logged is kept where a test failed.
func (c *cluster) down(t *testing.T) {
	if t.Failed() {
		c.keepMachineLogs(t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), downTime)
	defer cancel()
	out, err := c.try(ctx, command{args: []string{c.program, "down"}, watched: true})
	if err != nil {
		t.Error(err)
	}
	c.times.add("cluster", "down", out.took)
	left, err := filepath.Glob("/run/netns/vpngw-*")
	if err != nil || len(left) > 0 {
		t.Errorf("network namespaces after `cluster down`: %v, %v, want none", left, err)
	}
}

// downOnSignal ends the cluster when the tests are interrupted: a signal skips
// every cleanup.
func (c *cluster) downOnSignal(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	done := make(chan struct{})
	t.Cleanup(func() { signal.Stop(signals); close(done) })
	go func() {
		select {
		case <-done:
		case s := <-signals:
			fmt.Fprintf(os.Stderr, "%s: ending the cluster\n", s)
			ctx, cancel := context.WithTimeout(context.Background(), downTime)
			defer cancel()
			if _, err := c.try(ctx, command{args: []string{c.program, "down"}, watched: true}); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			os.Exit(1)
		}
	}()
}

// keepMachineLogs copies the logs of the cluster's machines to the artifacts:
// they go with the cluster.
func (c *cluster) keepMachineLogs(t *testing.T) {
	logs, err := filepath.Glob(filepath.Join(c.status.State, "*", "log", "*"))
	if err != nil {
		t.Error(err)
	}
	for _, path := range logs {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // a directory
		}
		name, err := filepath.Rel(c.status.State, path)
		if err == nil {
			name = "machine-" + strings.ReplaceAll(name, string(filepath.Separator), "-")
			err = os.WriteFile(filepath.Join(testenv.Artifacts(t), name), content, 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
}
