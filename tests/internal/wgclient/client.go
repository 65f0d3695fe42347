package wgclient

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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

const (
	// socketDir is where wireguard-go and wg meet. It is not divided by network
	// namespaces, and so interfaces need names that nobody else uses.
	socketDir  = "/var/run/wireguard"
	defaultMTU = 1420
	// routeTable and mark are those of wg-quick for a default route.
	routeTable = 51820
	startTime  = 20 * time.Second
)

// Options say how a client runs.
type Options struct {
	NS *netns.NS
	// Kernel takes the kernel's WireGuard; otherwise it is Debian's wireguard-go.
	Kernel bool
	// LogDir is where wireguard-go's output goes, as INTERFACE.log; "" for nowhere.
	LogDir string
}

// Client is a stock client that is up.
type Client struct {
	options Options
	config  Config
	name    string
	wg      string
	daemon  *netns.Process
}

// Tools are the requirements of a userspace client.
func Tools() testenv.Requirement { return testenv.Tool("wg", "wireguard-go") }

// KernelModule is the requirement of a kernel client: WireGuard in the kernel,
// found by making a device of it.
func KernelModule() testenv.Requirement {
	return func() string {
		ns, err := netns.New("")
		if err != nil {
			return err.Error()
		}
		defer ns.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "wg0"
		if err := ns.Netlink().LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); err != nil {
			return fmt.Sprintf("WireGuard in the kernel (%v)", err)
		}
		return ""
	}
}

// Up sets a client up: the device, its keys and peers, addresses and routes. It
// does not wait for a handshake. Endpoints are IP addresses: names are not
// resolved in the namespace.
func Up(ctx context.Context, config Config, o Options) (*Client, error) {
	wg, err := testenv.FindTool("wg")
	if err != nil {
		return nil, err
	}
	c := &Client{options: o, config: config, wg: wg, name: fmt.Sprintf("vpngw%06x", rand.Uint32N(1<<24))}
	if err := c.up(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("WireGuard client %s: %w", c.name, err), c.Close())
	}
	return c, nil
}

// ForTest sets a client up that ends with t.
func ForTest(t testing.TB, config Config, o Options) *Client {
	t.Helper()
	if o.LogDir == "" {
		o.LogDir = testenv.Artifacts(t)
	}
	c, err := Up(t.Context(), config, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *Client) up(ctx context.Context) error {
	if err := c.makeDevice(ctx); err != nil {
		return err
	}
	if err := c.setconf("setconf"); err != nil {
		return err
	}
	link, err := c.options.NS.Netlink().LinkByName(c.name)
	if err != nil {
		return err
	}
	mtu := c.config.MTU
	if mtu == 0 {
		mtu = defaultMTU
	}
	if err := c.options.NS.Netlink().LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("MTU %d: %w", mtu, err)
	}
	for _, a := range c.config.Addresses {
		if err := c.options.NS.AddAddress(c.name, a); err != nil {
			return err
		}
	}
	if err := c.options.NS.SetUp(c.name, true); err != nil {
		return err
	}
	return c.addRoutes()
}

func (c *Client) makeDevice(ctx context.Context) error {
	if c.options.Kernel {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = c.name
		return c.options.NS.Netlink().LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	}
	binary, err := testenv.FindTool("wireguard-go")
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, "--foreground", c.name)
	cmd.Env = append(os.Environ(), "LOG_LEVEL=verbose")
	// SIGTERM, so that it takes its socket away when we are killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	if c.options.LogDir != "" {
		log, err := os.OpenFile(filepath.Join(c.options.LogDir, c.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	if c.daemon, err = c.options.NS.Start(cmd); err != nil {
		return err
	}
	return c.waitForSocket(ctx)
}

// waitForSocket waits until the daemon takes connections. It doesn't ask with wg,
// which deletes a socket that refuses, as one does for a moment when it is made.
func (c *Client) waitForSocket(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", c.socket())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-c.daemon.Done():
			return fmt.Errorf("wireguard-go ended: %w", c.daemon.Wait())
		case <-ctx.Done():
			return fmt.Errorf("wireguard-go does not answer: %w", err)
		}
	}
}

func (c *Client) socket() string { return filepath.Join(socketDir, c.name+".sock") }

// Run runs wg in the client's namespace and returns its output. Subcommands that
// print keys are for the caller to avoid.
func (c *Client) Run(args ...string) (string, error) { return c.runWith("", args...) }

func (c *Client) runWith(stdin string, args ...string) (string, error) {
	cmd := exec.Command(c.wg, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := c.options.NS.Run(cmd)
	return strings.TrimSpace(string(out)), err
}

// setconf gives the whole configuration to the device. verb is setconf or, to
// keep the sessions of unchanged peers, syncconf.
func (c *Client) setconf(verb string) error {
	mark := 0
	if len(c.defaultRoutes()) > 0 {
		mark = routeTable
	}
	_, err := c.runWith(c.config.setconf(mark), verb, c.name, "/dev/stdin")
	return err
}

func (c *Client) defaultRoutes() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range c.config.Peers {
		for _, a := range p.AllowedIPs {
			if a.Bits() == 0 {
				out = append(out, a)
			}
		}
	}
	return out
}

// addRoutes sends the peers' networks into the tunnel. For a default route it
// does as wg-quick does: packets without the device's mark use a table of their
// own, unless the main table has something better than a default route.
func (c *Client) addRoutes() error {
	for _, p := range c.config.Peers {
		for _, a := range p.AllowedIPs {
			route := netns.Route{To: a, Interface: c.name}
			if a.Bits() == 0 {
				route.Table = routeTable
			}
			if err := c.options.NS.AddRoute(route); err != nil {
				return err
			}
		}
	}
	for _, rule := range c.rules() {
		if err := c.options.NS.Netlink().RuleAdd(rule); err != nil {
			return fmt.Errorf("routing rule: %w", err)
		}
	}
	return nil
}

// rules are the routing rules of the default routes. Of two the later one gets
// the lower number.
func (c *Client) rules() []*netlink.Rule {
	var rules []*netlink.Rule
	for _, a := range c.defaultRoutes() {
		family := unix.AF_INET
		if a.Addr().Is6() {
			family = unix.AF_INET6
		}
		unmarked := netlink.NewRule()
		unmarked.Family, unmarked.Table, unmarked.Mark, unmarked.Invert = family, routeTable, routeTable, true
		specific := netlink.NewRule()
		specific.Family, specific.Table, specific.SuppressPrefixlen = family, unix.RT_TABLE_MAIN, 0
		rules = append(rules, unmarked, specific)
	}
	return rules
}

// Interface returns the device's name.
func (c *Client) Interface() string { return c.name }

// NS returns the client's network namespace.
func (c *Client) NS() *netns.NS { return c.options.NS }

// Config returns the configuration in force.
func (c *Client) Config() Config { return c.config }

// PID returns the ID of the userspace client's process; 0 with the kernel's.
func (c *Client) PID() int {
	if c.daemon == nil {
		return 0
	}
	return c.daemon.PID()
}

// SetPresharedKey changes the key of the peer, by `wg set`; a zero key takes
// it away. Running sessions go on.
func (c *Client) SetPresharedKey(peer string, psk Secret) error {
	text := psk.Reveal()
	if psk.IsZero() {
		text = ""
	}
	if _, err := c.runWith(text, "set", c.name, "peer", peer, "preshared-key", "/dev/stdin"); err != nil {
		return err
	}
	for i := range c.config.Peers {
		if c.config.Peers[i].PublicKey == peer {
			c.config.Peers[i].PresharedKey = psk
		}
	}
	return nil
}

// Sync changes the device to config by `wg syncconf`, as wg-quick's own advice
// for a change without an interruption goes. Addresses and routes stay.
func (c *Client) Sync(config Config) error {
	c.config = config
	return c.setconf("syncconf")
}

// Replace changes the device to config by `wg setconf`, which makes all peers
// anew: their sessions end. Addresses and routes stay.
func (c *Client) Replace(config Config) error {
	c.config = config
	return c.setconf("setconf")
}

// MoveTo has the client take another identity of its gateway, as one does that
// knows both: the new peer is called beside the old one, and once it answers, what
// goes through the tunnel goes to it, in one step. The old peer's allowed IPs and
// pre-shared key become the new one's.
func (c *Client) MoveTo(ctx context.Context, publicKey, endpoint string) error {
	old := c.config.Peers[0]
	text, file := "", "/dev/null"
	if !old.PresharedKey.IsZero() {
		text, file = old.PresharedKey.Reveal(), "/dev/stdin"
	}
	// The keepalive makes it call at once.
	if _, err := c.runWith(text, "set", c.name, "peer", publicKey, "preshared-key", file, "endpoint", endpoint, "persistent-keepalive", "5"); err != nil {
		return err
	}
	for {
		met, err := c.LatestHandshake(publicKey)
		if err != nil {
			return err
		}
		if !met.IsZero() {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("WireGuard client %s: %s does not answer: %w", c.name, publicKey, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	var allowed []string
	for _, a := range old.AllowedIPs {
		allowed = append(allowed, a.String())
	}
	_, err := c.Run("set", c.name, "peer", publicKey, "allowed-ips", strings.Join(allowed, ","),
		"persistent-keepalive", strconv.Itoa(old.PersistentKeepalive), "peer", old.PublicKey, "remove")
	c.config.Peers[0].PublicKey, c.config.Peers[0].Endpoint = publicKey, endpoint
	return err
}

// LatestHandshake returns the time of the newest handshake with the peer, in
// whole seconds; zero if there was none.
func (c *Client) LatestHandshake(peer string) (time.Time, error) {
	out, err := c.Run("show", c.name, "latest-handshakes")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(out) {
		key, text, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if key != peer {
			continue
		}
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds == 0 {
			return time.Time{}, err
		}
		return time.Unix(seconds, 0), nil
	}
	return time.Time{}, fmt.Errorf("WireGuard client %s: no peer %s", c.name, peer)
}

// Close takes the device away, and with it its routes and the socket.
func (c *Client) Close() error {
	for _, rule := range c.rules() {
		if err := c.options.NS.Netlink().RuleDel(rule); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("routing rule: %w", err)
		}
	}
	if c.options.Kernel {
		link, err := c.options.NS.Netlink().LinkByName(c.name)
		if err != nil {
			return nil // it never was
		}
		return c.options.NS.Netlink().LinkDel(link)
	}
	if c.daemon == nil {
		return nil
	}
	if err := c.daemon.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-c.daemon.Done():
	case <-time.After(5 * time.Second):
		if err := c.daemon.Kill(); err != nil {
			return err
		}
	}
	if err := os.Remove(c.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
