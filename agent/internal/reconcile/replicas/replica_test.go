package replicas

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/device"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/firewall"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// envReplica makes a replica of the test binary: it needs a network namespace of its
// own for the whole process, since wireguard-go opens sockets on any thread.
const envReplica = "VPNGW_TEST_REPLICA"

func TestMain(m *testing.M) {
	if os.Getenv(envReplica) == "" {
		os.Exit(m.Run())
	}
	signal.Ignore(os.Interrupt)
	if err := serveReplica(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "replica:", err)
		os.Exit(1)
	}
}

// order is what a replica is to know: all of its configuration, and what a fleet
// would tell it.
type order struct {
	PrivateKey string
	PeerToPeer bool
	Peers      []orderedPeer
	// Elsewhere maps names of peers to names of siblings.
	Elsewhere map[string]string
	Siblings  []state.Sibling
	Address   netip.Addr
	Leave     bool
}

type orderedPeer struct {
	Name      string
	PublicKey key.Public
	Addresses []netip.Addr
}

// report is what came of it.
type report struct {
	Error string
	// Took is for building, planning and applying.
	Took time.Duration
	// Left is what a look at the system finds to be done afterwards.
	Left []string
	// LinkKey is the public key of its end of the link.
	LinkKey key.Public
	// Stopped counts packets by reason.
	Stopped map[firewall.Reason]uint64
	// Leftover are the links, rules and routes after it left.
	Leftover []string
}

const linkPort = 51840

// serveReplica does as it is told, line by line.
func serveReplica(in io.Reader, out io.Writer) error {
	if err := privateRun(); err != nil {
		return err
	}
	r := replica{link: key.GeneratePrivate()}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		rep, err := r.obey(o)
		if err != nil {
			rep.Error = err.Error()
		}
		if err := json.NewEncoder(out).Encode(rep); err != nil {
			return err
		}
	}
	return lines.Err()
}

// privateRun keeps wireguard-go's sockets, which are named like their devices, apart
// from those of the other replicas.
func privateRun() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
}

// replica is a gateway without the loop: it takes the same way from what is desired
// to the system.
type replica struct {
	link     key.Private
	dev      *device.Tunnels
	fw       *firewall.Firewall
	applied  *state.Desired
	observed state.Observed
}

func (r *replica) obey(o order) (report, error) {
	out := report{LinkKey: r.link.Public(), Stopped: map[firewall.Reason]uint64{}}
	if o.Leave {
		if err := errors.Join(r.dev.Remove(), r.fw.Remove()); err != nil {
			return out, err
		}
		var err error
		out.Leftover, err = leftover()
		return out, err
	}
	if o.PrivateKey == "" { // only to say who it is
		return out, nil
	}
	inputs, err := r.inputs(o)
	if err != nil {
		return out, err
	}
	if err := r.open(inputs.Snapshot); err != nil {
		return out, err
	}
	start := time.Now()
	desired := state.Build(inputs)
	p := plan.Diff(desired, r.observed, nil)
	if r.applied != nil {
		p = plan.Changes(desired, *r.applied)
	}
	if err := errors.Join(r.fw.Apply(p.Firewall), r.dev.Apply(p)); err != nil {
		return out, err
	}
	out.Took = time.Since(start)
	r.applied = &desired
	if r.observed, err = r.dev.Observe(); err != nil {
		return out, err
	}
	if r.observed.FirewallInPlace, err = r.fw.InPlace(desired.Firewall); err != nil {
		return out, err
	}
	out.Left = plan.Diff(desired, r.observed, r.applied).Summary(10)
	counts, err := r.fw.Stopped()
	for reason, c := range counts {
		out.Stopped[reason] = c.Packets
	}
	return out, err
}

func (r *replica) open(s *spec.Snapshot) (err error) {
	if r.dev != nil {
		return nil
	}
	g := &s.Gateway
	r.dev, err = device.Open(device.Options{
		Names: map[key.Slot]string{key.Blue: g.Interface(key.Blue), key.Green: g.Interface(key.Green), state.Interlink: state.InterlinkName(g)},
		First: key.Blue, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	if r.fw, err = firewall.New(slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	r.observed, err = r.dev.Observe()
	return err
}

func (r *replica) inputs(o order) (state.Inputs, error) {
	private, err := key.ParsePrivate(o.PrivateKey)
	if err != nil {
		return state.Inputs{}, err
	}
	s := &spec.Snapshot{
		Gateway: spec.Gateway{
			Server: spec.Server{Interface: "wg0", ListenPort: 51820, Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.1/24")}},
			Routing: spec.Routing{
				Masquerade: true, PeerToPeer: o.PeerToPeer,
				AllowedDestinations: []spec.Destination{{CIDR: netip.MustParsePrefix("10.8.0.0/24")}, {CIDR: netip.MustParsePrefix("10.244.0.0/24")}},
			},
		},
		ServerKeys: []spec.ServerKey{{Key: private, Slot: key.Blue}},
	}
	f := &state.Fleet{
		Elsewhere: map[key.Public]string{}, Siblings: o.Siblings,
		Link: &state.LinkConfig{PrivateKey: r.link, ListenPort: linkPort, Address: o.Address},
	}
	for _, p := range o.Peers {
		s.Peers = append(s.Peers, spec.Peer{Name: p.Name, PublicKey: p.PublicKey, Addresses: p.Addresses})
		if holder := o.Elsewhere[p.Name]; holder != "" {
			f.Elsewhere[p.PublicKey] = holder
		}
	}
	return state.Inputs{Snapshot: s, Now: time.Now(), Uplink: state.Uplink{MTU: 1500}, Fleet: f}, nil
}

// leftover is what of a gateway is in the namespace.
func leftover() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && name != "eth0" {
			out = append(out, "link "+name)
		}
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		if r.IifName != "" {
			out = append(out, "rule "+r.String())
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	for _, r := range routes {
		if r.Protocol != unix.RTPROT_KERNEL && r.Protocol != unix.RTPROT_BOOT {
			out = append(out, "route "+r.String())
		}
	}
	return out, err
}

// process is a replica as its test sees it.
type process struct {
	in      *os.File
	answers *json.Decoder
	linkKey key.Public
}

// startReplica starts one in a namespace.
func startReplica(t *testing.T, s space) *process {
	t.Helper()
	theirIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start(t, s, exe, []string{exe}, &os.ProcAttr{
		Files: []*os.File{theirIn, theirOut, os.Stderr}, Env: append(os.Environ(), envReplica+"=1"),
		Sys: &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS},
	})
	_ = theirIn.Close()
	_ = theirOut.Close()
	t.Cleanup(func() { _ = in.Close(); _ = out.Close() })
	p := &process{in: in, answers: json.NewDecoder(out)}
	p.linkKey = p.order(t, order{}).LinkKey
	return p
}

// order fails the test where the replica cannot do what it is told, or has not done
// all of it.
func (p *process) order(t *testing.T, o order) report {
	t.Helper()
	if err := json.NewEncoder(p.in).Encode(o); err != nil {
		t.Fatal(err)
	}
	var r report
	if err := p.answers.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Error != "" || len(r.Left) > 0 {
		t.Fatalf("replica: %s, left to do: %q", r.Error, r.Left)
	}
	return r
}

// start starts a program in a namespace, which is killed at the end of the test.
func start(t *testing.T, s space, path string, args []string, attr *os.ProcAttr) {
	t.Helper()
	if attr.Sys == nil {
		attr.Sys = &unix.SysProcAttr{}
	}
	var p *os.Process
	s.do(t, func() (err error) {
		p, err = os.StartProcess(path, args, attr)
		return err
	})
	t.Cleanup(func() {
		_ = p.Kill()
		_, _ = p.Wait()
	})
}

// space is a network namespace that ends with the test.
type space struct{ handle netns.NsHandle }

func newSpace(t *testing.T) space {
	t.Helper()
	var s space
	err := onThread(func() (err error) {
		s.handle, err = netns.New()
		return err
	})
	if err != nil {
		const format = "this machine lacks: the right to make network namespaces (%v; needs root)"
		if os.Getenv("REQUIRE_INTEGRATION") == "1" {
			t.Fatalf(format, err)
		}
		t.Skipf(format, err)
	}
	t.Cleanup(func() { _ = s.handle.Close() })
	return s
}

// onThread runs f on a thread that nothing runs on afterwards.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}

func (s space) do(t *testing.T, f func() error) {
	t.Helper()
	err := onThread(func() error {
		if err := netns.Set(s.handle); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		t.Fatal(err)
	}
}
