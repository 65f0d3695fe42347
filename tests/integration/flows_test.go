package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

// serveWhoami answers TCP connections and UDP packets at the given addresses with
// the address that they seem to come from.
func serveWhoami(t *testing.T, ns *netns.NS, addresses ...netip.AddrPort) {
	t.Helper()
	for _, a := range addresses {
		listener, err := ns.Listen(a)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, c.RemoteAddr().String())
				_ = c.Close()
			}
		}()
		conn, err := ns.ListenUDP(a)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		go func() {
			packet := make([]byte, 1500)
			for {
				_, from, err := conn.ReadFromUDPAddrPort(packet)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = conn.WriteToUDPAddrPort([]byte(from.String()), from)
				}
			}
		}()
	}
}

// Outcomes of a flow.
const (
	passed   = "passed"
	rejected = "rejected" // an ICMP error said so at once
)

// flow tries to reach an address by tcp, udp or icmp and returns the outcome and,
// but for icmp, who the far end took us for. What is dropped without a word is
// neither passed nor rejected, and takes half a minute.
func flow(t *testing.T, from *netns.NS, protocol string, to netip.AddrPort) (outcome string, seen netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience/2)
	defer cancel()
	if protocol == "icmp" {
		return ping(ctx, t, from, to.Addr()), netip.Addr{}
	}
	seen, err := ask(ctx, from, protocol, to)
	switch {
	case err == nil:
		return passed, seen
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES):
		return rejected, netip.Addr{} // of ICMP 3/13 and ICMPv6 1/1
	default:
		return err.Error(), netip.Addr{}
	}
}

// ask asks a whoami.
func ask(ctx context.Context, from *netns.NS, protocol string, to netip.AddrPort) (netip.Addr, error) {
	conn, err := from.DialContext(ctx, protocol, to.String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return netip.Addr{}, err
		}
	}
	if protocol == "udp" {
		if _, err := io.WriteString(conn, "?"); err != nil {
			return netip.Addr{}, err
		}
	}
	answer := make([]byte, 100)
	n, err := conn.Read(answer)
	if err != nil {
		return netip.Addr{}, err
	}
	seen, err := netip.ParseAddrPort(string(answer[:n]))
	return seen.Addr().Unmap(), err
}

// ping sends an echo request and waits for what comes of it.
func ping(ctx context.Context, t *testing.T, from *netns.NS, to netip.Addr) string {
	t.Helper()
	seconds := fmt.Sprint(int((patience / 2).Seconds()))
	out, err := from.Run(exec.CommandContext(ctx, testenv.MustTool(t, "ping"), "-n", "-c", "1", "-W", seconds, "-w", seconds, to.String()))
	switch {
	case err == nil:
		return passed
	case strings.Contains(string(out), "Packet filtered"), strings.Contains(string(out), "Administratively prohibited"):
		return rejected
	default:
		return fmt.Sprintf("%v: %s", err, out)
	}
}

// stopped reads the counters of the packets that the gateway's firewall stopped.
func (w *world) stopped(t *testing.T) map[string]uint64 {
	t.Helper()
	out, err := w.Pod.Network().Run(exec.Command(testenv.MustTool(t, "nft"), "list", "counters", "table", "inet", "vpn_gateway"))
	if err != nil {
		t.Fatal(err)
	}
	counters := map[string]uint64{}
	name := ""
	for line := range strings.Lines(string(out)) {
		var packets, bytes uint64
		if _, err := fmt.Sscanf(line, " counter %s {", &name); err == nil {
			continue
		}
		if _, err := fmt.Sscanf(line, " packets %d bytes %d", &packets, &bytes); err == nil {
			counters[name] = packets
		}
	}
	return counters
}

// wantStopped waits until the firewall has stopped one more packet for a reason.
func (w *world) wantStopped(t *testing.T, before map[string]uint64, reason string) {
	t.Helper()
	eventually(t, "a packet stopped as "+reason, func() string {
		if now := w.stopped(t); now[reason] <= before[reason] {
			return fmt.Sprintf("stopped %v, before %v", now, before)
		}
		return ""
	})
}

// inbox notes the UDP payloads that reach an address, and who seems to send them.
type inbox struct {
	t    *testing.T
	conn *net.UDPConn
}

func newInbox(t *testing.T, ns *netns.NS, at netip.AddrPort) *inbox {
	t.Helper()
	conn, err := ns.ListenUDP(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &inbox{t: t, conn: conn}
}

// next waits for the next payload.
func (i *inbox) next() (payload string, from netip.Addr) {
	i.t.Helper()
	if err := i.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		i.t.Fatal(err)
	}
	packet := make([]byte, 1500)
	n, sender, err := i.conn.ReadFromUDPAddrPort(packet)
	if err != nil {
		i.t.Fatal(err)
	}
	return string(packet[:n]), sender.Addr().Unmap()
}
