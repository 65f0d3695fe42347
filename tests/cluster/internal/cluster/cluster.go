// Package cluster starts, stops and changes the cluster as a whole.
package cluster

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/build"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/config"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/kube"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/layout"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/machine"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/network"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/progress"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

// patience bounds each wait for the cluster; on a busy machine the API server
// alone may need half a minute.
const (
	patience     = 5 * time.Minute
	pollInterval = 100 * time.Millisecond
)

// Cluster is the one cluster of this machine.
type Cluster struct {
	record   *record
	plan     topology.Topology
	progress *progress.Printer
}

// Open takes up the running cluster; ErrDown if there is none.
func Open(p *progress.Printer) (*Cluster, error) {
	r, err := load()
	if err != nil {
		return nil, err
	}
	plan, err := topology.New(r.Settings.Nodes)
	if err != nil {
		return nil, err
	}
	return &Cluster{record: r, plan: plan, progress: p}, nil
}

// UpOptions say what to start.
type UpOptions struct {
	Settings Settings
	Dirs     layout.Dirs
	// Built is what package build made.
	Built build.Result
}

// Up starts the cluster, or what of it does not run, and returns when all
// nodes are ready and DNS answers. A crashed node is started too.
func Up(ctx context.Context, o UpOptions, p *progress.Printer) error {
	return exclusively(func() error {
		c, err := take(o, p)
		if err != nil {
			return err
		}
		if err := install(c.bin(), o.Built.Programs); err != nil {
			return err
		}
		credentials, err := newCredentials(c.dir("pki"), c.plan)
		if err != nil {
			return err
		}
		if err := network.Up(c.plan); err != nil {
			return err
		}
		if err := c.startControlPlane(credentials); err != nil {
			return err
		}
		for _, n := range c.plan.Nodes {
			if err := c.startNode(credentials, n); err != nil {
				return err
			}
		}
		p.Say("started the control plane and %d nodes", len(c.plan.Nodes))
		return c.settle(ctx, o.Built.Images)
	})
}

// take takes up the running cluster, or records a new one.
func take(o UpOptions, p *progress.Printer) (*Cluster, error) {
	c, err := Open(p)
	switch {
	case errors.Is(err, ErrDown):
		if err := removeTree(o.Dirs.State()); err != nil { // of before a reboot
			return nil, err
		}
		plan, err := topology.New(o.Settings.Nodes)
		if err != nil {
			return nil, err
		}
		c = &Cluster{plan: plan, progress: p, record: &record{
			State: o.Dirs.State(), Settings: o.Settings, Machines: map[string]machine.Ref{},
		}}
		return c, c.record.save()
	case err != nil:
		return nil, err
	}
	if !reflect.DeepEqual(o.Settings, c.record.Settings) {
		return nil, fmt.Errorf("a cluster is up with other settings (%+v, asked for %+v): take it down first, with `cluster down`", c.record.Settings, o.Settings)
	}
	return c, nil
}

// settle waits until the cluster works.
func (c *Cluster) settle(ctx context.Context, images []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	go c.guard(ctx, fail)
	api, err := c.api()
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range c.plan.Nodes {
		g.Go(func() error { return c.seed(gctx, n.Name, images) })
	}
	g.Go(func() error {
		return c.await(gctx, "API server", func() (bool, error) { return true, api.Ready(gctx) })
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := c.await(ctx, "DNS", func() (bool, error) { return true, api.Apply(ctx, coreDNS(c.plan)) }); err != nil {
		return err
	}
	if err := c.await(ctx, "nodes ready", func() (bool, error) { return c.nodesReady(ctx, api) }); err != nil {
		return err
	}
	return c.await(ctx, "DNS ready", func() (bool, error) { return api.DaemonSetReady(ctx, "kube-system", "coredns") })
}

// guard ends the wait when a machine has ended: nothing would ever come of it.
func (c *Cluster) guard(ctx context.Context, fail context.CancelCauseFunc) {
	for {
		for name, ref := range c.record.Machines {
			if !ref.Alive() {
				fail(fmt.Errorf("machine %s has ended: %s", name, c.complaint(name)))
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// complaints are the last complaints of all machines, for a wait that is long.
func (c *Cluster) complaints() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(c.record.Machines)) {
		if text := c.complaint(name); text != "" {
			all = append(all, name+": "+text)
		}
	}
	return strings.Join(append(all, "logs are in "+c.dir("*/log")), "; ")
}

// complaint is the last line of a machine's log about a process that ended or
// could not start, or of what ended the machine itself.
func (c *Cluster) complaint(name string) string {
	text, err := os.ReadFile(filepath.Join(c.dir(name), "log", "init.log"))
	if err != nil {
		return err.Error()
	}
	return lastComplaint(string(text))
}

func lastComplaint(log string) string {
	last := ""
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "level=INFO") {
			last = strings.TrimSpace(line)
		}
	}
	return last
}

func (c *Cluster) nodesReady(ctx context.Context, api *kube.Client) (bool, error) {
	nodes, err := api.Nodes(ctx)
	if err != nil {
		return false, err
	}
	for _, n := range c.plan.Nodes {
		if !nodes[n.Name] {
			return false, nil
		}
	}
	return true, nil
}

// await polls until what is true without an error.
func (c *Cluster) await(ctx context.Context, name string, what func() (bool, error)) error {
	return c.progress.Step(name, c.complaints, func() error {
		for {
			ok, err := what()
			if ok && err == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				if err == nil {
					err = errors.New("not yet")
				}
				return fmt.Errorf("%w (last: %w); %s", context.Cause(ctx), err, c.complaints())
			case <-time.After(pollInterval):
			}
		}
	})
}

//go:embed coredns.yaml
var coreDNSManifests string

// coreDNS are the manifests of the cluster's DNS.
func coreDNS(plan topology.Topology) string {
	return strings.NewReplacer("${IMAGE}", config.CoreDNSImage, "${IP}", plan.DNSIP().String()).Replace(coreDNSManifests)
}

// install puts the programs into one directory, where the machines mount it:
// as links to the same file where that is possible, for they are large.
func install(bin string, programs map[string]string) error {
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for name, source := range programs {
		target := filepath.Join(bin, name)
		if _, err := os.Lstat(target); err == nil {
			continue
		}
		if link, err := os.Readlink(source); err == nil {
			if err := os.Symlink(link, target); err != nil {
				return err
			}
			continue
		}
		err := os.Link(source, target)
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) {
			err = copyFile(source, target)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(source, target string) error {
	text, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	return os.WriteFile(target, text, 0o755)
}

// api is a client of the cluster's API server.
func (c *Cluster) api() (*kube.Client, error) { return client(c.dir("pki"), c.plan) }

func (c *Cluster) dir(name string) string { return filepath.Join(c.record.State, name) }
func (c *Cluster) bin() string            { return c.dir("bin") }

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir("pki"), admin+".kubeconfig") }

// KubectlCache is where kubectl may keep what it learnt of the API: it ends
// with the cluster, while a home directory would keep it for the next one.
func (c *Cluster) KubectlCache() string { return c.dir("kubectl-cache") }

// Bin is the directory of the cluster's programs, kubectl among them.
func (c *Cluster) Bin() string { return c.bin() }

// exists tells whether a file is there.
func exists(file string) (bool, error) {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
