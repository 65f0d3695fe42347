// Package config renders what a machine's daemons read and how they are
// called. All of it is a pure function of the topology and a few settings, and
// all paths are those that the machine itself sees, the same on every host.
package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/cgroup"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/machine"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/pki"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

// Names of images that the cluster itself brings, the last one where it is asked
// for. `.test` is reserved (RFC 6761): no registry can ever answer for them.
const (
	PauseImage           = "vpn-gateway.test/pause:1"
	CoreDNSImage         = "vpn-gateway.test/coredns:1"
	EchoImage            = "vpn-gateway.test/echo:1"
	ExternalSecretsImage = "vpn-gateway.test/external-secrets:1"
)

const (
	criSocket = "unix:///run/containerd/containerd.sock"
	cniDir    = machine.Etc + "/cni"
)

// Containerd is the configuration of containerd, version 3 of its format.
func Containerd() []byte {
	return []byte(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "` + strings.TrimPrefix(criSocket, "unix://") + `"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "` + PauseImage + `"

[plugins."io.containerd.cri.v1.runtime"]
  # Where the capability CAP_SYS_RESOURCE is missing, a negative oom_score_adj is refused.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["` + machine.Bin + `"]
    conf_dir = "` + cniDir + `"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "` + machine.Bin + `/runc"
      SystemdCgroup = false

# These two would make directories in the host's /opt and /etc.
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
`)
}

// KubeletSettings is what differs between kubelets.
type KubeletSettings struct {
	// MaxOpenFiles is the limit that the kubelet sets itself: no more than the
	// hard limit of its process where raising that is not allowed.
	MaxOpenFiles int
	// Overrides replace fields of KubeletConfiguration: the key is the path
	// of a field with dots, the value is YAML.
	Overrides map[string]string
}

// Kubelet is the KubeletConfiguration of a node.
func Kubelet(t topology.Topology, node topology.Node, settings KubeletSettings) ([]byte, error) {
	c := map[string]any{
		"apiVersion":               "kubelet.config.k8s.io/v1beta1",
		"kind":                     "KubeletConfiguration",
		"failCgroupV1":             false,
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + cgroup.Path(node.Name),
		"containerRuntimeEndpoint": criSocket,
		"failSwapOn":               false,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": machine.Etc + "/ca.crt"},
		},
		"authorization":     map[string]any{"mode": "Webhook"},
		"tlsCertFile":       machine.Etc + "/kubelet.crt",
		"tlsPrivateKeyFile": machine.Etc + "/kubelet.key",
		"clusterDNS":        []string{t.DNSIP().String()},
		"clusterDomain":     "cluster.local",
		"resolvConf":        machine.Etc + "/resolv.conf",
		"volumePluginDir":   volumePlugins,
		"oomScoreAdj":       0,
		"maxOpenFiles":      settings.MaxOpenFiles,
		// The disk is the host's: how full it is, is not the cluster's business.
		"evictionHard": map[string]any{
			"memory.available":   "100Mi",
			"nodefs.available":   "0%",
			"nodefs.inodesFree":  "0%",
			"imagefs.available":  "0%",
			"imagefs.inodesFree": "0%",
		},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
	}
	for _, path := range slices.Sorted(maps.Keys(settings.Overrides)) {
		if err := set(c, path, settings.Overrides[path]); err != nil {
			return nil, fmt.Errorf("kubelet setting %s: %w", path, err)
		}
	}
	return yaml.Marshal(c)
}

// set puts a YAML value at a dotted path, making the objects on the way.
func set(object map[string]any, path, value string) error {
	keys := strings.Split(path, ".")
	for _, key := range keys[:len(keys)-1] {
		next, ok := object[key].(map[string]any)
		if !ok {
			if object[key] != nil {
				return fmt.Errorf("%s is not an object", key)
			}
			next = map[string]any{}
			object[key] = next
		}
		object = next
	}
	var v any
	if err := yaml.Unmarshal([]byte(value), &v); err != nil {
		return fmt.Errorf("value %q is no YAML: %w", value, err)
	}
	object[keys[len(keys)-1]] = v
	return nil
}

// KubeProxy is the KubeProxyConfiguration of a node.
func KubeProxy(t topology.Topology, node topology.Node) ([]byte, error) {
	return yaml.Marshal(map[string]any{
		"apiVersion":       "kubeproxy.config.k8s.io/v1alpha1",
		"kind":             "KubeProxyConfiguration",
		"mode":             "nftables",
		"clusterCIDR":      t.Pods.String(),
		"hostnameOverride": node.Name,
		"clientConnection": map[string]any{"kubeconfig": machine.Etc + "/kube-proxy.kubeconfig"},
		// Limits of connection tracking are the host's: leave them alone.
		"conntrack":   map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
		"oomScoreAdj": 0,
	})
}

// CNI is the network configuration list of a node's Pods: a routed veth pair
// each, an address of the node's own range, and hostPorts.
func CNI(node topology.Node) ([]byte, error) {
	type object = map[string]any
	return json.MarshalIndent(object{
		"cniVersion": "1.0.0",
		"name":       "vpn-gateway",
		"plugins": []object{
			{
				"type":   "ptp",
				"mtu":    topology.MTU,
				"ipMasq": false, // see NAT
				"ipam": object{
					"type":    "host-local",
					"ranges":  [][]object{{{"subnet": node.Pods.String()}}},
					"routes":  []object{{"dst": "0.0.0.0/0"}},
					"dataDir": "/run/cni-ipam", // empty after a crash, as the Pods are
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}, "backend": "nftables", "snat": true},
		},
	}, "", "  ")
}

// NAT is the nftables file that masquerades what a node's Pods send out of the
// cluster: the world outside has no route to a Pod.
func NAT(t topology.Topology, node topology.Node) []byte {
	return []byte(`table ip vpn-gateway-cluster
delete table ip vpn-gateway-cluster
table ip vpn-gateway-cluster {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr ` + node.Pods.String() + ` ip daddr != { ` + t.Pods.String() + `, ` + t.Members.String() + ` } masquerade
	}
}
`)
}

// Kubeconfig is a complete kubeconfig: certificates and key lie inside.
func Kubeconfig(server string, ca []byte, client pki.Pair) ([]byte, error) {
	type object = map[string]any
	return yaml.Marshal(object{
		"apiVersion":      "v1",
		"kind":            "Config",
		"clusters":        []object{{"name": "vpn-gateway", "cluster": object{"server": "https://" + server, "certificate-authority-data": ca}}},
		"users":           []object{{"name": "user", "user": object{"client-certificate-data": client.Cert, "client-key-data": client.Key}}},
		"contexts":        []object{{"name": "vpn-gateway", "context": object{"cluster": "vpn-gateway", "user": "user"}}},
		"current-context": "vpn-gateway",
	})
}
