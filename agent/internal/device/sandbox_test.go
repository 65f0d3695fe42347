package device

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// The tests of this package run in a process like the gateway's container: its
// own network namespace, CAP_NET_ADMIN and no other capability, a read-only
// root and a read-only /proc/sys. The test binary makes that sandbox and starts
// itself in it. Two neighbours live in network namespaces of their own:
//
//	outside 192.0.2.2 ── eth0 192.0.2.1 [sandbox] 198.51.100.1 eth1 ── inside 198.51.100.2
//
// inside has its default route through the sandbox; a few UDP sockets of
// outside are passed on, for WireGuard clients to live in the test itself.
const (
	envSandbox = "VPNGW_DEVICE_SANDBOX"
	sockets    = 4 // passed on as descriptors 3 and up
)

func uplinkAddress() netip.Addr { return netip.MustParseAddr("192.0.2.1") }
func insideAddress() netip.Addr { return netip.MustParseAddr("198.51.100.2") }

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envSandbox) != "":
		code := m.Run()
		if err := leaked(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	case lacking() != "":
		os.Exit(m.Run())
	}
	code, err := runInSandbox()
	if err != nil {
		fmt.Fprintln(os.Stderr, "device tests:", err)
		code = 1
	}
	os.Exit(code)
}

// leaked waits for goroutines to end: wireguard-go's listener of a closed TUN
// takes a second.
func leaked() (err error) {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if err = goleak.Find(); err == nil {
			return nil
		}
	}
	return err
}

// lacking says why the sandbox cannot be made here; "" where it can.
func lacking() string {
	if os.Geteuid() != 0 {
		return "root, to make network namespaces"
	}
	if err := haveTUN(tunDevice); err != nil {
		return err.Error()
	}
	if err := <-inNamespace(unix.CLONE_NEWNET|unix.CLONE_NEWNS, func() error { return nil }); err != nil {
		return fmt.Sprintf("the right to make network and mount namespaces (%v)", err)
	}
	return ""
}

// need skips, or fails where REQUIRE_INTEGRATION=1, a test outside the sandbox.
func need(t testing.TB) {
	t.Helper()
	if os.Getenv(envSandbox) != "" {
		return
	}
	if os.Getenv("REQUIRE_INTEGRATION") == "1" {
		t.Fatalf("this machine lacks %s (and REQUIRE_INTEGRATION=1 forbids to skip)", lacking())
	}
	t.Skipf("this machine lacks %s", lacking())
}

// inNamespace runs f in new namespaces, which end with it and its children.
func inNamespace(flags int, f func() error) <-chan error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		err := unix.Unshare(flags)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return result
}

// neighbour is a network namespace with a link called eth0.
type neighbour struct {
	ns   int // descriptor of the namespace
	end  chan struct{}
	call chan func() error // runs in the namespace
	err  chan error
}

func newNeighbour() (*neighbour, error) {
	n := &neighbour{end: make(chan struct{}), call: make(chan func() error), err: make(chan error)}
	ready := make(chan error, 1)
	inNamespace(unix.CLONE_NEWNET, func() (err error) {
		n.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		ready <- err
		for {
			select {
			case f := <-n.call:
				n.err <- f()
			case <-n.end:
				return unix.Close(n.ns)
			}
		}
	})
	return n, <-ready
}

func (n *neighbour) do(f func() error) error {
	n.call <- f
	return <-n.err
}

func runInSandbox() (int, error) {
	outside, err := newNeighbour()
	if err != nil {
		return 0, err
	}
	defer close(outside.end)
	inside, err := newNeighbour()
	if err != nil {
		return 0, err
	}
	defer close(inside.end)
	code := 0
	err = <-inNamespace(unix.CLONE_NEWNET|unix.CLONE_NEWNS, func() error {
		steps := []func() error{
			func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) },
			func() error { return connect("lo", "127.0.0.1/8", nil, "", "") },
			func() error { return connect("eth0", "192.0.2.1/30", outside, "192.0.2.2/30", "") },
			func() error { return connect("eth1", "198.51.100.1/24", inside, "198.51.100.2/24", "198.51.100.1") },
			readOnly,
			dropCapabilities,
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
		err := outside.do(func() error {
			for range sockets {
				c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2)})
				if err != nil {
					return err
				}
				f, err := c.File()
				if err != nil {
					return err
				}
				files = append(files, f)
			}
			return nil
		})
		if err != nil {
			return err
		}
		// From this very thread, whose namespaces and bounding set it inherits.
		p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
			Files: files, Env: append(os.Environ(), envSandbox+"=1"), Sys: &unix.SysProcAttr{Pdeathsig: unix.SIGKILL},
		})
		if err != nil {
			return err
		}
		state, err := p.Wait()
		if err != nil {
			return err
		}
		if code = state.ExitCode(); code < 0 {
			return fmt.Errorf("sandbox: %s", state)
		}
		return nil
	})
	return code, err
}

// connect brings up a link with an address, with a neighbour at its other end.
func connect(name, address string, to *neighbour, theirs, gateway string) error {
	if to != nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(to.ns)}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("veth %s: %w", name, err)
		}
		if err := to.do(func() error { return addressLink("eth0", theirs, gateway) }); err != nil {
			return fmt.Errorf("neighbour of %s: %w", name, err)
		}
	}
	return addressLink(name, address, "")
}

func addressLink(name, address, gateway string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	if err := addAddress(link, netip.MustParsePrefix(address)); err != nil {
		return err
	}
	if gateway == "" {
		return nil
	}
	return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)})
}

// readOnly leaves nothing writable but what tests and their harness write, and
// /run, where the chart mounts an emptyDir.
func readOnly() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	writable := []string{os.TempDir()}
	for _, env := range []string{"VPN_GATEWAY_ARTIFACTS", "GOCOVERDIR"} {
		writable = append(writable, os.Getenv(env))
	}
	if f := os.Getenv("VPN_GATEWAY_SECRETS_FILE"); f != "" {
		writable = append(writable, filepath.Dir(f))
	}
	for _, dir := range writable {
		if dir == "" {
			continue
		}
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("keeping %s writable: %w", dir, err)
		}
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("tmpfs on /run: %w", err)
	}
	if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("/proc/sys: %w", err)
	}
	for _, dir := range []string{"/proc/sys", "/"} {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("making %s read-only: %w", dir, err)
		}
	}
	return nil
}

// dropCapabilities takes all but CAP_NET_ADMIN out of the thread's bounding
// set, so that what it executes has no other.
func dropCapabilities() error {
	for c := uintptr(0); ; c++ {
		if c == unix.CAP_NET_ADMIN {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_NET_ADMIN {
			return nil // past the last one
		}
		if err != nil {
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
}

// recordSecret notes a key for the search for leaks after the run, as testenv's
// function of that name does, which Go lets only tests/ import.
func recordSecret(t testing.TB, reveal interface{ Bytes() [key.Len]byte }) {
	t.Helper()
	path, b := os.Getenv("VPN_GATEWAY_SECRETS_FILE"), reveal.Bytes()
	if path == "" || b == [key.Len]byte{} {
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(base64.StdEncoding.EncodeToString(b[:]) + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSandboxIsWhatTheContainerIs(t *testing.T) {
	need(t)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if want := "CapEff:\t0000000000001000\n"; !strings.Contains(string(status), want) {
		t.Errorf("status of the process lacks %q:\n%s", want, status)
	}
	for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/new-file"} {
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("opening %s for writing: %v, want %v", path, err, unix.EROFS)
			_ = f.Close()
		}
	}
}
