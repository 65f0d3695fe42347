package device

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

func TestAuto(t *testing.T) {
	need(t)
	if hasKernelWireGuard() {
		d := open(t, spec.Auto)
		if d.DataPlane() != spec.Kernel {
			t.Errorf("data plane %q because %q, want %q: this kernel has WireGuard", d.DataPlane(), d.Reason(), spec.Kernel)
		}
		return
	}
	_, err := Open(options(spec.Kernel, nil))
	want := "opening device wg0: data plane kernel: the node's kernel has no WireGuard (load its module wireguard): operation not supported"
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	d := open(t, spec.Auto)
	got := []string{string(d.DataPlane()), d.Reason()}
	reason := "wireguard-go over /dev/net/tun, as data plane kernel: the node's kernel has no WireGuard (load its module wireguard): operation not supported"
	if diff := cmp.Diff([]string{string(spec.Userspace), reason}, got); diff != "" {
		t.Errorf("data plane and reason (-want +got):\n%s", diff)
	}
}

func TestOpenRefuses(t *testing.T) {
	need(t)
	veth := func(t *testing.T) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = linkName
		link := &netlink.Veth{LinkAttrs: attrs, PeerName: "wgpeer"}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.LinkDel(link) })
	}
	persistentTUN := func(t *testing.T) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = linkName
		link := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.LinkDel(link) })
	}
	servedSocket := func(t *testing.T) {
		if err := os.MkdirAll(filepath.Dir(socketPath), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", socketPath)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	tests := []struct {
		name    string
		before  func(t *testing.T)
		plane   spec.DataPlane
		err     string
		isTaken bool
	}{
		{
			name: "name of another's link", before: veth, plane: spec.Userspace, isTaken: true,
			err: "opening device wg0: data plane userspace: link exists already and is not ours: link wg0 is of type veth; delete it or choose another server.interface",
		},
		{
			name: "name of another's link, kernel", before: veth, plane: spec.Kernel, isTaken: true,
			err: "opening device wg0: data plane kernel: link exists already and is not ours: link wg0 is of type veth; delete it or choose another server.interface",
		},
		{
			name: "name of another's link, auto", before: veth, plane: spec.Auto, isTaken: true,
			err: "opening device wg0: data plane kernel: link exists already and is not ours: link wg0 is of type veth; delete it or choose another server.interface",
		},
		{
			name: "name of another's TUN", before: persistentTUN, plane: spec.Userspace, isTaken: true,
			err: "opening device wg0: data plane userspace: link exists already and is not ours: link wg0 is of type tuntap; delete it or choose another server.interface",
		},
		{
			name: "socket of a live process", before: servedSocket, plane: spec.Userspace,
			err: "opening device wg0: data plane userspace: opening the configuration socket of wg0: unix socket in use (it needs a writable /var/run/wireguard, and no other process that serves the same name)",
		},
		{
			name: "unknown data plane", before: func(*testing.T) {}, plane: "netstack",
			err: `data plane "netstack" is unknown; use auto, kernel or userspace`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.before(t)
			links := linkNames(t)
			_, err := Open(options(tt.plane, nil))
			if diff := cmp.Diff(tt.err, fmt.Sprint(err)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if errors.Is(err, ErrLinkTaken) != tt.isTaken {
				t.Errorf("errors.Is(err, ErrLinkTaken) = %t, want %t", !tt.isTaken, tt.isTaken)
			}
			if diff := cmp.Diff(links, linkNames(t)); diff != "" {
				t.Errorf("links (-before +after):\n%s", diff)
			}
		})
	}
}

func TestMissingTUN(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tun")
	want := "no TUN device: open " + path + ": no such file or directory (mount it into the container; the node needs the tun module)"
	if diff := cmp.Diff(want, fmt.Sprint(haveTUN(path))); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	need(t)
	if err := os.MkdirAll(filepath.Dir(socketPath), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketPath, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as a process that is killed leaves it
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socketPath); err != nil {
		t.Fatal(err)
	}
	d := open(t, spec.Userspace)
	converge(t, d, desired(t), nil)
}

func TestVanishedLinkIsMadeAgain(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		d := open(t, p)
		c := newClient(t, 0, "10.8.0.2", key.Preshared{})
		want := desired(t, c.peer("client"))
		want.Link.Routes = prefixes("10.9.0.0/24")
		converge(t, d, want, nil)
		c.connect(t, publicKey(want), endpoint())
		c.ping(t, insideAddress())
		link, err := netlink.LinkByName(linkName)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		o, err := d.Observe()
		if err != nil {
			t.Fatal(err)
		}
		gone := state.Observed{Tunnels: map[key.Slot]state.ObservedTunnel{key.Blue: {}}, Forwarding: map[string]bool{"eth0": true, "eth1": true}}
		if diff := cmp.Diff(gone, o); diff != "" {
			t.Errorf("observed without the link (-want +got):\n%s", diff)
		}
		converge(t, d, want, &want)
		c.connect(t, publicKey(want), endpoint()) // the client need not wait for its timers
		c.ping(t, insideAddress())
	})
}

func TestReplacedLinkIsNotOurs(t *testing.T) {
	need(t)
	d := open(t, spec.Userspace)
	converge(t, d, desired(t), nil)
	link, err := netlink.LinkByName(linkName)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = linkName
	foreign := &netlink.Veth{LinkAttrs: attrs, PeerName: "wgpeer"}
	if err := netlink.LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Observe(); !errors.Is(err, ErrLinkTaken) {
		t.Errorf("Observe: %v, want %v", err, ErrLinkTaken)
	}
	if err := d.Apply(plan.Plan{Tunnels: []plan.Tunnel{{Slot: key.Blue, Link: plan.Link{MTU: 1300}}}}); !errors.Is(err, ErrLinkTaken) {
		t.Errorf("Apply: %v, want %v", err, ErrLinkTaken)
	}
	if err := netlink.LinkDel(foreign); err != nil {
		t.Fatal(err)
	}
}

func TestLinkTakenDownComesUp(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		d := open(t, p)
		c := newClient(t, 0, "10.8.0.2", key.Preshared{})
		want := desired(t, c.peer("client"))
		want.Link.Routes = prefixes("10.9.0.0/24")
		converge(t, d, want, nil)
		link, err := netlink.LinkByName(linkName)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetDown(link); err != nil {
			t.Fatal(err)
		}
		converge(t, d, want, &want)
		c.connect(t, publicKey(want), endpoint())
		c.ping(t, insideAddress())
	})
}

func TestPortInUse(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		const otherPort = 51999
		hold := func() *net.UDPConn {
			l, err := net.ListenUDP("udp4", &net.UDPAddr{Port: otherPort})
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		refused := fmt.Sprintf("UDP port %d: ", otherPort)

		d := open(t, p)
		c := newClient(t, 0, "10.8.0.2", key.Preshared{})
		want := desired(t, c.peer("client"))
		want.Device.ListenPort = otherPort
		holder := hold()
		err := d.Apply(difference(t, d, want, nil))
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("first Apply: %v, want %v", err, unix.EADDRINUSE)
		}
		want.Device.ListenPort = listenPort
		converge(t, d, want, nil)
		c.connect(t, publicKey(want), endpoint())
		c.ping(t, insideAddress())

		// Later, the port that it has must not be lost for one that it cannot
		// have, and the rest of the change happens.
		changed := want
		changed.Device.ListenPort = otherPort
		other := key.GeneratePrivate().Public()
		set(&changed, state.Peer{Name: "other", PublicKey: other, AllowedIPs: prefixes("10.8.0.9/32")})
		err = d.Apply(difference(t, d, changed, &want))
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), refused) {
			t.Errorf("Apply: %v, want %v and %q", err, unix.EADDRINUSE, refused)
		}
		c.ping(t, insideAddress())
		left := difference(t, d, changed, &want).Summary(10)
		if diff := cmp.Diff([]string{fmt.Sprintf("listen port %d", otherPort)}, left); diff != "" {
			t.Errorf("still to do (-want +got):\n%s", diff)
		}
		if err := holder.Close(); err != nil {
			t.Fatal(err)
		}
		converge(t, d, changed, &want)
	})
}

func TestOthersRoutesAreUntouched(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		d := open(t, p)
		eth1, err := netlink.LinkByName("eth1")
		if err != nil {
			t.Fatal(err)
		}
		taken := netip.MustParsePrefix("10.77.0.0/16")
		foreign := &netlink.Route{LinkIndex: eth1.Attrs().Index, Dst: ipNetOf(taken), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(foreign); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = netlink.RouteDel(foreign) })
		want := desired(t)
		want.Link.Routes = prefixes("10.66.0.0/16", taken.String(), "10.88.0.0/16")
		err = d.Apply(difference(t, d, want, nil))
		if message := "adding route 10.77.0.0/16 through wg0: file exists: another link has that route"; !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), message) {
			t.Errorf("Apply: %v, want %q", err, message)
		}
		o, err := d.Observe()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(prefixes("10.66.0.0/16", "10.88.0.0/16"), o.Tunnels[key.Blue].Link.Routes, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("our routes (-want +got):\n%s", diff)
		}
		list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: eth1.Attrs().Index}, netlink.RT_FILTER_OIF)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(list, func(r netlink.Route) bool { return r.Dst.String() == taken.String() }) {
			t.Errorf("the route of eth1 is gone; it has %v", list)
		}
	})
}

// TestAddressInTheSameNetwork: with the first address of a network the kernel
// takes the others of it, and with a link's last address its routes.
func TestAddressInTheSameNetwork(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		d := open(t, p)
		want := desired(t)
		want.Link.Routes = prefixes("10.66.0.0/16")
		converge(t, d, want, nil)
		for _, address := range []string{"10.8.0.2/24", "10.8.0.1/23", "10.20.0.1/24"} {
			want.Link.Addresses = prefixes(address)
			converge(t, d, want, nil)
		}
	})
}

// TestTakeover is the kernel's alone: a userspace device ends with its process.
func TestTakeover(t *testing.T) {
	onKernel(t, func(t *testing.T, p spec.DataPlane) {
		d, err := Open(options(p, nil))
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, 0, "10.8.0.2", key.GeneratePreshared())
		want := desired(t, c.peer("client"))
		converge(t, d, want, nil)
		c.connect(t, publicKey(want), endpoint())
		c.ping(t, insideAddress())
		before, err := d.Observe()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		stop := c.stream(t, insideAddress())
		successor := open(t, spec.Auto)
		t.Cleanup(func() { // it knows not that its predecessor switched it on
			_ = errors.Join(setForwarding("eth0", false), setForwarding("eth1", false))
		})
		if left := difference(t, successor, want, nil); !left.Empty() {
			t.Errorf("a successor finds to do: %q", left.Summary(10))
		}
		stop()
		after, err := successor.Observe()
		if err != nil {
			t.Fatal(err)
		}
		k := c.private.Public()
		if got, want := after.Tunnels[key.Blue].Device.Peers[k].LastHandshake, before.Tunnels[key.Blue].Device.Peers[k].LastHandshake; !got.Equal(want) {
			t.Errorf("last handshake %v, want %v: the session was lost", got, want)
		}
	})
}

// TestLogHoldsNoKey listens to wireguard-go at its most talkative, and sends it
// configuration that it does not understand.
func TestLogHoldsNoKey(t *testing.T) {
	need(t)
	var out lockedBuffer
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d, err := Open(options(spec.Userspace, log))
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, 0, "10.8.0.2", key.GeneratePreshared())
	want := desired(t, c.peer("client"))
	converge(t, d, want, nil)
	c.connect(t, publicKey(want), endpoint())
	c.ping(t, insideAddress())
	private := want.Device.PrivateKey.Bytes()
	for _, text := range []string{"private_key=%s\n", "set=1\nprivate_key %s\n\n", "set=1\n%s=1\n\n", "set=1\nprivate_key=%s00\n\n"} {
		uapi, err := net.Dial("unix", socketPath)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(uapi, text, hex.EncodeToString(private[:])); err != nil {
			t.Fatal(err)
		}
		_, _ = uapi.Read(make([]byte, 64)) // answered, so logged
		_ = uapi.Close()
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, said := range []string{"Received handshake initiation", "failed to parse line"} {
		if !strings.Contains(text, said) {
			t.Errorf("the log lacks %q", said)
		}
	}
	for what, secret := range map[string]interface{ Bytes() [key.Len]byte }{
		"private": want.Device.PrivateKey, "pre-shared": c.psk, "client's private": c.private,
	} {
		b := secret.Bytes()
		for _, form := range []string{hex.EncodeToString(b[:]), key.NewPrivate(b).Reveal()} {
			if strings.Contains(text, form[:20]) {
				t.Errorf("the log holds the %s key", what)
			}
		}
	}
}

// lockedBuffer takes the log of many goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestClosed(t *testing.T) {
	onEach(t, func(t *testing.T, p spec.DataPlane) {
		d, err := Open(options(p, nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Remove(); err != nil {
			t.Fatal(err)
		}
		if err := d.EachPeer(key.Blue, func(*state.ObservedPeer) {}); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("EachPeer: %v, want %v", err, fs.ErrClosed)
		}
		if err := d.Apply(plan.Plan{}); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Apply: %v, want %v", err, fs.ErrClosed)
		}
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

// noIPv6Bind reports ports as conn.StdNetBind does on a kernel without IPv6.
type noIPv6Bind struct{ conn.Bind }

func (noIPv6Bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) { return nil, 0, nil }

func TestPortWithoutIPv6(t *testing.T) {
	if _, got, err := (steadyBind{noIPv6Bind{}}).Open(51820); got != 51820 || err != nil {
		t.Errorf("Open(51820) = %d, %v; want 51820", got, err)
	}
}

// With a device that follows routes, every peer that comes or goes costs a question to the
// kernel for every peer that there is.
func TestRoutesAreNotFollowed(t *testing.T) {
	need(t)
	converge(t, open(t, spec.Userspace), desired(t), nil)
	// Of a goroutine that is on a processor at that moment there is no stack.
	runs := false
	for deadline := time.Now().Add(patience); !runs && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		all := make([]byte, 1<<20)
		all = all[:runtime.Stack(all, true)]
		runs = bytes.Contains(all, []byte("RoutineReceiveIncoming"))
		if bytes.Contains(all, []byte("routineRouteListener")) {
			t.Fatal("wireguard-go follows the changes of routes")
		}
	}
	if !runs {
		t.Error("wireguard-go does not run")
	}
}
