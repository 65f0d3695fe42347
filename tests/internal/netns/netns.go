// Package netns makes network namespaces, links between them and processes in
// them, for tests and demos. It uses netlink only: no `ip` binary is needed, and
// nothing on the machine outside the namespaces changes.
//
// A namespace without a name ends with the process that made it, however that
// ends. A named one can be looked at from outside (`ip netns exec vpngw-…`), and
// stays behind if its maker is killed.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Prefix begins the name of every named namespace of this project, so that what
// was left behind can be found.
const Prefix = "vpngw-"

// NS is a network namespace. Its methods may be called from any goroutine.
type NS struct {
	name   string
	handle vnetns.NsHandle
	links  *netlink.Handle // sockets inside the namespace
	owned  bool            // Close deletes the name
}

// New makes a namespace with its loopback up. With a name other than "" it is
// also bound to /run/netns/vpngw-NAME. Needs root.
func New(name string) (*NS, error) {
	n := &NS{name: name, owned: name != ""}
	err := onThread(func() (err error) {
		if name == "" {
			n.handle, err = vnetns.New()
			return err
		}
		n.name = Prefix + strings.TrimPrefix(name, Prefix)
		if _, err := os.Stat(filepath.Join("/run/netns", n.name)); err == nil {
			return fmt.Errorf("it exists already; delete it with: ip netns delete %s", n.name)
		}
		n.handle, err = vnetns.NewNamed(n.name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making network namespace %q: %w", n.name, err)
	}
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	lo, err := n.links.LinkByName("lo")
	if err == nil {
		err = n.links.LinkSetUp(lo)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("loopback of network namespace %q: %w", n.name, err), n.Close())
	}
	return n, nil
}

// Open opens the existing namespace of that name (as under /run/netns), made by
// somebody else. Close leaves it in place.
func Open(name string) (*NS, error) {
	handle, err := vnetns.GetFromName(name)
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: %w", name, err)
	}
	n := &NS{name: name, handle: handle}
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// ForTest makes an unnamed namespace that ends with t.
func ForTest(t testing.TB) *NS {
	t.Helper()
	n, err := New("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *NS) open() error {
	links, err := netlink.NewHandleAt(n.handle, unix.NETLINK_ROUTE) // small kernels lack other families
	if err != nil {
		return fmt.Errorf("netlink in network namespace %q: %w", n.name, err)
	}
	n.links = links
	return nil
}

// Name returns the name under /run/netns, or "".
func (n *NS) Name() string { return n.name }

// Fd returns the namespace's file descriptor, for libraries that want one
// (nftables.WithNetNSFd, netlink.NsFd). It belongs to n.
func (n *NS) Fd() int { return int(n.handle) }

// Netlink returns the handle whose sockets are inside the namespace. It belongs
// to n.
func (n *NS) Netlink() *netlink.Handle { return n.links }

// Close gives the namespace up and deletes the name that New gave it. The kernel
// ends the namespace, links and all, with the last process and socket in it.
func (n *NS) Close() error {
	if n.links != nil {
		n.links.Close()
		n.links = nil
	}
	var err error
	if n.handle.IsOpen() {
		err = n.handle.Close()
	}
	if n.owned {
		n.owned = false
		if e := vnetns.DeleteNamed(n.name); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("deleting network namespace %s: %w", n.name, e))
		}
	}
	return err
}

// Do calls f on the caller's goroutine with its thread inside the namespace.
// Sockets that f opens stay in the namespace for good; goroutines that it starts
// are not in it. Calls can be nested.
func (n *NS) Do(f func() error) error {
	return onThread(func() error {
		if err := vnetns.Set(n.handle); err != nil {
			return fmt.Errorf("entering network namespace %q: %w", n.name, err)
		}
		return f()
	})
}

// ListenUDP opens a UDP socket in the namespace.
func (n *NS) ListenUDP(addr netip.AddrPort) (conn *net.UDPConn, err error) {
	err = n.Do(func() error {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	return conn, err
}

// Listen opens a TCP listener in the namespace, for any server to accept from.
func (n *NS) Listen(addr netip.AddrPort) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	})
	return l, err
}

// DialContext connects out of the namespace. The host of address must be a
// literal IP address: Go resolves names on other threads, in other namespaces.
func (n *NS) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dialing in network namespace %q: %w; give an IP address and a port", n.name, err)
	}
	err = n.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// HTTPClient returns a client whose connections come out of the namespace; hosts
// must be literal IP addresses. It keeps no connection open.
func (n *NS) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}}
}

// onThread calls f, which may change the network namespace of its thread, on the
// caller's goroutine.
func onThread(f func() error) error {
	runtime.LockOSThread()
	before, err := vnetns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("network namespace of this thread: %w", err)
	}
	defer func() {
		// The thread goes back to where it was instead of ending: the death of
		// a thread also kills the children that were started from it with a
		// parent death signal. Only if it cannot go back must it never be used
		// again: still locked, it ends with its goroutine.
		if vnetns.Set(before) == nil {
			runtime.UnlockOSThread()
		}
		_ = before.Close()
	}()
	return f()
}
