package integration

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgdevice"
)

// device is what a gateway's WireGuard device holds, less what changes by itself.
// Secret keys are digests, so that a difference may be printed.
type device struct {
	Key   string
	Port  int
	Peers map[string]devicePeer // by public key
}

type devicePeer struct {
	PSK        string
	Keepalive  time.Duration
	AllowedIPs []string // sorted
}

// digest tells secret keys apart without telling them.
func digest(k wgdevice.Key) string {
	if k == (wgdevice.Key{}) {
		return "none"
	}
	return fmt.Sprintf("%.4x", sha256.Sum256(k[:]))
}

// deviceOf reads the gateway's device.
func deviceOf(t *testing.T, g *gateway.Gateway) device {
	t.Helper()
	d, err := g.Device()
	if err != nil {
		t.Fatal(err)
	}
	out := device{Key: digest(d.PrivateKey), Port: d.ListenPort, Peers: map[string]devicePeer{}}
	for k, p := range d.Peers {
		peer := devicePeer{PSK: digest(p.PresharedKey), Keepalive: p.Keepalive}
		for _, a := range p.AllowedIPs {
			peer.AllowedIPs = append(peer.AllowedIPs, a.String())
		}
		slices.Sort(peer.AllowedIPs)
		out.Peers[k] = peer
	}
	return out
}

// deviceFor is what the device of a gateway is to hold after a configuration.
func deviceFor(t *testing.T, g *gateway.Gateway, c gateway.Config) device {
	t.Helper()
	digestOf := func(base64 string) string {
		k, err := wgdevice.ParseKey(base64)
		if err != nil {
			t.Fatal(err)
		}
		return digest(k)
	}
	out := device{Key: digestOf(g.PrivateKey.Reveal()), Port: gateway.Port, Peers: map[string]devicePeer{}}
	peers := slices.Clone(c.Peers)
	for _, secret := range c.PeersFrom {
		for _, file := range secret {
			peers = append(peers, file...)
		}
	}
	for _, p := range peers {
		want := devicePeer{PSK: "none", Keepalive: time.Duration(p.PersistentKeepalive) * time.Second}
		for _, a := range p.Addresses {
			addr := netip.MustParseAddr(a)
			want.AllowedIPs = append(want.AllowedIPs, netip.PrefixFrom(addr, addr.BitLen()).String())
		}
		want.AllowedIPs = append(want.AllowedIPs, p.AllowedIPs...)
		slices.Sort(want.AllowedIPs)
		if !p.PresharedKey.IsZero() {
			want.PSK = digestOf(p.PresharedKey.Reveal())
		}
		for _, secret := range c.PresharedKeys {
			if k, ok := secret[p.Name]; ok {
				want.PSK = digestOf(k.Reveal())
			}
		}
		out.Peers[p.PublicKey] = want
	}
	return out
}

// system is what the agent has made of the Pod's network: everything that
// netlink and nft tell of it, less counters.
type system struct {
	Links, Addresses, Routes []string
	Forwarding               map[string]string // by link
	Ruleset                  []string          // lines of nft
}

// systemOf looks at a Pod's network.
func systemOf(t *testing.T, ns *netns.NS) system {
	t.Helper()
	s := system{Forwarding: map[string]string{}}
	links, err := ns.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		s.Links = append(s.Links, fmt.Sprintf("%s %s mtu %d up %t", a.Name, l.Type(), a.MTU, a.Flags&net.FlagUp != 0))
		s.Forwarding[a.Name] = forwarding(t, ns, a.Name)
		addresses, err := ns.Netlink().AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, address := range addresses {
			if address.IP.IsLinkLocalUnicast() {
				continue // the kernel's, by chance for a TUN
			}
			s.Addresses = append(s.Addresses, a.Name+" "+address.IPNet.String())
		}
	}
	routes, err := ns.Netlink().RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Dst.IP.IsLinkLocalUnicast() {
			continue // the kernel's, as soon as the link is up
		}
		s.Routes = append(s.Routes, fmt.Sprintf("%v via %v dev %s", r.Dst, r.Gw, names[r.LinkIndex]))
	}
	for _, list := range [][]string{s.Links, s.Addresses, s.Routes} {
		slices.Sort(list)
	}
	s.Ruleset = ruleset(t, ns)
	return s
}

// forwarding is a link's flag, "0" or "1". The name may have dots in it.
func forwarding(t *testing.T, ns *netns.NS, link string) string {
	t.Helper()
	var text []byte
	err := ns.Do(func() (err error) {
		text, err = os.ReadFile("/proc/sys/net/ipv4/conf/" + link + "/forwarding")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// ruleset is `nft list ruleset` without counters, by line. The agent's sets have
// two names each, used in turn when the table is made anew; they count as one.
func ruleset(t *testing.T, ns *netns.NS) []string {
	t.Helper()
	out, err := ns.Run(exec.Command(testenv.MustTool(t, "nft"), "--stateless", "list", "ruleset"))
	if err != nil {
		t.Fatal(err)
	}
	// The table of sessions is memory: of what it holds nothing is said, but that it is there.
	sessions := regexp.MustCompile(`(?ms)^(table inet vpn_gateway_sessions) \{.*?^\}\n`)
	text := string(out)
	if found := sessions.FindStringSubmatch(text); found != nil {
		text = sessions.ReplaceAllString(text, "") + found[1] + "\n" // tables are listed as they were made
	}
	named := regexp.MustCompile(`\b(hosts4|hosts6|networks4|networks6|grants4|grants6|tunnels|responses)[ab]\b`)
	return slices.Collect(strings.Lines(named.ReplaceAllString(text, "$1")))
}
