package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	release  = "vpn-gateway"
	endpoint = "203.0.113.1:51820"
	// installLine is the README's, to the letter.
	installLine = "helm install vpn-gateway ./charts/vpn-gateway --set server.publicEndpoint=" + endpoint
	selector    = "app.kubernetes.io/name=vpn-gateway,app.kubernetes.io/instance=" + release
	// helmTimeout is in Helm's form.
	helmTimeout = "4m"

	echoName    = "echo"
	echoHost    = echoName + ".default.svc.cluster.local"
	echoTCPPort = 8080
	services    = "10.96.0.0/16"
	clusterDNS  = "10.96.0.10"
	// agentConfig is where the agent's files are in its container.
	agentConfig = "/etc/vpn-gateway"
)

// echoManifest is the service behind the gateway. Its image is in every node.
const echoManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers: [{name: echo, image: "vpn-gateway.test/echo:1"}]
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{name: http, port: 8080, protocol: TCP}, {name: udp, port: 8080, protocol: UDP}]
`

// remote is the place with a cluster of the project's own.
type remote struct {
	tools   commands
	outside *netns.NS // the network of the client
	control *netns.NS // that of the control plane, which reaches the Pods
	pod     corev1.Pod
	target  netip.Addr // of the echo service, once it was asked for
	dns     netip.Addr // from alice's file
}

func (r *remote) needs() []testenv.Requirement {
	return []testenv.Requirement{testenv.Tool("go", "make", "nft")}
}

func (r *remote) title() string {
	return "The chart on a Kubernetes of two nodes, a stock client outside and a service inside"
}

func (r *remote) open(ctx context.Context, out *screen, logs string) (err error) {
	if r.tools, err = newCommands(logs); err != nil {
		return err
	}
	for _, s := range []struct {
		label, doing string
		f            func(progress func(string)) (string, error)
	}{
		{"cluster", "starting it (the very first time builds Kubernetes, a quarter of an hour)", func(p func(string)) (string, error) { return r.startCluster(ctx, p) }},
		{"image", "building and loading it", func(p func(string)) (string, error) { return r.loadImage(ctx, p) }},
		{"service", "starting it", func(func(string)) (string, error) { return r.startService(ctx) }},
		{"gateway", "installing it", func(p func(string)) (string, error) { return r.install(ctx, p) }},
		{"settings", "upgrading the release", func(func(string)) (string, error) { return r.settle(ctx) }},
	} {
		if err := out.step(s.label, s.doing, s.f); err != nil {
			return err
		}
	}
	return nil
}

func (r *remote) startCluster(ctx context.Context, progress func(string)) (string, error) {
	start := time.Now()
	if err := r.tools.prepare(ctx, progress); err != nil {
		return "", err
	}
	if err := r.tools.watched(ctx, progress, r.tools.cluster, "up"); err != nil {
		return "", err
	}
	text, err := r.tools.run(ctx, "", r.tools.cluster, "status", "--json")
	if err != nil {
		return "", err
	}
	var status struct {
		Nodes []struct{ Name string }
		Netns map[string]string
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return "", fmt.Errorf("cluster status: %w", err)
	}
	if r.outside, err = netns.Open(status.Netns["client"]); err != nil {
		return "", err
	}
	if r.control, err = netns.Open(status.Netns["cp"]); err != nil {
		return "", err
	}
	version, err := r.tools.kubectl(ctx, "", "version", "--output=json")
	if err != nil {
		return "", err
	}
	var v struct {
		ServerVersion struct{ GitVersion string }
	}
	if err := json.Unmarshal(version, &v); err != nil {
		return "", fmt.Errorf("kubectl version: %w", err)
	}
	return fmt.Sprintf("Kubernetes %s with %d nodes, up after %s", v.ServerVersion.GitVersion, len(status.Nodes), short(time.Since(start))), nil
}

func (r *remote) loadImage(ctx context.Context, progress func(string)) (string, error) {
	start := time.Now()
	if err := r.tools.watched(ctx, progress, "make", "image-gateway"); err != nil {
		return "", err
	}
	archives, err := filepath.Glob(filepath.Join(r.tools.root, "dist", "vpn-gateway-*.tar"))
	if err != nil || len(archives) != 1 {
		return "", fmt.Errorf("archives of the image in dist/: %d, want 1; `make clean` removes old ones", len(archives))
	}
	if err := r.tools.watched(ctx, progress, r.tools.cluster, "load", archives[0]); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s built and loaded into the nodes in %s", filepath.Base(archives[0]), short(time.Since(start))), nil
}

func (r *remote) startService(ctx context.Context) (string, error) {
	if _, err := r.tools.kubectl(ctx, echoManifest, "apply", "--filename=-"); err != nil {
		return "", err
	}
	_, err := r.tools.kubectl(ctx, "", "rollout", "status", "deployment/"+echoName, "--timeout="+helmTimeout)
	return "a Pod that answers by HTTP and UDP: " + net.JoinHostPort(echoHost, fmt.Sprint(echoTCPPort)), err
}

// install removes the release of an earlier demo, and installs it by the very
// line of the README.
func (r *remote) install(ctx context.Context, progress func(string)) (string, error) {
	if _, err := r.tools.helm(ctx, "status", release); err == nil {
		progress("removing what an earlier demo left")
		if _, err := r.tools.helm(ctx, "uninstall", release, "--wait", "--timeout="+helmTimeout); err != nil {
			return "", err
		}
	}
	if _, err := r.tools.kubectl(ctx, "", "delete", "secret", keysSecret, "--ignore-not-found"); err != nil {
		return "", err
	}
	progress("installing it")
	start := time.Now()
	if _, err := r.tools.run(ctx, "", r.tools.cluster, "run", "--", "sh", "-c", installLine); err != nil {
		return "", err
	}
	if _, err := r.tools.kubectl(ctx, "", "rollout", "status", "deployment/"+release, "--timeout="+helmTimeout); err != nil {
		return "", err
	}
	took := time.Since(start)
	// Before anything waits for Helm, which waits for the address.
	node, err := r.balance(ctx)
	return fmt.Sprintf("%s\nready %s later on node %s", installLine, short(took), node), err
}

// settle gives the release what the story needs beside the first line: a Secret
// for pre-shared keys, which makes a new Pod, and what clients are told.
func (r *remote) settle(ctx context.Context) (string, error) {
	if _, err := r.tools.kubectl(ctx, "", "create", "secret", "generic", keysSecret); err != nil {
		return "", err
	}
	values := map[string]any{
		"routing":       map[string]any{"routes": []string{services}, "dns": []string{clusterDNS}},
		"presharedKeys": map[string]any{"existingSecrets": []string{keysSecret}},
	}
	if err := r.upgrade(ctx, values, "--wait", "--timeout="+helmTimeout); err != nil {
		return "", err
	}
	node, err := r.balance(ctx)
	if err != nil {
		return "", err
	}
	if err := r.findPod(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("helm upgrade --reuse-values: clients get %s and the cluster's DNS; a Secret for pre-shared keys\n"+
		"%s leads to node %s and Pod %s\n"+
		"from here on the kubelet is hurried, by an annotation on the Pod; left alone it renews files within a minute or two",
		services, endpoint, node, r.pod.Status.PodIP), nil
}

// balance plays the cloud's load balancer and returns the node that it chose.
func (r *remote) balance(ctx context.Context) (node string, err error) {
	ip := netip.MustParseAddrPort(endpoint).Addr().String()
	out, err := r.tools.run(ctx, "", r.tools.cluster, "lb", "--service", release, "--ip", ip)
	return strings.TrimSpace(string(out)), err
}

// upgrade changes some of the release's values.
func (r *remote) upgrade(ctx context.Context, values map[string]any, flags ...string) error {
	text, err := yaml.Marshal(values)
	if err != nil {
		return err
	}
	file := filepath.Join(r.tools.home, "values.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	_, err = r.tools.helm(ctx, append([]string{"upgrade", release, "./charts/vpn-gateway", "--reuse-values", "--values", file}, flags...)...)
	return err
}

// findPod notes the one Pod of the gateway that is not leaving.
func (r *remote) findPod(ctx context.Context) error {
	pods, err := r.pods(ctx)
	if err != nil {
		return err
	}
	if len(pods) != 1 {
		return fmt.Errorf("%d Pods of the gateway, want 1", len(pods))
	}
	r.pod = pods[0]
	return nil
}

func (r *remote) pods(ctx context.Context) ([]corev1.Pod, error) {
	out, err := r.tools.kubectl(ctx, "", "get", "pods", "--selector="+selector, "--output=json")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("kubectl get pods: %w", err)
	}
	var pods []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			pods = append(pods, p)
		}
	}
	return pods, nil
}

func (r *remote) exec(ctx context.Context, args ...string) ([]byte, error) {
	return r.tools.kubectl(ctx, "", append([]string{"exec", r.pod.Name, "--"}, args...)...)
}

func (r *remote) addPeers(ctx context.Context, peers ...peer) (string, error) {
	out, err := r.tools.helm(ctx, "get", "values", release, "--output=json")
	if err != nil {
		return "", err
	}
	var values struct {
		Peers []gateway.Peer `json:"peers"`
	}
	if err := json.Unmarshal(out, &values); err != nil {
		return "", fmt.Errorf("helm get values: %w", err)
	}
	for _, p := range peers {
		values.Peers = append(values.Peers, p.entry)
		if len(p.file.DNS) > 0 {
			r.dns = p.file.DNS[0]
		}
		if p.psk.IsZero() {
			continue
		}
		if _, err := r.changeKey(ctx, p, p.psk); err != nil {
			return "", err
		}
	}
	return r.timed(ctx, "the helm upgrade --reuse-values", "config", func() error {
		return r.upgrade(ctx, map[string]any{"peers": values.Peers})
	})
}

func (r *remote) changeKey(ctx context.Context, p peer, psk wgclient.Secret) (string, error) {
	return r.timed(ctx, "the kubectl patch", filepath.Join("psk", keysSecret), func() error {
		patch, err := json.Marshal(map[string]any{"stringData": map[string]string{p.entry.Name: psk.Reveal()}})
		if err != nil {
			return err
		}
		_, err = r.tools.kubectl(ctx, string(patch), "patch", "secret", keysSecret, "--patch-file=/dev/stdin")
		return err
	})
}

// timed changes an object that is mounted at the given place of the agent's
// directory, and waits until it is in force. The kubelet renews what is mounted
// within a minute or so, and at once where a Pod has changed: an annotation
// hurries it.
func (r *remote) timed(ctx context.Context, event, mount string, change func() error) (string, error) {
	before, err := r.agent(ctx)
	if err != nil {
		return "", err
	}
	if err := change(); err != nil {
		return "", err
	}
	changed := time.Now()
	stamp := "vpn-gateway.test/hurry=" + changed.Format("150405.000")
	if _, err := r.tools.kubectl(ctx, "", "annotate", "pod", r.pod.Name, "--overwrite", stamp); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := r.agent(ctx)
		if err == nil && now.generation > before.generation {
			swapped, err := r.swapped(mount)
			return fmt.Sprintf("in force %s after the kubelet swapped the files, %s after %s", short(now.reloaded.Sub(swapped)), short(now.reloaded.Sub(changed)), event), err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", errors.Join(fmt.Errorf("waiting for the change to be in force: %w", context.Cause(ctx)), err)
		}
	}
}

// swapped is when the kubelet swapped the files of a mount: the age of the link
// that it put in place, as the agent sees it.
func (r *remote) swapped(mount string) (time.Time, error) {
	pid, err := agentOf(r.pod.Name)
	if err != nil {
		return time.Time{}, err
	}
	info, err := os.Lstat(filepath.Join(fmt.Sprintf("/proc/%d/root", pid), agentConfig, mount, "..data"))
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

func (r *remote) client() *netns.NS { return r.outside }

// lookUp asks the cluster's DNS for the echo service, through the tunnel.
func (r *remote) lookUp(ctx context.Context) (netip.Addr, error) {
	if r.target.IsValid() {
		return r.target, nil
	}
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return r.outside.DialContext(ctx, network, netip.AddrPortFrom(r.dns, 53).String())
	}}
	found, err := resolver.LookupNetIP(ctx, "ip4", echoHost+".")
	if err != nil {
		return netip.Addr{}, err
	}
	r.target = found[0].Unmap()
	return r.target, nil
}

func (r *remote) web(ctx context.Context) (string, netip.AddrPort, error) {
	a, err := r.lookUp(ctx)
	return fmt.Sprintf("http://%s:%d/hello", echoHost, echoTCPPort), netip.AddrPortFrom(a, echoTCPPort), err
}

func (r *remote) echo(ctx context.Context) (netip.AddrPort, error) {
	a, err := r.lookUp(ctx)
	return netip.AddrPortFrom(a, echoTCPPort), err
}

func (r *remote) identity(context.Context) (string, error) {
	pid, err := agentOf(r.pod.Name)
	if err != nil {
		return "", err
	}
	status, err := podrun.StatusOf(pid)
	return describe(status), err
}

// restarts counts those of the container, and Pods that took the first one's place.
func (r *remote) restarts(ctx context.Context) (int, error) {
	pods, err := r.pods(ctx)
	if err != nil {
		return 0, err
	}
	n, there := 0, false
	for _, p := range pods {
		if p.UID == r.pod.UID {
			there = true
		} else {
			n++
		}
		for _, c := range p.Status.ContainerStatuses {
			n += int(c.RestartCount)
		}
	}
	if !there {
		return n, fmt.Errorf("the Pod %s is gone", r.pod.Name)
	}
	return n, nil
}

func (r *remote) farewell() string {
	return "The cluster stays up: `go run -C tests/cluster . kubectl get pods -A`. `make demo-down` ends it."
}

func (r *remote) close() error {
	var errs []error
	for _, ns := range []*netns.NS{r.outside, r.control} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(append(errs, r.tools.close())...)
}
