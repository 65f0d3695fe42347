package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

func need(t *testing.T) {
	t.Helper()
	testenv.Need(t, testenv.Root(), testenv.NetNS())
}

func namespaceOfThread(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestDoComesBack(t *testing.T) {
	need(t)
	a, b := ForTest(t), ForTest(t)
	seen := map[string]bool{}
	visit := func() { seen[namespaceOfThread(t)] = true }
	outside := namespaceOfThread(t)
	failure := errors.New("failure of f")
	err := a.Do(func() error {
		inA := namespaceOfThread(t)
		visit()
		if err := b.Do(func() error { visit(); return nil }); err != nil {
			return err
		}
		if now := namespaceOfThread(t); now != inA {
			t.Errorf("after a nested Do the thread is in %s, want %s", now, inA)
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Errorf("Do returned %v, want what f did", err)
	}
	if now := namespaceOfThread(t); now != outside {
		t.Errorf("after Do the thread is in %s, want %s", now, outside)
	}
	if seen[outside] || len(seen) != 2 {
		t.Errorf("Do was in %v, want two namespaces other than %s", seen, outside)
	}
}

func TestNamedIsDeleted(t *testing.T) {
	need(t)
	name := fmt.Sprintf("test-%d", os.Getpid())
	n, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	path := "/run/netns/" + Prefix + name
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if _, err := New(name); err == nil {
		t.Error("a second namespace of the same name was made, want an error")
	}
	other, err := Open(Prefix + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("Close of an opened namespace deleted it: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: stat %s: %v, want that it does not exist", path, err)
	}
}

func TestProcessIsInside(t *testing.T) {
	need(t)
	n := ForTest(t)
	var want string
	if err := n.Do(func() error { want = namespaceOfThread(t); return nil }); err != nil {
		t.Fatal(err)
	}
	got, err := n.Run(exec.Command("readlink", "/proc/self/ns/net"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, strings.TrimSpace(string(got))); diff != "" {
		t.Errorf("namespace of the process (-want +got):\n%s", diff)
	}
	_, err = n.Run(exec.Command("sh", "-c", "echo why >&2; exit 3"))
	if err == nil || err.Error() != "sh: exit status 3: why" {
		t.Errorf("error = %v, want exit status and standard error", err)
	}
	p, err := n.Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	if !p.Running() {
		t.Error("sleep does not run")
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if p.Running() {
		t.Error("sleep runs after Kill")
	}
	if err := p.Kill(); err != nil {
		t.Errorf("second Kill: %v", err)
	}
}

// reach sends one UDP packet and reports who the other side took the sender for.
func reach(from, at *NS, listen, target netip.AddrPort) (netip.AddrPort, error) {
	server, err := at.ListenUDP(listen)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer server.Close()
	client, err := from.ListenUDP(netip.AddrPort{})
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer client.Close()
	if _, err := client.WriteToUDPAddrPort([]byte("x"), target); err != nil {
		return netip.AddrPort{}, err
	}
	_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, sender, err := server.ReadFromUDPAddrPort(make([]byte, 1))
	return netip.AddrPortFrom(sender.Addr().Unmap(), sender.Port()), err
}

func TestTopology(t *testing.T) {
	need(t)
	topology := TopologyForTest(t, Plan{Clients: 2, IPv6: true, MTU: 1400})
	pod, index, err := topology.AddPod()
	if err != nil {
		t.Fatal(err)
	}
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 51820)
	any6 := netip.AddrPortFrom(netip.IPv6Unspecified(), 51820)
	public := netip.AddrPortFrom(topology.PublicIP(), 4500)
	public6 := netip.AddrPortFrom(topology.PublicIP6(), 4500)
	for from, to := range map[netip.AddrPort]netip.Addr{public: topology.PodIP(index), public6: topology.PodIP6(index)} {
		if err := topology.Publish(from, netip.AddrPortFrom(to, 51820)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name           string
		from, at       *NS
		listen, target netip.AddrPort
		sender         netip.Addr
	}{
		{"client keeps its address at the Pod", topology.Clients[1], pod, any4, public, topology.ClientIP(1)},
		{"the same over IPv6", topology.Clients[1], pod, any6, public6, numbered("2001:db8:1::", 11)},
		{"client to client", topology.Clients[0], topology.Clients[1], any4, netip.AddrPortFrom(topology.ClientIP(1), 51820), topology.ClientIP(0)},
		{"Pod to service", pod, topology.Service, any4, netip.AddrPortFrom(topology.ServiceIP(), 51820), topology.PodIP(index)},
		{"Pod to service over IPv6", pod, topology.Service, any6, netip.AddrPortFrom(topology.ServiceIP6(), 51820), topology.PodIP6(index)},
		{"Pod to the Internet", pod, topology.Clients[0], any4, netip.AddrPortFrom(topology.ClientIP(0), 51820), netip.MustParseAddr("192.0.2.2")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := reach(tt.from, tt.at, tt.listen, tt.target)
			if err != nil {
				t.Fatal(err)
			}
			if got.Addr() != tt.sender {
				t.Errorf("sender %s, want %s", got.Addr(), tt.sender)
			}
		})
	}
	t.Run("no way from the Internet to the service", func(t *testing.T) {
		_, err := topology.Clients[0].DialContext(t.Context(), "tcp", netip.AddrPortFrom(topology.ServiceIP(), 80).String())
		var op *net.OpError
		if !errors.As(err, &op) || !strings.Contains(err.Error(), "unreachable") {
			t.Errorf("dial: %v, want that the network is unreachable", err)
		}
	})
	t.Run("MTU of the Pod", func(t *testing.T) {
		link, err := pod.Netlink().LinkByName(UplinkInterface)
		if err != nil {
			t.Fatal(err)
		}
		if link.Attrs().MTU != 1400 {
			t.Errorf("MTU = %d, want 1400", link.Attrs().MTU)
		}
	})
}
