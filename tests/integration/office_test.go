package integration

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// office is a world with a gateway whose configuration comes from everywhere it
// can come from, and with one connected client, alice.
type office struct {
	*world
	config gateway.Config // in force
	alice  person
	client *wgclient.Client
	target netip.AddrPort // an echo behind the gateway
	rate   int            // packets a second that alice sends
}

// Names of the office's Secrets.
const (
	pskSecret   = "team-psk"   // of alice and bob
	peersSecret = "team-peers" // carol
	peersFile   = "carol.yaml"
)

// newOffice opens one with a stock client in userspace.
func newOffice(t *testing.T, dataPlane string) *office {
	t.Helper()
	need(t)
	o := &office{rate: 1000}
	o.open(t, dataPlane, false)
	return o
}

func (o *office) open(t *testing.T, dataPlane string, kernelClient bool) {
	t.Helper()
	o.alice = newPerson(t, "alice", "10.8.0.2")
	o.alice.psk = newPSK(t)
	bob, carol := newPerson(t, "bob", "10.8.0.3"), newPerson(t, "carol", "10.8.0.4")
	carolEntry := carol.entry()
	carolEntry.PresharedKey = newPSK(t)
	o.config = gateway.Config{
		// Never by itself: what happens after a change happens because of it.
		Values:        "extraArgs: [--resync=1h]\nserver: {dataPlane: " + dataPlane + "}",
		Peers:         []gateway.Peer{o.alice.entry(), bob.entry()},
		PresharedKeys: map[string]map[string]wgclient.Secret{pskSecret: {"alice": o.alice.psk, "bob": newPSK(t)}},
		PeersFrom:     map[string]map[string][]gateway.Peer{peersSecret: {peersFile: {carolEntry}}},
	}
	o.world = makeWorld(t, netns.Plan{Clients: 1}, o.config)
	o.kernelClients = kernelClient
	o.target = o.echo(t).Addr()
	o.client = o.alice.connect(t, o.world, 0, "10.0.0.0/8")
}

// changed returns a copy of the configuration in force with a change.
func (o *office) changed(change func(*gateway.Config)) gateway.Config {
	c := o.config
	c.Peers = slices.Clone(c.Peers)
	c.PresharedKeys = map[string]map[string]wgclient.Secret{pskSecret: maps.Clone(c.PresharedKeys[pskSecret])}
	c.PeersFrom = map[string]map[string][]gateway.Peer{peersSecret: {peersFile: slices.Clone(c.PeersFrom[peersSecret][peersFile])}}
	change(&c)
	return c
}

// reload brings a changed configuration into force.
func (o *office) reload(t *testing.T, change func(*gateway.Config)) {
	t.Helper()
	c := o.changed(change)
	if err := o.Reload(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	o.config = c
}

// underStream does something while alice sends packets through the tunnel, goes on
// for a while, and fails where a single one was lost.
func (o *office) underStream(t *testing.T, do func()) {
	t.Helper()
	s := startStream(t, o.Clients[0], o.target, o.rate)
	do()
	await(t, s, uint64(o.rate)*3/10)
	r := s.Stop(patience)
	t.Log(r)
	wantNothingLost(t, r)
}

func wantNothingLost(t *testing.T, r stream.Report) {
	t.Helper()
	if r.Lost != 0 || r.Sent == 0 {
		t.Errorf("stream: %+v, want no packet lost", r)
	}
}

// readiness asks /readyz.
func (w *world) readiness(t *testing.T) gateway.Readiness {
	t.Helper()
	r, err := w.Readiness(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// metric asks /metrics for one value.
func (w *world) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	all, err := w.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v, ok := all.Value(name, labels...)
	if !ok {
		t.Fatalf("metric %s %v: not there just once", name, labels)
	}
	return v
}

// lines are the agent's log lines with that message, from line number first on.
func (w *world) lines(t *testing.T, message string, first int) []gateway.LogLine {
	t.Helper()
	all := w.log(t)
	return slices.DeleteFunc(all[first:], func(l gateway.LogLine) bool { return l.Text("msg") != message })
}

func (w *world) log(t *testing.T) []gateway.LogLine {
	t.Helper()
	all, err := w.Log()
	if err != nil {
		t.Fatal(err)
	}
	return all
}
