package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
)

// barePackage is wireguard-go's own program, in the module that the agent uses as
// a library: equal versions, and nothing of ours in it.
const barePackage = "golang.zx2c4.com/wireguard"

const (
	socketDir = "/var/run/wireguard"
	startTime = 20 * time.Second
	// tunnelMTU is that of every tunnel here, on either side.
	tunnelMTU = 1420
)

func buildBare(ctx context.Context, binary string) (string, error) {
	root, err := gateway.Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", binary, barePackage)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", barePackage, err, out)
	}
	return binary, nil
}

// bare is a wireguard-go by itself, with one link.
type bare struct {
	ns      *netns.NS
	name    string // of the link; no other has it on this machine
	process *netns.Process
	control *wgctrl.Client
}

// startBare starts a wireguard-go in the namespace. Its link is down.
func (b *bench) startBare(ctx context.Context, ns *netns.NS) (*bare, error) {
	out := &bare{ns: ns, name: fmt.Sprintf("vpngw%06x", rand.Uint32N(1<<24))}
	log, err := os.Create(filepath.Join(b.dir, out.name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(b.bare, "--foreground", out.name)
	cmd.Stdout, cmd.Stderr = log, log
	// SIGTERM, so that it takes its socket away when we are killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	if out.process, err = ns.Start(cmd); err != nil {
		return nil, err
	}
	if out.control, err = wgctrl.New(); err == nil {
		err = out.waitForSocket(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wireguard-go: %w", err), out.close())
	}
	return out, nil
}

// startBareGateway starts one in a Pod of its own, which forwards and masquerades, and
// returns the Pod's index too.
func (b *bench) startBareGateway(ctx context.Context, topology *netns.Topology) (*bare, int, error) {
	pod, index, err := topology.AddPod()
	if err != nil {
		return nil, 0, err
	}
	if err := errors.Join(pod.Forward(), masquerade(pod)); err != nil {
		return nil, 0, err
	}
	w, err := b.startBare(ctx, pod)
	return w, index, err
}

func (w *bare) waitForSocket(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		_, err := w.control.Device(w.name)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-w.process.Done():
			return fmt.Errorf("it ended: %w", w.process.Wait())
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", err)
		}
	}
}

// configure sends one message, whatever its size, as the agent does.
func (w *bare) configure(c wgtypes.Config) error { return w.control.ConfigureDevice(w.name, c) }

// up gives the link an address and routes, and brings it up.
func (w *bare) up(address netip.Prefix, routes ...netip.Prefix) error {
	link, err := w.ns.Netlink().LinkByName(w.name)
	if err != nil {
		return err
	}
	if err := w.ns.Netlink().LinkSetMTU(link, tunnelMTU); err != nil {
		return err
	}
	if err := w.ns.AddAddress(w.name, address); err != nil {
		return err
	}
	if err := w.ns.SetUp(w.name, true); err != nil {
		return err
	}
	for _, to := range routes {
		if err := w.ns.AddRoute(netns.Route{To: to, Interface: w.name}); err != nil {
			return err
		}
	}
	return nil
}

func (w *bare) usage() (podrun.Usage, error) { return podrun.UsageOf(w.process.PID()) }

func (w *bare) close() error {
	var errs []error
	if w.control != nil {
		errs = append(errs, w.control.Close())
	}
	errs = append(errs, w.process.Signal(syscall.SIGTERM))
	select {
	case <-w.process.Done():
	case <-time.After(5 * time.Second):
		errs = append(errs, w.process.Kill())
	}
	if err := os.Remove(filepath.Join(socketDir, w.name+".sock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dumper reads the device inside a gateway's container with wgctrl, on a thread
// in the container's mount namespace: wgctrl knows one directory for sockets.
type dumper struct {
	calls chan func(*wgctrl.Client)
	done  chan error
}

// newDumper enters the mount namespace of the process.
func newDumper(pid int) (*dumper, error) {
	d := &dumper{calls: make(chan func(*wgctrl.Client)), done: make(chan error, 1)}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		control, err := controlIn(pid)
		ready <- err
		if err != nil {
			return
		}
		for call := range d.calls {
			call(control)
		}
		d.done <- control.Close()
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("entering the mount namespace of process %d: %w", pid, err)
	}
	return d, nil
}

func controlIn(pid int) (*wgctrl.Client, error) {
	mounts, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns wants a root directory of its own
		return nil, err
	}
	if err := unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, err
	}
	return wgctrl.New()
}

// device is wgctrl's dump, and how long it took.
func (d *dumper) device(name string) (device *wgtypes.Device, took time.Duration, err error) {
	finished := make(chan struct{})
	d.calls <- func(control *wgctrl.Client) {
		start := time.Now()
		device, err = control.Device(name)
		took = time.Since(start)
		close(finished)
	}
	<-finished
	return device, took, err
}

func (d *dumper) close() error {
	close(d.calls)
	return <-d.done
}

// hostNetwork is the prefix of one address, as wgctrl has it.
func hostNetwork(a netip.Addr) net.IPNet {
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
