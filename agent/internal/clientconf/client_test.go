package clientconf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"rsc.io/qr"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// testKey is deterministic, and of no use to anybody.
func testKey(n byte) key.Private {
	return key.NewPrivate([key.Len]byte{0: 8 * n, 31: 64})
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestRevealConfig(t *testing.T) {
	minimal := Client{
		PrivateKey: testKey(2), Addresses: addrs("10.8.0.2"),
		ServerPublicKey: testKey(1).Public(), Endpoint: spec.Endpoint{Host: "203.0.113.1", Port: 51820},
		AllowedIPs: prefixes("10.0.0.0/8"),
	}
	full := minimal
	full.PresharedKey = key.NewPreshared([key.Len]byte{1})
	full.Addresses = addrs("10.8.0.2", "fd00:8::2")
	full.DNS = addrs("10.96.0.10", "fd00::a")
	full.MTU = 1380
	full.Endpoint.Host = "2001:db8::1"
	full.AllowedIPs = prefixes("10.0.0.0/8", "fd00::/8")
	full.Keepalive = 25
	tests := []struct {
		name   string
		client Client
		want   string
	}{
		{"minimal", minimal, `[Interface]
PrivateKey = EAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=
Address = 10.8.0.2/32

[Peer]
PublicKey = ` + testKey(1).Public().String() + `
AllowedIPs = 10.0.0.0/8
Endpoint = 203.0.113.1:51820
`},
		{"full", full, `[Interface]
PrivateKey = EAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=
Address = 10.8.0.2/32, fd00:8::2/128
DNS = 10.96.0.10, fd00::a
MTU = 1380

[Peer]
PublicKey = ` + testKey(1).Public().String() + `
PresharedKey = AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
AllowedIPs = 10.0.0.0/8, fd00::/8
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.client.RevealConfig()); diff != "" {
				t.Errorf("file (-want +got):\n%s", diff)
			}
			if s := fmt.Sprintf("%v %+v", tt.client, tt.client); strings.Contains(s, tt.client.PrivateKey.Reveal()) {
				t.Error("printing a client shows its private key")
			}
		})
	}
}

func TestSnippets(t *testing.T) {
	c := Client{Name: "alice", PrivateKey: testKey(2), PresharedKey: key.NewPreshared([key.Len]byte{1}), Addresses: addrs("10.8.0.2", "fd00:8::2")}
	number := c
	number.Name = "007" // YAML must not read a number
	public := testKey(2).Public().String()
	tests := []struct {
		name, got, want string
	}{
		{"entry", c.Entry().PeersYAML(), "peers:\n- name: alice\n  publicKey: " + public + "\n  addresses: [10.8.0.2, 'fd00:8::2']\n"},
		{"entry with a number for a name", number.Entry().PeersYAML(), "peers:\n- name: \"007\"\n  publicKey: " + public + "\n  addresses: [10.8.0.2, 'fd00:8::2']\n"},
		{
			"secret", c.RevealPresharedSecret("keys"),
			"apiVersion: v1\nkind: Secret\nmetadata:\n  name: keys\nstringData:\n  alice: AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
		},
		{
			"secret without the key", c.PresharedSecret("keys"),
			"apiVersion: v1\nkind: Secret\nmetadata:\n  name: keys\nstringData:\n  alice: <PresharedKey of the client's file>\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.got); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
		})
	}
}

// load reads a gateway.yaml the way the gateway does.
func load(t *testing.T, gateway string) *spec.Snapshot {
	t.Helper()
	s, err := spec.Load(spec.Files{
		spec.GatewayFile:    []byte(gateway),
		spec.PrivateKeyFile: []byte(testKey(1).Reveal()),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// peer is a line of YAML.
func peer(n byte, fields string) string {
	return fmt.Sprintf("- {name: p%d, publicKey: %s, %s}\n", n, testKey(n+1).Public(), fields)
}

func TestForGateway(t *testing.T) {
	base := Client{
		ServerPublicKey: testKey(1).Public(), Endpoint: spec.Endpoint{Host: "vpn.example.com", Port: 443},
		AllowedIPs: prefixes("0.0.0.0/0"), Addresses: addrs("10.8.0.2"), Keepalive: 25,
	}
	with := func(change func(*Client)) Client { c := base; change(&c); return c }
	server := func(addresses string) string {
		return "server: {publicEndpoint: 'vpn.example.com:443', addresses: [" + addresses + "]}\n"
	}
	tests := []struct {
		name, gateway string
		want          Client
	}{
		{"defaults: all that may be reached", server("10.8.0.1/24"), base},
		{
			"routes, DNS and MTU of the files",
			"server: {publicEndpoint: 'vpn.example.com:443', addresses: [10.8.0.1/24], mtu: 1380}\n" +
				"routing: {routes: [10.2.0.0/16, 10.1.0.0/16, 10.1.2.0/24], dns: [10.96.0.10]}\n",
			with(func(c *Client) {
				c.AllowedIPs, c.DNS, c.MTU = prefixes("10.1.0.0/16", "10.2.0.0/16"), addrs("10.96.0.10"), 1380
			}),
		},
		{
			"without routes, the allowed destinations",
			server("10.8.0.1/24") + "routing: {allowedDestinations: [{cidr: 10.3.0.0/16}, {cidr: 10.3.1.0/24, protocol: tcp}]}\n",
			with(func(c *Client) { c.AllowedIPs = prefixes("10.3.0.0/16") }),
		},
		{
			"nothing allowed: the gateway itself",
			server("10.8.0.1/24") + "routing: {allowedDestinations: []}\n",
			with(func(c *Client) { c.AllowedIPs = prefixes("10.8.0.0/24") }),
		},
		{
			"with peerToPeer, the pool beside the routes",
			server("10.8.0.1/24") + "routing: {routes: [192.168.0.0/16], peerToPeer: true}\n",
			with(func(c *Client) { c.AllowedIPs = prefixes("10.8.0.0/24", "192.168.0.0/16") }),
		},
		{
			"both families",
			server("10.8.0.1/24, 'fd00:8::1/64'") + "ipv6: {enabled: true}\n",
			with(func(c *Client) {
				c.AllowedIPs, c.Addresses = prefixes("0.0.0.0/0", "::/0"), addrs("10.8.0.2", "fd00:8::2")
			}),
		},
		{
			"no endpoint", "server: {addresses: [10.8.0.1/24]}\n",
			with(func(c *Client) { c.Endpoint = spec.Endpoint{} }),
		},
		{
			"a gap between peers",
			server("10.8.0.1/24") + "peers:\n" + peer(1, "addresses: [10.8.0.2]") + peer(2, "addresses: [10.8.0.4]"),
			with(func(c *Client) { c.Addresses = addrs("10.8.0.3") }),
		},
		{
			"a gateway at the end of its pool",
			server("10.8.0.254/24"),
			with(func(c *Client) { c.Addresses = addrs("10.8.0.1") }),
		},
		{
			"past the network of a site inside the pool",
			server("10.8.0.1/24") + "peers:\n" + peer(1, "addresses: [10.8.0.2], allowedIPs: [10.8.0.4/30]") + peer(2, "addresses: [10.8.0.3]"),
			with(func(c *Client) { c.Addresses = addrs("10.8.0.8") }),
		},
		{
			"a full pool: never the broadcast address",
			server("10.8.0.1/30") + "peers:\n" + peer(1, "addresses: [10.8.0.2]"),
			with(func(c *Client) { c.Addresses = nil }),
		},
		{
			"a pool of two", server("10.8.0.0/31"),
			with(func(c *Client) { c.Addresses = addrs("10.8.0.1") }),
		},
		{
			"a pool of one", server("10.8.0.1/32"),
			with(func(c *Client) { c.Addresses = nil }),
		},
		{
			"the last addresses there are", server("255.255.255.253/30") + "peers:\n" + peer(1, "addresses: [255.255.255.254]"),
			with(func(c *Client) { c.Addresses = nil }),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ForGateway(load(t, tt.gateway), time.Time{})
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
				t.Errorf("client (-want +got):\n%s", diff)
			}
		})
	}
}

// What is drawn is read back module by module.
func TestQR(t *testing.T) {
	text := strings.Repeat("PublicKey = ", 25)
	drawing, columns, err := QR(text)
	if err != nil {
		t.Fatal(err)
	}
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		t.Fatal(err)
	}
	black := map[rune][2]bool{' ': {}, '▀': {true, false}, '▄': {false, true}, '█': {true, true}}
	lines := strings.Split(strings.TrimSuffix(drawing, "\n"), "\n")
	for i, line := range lines {
		line = strings.TrimSuffix(strings.TrimPrefix(line, "\x1b[30;107m"), "\x1b[0m")
		modules := []rune(line)
		if len(modules) != columns {
			t.Fatalf("line %d has %d columns, not %d", i, len(modules), columns)
		}
		for x, r := range modules {
			got, known := black[r]
			if !known {
				t.Fatalf("line %d has a %q", i, r)
			}
			want := [2]bool{code.Black(x-4, 2*i-4), code.Black(x-4, 2*i-3)}
			if got != want {
				t.Fatalf("modules at column %d of line %d: got %v, want %v", x, i, got, want)
			}
		}
	}
	if want := (code.Size + 8 + 1) / 2; len(lines) != want {
		t.Errorf("%d lines, want %d", len(lines), want)
	}
	if columns > 80 {
		t.Errorf("a file of usual size takes %d columns", columns)
	}
	if _, _, err := QR(strings.Repeat("x", 3000)); err == nil || strings.Contains(err.Error(), "xx") {
		t.Errorf("too long a text: got error %v", err)
	}
}
