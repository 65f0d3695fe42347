package cluster

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/config"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/kube"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/pki"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

// credentials makes the cluster's certificates and writes them where the
// machines look for them.
type credentials struct {
	plan topology.Topology
	ca   *pki.Authority
	now  time.Time
}

// admin is the name of the administrator's certificate and kubeconfig.
const admin = "admin"

// newCredentials takes up the authority in the directory dir, or makes it,
// with the administrator's certificate and kubeconfig beside it.
func newCredentials(dir string, plan topology.Topology) (*credentials, error) {
	c := &credentials{plan: plan, now: time.Now()}
	stored, err := readPair(dir, "ca")
	if err == nil {
		c.ca, err = pki.LoadAuthority(stored)
		return c, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if c.ca, err = pki.NewAuthority("vpn-gateway-cluster", c.now); err != nil {
		return nil, err
	}
	pair, err := c.ca.Sign(pki.Request{Name: admin, Groups: []string{"system:masters"}}, c.now)
	if err != nil {
		return nil, err
	}
	text, err := config.Kubeconfig(plan.APIServer(), c.ca.Cert, pair)
	if err != nil {
		return nil, err
	}
	return c, errors.Join(
		write(dir, admin+".kubeconfig", text),
		writePair(dir, admin, pair),
		writePair(dir, "ca", c.ca.Pair), // last: it vouches for the rest
	)
}

// controlPlane writes what the control plane's daemons need.
func (c *credentials) controlPlane(etc string) error {
	front, err := pki.NewAuthority("vpn-gateway-cluster-front-proxy", c.now)
	if err != nil {
		return err
	}
	tokens, err := pki.NewSigningKey()
	if err != nil {
		return err
	}
	failed := []error{
		writePair(etc, "ca", c.ca.Pair),
		write(etc, "front-proxy-ca.crt", front.Cert),
		writePair(etc, "service-account", tokens),
		c.sign(etc, "kube-apiserver", c.ca, pki.Request{
			Name:      "kube-apiserver",
			Addresses: []netip.Addr{c.plan.ControlPlaneIP(), c.plan.KubernetesIP(), netip.MustParseAddr("127.0.0.1")},
			Hosts:     []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		}),
		c.sign(etc, "kubelet-client", c.ca, pki.Request{Name: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}}),
		c.sign(etc, "front-proxy-client", front, pki.Request{Name: "front-proxy-client"}),
	}
	for _, component := range []string{"kube-controller-manager", "kube-scheduler"} {
		failed = append(failed, c.kubeconfig(etc, component, pki.Request{Name: "system:" + component}))
	}
	return errors.Join(failed...)
}

// node writes what a node's daemons need.
func (c *credentials) node(etc string, n topology.Node) error {
	return errors.Join(
		write(etc, "ca.crt", c.ca.Cert),
		c.sign(etc, "kubelet", c.ca, pki.Request{Name: n.Name, Addresses: []netip.Addr{n.IP}, Hosts: []string{n.Name}}),
		c.kubeconfig(etc, "kubelet", pki.Request{Name: "system:node:" + n.Name, Groups: []string{"system:nodes"}}),
		c.kubeconfig(etc, "kube-proxy", pki.Request{Name: "system:kube-proxy"}),
	)
}

func (c *credentials) sign(dir, name string, by *pki.Authority, r pki.Request) error {
	pair, err := by.Sign(r, c.now)
	if err != nil {
		return err
	}
	return writePair(dir, name, pair)
}

func (c *credentials) kubeconfig(dir, name string, r pki.Request) error {
	pair, err := c.ca.Sign(r, c.now)
	if err != nil {
		return err
	}
	text, err := config.Kubeconfig(c.plan.APIServer(), c.ca.Cert, pair)
	if err != nil {
		return err
	}
	return write(dir, name+".kubeconfig", text)
}

// client talks to the API server as the administrator.
func client(dir string, plan topology.Topology) (*kube.Client, error) {
	user, err := readPair(dir, admin)
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	return kube.New(kube.Options{Server: plan.APIServer(), Netns: topology.Netns(topology.ControlPlane), CA: ca, User: user})
}

func readPair(dir, name string) (pki.Pair, error) {
	cert, err := os.ReadFile(filepath.Join(dir, name+".crt"))
	if err != nil {
		return pki.Pair{}, err
	}
	key, err := os.ReadFile(filepath.Join(dir, name+".key"))
	return pki.Pair{Cert: cert, Key: key}, err
}

func writePair(dir, name string, pair pki.Pair) error {
	return errors.Join(write(dir, name+".crt", pair.Cert), write(dir, name+".key", pair.Key))
}

// write makes a file that only root may read: most of them hold keys.
func write(dir, name string, text []byte) error {
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}
