package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/vm"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// TestKernel tests the kernel's data plane: here, where the kernel has WireGuard,
// otherwise in a virtual machine, in which this program runs again with this test
// alone.
func TestKernel(t *testing.T) {
	testenv.Need(t, testenv.Linux(), testenv.Root(), testenv.NetNS(), testenv.Tool("wg", "nft"))
	if missing := testenv.Missing(wgclient.KernelModule()); len(missing) > 0 {
		t.Logf("this machine lacks %s: in a virtual machine, then", strings.Join(missing, "; "))
		testenv.Need(t, vm.Needs())
		testInVirtualMachine(t)
		return
	}
	// Slowly: the processor may be an emulated one.
	o := &office{rate: 100}
	o.open(t, "auto", true)
	t.Run("auto takes the kernel", func(t *testing.T) { testAutoTakesKernel(t, o) })
	t.Run("unprivileged", func(t *testing.T) { wantUnprivileged(t, o.world) })
	t.Run("taken", func(t *testing.T) {
		testTaken(t, o, []string{
			"peer added to the values", "peer's address changed", "peer removed from the values", "other peer's PSK changed",
			"own allowed IPs extended", "own allowed IPs shortened", "firewall made anew",
		})
	})
	t.Run("PSK", func(t *testing.T) { testPresharedKey(t, o) })
	t.Run("same again", func(t *testing.T) { testSameAgain(t, o) })
	t.Run("killed", func(t *testing.T) { testKilledInKernel(t, o) })
	t.Run("changed while killed", func(t *testing.T) { testChangedWhileKilled(t, o) })
	t.Run("server key", func(t *testing.T) { testServerKeyInKernel(t, o) })
	t.Run("drain", func(t *testing.T) { testDrain(t, "kernel", true) })
	t.Run("moved to another replica", func(t *testing.T) { testMovedFlow(t, "kernel", true) })
	if program := os.Getenv(envDeviceTests); program != "" {
		t.Run("device", func(t *testing.T) { testDeviceInKernel(t, program) })
	}
}

// envDeviceTests names the environment variable that holds the tests of package device, a
// program. In a virtual machine, its subtests for the kernel's data plane run, which are left out
// where the kernel has no WireGuard.
const envDeviceTests = "VPN_GATEWAY_DEVICE_TESTS"

func testDeviceInKernel(t *testing.T, program string) {
	out, runErr := exec.CommandContext(t.Context(), program, "-test.v", "-test.run=/^kernel$").CombinedOutput()
	results := resultsIn(t, string(out), `Test\w+/kernel\S*`)
	if runErr != nil || results == 0 || t.Failed() {
		t.Errorf("%d results, error %v; the output:\n%s", results, runErr, out)
	}
}

// resultsIn takes the results of tests of another program for subtests of t, of those whose
// names are as a pattern says, and returns how many there are.
func resultsIn(t *testing.T, output, pattern string) int {
	t.Helper()
	results := regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (`+pattern+`) \(`).FindAllStringSubmatch(output, -1)
	for _, result := range results {
		name := strings.TrimPrefix(result[2], t.Name()+"/")
		t.Run(name, func(t *testing.T) {
			if result[1] != "PASS" {
				t.Errorf("%s in the other program", result[1])
			}
		})
	}
	return len(results)
}

// deviceTests builds the tests of package device.
func deviceTests(t *testing.T, root string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "device.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-trimpath", "-o", program, "./agent/internal/device")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the tests of package device: %v\n%s", err, out)
	}
	return program
}

func testAutoTakesKernel(t *testing.T, o *office) {
	r := o.readiness(t)
	if r.DataPlane != "kernel" || r.Reason != "the node's kernel has WireGuard" {
		t.Errorf("data plane %s, because %s", r.DataPlane, r.Reason)
	}
	if got := o.metric(t, "vpn_gateway_data_plane_info", "data_plane", "kernel", "reason", r.Reason); got != 1 {
		t.Errorf("metric of the data plane: %v, want 1", got)
	}
	if lines := o.lines(t, "data plane", 0); len(lines) != 1 || lines[0].Text("dataPlane") != "kernel" || lines[0].Text("reason") != r.Reason {
		t.Errorf("log lines of the data plane: %v", lines)
	}
	link, err := o.Pod.Network().Netlink().LinkByName(o.Interface)
	if err != nil {
		t.Fatal(err)
	}
	if link.Type() != "wireguard" {
		t.Errorf("link of type %s, want the kernel's", link.Type())
	}
}

// testKilledInKernel kills the agent. Tunnels are the kernel's, and nobody outside
// may notice: not while the agent is away, and not when it is back.
func testKilledInKernel(t *testing.T, o *office) {
	device, system, index := deviceOf(t, o.Gateway), systemOf(t, o.Pod.Network()), o.linkIndex(t)
	o.underStream(t, func() {
		if _, err := o.Container().Kill(); err != nil {
			t.Fatal(err)
		}
		s := startStream(t, o.Clients[0], o.target, o.rate) // nobody is there
		wantNothingLost(t, s.Stop(patience))
		o.restart(t)
	})
	if diff := cmp.Diff(device, deviceOf(t, o.Gateway)); diff != "" {
		t.Errorf("device (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(system, systemOf(t, o.Pod.Network())); diff != "" {
		t.Errorf("network (-before +after):\n%s", diff)
	}
	if got := o.linkIndex(t); got != index {
		t.Errorf("link number %d, was %d: it was made anew", got, index)
	}
	if r := o.readiness(t); !strings.Contains(r.Reason, "took over") {
		t.Errorf("reason %q, want that the link was taken over", r.Reason)
	}
}

// testChangedWhileKilled: what changes in the files while nobody looks is taken
// up by the next agent, and costs no packet either.
func testChangedWhileKilled(t *testing.T, o *office) {
	index := o.linkIndex(t)
	c := o.changed(func(c *gateway.Config) {
		erin := newPerson(t, "erin", "10.8.0.66")
		c.Peers = append(c.Peers[:1:1], erin.entry()) // bob is gone
		c.Peers[0].AllowedIPs = []string{"192.168.99.0/24"}
	})
	o.underStream(t, func() {
		if _, err := o.Container().Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := o.Update(c); err != nil {
			t.Fatal(err)
		}
		o.restart(t)
	})
	o.config = c
	if diff := cmp.Diff(deviceFor(t, o.Gateway, c), deviceOf(t, o.Gateway)); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	if got := o.linkIndex(t); got != index {
		t.Errorf("link number %d, was %d: it was made anew", got, index)
	}
	if routes := systemOf(t, o.Pod.Network()).Routes; !slices.Contains(routes, "192.168.99.0/24 via <nil> dev "+o.Interface) {
		t.Errorf("routes %v, want one to 192.168.99.0/24", routes)
	}
}

// testServerKeyInKernel goes through a rotation of the server key, with the agent
// killed in the middle of it.
func testServerKeyInKernel(t *testing.T, o *office) {
	green, err := wgclient.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	setKeys := func(from time.Time, identities int) {
		t.Helper()
		if _, err := o.SetKeys(map[string]wgclient.Secret{gateway.Dated("green", from): green}); err != nil {
			t.Fatal(err)
		}
		if _, err := o.Await(t.Context(), "the server keys to be answered to", func(r gateway.Readiness) bool {
			return len(r.Identities) == identities && r.Identities[identities-1].ListenPort == gateway.GreenPort
		}); err != nil {
			t.Fatal(err)
		}
	}
	from := inSeconds(2)
	o.underStream(t, func() { setKeys(from, 2) })
	o.underStream(t, func() { until(from.Add(time.Second)) })

	s := startStream(t, o.Clients[0], o.target, o.rate)
	file := o.client.Config()
	file.Peers[0].PublicKey, file.Peers[0].Endpoint = green.Public(), o.GreenEndpoint().String()
	if err := o.client.Sync(file); err != nil {
		t.Fatal(err)
	}
	await(t, s, uint64(o.rate))
	r := s.Stop(time.Second)
	t.Logf("the client moves by its file: %s, outage %d ms", r, r.LongestLoss.Milliseconds())
	if r.Lost > uint64(o.rate) {
		t.Errorf("%d packets lost, want no more than those of a second", r.Lost)
	}

	o.underStream(t, func() {
		if _, err := o.Container().Kill(); err != nil {
			t.Fatal(err)
		}
		o.restart(t)
	})
	if r := o.readiness(t); len(r.Identities) != 2 {
		t.Errorf("after the agent was killed: %+v, want both keys to be answered to", r.Identities)
	}
	// A key that has been in force for long enough lets the other one retire.
	o.underStream(t, func() { setKeys(time.Now().Add(-8*24*time.Hour), 1) })
}

func (o *office) restart(t *testing.T) {
	t.Helper()
	if err := o.Container().Start(); err != nil {
		t.Fatal(err)
	}
	if err := o.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (o *office) linkIndex(t *testing.T) int {
	t.Helper()
	link, err := o.Pod.Network().Netlink().LinkByName(o.Interface)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

// testInVirtualMachine runs TestKernel in a virtual machine with all that it needs
// of this one, and takes its subtests' results for its own.
func testInVirtualMachine(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := agent()
	if err != nil {
		t.Fatal(err)
	}
	root, err := gateway.Root()
	if err != nil {
		t.Fatal(err)
	}
	logs := testenv.Artifacts(t)
	var out bytes.Buffer
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	runErr := vm.Run(ctx, vm.Options{
		Program: program,
		Args:    []string{"-test.run=^TestKernel$", "-test.v"},
		Env:     []string{envAgent + "=/vpn-agent", envDeviceTests + "=/device.test", testenv.EnvRequire + "=1"},
		Files: map[string]string{
			"/vpn-agent":          binary,
			"/device.test":        deviceTests(t, root),
			"/charts/vpn-gateway": filepath.Join(root, "charts", "vpn-gateway"),
			"/usr/bin/wg":         testenv.MustTool(t, "wg"),
			"/usr/sbin/nft":       testenv.MustTool(t, "nft"),
		},
		// What the gateway needs, its client, and the network around them.
		Modules: []string{
			"wireguard", "nf_tables", "nft_chain_nat", "nft_ct", "nf_conntrack_netlink", "nft_masq", "nft_nat", "nft_objref", "nft_reject_inet",
			"nft_limit", "nft_log", "nfnetlink_log", "bridge", "tun", "veth",
		},
		ConsoleLog: filepath.Join(logs, "console.log"),
		Output:     &out,
	})
	if err := os.WriteFile(filepath.Join(logs, "guest.log"), out.Bytes(), 0o644); err != nil {
		t.Error(err)
	}
	t.Logf("the virtual machine ran for %s", time.Since(start).Round(time.Second))
	results := resultsIn(t, out.String(), `TestKernel/\S+`)
	if runErr != nil || results == 0 || t.Failed() {
		t.Errorf("%d results, error %v; the output of the virtual machine:\n%s", results, runErr, out.String())
	}
}
