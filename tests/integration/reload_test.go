package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// TestReload makes every change that a user can make to a running gateway. No
// packet of a client may be lost for it: that is what the project is for.
func TestReload(t *testing.T) {
	o := newOffice(t, "auto")
	t.Run("taken", func(t *testing.T) { testTaken(t, o, nil) })
	t.Run("PSK", func(t *testing.T) { testPresharedKey(t, o) })
	t.Run("same again", func(t *testing.T) { testSameAgain(t, o) })
	t.Run("refused", func(t *testing.T) { testRefused(t, o) })
	t.Run("restarts", func(t *testing.T) {
		if n := o.Container().Restarts(); n != 0 || !o.Container().Running() {
			t.Errorf("the agent restarted %d times, running: %t; want one life for all of this", n, o.Container().Running())
		}
		// A new handshake, with all that is in force now: what the device says
		// it holds is what it uses.
		if err := o.client.Close(); err != nil {
			t.Fatal(err)
		}
		o.client = o.alice.connect(t, o.world, 0, "10.0.0.0/8")
		startStream(t, o.Clients[0], o.target, 100)
	})
}

// testTaken makes one change after the other; where some are named, these alone.
// Each starts from what the ones before have left.
func testTaken(t *testing.T, o *office, only []string) {
	dave := newPerson(t, "dave", "10.8.0.5")
	another := newPerson(t, "bob", "10.8.0.33")
	const alice, bob = 0, 1
	tests := []struct {
		name   string
		change func(*gateway.Config)
		want   string // in the log line's changes
	}{
		{"peer added to the values", func(c *gateway.Config) { c.Peers = append(c.Peers, dave.entry()) }, "peer dave added"},
		{"peer's address changed", func(c *gateway.Config) { c.Peers[2].Addresses = []string{"10.8.0.55"} }, "peer dave updated (allowedIPs)"},
		{"peer's keepalive changed", func(c *gateway.Config) { c.Peers[2].PersistentKeepalive = 7 }, "peer dave updated (persistentKeepalive)"},
		{"peer's endpoint set", func(c *gateway.Config) { c.Peers[2].Endpoint = "203.0.113.77:4500" }, "peer dave updated (endpoint)"},
		{"peer's destinations narrowed", func(c *gateway.Config) {
			c.Peers[2].AllowedDestinations = []gateway.Destination{{CIDR: "10.244.1.0/24", Protocol: "tcp", Ports: []any{443, "8000-8080"}}}
		}, "firewall sources +1 -1, grants +2 -0"},
		{"peer removed from the values", func(c *gateway.Config) { c.Peers = c.Peers[:2] }, "peer dave removed"},
		{"peer's key pair replaced", func(c *gateway.Config) { c.Peers[bob].PublicKey = another.key.Public() }, "peer bob added"},
		{"other peer's PSK changed", func(c *gateway.Config) { c.PresharedKeys[pskSecret]["bob"] = newPSK(t) }, "peer bob updated (presharedKey)"},
		{"other peer's PSK removed", func(c *gateway.Config) { delete(c.PresharedKeys[pskSecret], "bob") }, "peer bob updated (presharedKey)"},
		{"peer of a Secret changed", func(c *gateway.Config) {
			c.PeersFrom[peersSecret][peersFile][0].AllowedIPs = []string{"192.168.60.0/24"}
		}, "peer carol updated (allowedIPs)"},
		{"file added to a Secret", func(c *gateway.Config) { c.PeersFrom[peersSecret]["dave.yaml"] = []gateway.Peer{dave.entry()} }, "peer dave added"},
		{"file removed from a Secret", func(c *gateway.Config) { delete(c.PeersFrom[peersSecret], "dave.yaml") }, "peer dave removed"},
		{"own allowed IPs extended", func(c *gateway.Config) { c.Peers[alice].AllowedIPs = []string{"192.168.77.0/24", "192.168.78.0/24"} }, "route added 192.168.77.0/24"},
		{"own allowed IPs shortened", func(c *gateway.Config) { c.Peers[alice].AllowedIPs = []string{"192.168.78.0/24"} }, "peer alice updated (allowedIPs)"},
		{"own allowed IPs removed", func(c *gateway.Config) { c.Peers[alice].AllowedIPs = nil }, "route removed 192.168.78.0/24"},
		{"own keepalive changed", func(c *gateway.Config) { c.Peers[alice].PersistentKeepalive = 25 }, "peer alice updated (persistentKeepalive)"},
		{"own destinations changed", func(c *gateway.Config) {
			c.Peers[alice].AllowedDestinations = []gateway.Destination{{CIDR: "10.244.0.0/16", Protocol: "udp"}}
		}, "firewall sources +1 -1, grants +1 -0"},
		{"firewall made anew", func(c *gateway.Config) { c.Values += "\nrouting: {peerToPeer: true}" }, "firewall table made anew"},
	}
	for _, tt := range tests {
		if only != nil && !slices.Contains(only, tt.name) {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			before, first := o.readiness(t), len(o.log(t))
			o.underStream(t, func() { o.reload(t, tt.change) })
			if diff := cmp.Diff(deviceFor(t, o.Gateway, o.config), deviceOf(t, o.Gateway)); diff != "" {
				t.Errorf("device (-want +got):\n%s", diff)
			}
			after := o.readiness(t)
			if after.Generation != before.Generation+1 || after.Hash == before.Hash || !after.Ready {
				t.Errorf("readiness %+v after %+v, want the next generation", after, before)
			}
			lines := o.lines(t, "configuration reloaded", first)
			if len(lines) != 1 || !strings.Contains(lines[0].Text("changes"), tt.want) {
				t.Errorf("log lines %v, want one with %q", lines, tt.want)
			}
		})
	}
}

// testPresharedKey changes the key of the client that sends. Client and gateway
// cannot change at the same moment; the session must outlive the difference.
func testPresharedKey(t *testing.T, o *office) {
	gatewaySide := func(t *testing.T, psk wgclient.Secret) {
		c := o.changed(func(c *gateway.Config) { c.PresharedKeys[pskSecret]["alice"] = psk })
		if _, err := o.Update(c); err != nil {
			t.Fatal(err)
		}
		o.config = c
	}
	clientSide := func(t *testing.T, psk wgclient.Secret) {
		if err := o.client.SetPresharedKey(o.PublicKey(), psk); err != nil {
			t.Fatal(err)
		}
	}
	type side func(*testing.T, wgclient.Secret)
	tests := []struct {
		name          string
		first, second side
		apart         time.Duration
	}{
		{"both sides at once", gatewaySide, clientSide, 0},
		{"client 200 ms later", gatewaySide, clientSide, 200 * time.Millisecond},
		{"gateway 200 ms later", clientSide, gatewaySide, 200 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := o.readiness(t)
			psk := newPSK(t)
			o.underStream(t, func() {
				tt.first(t, psk)
				time.Sleep(tt.apart)
				tt.second(t, psk)
				o.inForceAfter(t, before)
			})
			o.alice.psk = psk
			if diff := cmp.Diff(deviceFor(t, o.Gateway, o.config), deviceOf(t, o.Gateway)); diff != "" {
				t.Errorf("device (-want +got):\n%s", diff)
			}
		})
	}
}

func (o *office) inForceAfter(t *testing.T, before gateway.Readiness) {
	t.Helper()
	_, err := o.Await(t.Context(), "the change to be in force", func(r gateway.Readiness) bool {
		return r.Generation > before.Generation
	})
	if err != nil {
		t.Fatal(err)
	}
}

// testSameAgain swaps volumes for others with the same content, which the agent
// must notice and take for what it is: nothing.
func testSameAgain(t *testing.T, o *office) {
	for name, volume := range map[string]string{"configuration": "config", "gateway's key": "key", "PSK": "psk-0", "peers": "peers-0"} {
		t.Run(name, func(t *testing.T) {
			const runs = "vpn_gateway_run_duration_seconds"
			device, system := deviceOf(t, o.Gateway), systemOf(t, o.Pod.Network())
			before, ran, first := o.readiness(t), o.metric(t, runs), len(o.log(t))
			o.underStream(t, func() {
				swapForCopy(t, o.Pod.VolumePath(volume))
				eventually(t, "a run after the swap", func() string {
					if o.metric(t, runs) == ran {
						return "there was none"
					}
					return ""
				})
			})
			if diff := cmp.Diff(before, o.readiness(t)); diff != "" {
				t.Errorf("readiness (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(device, deviceOf(t, o.Gateway)); diff != "" {
				t.Errorf("device (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(system, systemOf(t, o.Pod.Network())); diff != "" {
				t.Errorf("network (-before +after):\n%s", diff)
			}
			if lines := o.log(t)[first:]; len(lines) != 0 {
				t.Errorf("log lines %v, want none", lines)
			}
		})
	}
}

// swapForCopy does to a volume what the kubelet does, with the files it has.
func swapForCopy(t *testing.T, volume string) {
	t.Helper()
	data, next := filepath.Join(volume, "..data"), filepath.Join(volume, "..data_tmp")
	old, err := os.Readlink(data)
	if err != nil {
		t.Fatal(err)
	}
	stamp := "..2026_01_02_03_04_05.000000001"
	if err := os.CopyFS(filepath.Join(volume, stamp), os.DirFS(filepath.Join(volume, old))); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(stamp, next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, data); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(volume, old)); err != nil {
		t.Fatal(err)
	}
}
