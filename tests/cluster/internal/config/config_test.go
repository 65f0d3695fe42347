package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/pki"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

// TestGolden compares every file and command line with the ones in testdata.
// UPDATE_GOLDEN=1 writes those anew: then read the difference in git.
func TestGolden(t *testing.T) {
	plan, err := topology.New(2)
	if err != nil {
		t.Fatal(err)
	}
	node := plan.Nodes[0]
	text := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	commands := func(v any) []byte {
		t.Helper()
		return append(text(json.MarshalIndent(v, "", "  ")), '\n')
	}
	extra := ExtraFlags{
		APIServer:         []string{"--v=1"},
		ControllerManager: []string{"--v=2"},
		Scheduler:         []string{"--v=3"},
		Kubelet:           []string{"--v=4"},
	}
	files := map[string][]byte{
		"containerd.toml":    Containerd(),
		"kubelet.yaml":       text(Kubelet(plan, node, KubeletSettings{MaxOpenFiles: 20000})),
		"kube-proxy.yaml":    text(KubeProxy(plan, node)),
		"cni.conflist":       text(CNI(node)),
		"nat.nft":            NAT(plan, node),
		"kubeconfig.yaml":    text(Kubeconfig(plan.APIServer(), []byte("ca"), pki.Pair{Cert: []byte("cert"), Key: []byte("key")})),
		"control-plane.json": commands(ControlPlaneProcesses(plan, extra)),
		"node.json":          commands(map[string]any{"setup": NodeSetup(), "processes": NodeProcesses(plan, node, extra)}),
	}
	for name, got := range files {
		t.Run(name, func(t *testing.T) {
			golden := filepath.Join("testdata", name)
			if os.Getenv("UPDATE_GOLDEN") == "1" {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-golden +got):\n%s", name, diff)
			}
		})
	}
}

func TestKubeletOverrides(t *testing.T) {
	plan, err := topology.New(1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Kubelet(plan, plan.Nodes[0], KubeletSettings{Overrides: map[string]string{
		"syncFrequency":                    "5s", // new
		"oomScoreAdj":                      "7",  // replaced
		"featureGates.SomeGate":            "true",
		"authentication.anonymous.enabled": "true",
		"allowedUnsafeSysctls":             "[net.ipv6.conf.all.forwarding]",
	}})
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		SyncFrequency        string
		OOMScoreAdj          int `json:"oomScoreAdj"`
		FeatureGates         map[string]bool
		AllowedUnsafeSysctls []string
		ClusterDomain        string
		Authentication       struct{ Anonymous, Webhook struct{ Enabled bool } }
	}
	if err := yaml.Unmarshal(got, &c); err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	want := object{
		"syncFrequency": "5s", "oomScoreAdj": 7, "gates": map[string]bool{"SomeGate": true},
		"sysctls": []string{"net.ipv6.conf.all.forwarding"}, "domain": "cluster.local",
		"anonymous": true, "webhook": true,
	}
	have := object{
		"syncFrequency": c.SyncFrequency, "oomScoreAdj": c.OOMScoreAdj, "gates": c.FeatureGates,
		"sysctls": c.AllowedUnsafeSysctls, "domain": c.ClusterDomain,
		"anonymous": c.Authentication.Anonymous.Enabled, "webhook": c.Authentication.Webhook.Enabled,
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestKubeletOverridesRefused(t *testing.T) {
	plan, err := topology.New(1)
	if err != nil {
		t.Fatal(err)
	}
	for path, value := range map[string]string{
		"clusterDomain.x": "1",     // a string is in the way
		"syncFrequency":   "a: b:", // no YAML
	} {
		_, err := Kubelet(plan, plan.Nodes[0], KubeletSettings{Overrides: map[string]string{path: value}})
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s=%s: error %v does not name the setting", path, value, err)
		}
	}
}
