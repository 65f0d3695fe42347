package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
)

// TestNothingRunsPrivileged looks at the process that forwards packets: it has
// CAP_NET_ADMIN and nothing else, cannot write to its root file system nor to
// /proc/sys, and forwards nevertheless.
func TestNothingRunsPrivileged(t *testing.T) {
	alice := newPerson(t, "alice", "10.8.0.2")
	w := newWorld(t, netns.Plan{Clients: 1}, gateway.Config{Peers: []gateway.Peer{alice.entry()}})
	target := w.echo(t).Addr()
	alice.connect(t, w, 0, "10.0.0.0/8")
	wantNothingLost(t, startStream(t, w.Clients[0], target, 100).Stop(patience))

	wantUnprivileged(t, w)
}

func wantUnprivileged(t *testing.T, w *world) {
	t.Helper()
	status, err := w.Container().Status()
	if err != nil {
		t.Fatal(err)
	}
	mounts := status.Mounts
	status.Mounts = nil
	admin := []string{"NET_ADMIN"}
	want := podrun.Status{Permitted: admin, Effective: admin, Bounding: admin, NoNewPrivs: true} // of user 0
	if diff := cmp.Diff(want, status); diff != "" {
		t.Errorf("process (-want +got):\n%s", diff)
	}
	status.Mounts = mounts
	for path, want := range map[string]bool{
		"/": true, "/vpn-agent": true, "/etc": true, "/proc/sys": true, "/sys": true,
		"/etc/vpn-gateway/config": true, "/etc/vpn-gateway/key": true,
		"/var/run/wireguard": false,
	} {
		if got := status.ReadOnly(path); got != want {
			t.Errorf("read-only(%s): %t, want %t", path, got, want)
		}
	}

	// Through the container's own mounts even we cannot write, with all the
	// power of this process.
	inside := filepath.Join("/proc", strconv.Itoa(w.Container().PID()), "root")
	for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/eth0/forwarding", "/new"} {
		err := w.Pod.Network().Do(func() error {
			f, err := os.OpenFile(filepath.Join(inside, path), os.O_WRONLY|os.O_CREATE, 0o600)
			if err == nil {
				_ = f.Close()
			}
			return err
		})
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("writing %s: %v, want %v", path, err, unix.EROFS)
		}
	}

	// What it forwards, it forwards by the two devices' own switches.
	got := map[string]string{}
	for _, device := range []string{"all", "default", "eth0", "wg0", "lo"} {
		got[device] = forwarding(t, w.Pod.Network(), device)
	}
	if diff := cmp.Diff(map[string]string{"all": "0", "default": "0", "lo": "0", "eth0": "1", "wg0": "1"}, got); diff != "" {
		t.Errorf("forwarding (-want +got):\n%s", diff)
	}
	if sysctls := podSysctls(w); sysctls != "" {
		t.Errorf("the Pod asks for sysctls %s, want none", sysctls)
	}
}

// podSysctls are those that the chart's Pod asks for.
func podSysctls(w *world) string {
	if c := w.Spec().SecurityContext; c != nil && len(c.Sysctls) > 0 {
		return fmt.Sprint(c.Sysctls)
	}
	return ""
}

// killedOutage is what the end of a process may cost; WireGuard by itself takes 15 s.
const killedOutage = 3 * time.Second

// TestKilled kills the agent as the kernel does when memory runs out, and starts
// it again as the kubelet does. Userspace sessions die with the process, and by itself
// the client makes a new one when it misses answers for 15 s (KEEPALIVE_TIMEOUT and
// REKEY_TIMEOUT, section 6.1 of the WireGuard whitepaper). But the agent knows by the note
// of the one before whose packets they are, and calls. The kernel's sessions outlive the
// agent: see TestKernel.
func TestKilled(t *testing.T) {
	o := newOffice(t, "userspace")
	s := startStream(t, o.Clients[0], o.target, 100)
	device, system := deviceOf(t, o.Gateway), systemOf(t, o.Pod.Network())
	exit, err := o.Container().Kill()
	if err != nil {
		t.Fatal(err)
	}
	if exit.Signal != unix.SIGKILL {
		t.Fatalf("the agent %s, want it killed", exit)
	}
	if err := o.Container().Start(); err != nil {
		t.Fatal(err)
	}
	if err := o.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(device, deviceOf(t, o.Gateway)); diff != "" {
		t.Errorf("device (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(system, systemOf(t, o.Pod.Network())); diff != "" {
		t.Errorf("network (-before +after):\n%s", diff)
	}
	await(t, s, 50)
	r := s.Stop(time.Second)
	t.Logf("killed and started again: %s, outage %s", r, r.LongestLoss)
	if r.Lost == 0 {
		t.Errorf("stream: %s; it was meant to be interrupted", r)
	}
	if r.LongestLoss > killedOutage {
		t.Errorf("outage %s, want %s at most", r.LongestLoss, killedOutage)
	}
	wantNothingLost(t, startStream(t, o.Clients[0], o.target, 100).Stop(patience))
}

// TestDrain ends a gateway as the kubelet ends a Pod. It tells the load balancer
// first, serves on for server.drain, and leaves nothing behind.
func TestDrain(t *testing.T) {
	need(t)
	testDrain(t, "userspace", false)
}

func testDrain(t *testing.T, dataPlane string, kernelClient bool) {
	alice := newPerson(t, "alice", "10.8.0.2")
	site := alice.entry()
	site.AllowedIPs = []string{"192.168.50.0/24"}
	var before system
	w := &world{Topology: netns.TopologyForTest(t, netns.Plan{Clients: 1}), kernelClients: kernelClient}
	w.Gateway = startGateway(t, w.Topology, gateway.Options{
		Config:  gateway.Config{Values: "server: {drain: 3s, dataPlane: " + dataPlane + "}", Peers: []gateway.Peer{site}},
		Prepare: func(pod *netns.NS) error { before = systemOf(t, pod); return nil },
	})
	target := w.echo(t).Addr()
	alice.connect(t, w, 0, "10.0.0.0/8")
	const rate = 100
	s := startStream(t, w.Clients[0], target, rate)
	if r := w.readiness(t); !r.Ready || !w.HealthPortOpen(t.Context()) {
		t.Fatalf("before the end: %+v, health port open: %t", r, w.HealthPortOpen(t.Context()))
	}

	if err := w.Container().Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r, err := w.Await(t.Context(), "the gateway to be unready", func(r gateway.Readiness) bool { return !r.Ready })
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Conditions {
		if c.OK == (c.Name == "serving") {
			t.Errorf("condition %+v while draining, want only serving to be false", c)
		}
	}
	if w.HealthPortOpen(t.Context()) {
		t.Error("the health port is open while draining")
	}
	if err := w.Container().Probe(t.Context(), podrun.Liveness); err != nil {
		t.Errorf("the kubelet would kill the draining agent: %v", err)
	}
	await(t, s, rate)
	wantNothingLost(t, s.Stop(patience))

	<-w.Container().Done()
	eventually(t, "the end of the agent", func() string {
		if exits := w.Container().Exits(); len(exits) != 1 || exits[0].Code != 0 || exits[0].Signal != 0 {
			return fmt.Sprintf("%v, want one with status 0", exits)
		}
		return ""
	})
	if diff := cmp.Diff(before, systemOf(t, w.Pod.Network())); diff != "" {
		t.Errorf("network (-before the start +after the end):\n%s", diff)
	}
	left, err := os.ReadDir(w.Pod.VolumePath("wireguard"))
	left = slices.DeleteFunc(left, func(e os.DirEntry) bool { return e.Name() == "sessions" })
	if err != nil || len(left) > 0 {
		t.Errorf("left in /var/run/wireguard: %v, %v; want at most the note for the next process", left, err)
	}
	if log := w.log(t); log[len(log)-1].Text("msg") != "leaving" || strings.Contains(fmt.Sprint(log), "ERROR") {
		t.Errorf("log: %v, want no error and goodbye", log)
	}
}
