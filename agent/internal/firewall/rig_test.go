package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// need skips the test where the machine does not let it make network
// namespaces; REQUIRE_INTEGRATION=1 makes a failure of that.
func need(t testing.TB) {
	t.Helper()
	err := make(chan error)
	go func() {
		runtime.LockOSThread() // ends with the goroutine, and its namespace too
		err <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	if e := <-err; e != nil {
		const format = "this machine lacks: the right to make network namespaces (unshare: %v; needs root)"
		if os.Getenv("REQUIRE_INTEGRATION") == "1" {
			t.Fatalf(format, e)
		}
		t.Skipf(format, e)
	}
}

// space is a network namespace without a name, which ends with the test.
type space struct{ handle netns.NsHandle }

func newSpace(t testing.TB) space {
	t.Helper()
	var s space
	err := onThread(func() (err error) {
		s.handle, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	t.Cleanup(func() { _ = s.handle.Close() })
	s.do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return s
}

// onThread runs f on a thread of its own that nothing runs on afterwards.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}

// run runs f inside the namespace.
func (s space) run(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.handle); err != nil {
			return err
		}
		return f()
	})
}

func (s space) do(t testing.TB, f func() error) {
	t.Helper()
	if err := s.run(f); err != nil {
		t.Fatal(err)
	}
}

// rig is a gateway between the tunnel's far end and the cluster. The tunnel is
// a veth pair without ARP, which to the gateway's IP stack is as much a wire as
// a WireGuard device is.
//
//	peers t0 ── wg0 gateway uplink0 ── c0 cluster
//	                wg0l ── s0 sibling
//
// Packets are injected and caught at t0, c0 and s0.
type rig struct {
	peers, gateway, cluster, sibling space
	firewall                         *Firewall
	ends                             map[side]*end
	serial                           uint32
}

// side is an end of the gateway.
type side string

const (
	tunnel  side = "tunnel"
	cluster side = "cluster"
	sibling side = "sibling"
)

// Addresses of the rig.
const (
	gatewayTunnel4, gatewayTunnel6 = "10.8.0.1", "fd00:8::1"
	gatewayUplink4, gatewayUplink6 = "10.244.0.5", "fd00:244::5"
	sentinelPeer                   = "10.8.255.250" // granted everything by every test's configuration
	tunnelMTU                      = 1420
)

func newRig(t testing.TB) *rig {
	t.Helper()
	need(t)
	r := &rig{peers: newSpace(t), gateway: newSpace(t), cluster: newSpace(t), sibling: newSpace(t), ends: map[side]*end{}}
	r.connect(t, r.peers, "t0", "wg0")
	r.connect(t, r.cluster, "c0", "uplink0")
	r.connect(t, r.sibling, "s0", "wg0l")
	r.gateway.do(t, func() error {
		for path, value := range map[string]string{
			"ipv4/conf/all/forwarding":         "1",
			"ipv6/conf/all/forwarding":         "1",
			"ipv4/conf/all/rp_filter":          "0", // or the kernel would catch the spoofers before us
			"ipv4/conf/wg0/rp_filter":          "0",
			"ipv4/conf/uplink0/rp_filter":      "0",
			"ipv4/conf/all/send_redirects":     "0",
			"ipv4/conf/wg0l/rp_filter":         "0",
			"ipv4/conf/wg0l/send_redirects":    "0",
			"ipv4/conf/wg0/send_redirects":     "0",
			"ipv4/conf/uplink0/send_redirects": "0",
			"ipv4/icmp_ratelimit":              "0",
			"ipv6/icmp/ratelimit":              "0",
		} {
			if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
				return err
			}
		}
		return errors.Join(
			address("wg0", gatewayTunnel4+"/16"), address("wg0", gatewayTunnel6+"/64"), mtu("wg0", tunnelMTU),
			address("uplink0", gatewayUplink4+"/24"), address("uplink0", gatewayUplink6+"/64"),
			route("wg0", "192.168.50.0/24"), route("uplink0", "0.0.0.0/0"), route("uplink0", "::/0"),
			route("wg0l", dave4+"/32"), route("wg0l", siblingPod4+"/32"),
		)
	})
	r.gateway.do(t, func() (err error) {
		r.firewall, err = New(slog.New(slog.DiscardHandler))
		return err
	})
	r.gateway.do(t, addForeignTable)
	r.ends[tunnel] = newEnd(t, r.peers, "t0")
	r.ends[cluster] = newEnd(t, r.cluster, "c0")
	r.ends[sibling] = newEnd(t, r.sibling, "s0")
	return r
}

// connect joins a namespace with the gateway.
func (r *rig) connect(t testing.TB, s space, name, gatewayName string) {
	t.Helper()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, gatewayName[0]} // without ARP, a device sends to its own address
	s.do(t, func() error {
		a := netlink.NewLinkAttrs()
		a.Name, a.HardwareAddr = name, mac
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: a, PeerName: gatewayName, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(r.gateway.handle),
		})
	})
	s.do(t, func() error { return bringUp(name) })
	r.gateway.do(t, func() error { return bringUp(gatewayName) })
}

func bringUp(name string) error {
	// No neighbour discovery of the kernel's own between the tests' packets.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0); err != nil {
		return err
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetARPOff(l), netlink.LinkSetUp(l))
}

func address(device, cidr string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD
	return netlink.AddrAdd(l, a)
}

func mtu(device string, n int) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.LinkSetMTU(l, n)
}

func route(device, cidr string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK})
}

// end is where packets go in and come out, as whole Ethernet frames.
type end struct {
	fd  int
	mac net.HardwareAddr
}

const ethernet = 14 // length of its header

func newEnd(t testing.TB, s space, device string) *end {
	t.Helper()
	e := &end{}
	s.do(t, func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		e.mac = l.Attrs().HardwareAddr
		all := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00)
		e.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(e.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}),
			unix.SetsockoptInt(e.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}),
		)
	})
	t.Cleanup(func() { _ = unix.Close(e.fd) })
	return e
}

// read returns the next frame, without its Ethernet header.
func (e *end) read(flags int) ([]byte, error) {
	buffer := make([]byte, 70000)
	for {
		n, _, err := unix.Recvfrom(e.fd, buffer, flags)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buffer[ethernet:n], nil
	}
}

// send puts a packet in at one side and returns what of it came out anywhere,
// or what came out because of it (an error, an answer): whatever carries its
// mark.
//
// Nothing is timed. The kernel handles on one CPU what was sent on it, in order:
// when the packet that is always let through has come out, the one before it has
// been dealt with.
func (r *rig) send(t testing.TB, from side, p packet) []catch {
	t.Helper()
	r.serial++
	p.mark = fmt.Appendf(nil, "packet %08x", r.serial)
	if p.sport == 0 && p.id == 0 { // a flow of its own
		p.sport, p.id = 20000+uint16(r.serial), 20000+uint16(r.serial)
	}
	last := sentinel(r.serial)
	to := cluster
	if from != tunnel {
		to = tunnel
		last.src, last.dst = last.dst, last.src
	}
	if err := onThread(func() error { return r.ends[from].write(append(p.build(t), last.build(t)...)) }); err != nil {
		t.Fatalf("send: %v", err)
	}
	var out []catch
	note := func(at side, b []byte) {
		if bytes.Contains(b, p.mark) {
			out = append(out, catch{at, b})
		}
	}
	for {
		b, err := r.ends[to].read(0)
		if err != nil {
			t.Fatalf("the packet that is always let through did not come out of the %s: %v", to, err)
		}
		if bytes.Contains(b, last.mark) {
			break
		}
		note(to, b)
	}
	for at, e := range r.ends {
		for at != to {
			b, err := e.read(unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				t.Fatalf("read at the %s: %v", at, err)
			}
			note(at, b)
		}
	}
	return out
}

// sentinel is a packet that is always let through, from the tunnel's side.
func sentinel(serial uint32) packet {
	return packet{src: sentinelPeer, dst: "10.244.0.9", protocol: unix.IPPROTO_UDP, sport: 9, dport: 9, mark: fmt.Appendf(nil, "sentinel %08x", serial)}
}

// write sends packets in order, all from one CPU.
func (e *end) write(packets [][]byte) error {
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return err
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if may.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	for _, p := range packets {
		header := make([]byte, ethernet)
		copy(header[0:6], e.mac)
		copy(header[6:12], e.mac)
		binary.BigEndian.PutUint16(header[12:], unix.ETH_P_IP)
		if p[0]>>4 == 6 {
			binary.BigEndian.PutUint16(header[12:], unix.ETH_P_IPV6)
		}
		if _, err := unix.Write(e.fd, append(header, p...)); err != nil {
			return err
		}
	}
	return nil
}

// outcome is what became of a packet.
type outcome string

const (
	toCluster outcome = "to the cluster"
	toTunnel  outcome = "to the tunnel"
	passedOn  outcome = "to the sibling"
	answered  outcome = "answered" // by the gateway itself
	rejected  outcome = "rejected" // with an ICMP error, administratively prohibited
	dropped   outcome = "dropped"
	confused  outcome = "more than one thing"
)

// outcome sends a packet and tells what became of it, and how it looked when it
// came out.
func (r *rig) outcome(t testing.TB, from side, p packet) (outcome, packet) {
	t.Helper()
	caught := r.send(t, from, p)
	switch len(caught) {
	case 0:
		return dropped, packet{}
	case 1:
	default:
		return confused, packet{}
	}
	got := parse(t, caught[0].bytes)
	switch through := caught[0].at != from || got.dst == p.dst; {
	case through && caught[0].at == cluster:
		return toCluster, got
	case through && caught[0].at == sibling:
		return passedOn, got
	case through:
		return toTunnel, got
	case got.prohibited():
		return rejected, got
	default:
		return answered, got
	}
}

// catch is a packet that came out of the gateway.
type catch struct {
	at    side
	bytes []byte
}

// foreign is somebody else's table: it must stay as it is, and its rules must
// not see what we do inside ours.
const foreign = "somebody_else"

// addForeignTable makes a table that drops every packet with a mark, right
// before it leaves.
func addForeignTable() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: foreign})
	for name, hook := range map[string]*nftables.ChainHook{"input": nftables.ChainHookInput, "postrouting": nftables.ChainHookPostrouting} {
		chain := c.AddChain(&nftables.Chain{Table: t, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRef(300)})
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: seq(
			compare(&expr.Meta{Key: expr.MetaKeyMARK, Register: register}, expr.CmpOpNeq, make([]byte, 4)),
			[]expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})})
	}
	return c.Flush()
}
