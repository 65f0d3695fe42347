package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// rig is a reconciler over fakes, run step by step.
type rig struct {
	*Reconciler
	t        *testing.T
	files    spec.Files
	readErr  error
	now      time.Time
	device   *fakeDevice
	firewall *fakeFirewall
	log      bytes.Buffer
	serverK  key.Private
}

func newRig(t *testing.T, peers string) *rig {
	t.Helper()
	r := &rig{
		t: t, now: time.Unix(1_800_000_000, 0), serverK: key.GeneratePrivate(),
		device: newFakeDevice(), firewall: &fakeFirewall{},
	}
	r.files = spec.Files{spec.PrivateKeyFile: []byte(r.serverK.Reveal())}
	r.write(peers)
	initial, err := spec.Load(r.files)
	if err != nil {
		t.Fatal(err)
	}
	r.Reconciler = New(Options{
		Initial: initial, Files: maps.Clone(r.files),
		Read:     func() (spec.Files, error) { return maps.Clone(r.files), r.readErr },
		Load:     spec.Load,
		Device:   r.device,
		Firewall: r.firewall,
		Uplink:   func() (state.Uplink, error) { return state.Uplink{MTU: 1500}, nil },
		Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
			if host == "site.example.com" {
				return []netip.Addr{netip.MustParseAddr("203.0.113.7")}, nil
			}
			return nil, errors.New("no such host")
		},
		Resync: time.Minute, Sessions: time.Minute,
		Now:         func() time.Time { return r.now },
		Log:         slog.New(slog.NewTextHandler(&r.log, nil)),
		Instruments: telemetry.NewInstruments(prometheus.NewRegistry()),
	})
	return r
}

func (r *rig) write(peers string) {
	r.files[spec.GatewayFile] = []byte("server:\n  addresses: [10.8.0.1/24]\n" + peers)
}

func peer(n byte, more string) string {
	return fmt.Sprintf("- {name: p%d, publicKey: %s, addresses: [10.8.0.%d]%s}\n", n, publicKey(n), n, more)
}

func publicKey(n byte) key.Public {
	return key.NewPrivate([key.Len]byte{0: 8 * n, 31: 64}).Public()
}

// step runs once and returns what was done to peers, as text.
func (r *rig) step() []string {
	before := len(r.device.applied)
	r.run(context.Background(), "resync")
	var out []string
	for _, p := range r.device.applied[before:] {
		for _, tunnel := range p.Tunnels {
			for _, peer := range tunnel.Device.Peers {
				out = append(out, fmt.Sprintf("%s %s", peer.Operation, peer.Name))
			}
		}
	}
	return out
}

func (r *rig) want(what string, got, want any) {
	r.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func (r *rig) failing() []string {
	var out []string
	for _, c := range r.Status().Conditions {
		if !c.OK {
			out = append(out, c.Name)
		}
	}
	return out
}

func TestStart(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, "")+peer(3, ""))
	if r.Status().Ready() {
		t.Error("ready before the first run")
	}
	r.want("peers", r.step(), []string{"add p2", "add p3"})
	r.want("failing conditions", r.failing(), []string(nil))
	s := r.Status()
	r.want("generation", s.Generation, uint64(1))
	r.want("public key", s.InForce().PublicKey, r.serverK.Public())
	r.want("MTU", r.device.blue().Link.MTU, 1440)
	r.want("firewall", len(r.firewall.applied), 1)
	if !r.firewall.applied[0].Replace {
		t.Error("the first run took an unknown table for its own")
	}
	r.want("second run", r.step(), []string(nil))
	r.want("plans applied", len(r.device.applied), 1)
}

func TestReload(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	r.step()
	first := r.Status().Hash

	r.write("peers:\n" + peer(2, "") + peer(4, ""))
	r.want("peer added", r.step(), []string{"add p4"})
	r.want("generation", r.Status().Generation, uint64(2))
	if r.Status().Hash == first {
		t.Error("the hash stayed the same")
	}
	r.files["psk/a/p4"] = []byte(key.GeneratePreshared().Reveal())
	r.want("pre-shared key", r.step(), []string{"update p4"})

	r.write("peers:\n" + peer(4, ""))
	r.want("peer removed", r.step(), []string{"remove p2"})
	if strings.Contains(r.log.String(), r.serverK.Reveal()) {
		t.Error("a key in the log")
	}
	for _, line := range []string{"peer p4 added", "peer p4 updated (presharedKey)", "peer p2 removed"} {
		if !strings.Contains(r.log.String(), line) {
			t.Errorf("the log does not say %q:\n%s", line, r.log.String())
		}
	}
}

func TestBadInputKeepsTheLastGoodState(t *testing.T) {
	good := "peers:\n" + peer(2, "") + peer(3, "")
	tests := []struct {
		name     string
		spoil    func(*rig)
		mentions string
	}{
		{"not YAML", func(r *rig) { r.files[spec.GatewayFile] = []byte("server: [") }, "not YAML"},
		{"half a file", func(r *rig) { f := r.files[spec.GatewayFile]; r.files[spec.GatewayFile] = f[:len(f)-30] }, "gateway.yaml"},
		{"config deleted", func(r *rig) { delete(r.files, spec.GatewayFile) }, "missing"},
		{"private key deleted", func(r *rig) { delete(r.files, spec.PrivateKeyFile) }, "missing"},
		{"private key garbled", func(r *rig) { r.files[spec.PrivateKeyFile] = []byte("garbled") }, "base64"},
		{"permission lost", func(r *rig) { r.readErr = errors.New("open: permission denied") }, "permission denied"},
		{"a fault among good changes", func(r *rig) { r.write(good + peer(4, "") + peer(4, "")) }, "used already"},
		{"another interface", func(r *rig) { r.write("  interface: wg9\n" + good) }, "restart the Pod"},
		{"another port", func(r *rig) { r.write("  listenPort: 4242\n" + good) }, "restart the Pod"},
		{"IPv6 switched on", func(r *rig) { r.write("ipv6: {enabled: true}\n" + good) }, "restart the Pod"},
		{"another data plane", func(r *rig) { r.write("  dataPlane: kernel\n" + good) }, "restart the Pod"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, good)
			r.step()
			before, hash := len(r.device.applied), r.Status().Hash
			saved := maps.Clone(r.files)

			tt.spoil(r)
			r.step()
			r.step() // a second run says nothing new
			r.want("plans applied", len(r.device.applied)-before, 0)
			r.want("failing conditions", r.failing(), []string{"config"})
			s := r.Status()
			r.want("ready", s.Ready(), true)
			r.want("hash", s.Hash, hash)
			r.want("failed reloads", s.Reloads.Failed, uint64(1))
			if !strings.Contains(s.Reloads.LastError, tt.mentions) {
				t.Errorf("last error %q does not mention %q", s.Reloads.LastError, tt.mentions)
			}
			if n := strings.Count(r.log.String(), "reload failed"); n != 1 {
				t.Errorf("refused %d times in the log, want once", n)
			}

			r.files, r.readErr = saved, nil
			r.step()
			r.want("plans applied after the repair", len(r.device.applied)-before, 0)
			r.want("failing conditions after the repair", r.failing(), []string(nil))
		})
	}
}

func TestFailedApplyIsTriedAgain(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	r.step()
	r.write("peers:\n" + peer(2, "") + peer(3, ""))
	busy := errors.New("netlink: device or resource busy")
	r.device.errs = []error{busy, busy} // for the changes, and for all that differs
	r.step()
	s := r.Status()
	r.want("ready", s.Ready(), true) // p2 is as well as ever
	r.want("last reload", s.Reloads.LastOK, false)
	r.want("generation", s.Generation, uint64(1))
	r.want("retry", r.step(), []string{"add p3"})
	if !r.firewall.applied[len(r.firewall.applied)-1].Replace {
		t.Error("after a failure the table was taken for known")
	}
	r.want("last reload", r.Status().Reloads.LastOK, true)
	r.want("generation", r.Status().Generation, uint64(2))
}

// What was applied must not be what is being built: the next plan would find
// nothing to do.
func TestChangeAfterIdleRuns(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	r.step()
	r.step()
	r.step()
	r.write("peers:\n" + peer(2, "") + peer(4, ""))
	r.step()
	last := r.firewall.applied[len(r.firewall.applied)-1]
	r.want("table made anew", last.Replace, false)
	r.want("sources added", len(last.AddSources), 1)
}

func TestEndpointChangeOutlivesAFailure(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ", endpoint: '192.0.2.1:1'"))
	r.step()
	r.write("peers:\n" + peer(2, ", endpoint: '192.0.2.2:2'"))
	r.device.errs = []error{errors.New("busy"), errors.New("busy")}
	r.step()
	r.step()
	r.want("endpoint", r.device.blue().Device.Peers[publicKey(2)].Endpoint.String(), "192.0.2.2:2")
}

func TestRepair(t *testing.T) {
	tests := []struct {
		name    string
		damage  func(*rig)
		unready string
	}{
		{"link down", func(r *rig) { r.device.blue().LinkUp = false }, "device"},
		{"peer removed by hand", func(r *rig) { delete(r.device.blue().Device.Peers, publicKey(2)) }, ""},
		{"address removed", func(r *rig) { r.device.blue().Link.Addresses = nil }, ""},
		{"forwarding switched off", func(r *rig) { r.device.Forwarding["eth0"] = false }, "forwarding"},
		{"table flushed", func(r *rig) { r.firewall.inPlace = false }, "firewall"},
		{"another key", func(r *rig) { r.device.blue().Device.PrivateKey = key.GeneratePrivate() }, "key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "peers:\n"+peer(2, ""))
			r.step()
			tt.damage(r)
			r.step()
			r.want("failing conditions", r.failing(), []string(nil))
			r.want("generation", r.Status().Generation, uint64(1))
			if !strings.Contains(r.log.String(), "repaired") {
				t.Error("the log does not say that something was repaired")
			}
			if tt.unready == "" {
				return
			}
			// What cannot be repaired makes the gateway unready.
			tt.damage(r)
			r.device.errs = []error{errors.New("not today")}
			if tt.unready == "firewall" {
				r.observed.FirewallInPlace = false
				r.publish()
			} else {
				r.step()
			}
			r.want("failing conditions", r.failing(), []string{tt.unready})
		})
	}
}

func TestNamedEndpoint(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ", endpoint: 'site.example.com:51820'")+peer(3, ", endpoint: 'nowhere.example.com:1'"))
	r.step()
	<-r.resolver.resolved
	r.want("after the answer", r.step(), []string{"update p2"})
	r.want("endpoint", r.device.blue().Device.Peers[publicKey(2)].Endpoint.String(), "203.0.113.7:51820")

	// The peer roams; a run must not call it back.
	p := r.device.blue().Device.Peers[publicKey(2)]
	p.Endpoint = netip.MustParseAddrPort("198.51.100.1:4242")
	r.device.blue().Device.Peers[publicKey(2)] = p
	r.want("after roaming", r.step(), []string(nil))
}

// A name with several addresses, in another order each time, must not move a
// session; one that stands for others does.
func TestNamedEndpointKeepsItsAddress(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ", endpoint: 'site.example.com:51820'"))
	answers := []string{"203.0.113.7", "203.0.113.8"}
	r.resolver.query = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr(answers[0]), netip.MustParseAddr(answers[1])}, nil
	}
	r.step()
	<-r.resolver.resolved
	r.want("first answer", r.step(), []string{"update p2"})
	ask := func() {
		e := spec.Endpoint{Host: "site.example.com", Port: 51820}
		r.resolver.ask(context.Background(), e)
	}
	answers = []string{"203.0.113.8", "203.0.113.7"}
	ask()
	r.want("another order", r.step(), []string(nil))
	answers = []string{"203.0.113.8", "203.0.113.9"}
	ask()
	r.want("another address", r.step(), []string{"update p2"})
	r.want("endpoint", r.device.blue().Device.Peers[publicKey(2)].Endpoint.String(), "203.0.113.8:51820")
}

// A peer that went somewhere and does not answer there is called where the user
// said that it is.
func TestLostPeerIsCalledAtItsEndpoint(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ", endpoint: '203.0.113.7:51820'"))
	r.step()
	roamed := r.device.blue().Device.Peers[publicKey(2)]
	roamed.Endpoint, roamed.LastHandshake = netip.MustParseAddrPort("198.51.100.1:4242"), r.now
	look := func(after time.Duration) []string {
		r.now = r.now.Add(after)
		roamed.TransmitBytes += 148 // a handshake initiation that nobody answers
		r.device.blue().Device.Peers[publicKey(2)] = roamed
		return r.step()
	}
	r.want("connected", look(0), []string(nil))
	r.want("session over", look(state.SessionLifetime), []string(nil))
	r.want("calling", look(time.Second), []string(nil))
	r.want("lost", look(time.Minute), []string{"update p2"})
	r.want("endpoint", r.device.blue().Device.Peers[publicKey(2)].Endpoint.String(), "203.0.113.7:51820")
}

func TestSilenceIsNotReadiness(t *testing.T) {
	r := newRig(t, "")
	r.step()
	r.now = r.now.Add(3 * time.Minute)
	r.want("after a while", r.Status().Ready(), true)
	r.now = r.now.Add(time.Minute)
	r.want("failing conditions", r.failing(), []string{"serving"})
}

func TestUplinkThatIsGoneForAMoment(t *testing.T) {
	r := newRig(t, "")
	r.step()
	r.Uplink = func() (state.Uplink, error) { return state.Uplink{}, nil }
	r.step()
	r.want("MTU", r.device.blue().Link.MTU, 1440)
}

func TestRestartTakesOver(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ", endpoint: '203.0.113.7:51820'"))
	r.step()
	p := r.device.blue().Device.Peers[publicKey(2)]
	p.Endpoint = netip.MustParseAddrPort("198.51.100.1:4242")
	r.device.blue().Device.Peers[publicKey(2)] = p
	running, files := r.device, r.files

	again := newRig(t, "")
	again.files = files
	initial, err := spec.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	o := again.Options
	o.Initial, o.Files, o.Device = initial, files, running
	o.Read = func() (spec.Files, error) { return files, nil }
	again.Reconciler = New(o)
	again.device = running
	again.want("peers touched", again.step(), []string(nil))
	last := running.applied[len(running.applied)-1]
	if len(last.Tunnels) > 0 {
		t.Errorf("a running device was touched: %v", last.Summary(10))
	}
}

func TestSessionsAreLogged(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	r.step()
	p := r.device.blue().Device.Peers[publicKey(2)]
	p.LastHandshake, p.Endpoint = r.now, netip.MustParseAddrPort("198.51.100.1:4242")
	r.device.blue().Device.Peers[publicKey(2)] = p
	r.watchSessions(context.Background())
	r.write("")
	r.step()
	for _, line := range strings.Split(r.log.String(), "\n") {
		if strings.Contains(line, "peer disconnected") && !strings.Contains(line, "peer=p2") {
			t.Errorf("a peer that left has lost its name: %s", line)
		}
	}
	r.write("peers:\n" + peer(2, ""))
	r.step()
	r.device.blue().Device.Peers[publicKey(2)] = p
	r.watchSessions(context.Background())
	r.now = r.now.Add(state.SessionLifetime + time.Second)
	r.watchSessions(context.Background())
	for _, line := range []string{"peer connected", "peer disconnected", "p2"} {
		if !strings.Contains(r.log.String(), line) {
			t.Errorf("the log does not say %q:\n%s", line, r.log.String())
		}
	}
}

func TestDrain(t *testing.T) {
	r := newRig(t, "  drain: 7s\n")
	r.step()
	r.want("ready", r.Status().Ready(), true)
	r.want("drain", r.Drain(), 7*time.Second)
	r.want("failing conditions", r.failing(), []string{"serving"})
	r.step()
	r.want("still draining", r.Status().Ready(), false)
}

func TestRunLoop(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	published := make(chan uint64, 100)
	r.Published = func(s telemetry.Status) { published <- s.Generation }
	ctx, cancel := context.WithCancel(context.Background())
	changed, done := make(chan struct{}), make(chan error)
	go func() { done <- r.Run(ctx, changed) }()
	waitFor := func(generation uint64) {
		t.Helper()
		for {
			select {
			case g := <-published:
				if g == generation {
					return
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("no generation %d", generation)
			}
		}
	}
	waitFor(1)
	r.write("peers:\n" + peer(2, "") + peer(3, ""))
	changed <- struct{}{}
	waitFor(2)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}

	broken := newRig(t, "")
	broken.device.errs = []error{errors.New("no such device")}
	if err := broken.Run(context.Background(), nil); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("a failed first run returned %v", err)
	}
}

func TestBackoff(t *testing.T) {
	b := newBackoff(time.Second, 5*time.Second)
	var got []time.Duration
	for range 4 {
		got = append(got, b.next())
	}
	b.reset()
	got = append(got, b.next())
	want := []time.Duration{1e9, 2e9, 4e9, 5e9, 1e9}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFingerprint(t *testing.T) {
	a := fingerprintOf(spec.Files{"a": []byte("bc")})
	b := fingerprintOf(spec.Files{"ab": []byte("c")})
	if a == b {
		t.Error("different files, same fingerprint")
	}
	if a != fingerprintOf(spec.Files{"a": []byte("bc")}) {
		t.Error("same files, different fingerprints")
	}
}
