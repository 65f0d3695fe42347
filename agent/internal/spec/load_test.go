package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Keys for tests: deterministic, and of no use to anybody.
func testKey(n byte) (key.Private, key.Public) {
	var b [key.Len]byte
	b[0], b[31] = 8*n, 64
	k := key.NewPrivate(b)
	return k, k.Public()
}

func testPSK(n byte) key.Preshared { return key.NewPreshared([key.Len]byte{n}) }

func testKeyText(n byte) string { k, _ := testKey(n); return k.Reveal() }

func pub(n byte) string { _, p := testKey(n); return p.String() }

func minimal(extra string) Files {
	k, _ := testKey(1)
	return Files{
		GatewayFile:    []byte("server:\n  addresses: [10.8.0.1/24]\n" + extra),
		PrivateKeyFile: []byte(k.Reveal() + "\n"),
	}
}

func with(f Files, path, content string) Files {
	f[path] = []byte(content)
	return f
}

func TestLoad(t *testing.T) {
	serverKey, _ := testKey(1)
	_, alice := testKey(2)
	_, site := testKey(3)
	psk2, psk3 := testPSK(2), testPSK(3)
	files := Files{
		GatewayFile: []byte(`
server:
  publicEndpoint: "[2001:db8::1]:443"
  interface: wg7
  listenPort: 443
  addresses: [10.8.0.1/24, "fd00:8::1/64"]
  mtu: 1380
  dataPlane: userspace
  drain: 1m
routing:
  masquerade: false
  peerToPeer: true
  allowedDestinations:
  - {cidr: 10.1.2.3/8, protocol: tcp, ports: [443, "8000-8080"]}
  - cidr: fd00::/8
  routes: [10.0.0.0/8]
  dns: [10.96.0.10]
ipv6: {enabled: true}
peers:
- name: site-b
  publicKey: ` + site.String() + `
  addresses: [10.8.0.3, "fd00:8::3"]
  allowedIPs: [192.168.50.7/24, 172.16.0.9]
  endpoint: site-b.example.com:51820
  persistentKeepalive: 25
  allowedDestinations: []
`),
		PrivateKeyFile:                []byte(serverKey.Reveal()),
		"psk/team/site-b":             []byte(psk3.Reveal() + "\n"),
		"psk/team/gone":               []byte(psk3.Reveal()),
		"peers.d/laptops/alice.yaml":  []byte("peers:\n- name: alice\n  publicKey: " + alice.String() + "\n  addresses: [10.8.0.2]\n  presharedKey: " + psk2.Reveal() + "\n"),
		"peers.d/laptops/nobody.yaml": []byte("peers: []"),
	}
	want := &Snapshot{
		ServerKeys: []ServerKey{{Key: serverKey, Slot: key.Blue}},
		Gateway: Gateway{
			Server: Server{
				PublicEndpoint: Endpoint{"2001:db8::1", 443}, Interface: "wg7", ListenPort: 443,
				Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.1/24"), netip.MustParsePrefix("fd00:8::1/64")},
				MTU:       1380, DataPlane: Userspace, Drain: time.Minute,
			},
			Routing: Routing{
				PeerToPeer: true,
				AllowedDestinations: []Destination{
					{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Protocol: TCP, Ports: []PortRange{{443, 443}, {8000, 8080}}},
					{CIDR: netip.MustParsePrefix("fd00::/8"), Protocol: AnyProtocol},
				},
				Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
				DNS:    []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			},
			IPv6:        IPv6{Enabled: true},
			KeyRotation: KeyRotation{Server: ServerRotation{Overlap: 7 * 24 * time.Hour}},
		},
		Peers: []Peer{
			{Name: "alice", PublicKey: alice, Addresses: []netip.Addr{netip.MustParseAddr("10.8.0.2")}, PresharedKey: psk2},
			{
				Name: "site-b", PublicKey: site, PresharedKey: psk3,
				Addresses:  []netip.Addr{netip.MustParseAddr("10.8.0.3"), netip.MustParseAddr("fd00:8::3")},
				AllowedIPs: []netip.Prefix{netip.MustParsePrefix("192.168.50.0/24"), netip.MustParsePrefix("172.16.0.9/32")},
				Endpoint:   Endpoint{"site-b.example.com", 51820}, PersistentKeepalive: 25,
				AllowedDestinations: []Destination{},
			},
		},
		Warnings: Faults{{File: "psk/team/gone", Problem: "names no peer", Fix: "remove it, or name it like a peer"}},
	}
	got, err := Load(files)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmpopts.IgnoreUnexported(Peer{})); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
}

func TestLoadDefaults(t *testing.T) {
	got, err := Load(minimal("ipv6: {enabled: true}\nrouting: ~\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := Gateway{
		Server: Server{
			Interface: "wg0", ListenPort: 51820, DataPlane: Auto, Drain: 30 * time.Second,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.1/24")},
		},
		Routing: Routing{Masquerade: true, AllowedDestinations: []Destination{
			{CIDR: netip.MustParsePrefix("0.0.0.0/0"), Protocol: AnyProtocol},
			{CIDR: netip.MustParsePrefix("::/0"), Protocol: AnyProtocol},
		}},
		IPv6:        IPv6{Enabled: true},
		KeyRotation: KeyRotation{Server: ServerRotation{Overlap: DefaultOverlap}},
	}
	if diff := cmp.Diff(want, got.Gateway, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Errorf("gateway (-want +got):\n%s", diff)
	}
}

func TestLoadFaults(t *testing.T) {
	p := func(n byte, more string) string {
		return fmt.Sprintf("- {name: p%d, publicKey: %s, %s}\n", n, pub(n), more)
	}
	tests := []struct {
		name  string
		files Files
		want  []string
	}{
		{"nothing mounted", Files{}, []string{
			"config/gateway.yaml: missing; mount the ConfigMap with gateway.yaml at config/",
			"key/privateKey: missing; mount the Secret with the key privateKey at key/",
			"config/gateway.yaml: server.addresses: missing; give the gateway an address with the length of its pool, such as 10.8.0.1/24",
		}},
		{"file emptied to be written anew", with(minimal(""), "peers.d/a/x.yaml", "# soon\n"), []string{
			"peers.d/a/x.yaml: empty; write 'peers: []' where there are no peers",
		}},
		{"not YAML", minimal("server: [\n"), []string{"config/gateway.yaml: not YAML: "}},
		{"unknown fields", minimal("peeers: []\nrouting: {masquerad: true, frobnicate: 1}\n"), []string{
			`config/gateway.yaml:3: peeers: unknown field; did you mean peers?`,
			`config/gateway.yaml:4: routing.masquerad: unknown field; did you mean masquerade?`,
			`config/gateway.yaml:4: routing.frobnicate: unknown field; known here: allowedDestinations, dns, masquerade, peerToPeer, routes`,
		}},
		{"wrong types", minimal("routing: {masquerade: maybe, routes: 10.0.0.0/8, dns: [1]}\npeers: {a: 1}\nipv6: true\n"), []string{
			`config/gateway.yaml:3: routing.masquerade: "maybe": not a boolean; write true or false`,
			`config/gateway.yaml:3: routing.routes: "10.0.0.0/8": is a single value, not a list; write a list`,
			`config/gateway.yaml:3: routing.dns[0]: "1": not an IP address; write one such as 10.8.0.2, without a length`,
			`config/gateway.yaml:4: peers: is a mapping, not a list; write a list`,
			`config/gateway.yaml:5: ipv6: "true": is a single value, not a mapping; write a mapping`,
		}},
		{"text for numbers, numbers for text", minimal("routing: {masquerade: 0, peerToPeer: '1'}\npeers:\n- {name: 1.0, persistentKeepalive: '25', publicKey: " + pub(2) + ", addresses: [10.8.0.2]}\n"), []string{
			`config/gateway.yaml:3: routing.masquerade: "0": is a number, not true or false; write true or false`,
			`config/gateway.yaml:3: routing.peerToPeer: "1": is text, not true or false; write true or false`,
			`config/gateway.yaml:5: peers[0].name: "1.0": is a number, not text; put it in quotes`,
			`config/gateway.yaml:5: peers[0].persistentKeepalive: "25": is text, not a number; write it without quotes`,
		}},
		{"two documents", minimal("---\npeers: []\n"), []string{
			`config/gateway.yaml: not YAML: line 3: a second document begins, and it would be ignored; check the syntax near that line`,
			"config/gateway.yaml: server.addresses: missing; give the gateway an address with the length of its pool, such as 10.8.0.1/24",
		}},
		{"aliases", minimal("routing: {routes: &r [10.0.0.0/8], dns: *r}\n"), []string{
			`config/gateway.yaml:3: routing.dns: an alias; write out what it stands for`,
		}},
		{"Secrets that are not mounted", with(with(minimal("peersFrom: {existingSecrets: [team-a, team-b]}\npresharedKeys: {existingSecrets: [empty, psks]}\n"),
			"peers.d/team-a/x.yaml", "peers: []"), "psk/empty/", ""), []string{
			`config/gateway.yaml:3: peersFrom.existingSecrets[1]: "team-b": not mounted at peers.d/team-b/; mount that Secret there; a running Pod takes no new mount, the one that replaces it will have it`,
			`config/gateway.yaml:4: presharedKeys.existingSecrets[1]: "psks": not mounted at psk/psks/; mount that Secret there; a running Pod takes no new mount, the one that replaces it will have it`,
		}},
		{"an endpoint behind itself", minimal("peers:\n" + p(2, "addresses: [10.8.0.2], endpoint: '203.0.113.7:1', allowedIPs: [203.0.113.0/24]")), []string{
			`config/gateway.yaml:4: peers[0].allowedIPs[0]: "203.0.113.0/24": covers the peer's own endpoint 203.0.113.7:1, so that encrypted packets would be routed into the tunnel; leave the endpoint's network out`,
		}},
		{"field twice", minimal("server: {}\n"), []string{
			`config/gateway.yaml:3: server: written twice, first on line 1; keep one`,
		}},
		{"server", with(minimal(""), GatewayFile, `server:
  interface: "this/is not a name"
  listenPort: 0
  mtu: 100
  drain: -1s
  dataPlane: magic
  publicEndpoint: 203.0.113.1
  addresses: [10.8.0.0/24, 10.8.0.9/16, "fd00::1/64", 10.8/16]
`), []string{
			`config/gateway.yaml:2: server.interface: "this/is not a name": not a name for a network device; use up to 15 letters, digits, '_', '.' or '-', such as wg0`,
			`config/gateway.yaml:3: server.listenPort: "0": out of range; use a port from 1 to 65535, such as 51820`,
			`config/gateway.yaml:4: server.mtu: "100": out of range; use 576 to 65455, or leave it out to have it derived`,
			`config/gateway.yaml:5: server.drain: "-1s": negative; use 0s or more, such as 30s`,
			`config/gateway.yaml:6: server.dataPlane: "magic": unknown; use one of auto, kernel, userspace`,
			`config/gateway.yaml:7: server.publicEndpoint: "203.0.113.1": not host:port; write host:port, such as 203.0.113.1:51820, [2001:db8::1]:51820 or vpn.example.com:51820`,
			`config/gateway.yaml:8: server.addresses[3]: "10.8/16": not a network in CIDR form; write one such as 10.8.0.0/24`,
			`config/gateway.yaml:8: server.addresses[0]: "10.8.0.0/24": the network's own address, not a host's; use the next one, 10.8.0.1/24`,
			`config/gateway.yaml:8: server.addresses[1]: "10.8.0.9/16": overlaps addresses[0] 10.8.0.0/24; give each pool a network of its own`,
			`config/gateway.yaml:8: server.addresses[2]: "fd00::1/64": IPv6 is switched off; set ipv6.enabled: true or remove it`,
		}},
		{"listen port too large", minimal("  listenPort: 70000\n"), []string{
			`config/gateway.yaml:3: server.listenPort: "70000": not a number from 0 to 65535; write a number in that range`,
		}},
		{"destinations", minimal(`routing:
  allowedDestinations:
  - {protocol: tcp}
  - {cidr: "::/0"}
  - {cidr: 10.0.0.0/8, ports: [80]}
  - {cidr: 10.0.0.0/8, protocol: sctp}
  - {cidr: 10.0.0.0/8, protocol: udp, ports: ["90-80", 0, x]}
`), []string{
			`config/gateway.yaml:5: routing.allowedDestinations[0].cidr: missing; give a network such as 10.0.0.0/8`,
			`config/gateway.yaml:6: routing.allowedDestinations[1].cidr: "::/0": IPv6 is switched off; set ipv6.enabled: true or remove it`,
			`config/gateway.yaml:7: routing.allowedDestinations[2].ports: ports with protocol any; set protocol: tcp or udp (one entry each for both), or remove the ports`,
			`config/gateway.yaml:8: routing.allowedDestinations[3].protocol: "sctp": unknown; use one of any, tcp, udp, icmp`,
			`config/gateway.yaml:9: routing.allowedDestinations[4].ports[0]: "90-80": not a port or a range of ports; write 443 or "8000-8080", from 1 to 65535`,
			`config/gateway.yaml:9: routing.allowedDestinations[4].ports[1]: "0": not a port or a range of ports; write 443 or "8000-8080", from 1 to 65535`,
			`config/gateway.yaml:9: routing.allowedDestinations[4].ports[2]: "x": not a port or a range of ports; write 443 or "8000-8080", from 1 to 65535`,
		}},
		{"a peer with nothing", minimal("peers:\n- {}\n"), []string{
			`config/gateway.yaml:4: peers[0].name: missing; name the peer, such as alice-laptop`,
			`config/gateway.yaml:4: peers[0].publicKey: missing; give the output of 'wg pubkey' on the peer's side, or make one with 'vpn-agent peer new'`,
			`config/gateway.yaml:4: peers[0].addresses: missing; give the peer an address out of 10.8.0.0/24`,
		}},
		{"a peer with everything wrong", minimal(`peers:
- name: ../etc
  publicKey: abc
  addresses: [10.9.0.1, 10.8.0.1, 10.8.0.0, 10.8.0.255, nonsense]
  allowedIPs: [0.0.0.0/0, "::/0", 10.0.0.0/33]
  endpoint: site-b
  persistentKeepalive: 65536
`), []string{
			`config/gateway.yaml:4: peers[0].name: "../etc": not a name that a key of a Secret can have; use up to 63 letters, digits, '_', '-' or '.', not starting with '.' or '-'`,
			`config/gateway.yaml:5: peers[0].publicKey: not the base64 of 32 bytes (3 characters, not 44); give the output of 'wg pubkey'`,
			`config/gateway.yaml:6: peers[0].addresses[4]: "nonsense": not an IP address; write one such as 10.8.0.2, without a length`,
			`config/gateway.yaml:6: peers[0].addresses[0]: "10.9.0.1": outside the pool 10.8.0.0/24; choose one inside, or write networks behind the peer as allowedIPs`,
			`config/gateway.yaml:6: peers[0].addresses[1]: "10.8.0.1": the gateway's own address; choose another one out of 10.8.0.0/24`,
			`config/gateway.yaml:6: peers[0].addresses[2]: "10.8.0.0": the first or last address of the pool, which names no host; choose another one out of 10.8.0.0/24`,
			`config/gateway.yaml:6: peers[0].addresses[3]: "10.8.0.255": the first or last address of the pool, which names no host; choose another one out of 10.8.0.0/24`,
			`config/gateway.yaml:7: peers[0].allowedIPs[2]: "10.0.0.0/33": not a network in CIDR form; write one such as 10.8.0.0/24`,
			`config/gateway.yaml:7: peers[0].allowedIPs[0]: "0.0.0.0/0": covers the gateway's own address 10.8.0.1; list the networks behind the peer only`,
			`config/gateway.yaml:7: peers[0].allowedIPs[1]: "::/0": IPv6 is switched off; set ipv6.enabled: true or remove it`,
			`config/gateway.yaml:8: peers[0].endpoint: "site-b": not host:port; write host:port, such as 203.0.113.1:51820, [2001:db8::1]:51820 or vpn.example.com:51820`,
			`config/gateway.yaml:9: peers[0].persistentKeepalive: "65536": not a number from 0 to 65535; write a number in that range`,
		}},
		{"the gateway's own key", minimal("peers:\n" + p(1, "addresses: [10.8.0.2]")), []string{
			`config/gateway.yaml:4: peers[0].publicKey: "` + pub(1) + `": the gateway's own key; give the key of the peer: each end has its own`,
		}},
		{"names, keys and networks used twice", with(minimal("peers:\n"+
			p(2, "addresses: [10.8.0.2], allowedIPs: [192.168.0.0/16]")+
			p(2, "addresses: [10.8.0.3]")),
			"peers.d/a/b.yaml", "peers:\n"+p(3, "addresses: [10.8.0.2], allowedIPs: [192.168.5.0/24]")), []string{
			`config/gateway.yaml:5: peers[1].name: "p2": used already by peers[0] of config/gateway.yaml; give each peer a name of its own`,
			`config/gateway.yaml:5: peers[1].publicKey: "` + pub(2) + `": used already by peer p2; give each peer a key pair of its own: WireGuard knows peers by their key`,
			`peers.d/a/b.yaml:2: peers[0].addresses[0]: "10.8.0.2/32": overlaps 10.8.0.2/32 of peer p2; give each peer networks of its own`,
			`peers.d/a/b.yaml:2: peers[0].allowedIPs[0]: "192.168.5.0/24": overlaps 192.168.0.0/16 of peer p2; give each peer networks of its own`,
		}},
		{"keys", with(with(with(with(with(minimal("peers:\n"+p(2, "addresses: [10.8.0.2], presharedKey: "+testPSK(9).Reveal())),
			PrivateKeyFile, "not a key"),
			"psk/a/p2", testPSK(1).Reveal()),
			"psk/b/p3", "short"),
			"peers.d/a/notes.txt", "x"),
			"peers.d/a/x.yaml", "peers: [{name: p3, publicKey: "+pub(3)+", addresses: [10.8.0.3], presharedKey: zzz}]"), []string{
			`config/gateway.yaml:4: peers[0].presharedKey: a key in a ConfigMap, where anybody may read it; move it to a Secret: file psk/<secret>/p2, or the whole peer to a Secret of peers.d`,
			`key/privateKey: not the base64 of 32 bytes; store the output of 'wg genkey'`,
			`peers.d/a/notes.txt: not a .yaml file; name the Secret's key like team-a.yaml`,
			`peers.d/a/x.yaml:1: peers[0].presharedKey: not the base64 of 32 bytes (3 characters, not 44); give the output of 'wg genpsk'`,
			`psk/a/p2: peer p2 has a presharedKey in config/gateway.yaml already; keep one`,
			`psk/b/p3: not the base64 of 32 bytes; store the output of 'wg genpsk'`,
		}},
		{"a pre-shared key twice", with(with(minimal("peers:\n"+p(2, "addresses: [10.8.0.2]")),
			"psk/a/p2", testPSK(1).Reveal()), "psk/b/p2", testPSK(2).Reveal()), []string{
			`psk/b/p2: peer p2 has a pre-shared key in psk/a/p2 already; keep one`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Load(tt.files)
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("got %v and error %v, want faults", s, err)
			}
			got := strings.Split(faults.Error(), "\n")
			if strings.HasSuffix(tt.want[0], "not YAML: ") && strings.HasPrefix(got[0], tt.want[0]) {
				return // the rest is the YAML library's wording
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.SortSlices(strings.Compare)); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

// A key pasted into the wrong place must not come back in an error.
func TestFaultsQuoteNoKeys(t *testing.T) {
	secret := key.GeneratePrivate().Reveal()
	places := []string{
		"  mtu: %s\n", "  interface: %s\n", "  %s: 1\n", "%s: 1\n", "routing: %s\n", "  publicEndpoint: %s\n",
		"peers:\n- {publicKey: x%s}\n", "peers:\n- {name: %s}\n", "peers:\n- {presharedKey: x%s}\n", "peers:\n- %s\n",
		"peers:\n- {addresses: [%s]}\n", "peers:\n- {allowedIPs: [%s]}\n", "ipv6: {enabled: %s}\n", "  dataPlane: %s\n",
	}
	for _, place := range places {
		urlSafe := strings.NewReplacer("+", "-", "/", "_").Replace(secret)
		for _, s := range []string{secret, secret[:43], secret[:40], "x" + secret, urlSafe, secret[:36] + " " + secret[36:]} {
			_, err := Load(minimal(fmt.Sprintf(place, s)))
			if err == nil {
				t.Fatalf("%q was accepted", place)
			}
			if strings.Contains(err.Error(), secret[:4]) || strings.Contains(err.Error(), secret[8:32]) || strings.Contains(err.Error(), urlSafe[8:32]) {
				t.Errorf("key material in %q", err)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("server: {addresses: [10.8.0.1/24]}\npeers:\n- {name: a, publicKey: "+pub(2)+", addresses: [10.8.0.2]}\n"), []byte(pub(1)), []byte("peers: []"))
	f.Add([]byte("a: &a [*a]\n"), []byte(""), []byte("- - -"))
	f.Add([]byte("server: &s {mtu: 1}\nrouting: *s\npeers: [~, {}, 1]\n"), []byte("x"), []byte("peers: {}"))
	f.Fuzz(func(t *testing.T, gateway, private, peers []byte) {
		s, err := Load(Files{GatewayFile: gateway, PrivateKeyFile: private, "peers.d/a/b.yaml": peers, "psk/a/b": private})
		var faults Faults
		switch {
		case err != nil && !errors.As(err, &faults):
			t.Fatalf("error is not faults: %v", err)
		case err != nil && s != nil:
			t.Fatal("a snapshot beside faults")
		case err == nil:
			// What was accepted must hold what the packages above rely on.
			if len(s.ServerKeys) == 0 || s.ServerKeys[0].Key.IsZero() || len(s.Gateway.Server.Addresses) == 0 {
				t.Fatal("accepted without a key or an address")
			}
			for _, p := range s.Peers {
				if p.Name == "" || p.PublicKey.IsZero() || len(p.Prefixes()) == 0 {
					t.Fatalf("accepted peer %+v", p)
				}
				for _, n := range p.Prefixes() {
					if !n.IsValid() || n != n.Masked() {
						t.Fatalf("accepted prefix %v", n)
					}
				}
			}
		}
	})
}
