package replicas

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// world is three replicas, two stock clients and a host of the cluster, all on one
// bridge. The host's way to the peers leads through the first replica.
//
//	host 10.244.0.10 ── replicas a, b, c 10.244.0.1 to 3, 192.0.2.1 to 3 ── peers 10.8.0.2 and 3 at 192.0.2.11 and 12
type world struct {
	server   key.Private
	host     space
	replicas map[string]*member
	peers    map[string]*client
	// holders maps names of peers to names of replicas.
	holders    map[string]string
	peerToPeer bool
}

type member struct {
	space
	*process
	address, public netip.Addr
	stopped         report
}

func names() []string { return []string{"a", "b", "c"} }

func newWorld(t *testing.T) *world {
	t.Helper()
	bridge := newSpace(t)
	bridge.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		return netlink.LinkSetUp(br)
	})
	w := &world{
		server: key.GeneratePrivate(), replicas: map[string]*member{}, peers: map[string]*client{}, holders: map[string]string{},
	}
	record(t, w.server)
	w.host = bridge.plug(t, "host", "10.244.0.10/24")
	w.host.do(t, func() error { return routeVia("10.8.0.0/24", "10.244.0.1") })
	for i, name := range names() {
		m := &member{address: netip.AddrFrom4([4]byte{10, 244, 0, byte(i + 1)}), public: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}
		m.space = bridge.plug(t, name, m.address.String()+"/24", m.public.String()+"/24")
		m.process = startReplica(t, m.space)
		w.replicas[name] = m
	}
	for i, name := range []string{"alice", "bob"} {
		s := bridge.plug(t, name, fmt.Sprintf("192.0.2.%d/24", 11+i))
		w.peers[name] = newClient(t, s, netip.AddrFrom4([4]byte{10, 8, 0, byte(i + 2)}))
	}
	return w
}

// plug makes a namespace with an eth0 at the bridge.
func (s space) plug(t *testing.T, name string, addresses ...string) space {
	t.Helper()
	out := newSpace(t)
	s.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "to-" + name
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(out.handle)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	out.do(t, func() error {
		for _, device := range []string{"lo", "eth0"} {
			l, err := netlink.LinkByName(device)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		for _, a := range addresses {
			if err := addressOf("eth0", a); err != nil {
				return err
			}
		}
		return nil
	})
	return out
}

func addressOf(device, cidr string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, a)
}

func routeVia(cidr, gateway string) error {
	_, dst, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway)})
}

// tell brings what the fleet knows to some replicas, in that order, or to all. It
// returns how long the slowest took.
func (w *world) tell(t *testing.T, to ...string) time.Duration {
	t.Helper()
	if len(to) == 0 {
		to = names()
	}
	var slowest time.Duration
	for _, name := range to {
		m := w.replicas[name]
		o := order{PrivateKey: w.server.Reveal(), PeerToPeer: w.peerToPeer, Elsewhere: map[string]string{}, Address: m.address}
		for _, peer := range []string{"alice", "bob"} {
			c := w.peers[peer]
			o.Peers = append(o.Peers, orderedPeer{peer, c.private.Public(), []netip.Addr{c.address}})
			if h := w.holders[peer]; h != "" && h != name {
				o.Elsewhere[peer] = h
			}
		}
		for _, sibling := range names() {
			if s := w.replicas[sibling]; sibling != name {
				o.Siblings = append(o.Siblings, state.Sibling{Name: sibling, Address: s.address, LinkKey: s.linkKey, LinkPort: linkPort})
			}
		}
		m.stopped = m.order(t, o)
		slowest = max(slowest, m.stopped.Took)
	}
	return slowest
}

// move has a client talk to another replica, with a new session, and then tells the
// fleet: the new holder first, as it is the one that sees the handshake.
func (w *world) move(t *testing.T, peer, to string) {
	t.Helper()
	w.peers[peer].dial(t, w.server.Public(), w.replicas[to].public)
	w.holders[peer] = to
	w.tell(t, append([]string{to}, slices.DeleteFunc(names(), func(n string) bool { return n == to })...)...)
}

// client is Debian's wireguard-go.
type client struct {
	space
	name    string
	private key.Private
	address netip.Addr
	control *wgctrl.Client
}

func newClient(t *testing.T, s space, address netip.Addr) *client {
	t.Helper()
	c := &client{space: s, name: fmt.Sprintf("vpngwr%d", address.As4()[3]), private: key.GeneratePrivate(), address: address}
	record(t, c.private)
	path := "/usr/bin/wireguard-go"
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("REQUIRE_INTEGRATION") == "1" {
			t.Fatalf("this machine lacks %s (Debian package wireguard-go; `make deps` installs it)", path)
		}
		t.Skipf("this machine lacks %s (Debian package wireguard-go; `make deps` installs it)", path)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	socket := "/var/run/wireguard/" + c.name + ".sock"
	start(t, s, path, []string{path, "--foreground", c.name}, &os.ProcAttr{Files: []*os.File{null, null, null}, Env: os.Environ()})
	t.Cleanup(func() { _ = os.Remove(socket) })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if c.control, err = wgctrl.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.control.Close() })
	private := wgtypes.Key(c.private.Bytes())
	if err := c.control.ConfigureDevice(c.name, wgtypes.Config{PrivateKey: &private}); err != nil {
		t.Fatal(err)
	}
	s.do(t, func() error {
		l, err := netlink.LinkByName(c.name)
		if err != nil {
			return err
		}
		if err := addressOf(c.name, address.String()+"/32"); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, to := range []string{"10.8.0.0/24", "10.244.0.0/24"} {
			_, dst, _ := net.ParseCIDR(to)
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: unix.RT_SCOPE_LINK}); err != nil {
				return err
			}
		}
		return nil
	})
	return c
}

// dial returns once there is a session.
func (c *client) dial(t *testing.T, server key.Public, to netip.Addr) {
	t.Helper()
	k, keepalive := wgtypes.Key(server), 25*time.Second
	var networks []net.IPNet
	for _, n := range []string{"10.8.0.0/24", "10.244.0.0/24"} {
		_, dst, _ := net.ParseCIDR(n)
		networks = append(networks, *dst)
	}
	err := c.control.ConfigureDevice(c.name, wgtypes.Config{Peers: []wgtypes.PeerConfig{
		{PublicKey: k, Remove: true},
		{PublicKey: k, Endpoint: net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 51820)), PersistentKeepaliveInterval: &keepalive, AllowedIPs: networks},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		d, err := c.control.Device(c.name)
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Peers) == 1 && !d.Peers[0].LastHandshakeTime.IsZero() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no handshake with %s", to)
		}
	}
}

// record notes a key for the search for leaks after the run, as testenv's function of
// that name does, which Go lets only tests/ import.
func record(t *testing.T, k key.Private) {
	t.Helper()
	path, b := os.Getenv("VPN_GATEWAY_SECRETS_FILE"), k.Bytes()
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(base64.StdEncoding.EncodeToString(b[:]) + "\n"); err != nil {
		t.Fatal(err)
	}
}
