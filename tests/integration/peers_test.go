package integration

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// TestManyPeers spreads 2,000 peers over several Secrets, each of them below the
// 1 MiB that an object may have, with pre-shared keys beside and inside. One from
// the middle connects.
func TestManyPeers(t *testing.T) {
	const perSecret = 500
	c := gateway.Config{
		Values:        "server: {addresses: [10.8.0.1/16]}",
		PresharedKeys: map[string]map[string]wgclient.Secret{"psk-a": {}, "psk-b": {}},
		PeersFrom:     map[string]map[string][]gateway.Peer{},
	}
	var people []person
	for n := range 4 * perSecret {
		ip := netip.AddrFrom4([4]byte{10, 8, byte(1 + n/250), byte(1 + n%250)})
		p := newPerson(t, fmt.Sprintf("peer-%d", n), ip.String())
		p.psk = newPSK(t)
		people = append(people, p)
	}
	for n, p := range people {
		entry := p.entry()
		if secret := fmt.Sprintf("psk-%c", 'a'+n/perSecret); n < 2*perSecret {
			c.PresharedKeys[secret][p.name] = p.psk
		} else {
			entry.PresharedKey = p.psk
		}
		secret, file := fmt.Sprintf("peers-%d", n/perSecret), fmt.Sprintf("team-%d.yaml", n%2)
		if c.PeersFrom[secret] == nil {
			c.PeersFrom[secret] = map[string][]gateway.Peer{}
		}
		c.PeersFrom[secret][file] = append(c.PeersFrom[secret][file], entry)
	}
	w := newWorld(t, netns.Plan{Clients: 2}, c)
	if got := w.metric(t, "vpn_gateway_configured_peers"); got != float64(len(people)) {
		t.Errorf("configured peers: %v, want %d", got, len(people))
	}
	if diff := cmp.Diff(deviceFor(t, w.Gateway, c), deviceOf(t, w.Gateway)); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	target := w.echo(t).Addr()
	for machine, n := range []int{700, 1700} { // a key from a Secret of keys, one from among the peers
		people[n].connect(t, w, machine, "10.0.0.0/8")
		wantNothingLost(t, startStream(t, w.Clients[machine], target, 100).Stop(patience))
	}
	if got := w.metric(t, "wireguard_peer_last_handshake_seconds", "public_key", people[700].key.Public()); got == 0 {
		t.Error("no handshake in the metrics of the peer that is connected")
	}
}

// TestComingAndGoing follows a peer through the log: one line when it connects,
// one each time it moves to another port or address, one when it's gone.
func TestComingAndGoing(t *testing.T) {
	alice := newPerson(t, "alice", "10.8.0.2")
	c := gateway.Config{Peers: []gateway.Peer{alice.entry()}}
	w := newWorld(t, netns.Plan{Clients: 2}, c)
	target := w.echo(t).Addr()
	file := alice.file(w.Gateway, "10.0.0.0/8")
	file.ListenPort = 40001
	client := wgclient.ForTest(t, file, wgclient.Options{NS: w.Clients[0]})
	s := startStream(t, w.Clients[0], target, 100)
	at := func(ip netip.Addr, port uint16) string { return netip.AddrPortFrom(ip, port).String() }
	first := at(w.ClientIP(0), 40001)
	w.wantLine(t, "peer connected", 1, map[string]string{"peer": "alice", "endpoint": first})

	if _, err := client.Run("set", client.Interface(), "listen-port", "40002"); err != nil {
		t.Fatal(err)
	}
	second := at(w.ClientIP(0), 40002)
	w.wantLine(t, "peer roamed", 1, map[string]string{"peer": "alice", "from": first, "endpoint": second})

	// Off with the notebook to another network.
	s.Stop(0)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	file.ListenPort = 40003
	wgclient.ForTest(t, file, wgclient.Options{NS: w.Clients[1]})
	startStream(t, w.Clients[1], target, 100)
	third := at(w.ClientIP(1), 40003)
	w.wantLine(t, "peer roamed", 2, map[string]string{"peer": "alice", "from": second, "endpoint": third})

	c.Peers = nil
	if err := w.Reload(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	w.wantLine(t, "peer disconnected", 1, map[string]string{"publicKey": alice.key.Public(), "endpoint": third})
	for event, want := range map[string]float64{"connected": 1, "roamed": 2, "disconnected": 1} {
		if got := w.metric(t, "vpn_gateway_peer_events_total", "event", event); got != want {
			t.Errorf("events %s: %v, want %v", event, got, want)
		}
	}
}

// wantLine waits until the log has a number of lines with the message; the last
// one must hold the given fields.
func (w *world) wantLine(t *testing.T, message string, number int, want map[string]string) {
	t.Helper()
	var lines []gateway.LogLine
	eventually(t, "the log", func() string {
		lines = w.lines(t, message, 0)
		if len(lines) < number {
			return fmt.Sprintf("%d lines %q, want %d", len(lines), message, number)
		}
		return ""
	})
	got := map[string]string{}
	for field := range want {
		got[field] = lines[len(lines)-1].Text(field)
	}
	if diff := cmp.Diff(want, got); diff != "" || len(lines) != number {
		t.Errorf("%d lines %q, want %d; the last (-want +got):\n%s", len(lines), message, number, diff)
	}
}
