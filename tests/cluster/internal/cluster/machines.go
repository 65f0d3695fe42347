package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/cgroup"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/config"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/machine"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/network"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/supervisor"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

// kubeletOpenFiles is the limit of open files that kubelets ask for.
const kubeletOpenFiles = 20000

// startControlPlane starts the control plane unless it runs.
func (c *Cluster) startControlPlane(credentials *credentials) error {
	const name = topology.ControlPlane
	if c.record.Machines[name].Alive() {
		return nil
	}
	etc := filepath.Join(c.dir(name), "etc")
	configured, err := exists(filepath.Join(etc, "kube-apiserver.key"))
	if err != nil {
		return err
	}
	if !configured {
		if err := credentials.controlPlane(etc); err != nil {
			return err
		}
	}
	return c.start(name, nil, config.ControlPlaneProcesses(c.plan, c.record.Settings.Flags))
}

// startNode starts a node unless it runs.
func (c *Cluster) startNode(credentials *credentials, n topology.Node) error {
	if c.record.Machines[n.Name].Alive() {
		return nil
	}
	if err := network.Attach(c.plan, n); err != nil {
		return err
	}
	hierarchies, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	if err := cgroup.Create(hierarchies, n.Name); err != nil {
		return err
	}
	if err := c.configureNode(credentials, n); err != nil {
		return fmt.Errorf("configure %s: %w", n.Name, err)
	}
	return c.start(n.Name, config.NodeSetup(), config.NodeProcesses(c.plan, n, c.record.Settings.Flags))
}

// configureNode writes the files that a node's daemons read.
func (c *Cluster) configureNode(credentials *credentials, n topology.Node) error {
	etc := filepath.Join(c.dir(n.Name), "etc")
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	kubelet, err := config.Kubelet(c.plan, n, config.KubeletSettings{
		MaxOpenFiles: int(min(limit.Max, kubeletOpenFiles)),
		Overrides:    c.record.Settings.KubeletSet,
	})
	if err != nil {
		return err
	}
	proxy, err := config.KubeProxy(c.plan, n)
	if err != nil {
		return err
	}
	cni, err := config.CNI(n)
	if err != nil {
		return err
	}
	return errors.Join(
		credentials.node(etc, n),
		write(etc, "containerd.toml", config.Containerd()),
		write(etc, "kubelet.yaml", kubelet),
		write(etc, "kube-proxy.yaml", proxy),
		write(etc, "cni/10-vpn-gateway.conflist", cni),
		write(etc, "nat.nft", config.NAT(c.plan, n)),
		// Nobody answers there: DNS of the world outside is not to be had.
		write(etc, "resolv.conf", []byte("nameserver 127.0.0.53\n")),
	)
}

// start boots a machine and records it.
func (c *Cluster) start(name string, setup [][]string, processes []supervisor.Process) error {
	ref, err := machine.Start(machine.Spec{
		Name: name, Netns: topology.Netns(name), Dir: c.dir(name), Bin: c.bin(),
		Env: environment(), Setup: setup, Processes: processes,
	})
	if err != nil {
		return err
	}
	c.record.Machines[name] = ref
	return c.record.save()
}

// environment is that of everything that runs on a machine.
func environment() []string {
	return []string{"HOME=/root", "LANG=C.UTF-8", "PATH=" + machine.Bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// seed imports the cluster's own images into a node that has not got them.
func (c *Cluster) seed(ctx context.Context, node string, images []string) error {
	mark := filepath.Join(c.dir(node), "images")
	want := strings.Join(images, "\n")
	if have, err := os.ReadFile(mark); err == nil && string(have) == want {
		return nil
	}
	for _, image := range images {
		if err := c.importImage(ctx, node, image); err != nil {
			return err
		}
	}
	return os.WriteFile(mark, []byte(want), 0o600)
}

// importImage gives an archive to a node's containerd, once that listens.
func (c *Cluster) importImage(ctx context.Context, node, file string) error {
	ref := c.record.Machines[node]
	const socket = "/run/containerd/containerd.sock"
	if err := supervisor.Await(ctx, "unix://"+ref.Path(socket)); err != nil {
		return fmt.Errorf("containerd of %s: %w; see %s/log", node, err, c.dir(node))
	}
	archive, err := os.Open(file)
	if err != nil {
		return err
	}
	defer archive.Close()
	var out strings.Builder
	status, err := ref.Exec(machine.Command{
		Args:  []string{"ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", "--local", "-"},
		Env:   environment(),
		Stdin: archive, Stdout: &out, Stderr: &out,
	})
	if err != nil {
		return fmt.Errorf("import %s into %s: %w", file, node, err)
	}
	if status != 0 {
		return fmt.Errorf("import %s into %s: ctr: exit status %d: %s", file, node, status, out.String())
	}
	return nil
}

// Load imports an image archive (OCI or docker format) into every running node.
func (c *Cluster) Load(ctx context.Context, file string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range c.plan.Nodes {
		if c.record.Machines[n.Name].Alive() {
			g.Go(func() error { return c.importImage(ctx, n.Name, file) })
		}
	}
	return g.Wait()
}

// Exec runs a command on a machine and returns its exit status. PATH and the
// like are the machine's; of the caller's environment TERM is kept.
func (c *Cluster) Exec(name string, command machine.Command) (int, error) {
	ref, ok := c.record.Machines[name]
	if !ok {
		return 0, fmt.Errorf("machine %q: no such machine: use cp or n1 to n%d", name, len(c.plan.Nodes))
	}
	command.Env = append(environment(), "TERM="+os.Getenv("TERM"))
	status, err := ref.Exec(command)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return status, nil
}

// Crash ends a node as a power cut does: nothing gets to say goodbye, and its
// address answers no more. Its disk stays.
func Crash(ctx context.Context, name string) error {
	return exclusively(func() error {
		c, err := Open(nil)
		if err != nil {
			return err
		}
		n, err := c.plan.Node(name)
		if err != nil {
			return err
		}
		return c.halt(ctx, n)
	})
}

// halt ends a node. The cable goes first: no last packet leaves it.
func (c *Cluster) halt(ctx context.Context, n topology.Node) error {
	if err := network.Detach(n.Name); err != nil {
		return err
	}
	if err := c.record.Machines[n.Name].Kill(ctx); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	hierarchies, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	return cgroup.Remove(hierarchies, n.Name)
}

// StartNode starts a node that has crashed. It does not wait for it.
func StartNode(name string) error {
	return exclusively(func() error {
		c, err := Open(nil)
		if err != nil {
			return err
		}
		n, err := c.plan.Node(name)
		if err != nil {
			return err
		}
		credentials, err := newCredentials(c.dir("pki"), c.plan)
		if err != nil {
			return err
		}
		return c.startNode(credentials, n)
	})
}
