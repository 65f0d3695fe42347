// Package podrun runs the containers of a Pod's specification in a network
// namespace, without a cluster: what the kubelet, containerd and runc would make
// of the same specification, as far as a process can see it.
//
//   - a root file system of the image's files alone, read-only where the
//     specification says so; namespaces of its own for mounts, processes, IPC and
//     the host name; /proc with /proc/sys read-only and the runtime's masked
//     paths; /sys read-only; the usual few nodes in /dev
//   - ConfigMap, Secret, projected and downward volumes written as the kubelet's
//     atomic writer does (a time-stamped directory behind the ..data link), and
//     renewed by [Pod.Update]; emptyDir, which outlives a container; hostPath
//   - user, groups, exactly the capabilities of the security context, and
//     no_new_privs; environment, arguments and probes
//
// What the specification asks for beyond that is refused, not skipped. Taken
// note of, but without effect: seccomp and AppArmor profiles, and limits of CPU
// and memory.
//
// Every program that uses the package calls [Main] first thing:
//
//	func TestMain(m *testing.M) { podrun.Main(); os.Exit(m.Run()) }
//
// Nothing is mounted in the file system of the caller, and everything ends with
// the process that started it, be it killed.
package podrun

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

// DefaultGrace is Kubernetes' terminationGracePeriodSeconds where none is given.
const DefaultGrace = 30 * time.Second

// Options say what to run where.
type Options struct {
	// Name of the Pod, which is its host name; empty: "pod".
	Name string
	// Namespace of the Pod; empty: "default".
	Namespace string
	// Labels and Annotations of the Pod, for the downward API.
	Labels, Annotations map[string]string
	// Spec is the specification, as from a rendered Deployment's template.
	Spec corev1.PodSpec
	// Objects hold the ConfigMaps and Secrets that Spec refers to, in any order;
	// other objects are left out of account.
	Objects []runtime.Object
	// Network is the Pod's network namespace and IP its address there.
	Network *netns.NS
	IP      netip.Addr
	// Image of all containers.
	Image Image
	// LogDir is the directory where each container's output goes, in POD-NAME.log.
	LogDir string
	// Nameservers for /etc/resolv.conf.
	Nameservers []netip.Addr
	// Devices are the resources that device plugins of the node hand out:
	// resource name → device node, such as devic.es/tun → /dev/net/tun.
	Devices map[corev1.ResourceName]string
}

// Image is what a container image holds.
type Image struct {
	// Files: absolute path in the image → file on this machine.
	Files map[string]string
	// Entrypoint of the image; the arguments follow it.
	Entrypoint []string
}

// AgentImage is the project's image around the given agent binary.
func AgentImage(binary string) Image {
	image := Image{
		Files:      map[string]string{"/vpn-agent": binary},
		Entrypoint: []string{"/vpn-agent"},
	}
	const certificates = "/etc/ssl/certs/ca-certificates.crt"
	if _, err := os.Stat(certificates); err == nil {
		image.Files[certificates] = certificates
	}
	return image
}

// Pod is a Pod that runs, or has run.
type Pod struct {
	options    Options
	sandbox    *sandbox
	objects    *store
	containers []*Container

	mu sync.Mutex // for the volumes
}

// Start makes the volumes, runs the init containers and starts the others. As
// with the kubelet, nothing starts while an object or a key of one that a volume
// needs is missing; that is an error here. Start returns when the processes are
// there; [Pod.WaitReady] waits until they work.
func Start(ctx context.Context, o Options) (*Pod, error) {
	if o.Name == "" {
		o.Name = "pod"
	}
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	if err := refuseUnsupported(o); err != nil {
		return nil, fmt.Errorf("pod %s: %w", o.Name, err)
	}
	p := &Pod{options: o, objects: newStore(o.Objects)}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("pod %s: %w", o.Name, err), p.Close())
	}
	return p, nil
}

// ForTest starts a Pod that is killed when t ends. Where o has no LogDir, the
// logs go to t's artifacts.
func ForTest(t testing.TB, o Options) *Pod {
	t.Helper()
	if o.LogDir == "" {
		o.LogDir = testenv.Artifacts(t)
	}
	p, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *Pod) start(ctx context.Context) (err error) {
	if p.sandbox, err = newSandbox(p.options.Network); err != nil {
		return err
	}
	if err := p.setSysctls(); err != nil {
		return err
	}
	if err := p.makeVolumes(); err != nil {
		return err
	}
	if err := p.writeNodeFiles(); err != nil {
		return err
	}
	for _, spec := range p.options.Spec.InitContainers {
		c, err := p.startContainer(spec)
		if err != nil {
			return err
		}
		if spec.RestartPolicy != nil && *spec.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			err = c.waitFor(ctx, Startup)
		} else {
			err = c.waitForSuccess(ctx)
		}
		if err != nil {
			return err
		}
	}
	for _, spec := range p.options.Spec.Containers {
		if _, err := p.startContainer(spec); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pod) startContainer(spec corev1.Container) (*Container, error) {
	c := &Container{pod: p, spec: spec, log: path.Join(p.options.LogDir, p.options.Name+"-"+spec.Name+".log")}
	if left, err := os.Stat(c.log); err == nil {
		c.before = left.Size()
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	p.containers = append(p.containers, c)
	return c, nil
}

// Container returns the container of that name, or nil. Of an init container
// that has ended, its exits can still be read.
func (p *Pod) Container(name string) *Container {
	i := slices.IndexFunc(p.containers, func(c *Container) bool { return c.spec.Name == name })
	if i < 0 {
		return nil
	}
	return p.containers[i]
}

// Network returns the Pod's network namespace.
func (p *Pod) Network() *netns.NS { return p.options.Network }

// IP returns the Pod's address.
func (p *Pod) IP() netip.Addr { return p.options.IP }

// WaitReady waits until the startup and readiness probes of all containers have
// succeeded, asking more often than the kubelet would. The error says what the
// probe answered last and ends with the container's last lines.
func (p *Pod) WaitReady(ctx context.Context) error {
	for _, c := range p.containers {
		if !c.isLongRunning() {
			continue
		}
		for _, kind := range []ProbeKind{Startup, Readiness} {
			if err := c.waitFor(ctx, kind); err != nil {
				return fmt.Errorf("pod %s: %w", p.options.Name, err)
			}
		}
	}
	return nil
}

// Grace is how long the specification gives the Pod from SIGTERM to SIGKILL.
func (p *Pod) Grace() time.Duration {
	if s := p.options.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return DefaultGrace
}

// Terminate ends all containers as the kubelet does when the Pod is deleted:
// SIGTERM, and SIGKILL to those that are still there after the grace period.
// The volumes stay until Close.
func (p *Pod) Terminate(ctx context.Context, grace time.Duration) error {
	errs := make([]error, len(p.containers))
	var wg sync.WaitGroup
	for i, c := range p.containers {
		wg.Go(func() {
			if c.Running() {
				_, errs[i] = c.Terminate(ctx, grace)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Close kills what still runs and removes the volumes. The network namespace
// stays: it belongs to the caller.
func (p *Pod) Close() error {
	var errs []error
	for _, c := range p.containers {
		if c.Running() {
			_, err := c.Kill()
			errs = append(errs, err)
		}
	}
	if p.sandbox != nil {
		errs = append(errs, p.sandbox.close())
		p.sandbox = nil
	}
	return errors.Join(errs...)
}
