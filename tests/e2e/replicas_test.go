//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/crowd"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	// moveOutage is what a move may cost on a machine that runs a cluster and other
	// scenarios; WireGuard by itself takes 15 s.
	moveOutage = time.Second
	killOutage = 3 * time.Second
	nodeOutage = 5 * time.Second
)

// replicated are values of a gateway of n replicas that any node leads to.
func (g *gateway) replicated(n int, clients ...client) map[string]any {
	values := peers(clients...)
	values["replicaCount"] = n
	values["service"] = map[string]any{"externalTrafficPolicy": "Cluster", "sessionAffinity": "None"}
	values["readinessProbe"] = map[string]any{"periodSeconds": 1, "failureThreshold": 1}
	values["server"] = map[string]any{"publicEndpoint": netip.AddrPortFrom(g.address, clientPort).String(), "drain": "30s"}
	return values
}

// testReplicas moves a client's session from replica to replica, by all that happens
// to Pods, under a stream of 100 packets a second.
func testReplicas(t *testing.T, c *cluster) {
	g := c.newGateway(t, "Replicas", nil)
	alice := newClient(t, "alice", 2)
	values := g.replicated(3, alice)
	g.install(t, values)
	g.grants(t, release, ofFleet()...)
	g.settled(t, 3)
	g.balance(t)
	first := must[readiness](t)(g.readyz(t.Context(), must[[]corev1.Pod](t)(g.pods(t.Context()))[0]))
	config := alice.config(g, first.PublicKey)
	config.Peers[0].AllowedIPs = append(config.Peers[0].AllowedIPs, netip.MustParsePrefix(podCIDR))
	device := wgclient.ForTest(t, config, wgclient.Options{NS: g.machine(t)})
	g.reachesEcho(t, device)
	s := g.startStream(t, device)
	time.Sleep(6 * time.Second) // in a lab, WireGuard may shake hands again after 5 s

	g.step(t, s, "rolling upgrade of 3 replicas", moveOutage, func() {
		g.run(t, g.kubectl("rollout", "restart", "deployment/"+release, "--namespace", g.namespace))
		g.run(t, g.kubectl("rollout", "status", "deployment/"+release, "--namespace", g.namespace))
		g.settled(t, 3)
	})
	g.passesOn(t, s, alice, device)
	g.step(t, s, "scale-out from 3 to 5, and scale-in to 2", moveOutage, func() {
		for _, n := range []int{5, 2} {
			values["replicaCount"] = n
			g.upgrade(t, values)
			g.settled(t, n)
		}
	})
	g.step(t, s, "the holder killed with SIGKILL, and started again", killOutage, func() {
		holder := g.holder(t)
		kill(t, holder)
		g.moved(t, holder)
		g.settled(t, 2)
	})
	g.step(t, s, "the holder deleted without grace", killOutage, func() {
		holder := g.holder(t)
		g.run(t, g.kubectl("delete", "pod", holder.Name, "--namespace", g.namespace, "--grace-period=0", "--force"))
		g.settled(t, 2)
	})
	report := s.Stop(10 * time.Second)
	g.times.note(g.scenario, "the whole stream", report.String())
}

// kubeProxySyncs is when kube-proxy knows of a change: it takes up endpoints once a second.
const kubeProxySyncs = 3 * time.Second

// nodeClients are enough for some of them to be at each of three replicas.
const nodeClients = 12

// testNodeGone cuts the power of a node that has two of a gateway's three replicas, and
// clients. The replica that is left is not the majority. Nobody tells Kubernetes, which by
// itself would go on sending there for 40 s.
func testNodeGone(t *testing.T, c *cluster) {
	g := c.newGateway(t, "NodeGone", nil)
	var people []client
	for i := range nodeClients {
		people = append(people, newClient(t, fmt.Sprintf("client-%d", i), byte(2+i)))
	}
	values := g.replicated(3, people...)
	values["topologySpreadConstraints"] = []map[string]any{{
		"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "matchLabelKeys": []string{"pod-template-hash"},
	}}
	const lost = "n2"
	values["affinity"] = map[string]any{"nodeAffinity": map[string]any{"preferredDuringSchedulingIgnoredDuringExecution": []map[string]any{{
		"weight":     100,
		"preference": map[string]any{"matchExpressions": []map[string]any{{"key": "kubernetes.io/hostname", "operator": "In", "values": []string{lost}}}},
	}}}}
	g.install(t, values)
	g.settled(t, 3)
	g.balance(t) // by the first node that has a replica
	pods := must[[]corev1.Pod](t)(g.pods(t.Context()))
	onNode := map[string]int{}
	for i := range pods {
		onNode[pods[i].Spec.NodeName]++
	}
	if onNode["n1"] != 1 || onNode[lost] != 2 {
		t.Fatalf("replicas on nodes: %v, want one on n1 and two on %s", onNode, lost)
	}
	first := must[readiness](t)(g.readyz(t.Context(), pods[0]))
	time.Sleep(kubeProxySyncs) // else all flows go to whom it knew first
	clients := g.startPinging(t, people, first.PublicKey)
	eventually(t, "clients at replicas of both nodes", func(ctx context.Context) (bool, string) {
		f, err := g.fleetOf(ctx, &pods[0])
		if err != nil {
			return false, err.Error()
		}
		connected := map[string]int{}
		for _, m := range f.Members {
			for i := range pods {
				if pods[i].Name == m.Name {
					connected[pods[i].Spec.NodeName] += m.ConnectedPeers
				}
			}
		}
		return connected[lost] > 0 && connected["n1"]+connected[lost] == nodeClients, fmt.Sprint(connected)
	})
	time.Sleep(6 * time.Second) // in a lab, WireGuard may shake hands again after 5 s
	for _, c := range clients {
		c.Reset()
	}
	t.Cleanup(func() {
		start := time.Now()
		g.bringBack(t, lost)
		g.times.add(g.scenario, "node back", time.Since(start))
	})
	g.run(t, command{args: []string{g.program, "node", "crash", lost}})
	time.Sleep(2 * nodeOutage)
	var outages []time.Duration
	for _, c := range clients {
		_, _, run := c.Loss(uint64(time.Second / nodeBeat))
		outages = append(outages, time.Duration(run)*nodeBeat)
	}
	slices.Sort(outages)
	worst := outages[len(outages)-1]
	g.times.add(g.scenario, fmt.Sprintf("%d clients, longest outage of one", nodeClients), worst)
	if worst > nodeOutage {
		t.Errorf("outages %v, want %s at most", outages, nodeOutage)
	}
	if worst < nodeBeat {
		t.Errorf("outages %v: the node that is gone was none that mattered", outages)
	}
	for i, c := range clients {
		c.Reset()
		eventually(t, people[i].name, func(context.Context) (bool, string) {
			_, n, _ := c.Counts()
			return n > 0, "left behind: no answers any more"
		})
	}
}

// bringBack starts a node again and waits until it is ready: the namespace's end waits
// for its kubelet.
func (g *gateway) bringBack(t *testing.T, node string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // that of t is over
	defer cancel()
	if _, err := g.try(ctx, command{args: []string{g.program, "node", "start", node}}); err != nil {
		t.Error(err)
	}
	for ; ctx.Err() == nil; time.Sleep(pollInterval) {
		n, err := g.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if err == nil && slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue && time.Since(c.LastHeartbeatTime.Time) < patience
		}) {
			return
		}
	}
	t.Errorf("node %s is not back", node)
}

const nodeBeat = 50 * time.Millisecond

// startPinging brings clients up, on one machine, and has them send until t ends.
func (g *gateway) startPinging(t *testing.T, people []client, publicKey string) []*crowd.Client {
	t.Helper()
	identity := crowd.Identity{PublicKey: publicKey, Endpoint: netip.AddrPortFrom(g.address, clientPort)}
	ns := g.machine(t)
	ctx, cancel := context.WithCancel(context.Background())
	var pinging sync.WaitGroup
	t.Cleanup(func() { cancel(); pinging.Wait() })
	var out []*crowd.Client
	for _, p := range people {
		c := startOne(t, ns, p, identity)
		out = append(out, c)
		pinging.Go(func() { c.Ping(ctx, g.status.APIServer.Address.Addr(), nodeBeat) })
	}
	return out
}

// step does something to the replicas, and says what it cost the stream.
func (g *gateway) step(t *testing.T, s *stream.Stream, what string, most time.Duration, do func()) {
	t.Helper()
	before := s.Sent()
	start := time.Now()
	do()
	took := time.Since(start)
	flows(t, s, streamRate) // the client is not left behind
	time.Sleep(time.Second)
	lost, outage := s.Loss(before)
	g.times.add(g.scenario, what, took)
	g.times.note(g.scenario, "stream while "+what, fmt.Sprintf("%d lost, longest outage %d ms", lost, outage.Milliseconds()))
	if outage > most {
		t.Errorf("%s: longest outage %s, want %s at most (%d lost)", what, outage, most, lost)
	}
}

// settled waits until there are n Pods, all ready, and each knows of all.
func (g *gateway) settled(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d replicas", n), func(ctx context.Context) (bool, string) {
		list, err := g.client.CoreV1().Pods(g.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil || len(list.Items) != n {
			return false, fmt.Sprintf("%d Pods, %v", len(list.Items), err)
		}
		for i := range list.Items {
			f, err := g.fleetOf(ctx, &list.Items[i])
			if err != nil || !isReady(&list.Items[i]) || f.Replicas != n {
				return false, fmt.Sprintf("%s: ready %t, knows of %d, %v", list.Items[i].Name, isReady(&list.Items[i]), f.Replicas, err)
			}
		}
		return true, ""
	})
}

// members is what a replica says of all of them.
type members struct {
	Replicas int
	Members  []struct {
		Name, State    string
		ConnectedPeers int
	}
}

func (g *gateway) fleetOf(ctx context.Context, pod *corev1.Pod) (members, error) {
	var m members
	_, body, err := g.get(ctx, "http://"+net.JoinHostPort(pod.Status.PodIP, "8080")+"/fleet")
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal([]byte(body), &m)
}

// holder is the Pod that has the client's session.
func (g *gateway) holder(t *testing.T) corev1.Pod {
	t.Helper()
	var holder corev1.Pod
	eventually(t, "a holder of the session", func(ctx context.Context) (bool, string) {
		pods, err := g.pods(ctx)
		if err != nil || len(pods) == 0 {
			return false, fmt.Sprintf("%d Pods, %v", len(pods), err)
		}
		f, err := g.fleetOf(ctx, &pods[0])
		if err != nil {
			return false, err.Error()
		}
		for _, m := range f.Members {
			for i := range pods {
				if m.ConnectedPeers == 1 && m.Name == pods[i].Name {
					holder = pods[i]
					return true, ""
				}
			}
		}
		return false, fmt.Sprintf("%+v", f)
	})
	return holder
}

// moved waits until the session is another Pod's, or that Pod's anew.
func (g *gateway) moved(t *testing.T, from corev1.Pod) {
	t.Helper()
	eventually(t, "the container to be started again", func(ctx context.Context) (bool, string) {
		pod, err := g.client.CoreV1().Pods(g.namespace).Get(ctx, from.Name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		restarts := int32(0)
		for _, s := range pod.Status.ContainerStatuses {
			restarts += s.RestartCount
		}
		return restarts == 1 && isReady(pod), fmt.Sprintf("%d restarts", restarts)
	})
}

// kill ends the agent of a Pod with SIGKILL, as the kernel does when memory runs out.
func kill(t *testing.T, pod corev1.Pod) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(file)
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if !strings.Contains(string(text), string(pod.UID)) || !strings.HasPrefix(string(line), "/vpn-agent\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed++
	}
	if killed != 1 {
		t.Fatalf("killed %d processes of Pod %s, want one", killed, pod.Name)
	}
}
