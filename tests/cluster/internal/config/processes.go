package config

import (
	"strconv"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/machine"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/supervisor"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

// ExtraFlags are further command line flags by component, each --name=value;
// of two equal ones the last wins, so that these replace what is set here.
type ExtraFlags struct {
	APIServer         []string `json:"apiServer,omitempty"`
	ControllerManager []string `json:"controllerManager,omitempty"`
	Scheduler         []string `json:"scheduler,omitempty"`
	Kubelet           []string `json:"kubelet,omitempty"`
}

const etcdAddress = "127.0.0.1:2379"

// volumePlugins is where the kubelet and the controller manager make and watch
// a directory for plugins: by default that is below /usr.
const volumePlugins = "/var/lib/kubelet/volume-plugins"

// apiReady is what must answer before anything talks to the API server: that
// listens some seconds before it has made its own roles and namespaces.
func apiReady(t topology.Topology) string { return "https://" + t.APIServer() + "/readyz" }

// ControlPlaneProcesses are the daemons of the control plane.
func ControlPlaneProcesses(t topology.Topology, extra ExtraFlags) []supervisor.Process {
	const etc = machine.Etc
	api := apiReady(t)
	etcdURL := "http://" + etcdAddress
	return []supervisor.Process{
		{
			Name: "etcd",
			Args: []string{
				"etcd",
				"--data-dir=/var/lib/etcd",
				"--listen-client-urls=" + etcdURL,
				"--advertise-client-urls=" + etcdURL,
				"--listen-peer-urls=http://127.0.0.1:2380",
				"--unsafe-no-fsync", // nothing here has to survive a power cut
				"--log-level=warn",
			},
		},
		{
			Name:  "kube-apiserver",
			After: []string{"tcp://" + etcdAddress},
			Args: append([]string{
				"kube-apiserver",
				"--etcd-servers=" + etcdURL,
				"--advertise-address=" + t.ControlPlaneIP().String(),
				"--secure-port=" + strconv.Itoa(topology.APIPort),
				"--service-cluster-ip-range=" + t.Services.String(),
				"--client-ca-file=" + etc + "/ca.crt",
				"--tls-cert-file=" + etc + "/kube-apiserver.crt",
				"--tls-private-key-file=" + etc + "/kube-apiserver.key",
				"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
				"--service-account-key-file=" + etc + "/service-account.crt",
				"--service-account-signing-key-file=" + etc + "/service-account.key",
				"--kubelet-certificate-authority=" + etc + "/ca.crt",
				"--kubelet-client-certificate=" + etc + "/kubelet-client.crt",
				"--kubelet-client-key=" + etc + "/kubelet-client.key",
				"--kubelet-preferred-address-types=InternalIP",
				"--requestheader-client-ca-file=" + etc + "/front-proxy-ca.crt",
				"--requestheader-allowed-names=front-proxy-client",
				"--requestheader-extra-headers-prefix=X-Remote-Extra-",
				"--requestheader-group-headers=X-Remote-Group",
				"--requestheader-username-headers=X-Remote-User",
				"--proxy-client-cert-file=" + etc + "/front-proxy-client.crt",
				"--proxy-client-key-file=" + etc + "/front-proxy-client.key",
				"--enable-aggregator-routing=true", // no kube-proxy runs beside it
				"--authorization-mode=Node,RBAC",
				"--enable-admission-plugins=NodeRestriction",
				"--allow-privileged=true",
			}, extra.APIServer...),
		},
		{
			Name:  "kube-controller-manager",
			After: []string{api},
			Args: append([]string{
				"kube-controller-manager",
				"--kubeconfig=" + etc + "/kube-controller-manager.kubeconfig",
				"--authentication-kubeconfig=" + etc + "/kube-controller-manager.kubeconfig",
				"--authorization-kubeconfig=" + etc + "/kube-controller-manager.kubeconfig",
				"--service-account-private-key-file=" + etc + "/service-account.key",
				"--root-ca-file=" + etc + "/ca.crt",
				"--cluster-signing-cert-file=" + etc + "/ca.crt",
				"--cluster-signing-key-file=" + etc + "/ca.key",
				"--use-service-account-credentials=true",
				"--leader-elect=false",
				// At its start it asks for 40 tokens, one for each controller:
				// that takes seconds at the default of 20 requests a second.
				"--kube-api-qps=200",
				"--kube-api-burst=400",
				"--flex-volume-plugin-dir=" + volumePlugins,
			}, extra.ControllerManager...),
		},
		{
			Name:  "kube-scheduler",
			After: []string{api},
			Args: append([]string{
				"kube-scheduler",
				"--kubeconfig=" + etc + "/kube-scheduler.kubeconfig",
				"--authentication-kubeconfig=" + etc + "/kube-scheduler.kubeconfig",
				"--authorization-kubeconfig=" + etc + "/kube-scheduler.kubeconfig",
				"--leader-elect=false",
			}, extra.Scheduler...),
		},
	}
}

// NodeProcesses are the daemons of a node.
func NodeProcesses(t topology.Topology, node topology.Node, extra ExtraFlags) []supervisor.Process {
	api := apiReady(t)
	return []supervisor.Process{
		{
			Name: "containerd",
			Args: []string{"containerd", "--config", machine.Etc + "/containerd.toml"},
		},
		{
			Name:  "kube-proxy",
			After: []string{api},
			Args:  []string{"kube-proxy", "--config=" + machine.Etc + "/kube-proxy.yaml"},
		},
		{
			Name:  "kubelet",
			After: []string{criSocket, api},
			Args: append([]string{
				"kubelet",
				"--config=" + machine.Etc + "/kubelet.yaml",
				"--kubeconfig=" + machine.Etc + "/kubelet.kubeconfig",
				"--node-ip=" + node.IP.String(),
				"--hostname-override=" + node.Name,
			}, extra.Kubelet...),
		},
	}
}

// NodeSetup are commands that a node runs once, before its daemons.
func NodeSetup() [][]string {
	return [][]string{{"nft", "-f", machine.Etc + "/nat.nft"}}
}
