package reconcile

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// text is a list of prefixes as the tests write it.
func text(list []netip.Prefix) string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, " ")
}

// rotated is a gateway that has run, and whose next server key has just appeared.
// It comes in force an hour later.
func rotated(t *testing.T) (r *rig, next key.Private) {
	t.Helper()
	r = newRig(t, "keyRotation: {server: {overlap: 24h}}\npeers:\n"+peer(2, "")+peer(3, ", allowedIPs: [192.168.3.0/24]"))
	r.step()
	next = key.GeneratePrivate()
	r.files["key/"+key.ServerEntry(key.Green, r.now.Add(time.Hour))] = []byte(next.Reveal())
	r.step()
	return r, next
}

// shakeHands has a peer do so with a tunnel.
func (r *rig) shakeHands(s key.Slot, k key.Public) {
	p := r.device.at(s).Device.Peers[k]
	p.LastHandshake = r.now
	r.device.at(s).Device.Peers[k] = p
}

func (r *rig) detail(condition string) string {
	for _, c := range r.Status().Conditions {
		if c.Name == condition {
			return c.Detail
		}
	}
	return "no condition " + condition
}

// TestServerKeyTakesOver follows a rotation through all of its times.
func TestServerKeyTakesOver(t *testing.T) {
	r, next := rotated(t)
	blue, green := r.device.blue(), r.device.at(key.Green)
	r.want("failing conditions", r.failing(), []string(nil))
	r.want("tunnels", len(r.device.tunnels), 2)
	r.want("key of the second", green.Device.PrivateKey == next, true)
	r.want("port of the second", green.Device.ListenPort, uint16(51821))
	r.want("peers of the second", len(green.Device.Peers), 2)
	r.want("in force", r.Status().InForce().PublicKey, r.serverK.Public())
	r.want("key", r.detail("key"), "the private key of the files is in force, the next one from "+r.now.Add(time.Hour).UTC().Format(time.RFC3339))

	r.now = r.now.Add(time.Minute)
	r.shakeHands(key.Blue, publicKey(2))
	r.shakeHands(key.Blue, publicKey(3))
	r.watchSessions(context.Background())
	r.want("routes through the first", text(blue.Link.Routes), "192.168.3.0/24")

	// One whose clock is ahead moves before the time.
	r.now = r.now.Add(time.Minute)
	r.shakeHands(key.Green, publicKey(3))
	r.watchSessions(context.Background())
	r.want("routes through the first", text(blue.Link.Routes), "")
	r.want("routes through the second", text(green.Link.Routes), "10.8.0.3/32 192.168.3.0/24")
	r.want("moved", r.Status().Moved, 1)
	// And back, and again.
	r.now = r.now.Add(time.Minute)
	r.shakeHands(key.Blue, publicKey(3))
	r.watchSessions(context.Background())
	r.want("routes through the second", text(green.Link.Routes), "")
	r.now = r.now.Add(time.Minute)
	r.shakeHands(key.Green, publicKey(3))
	r.step() // a run sees it too, and the next one follows
	r.step()
	r.want("routes through the second", text(green.Link.Routes), "10.8.0.3/32 192.168.3.0/24")

	before := len(r.device.applied)
	r.now = r.now.Add(time.Hour)
	r.run(context.Background(), "keys")
	r.want("in force", r.Status().InForce().PublicKey, next.Public())
	r.want("plans that the change of the clock took", len(r.device.applied)-before, 0)

	r.now = r.now.Add(24 * time.Hour)
	r.run(context.Background(), "keys")
	r.want("tunnels", len(r.device.tunnels), 1)
	r.want("addresses of what was the second", text(green.Link.Addresses), "10.8.0.1/24")
	r.want("its routes", text(green.Link.Routes), "192.168.3.0/24")
	r.want("failing conditions", r.failing(), []string(nil))
	r.want("key", r.detail("key"), "privateKey has retired, the key of "+r.now.Add(-24*time.Hour-4*time.Minute).UTC().Format(time.RFC3339)+" has taken its place")
	if strings.Contains(r.log.String(), next.Reveal()) || strings.Contains(r.log.String(), r.serverK.Reveal()) {
		t.Error("a private key is in the log")
	}
}

// A garbled next key changes nothing, and is taken up once it is mended.
func TestGarbledNextKey(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	r.step()
	name := "key/" + key.ServerEntry(key.Green, r.now.Add(time.Hour))
	r.files[name] = []byte("garbled")
	r.step()
	r.want("tunnels", len(r.device.tunnels), 1)
	r.want("failing conditions", r.failing(), []string{"config"})
	r.files[name] = []byte(key.GeneratePrivate().Reveal())
	r.step()
	r.want("tunnels", len(r.device.tunnels), 2)
	r.want("failing conditions", r.failing(), []string(nil))
}

// A gateway that was away while keys came and went converges at once.
func TestMissedActivation(t *testing.T) {
	r, next := rotated(t)
	r.now = r.now.Add(30 * 24 * time.Hour)
	r.step()
	r.want("tunnels", len(r.device.tunnels), 1)
	r.want("key", r.device.at(key.Green).Device.PrivateKey == next, true)
}

// A successor finds two tunnels, and a peer that has moved: its routes stay.
func TestSuccessorLeavesMovedPeersWhereTheyAre(t *testing.T) {
	r, _ := rotated(t)
	r.now = r.now.Add(time.Minute)
	r.shakeHands(key.Green, publicKey(3))
	r.watchSessions(context.Background())
	initial, err := spec.Load(r.files)
	if err != nil {
		t.Fatal(err)
	}
	o := r.Options
	o.Initial, o.Files = initial, r.files
	before := len(r.device.applied)
	r.Reconciler = New(o)
	r.step()
	for _, p := range r.device.applied[before:] {
		if len(p.Tunnels) > 0 {
			t.Errorf("a successor touched the tunnels: %v", p.Summary(10))
		}
	}
	r.want("moved", r.Status().Moved, 1)
}

// TestFirstLinkVanishes while there are two: it is made again, and the other one is
// not touched.
func TestFirstLinkVanishes(t *testing.T) {
	r, _ := rotated(t)
	r.device.tunnels[key.Blue] = &fakeTunnel{} // as a device sees a link that is gone
	before := len(r.device.applied)
	r.step()
	r.want("failing conditions", r.failing(), []string(nil))
	r.want("peers of the first", len(r.device.blue().Device.Peers), 2)
	for _, p := range r.device.applied[before:] {
		for _, change := range p.Tunnels {
			r.want("tunnel that was touched", change.Slot, key.Blue)
		}
	}
}

// TestSecondTunnelFails: that its port is taken harms nobody who has the key that is
// in force, neither while the gateway runs nor when it starts.
func TestSecondTunnelFails(t *testing.T) {
	taken := &state.TunnelError{Slot: key.Green, Err: errors.New("port 51821: in use")}
	r := newRig(t, "keyRotation: {server: {overlap: 24h}}\npeers:\n"+peer(2, ""))
	r.step()
	next := key.GeneratePrivate()
	r.files["key/"+key.ServerEntry(key.Green, r.now.Add(time.Hour))] = []byte(next.Reveal())
	r.device.refuse = taken
	for name, step := range map[string]func(){
		"running": func() { r.step() },
		"starting": func() {
			initial, err := spec.Load(r.files)
			if err != nil {
				t.Fatal(err)
			}
			o := r.Options
			o.Initial, o.Files = initial, r.files
			r.Reconciler = New(o)
			r.step()
		},
	} {
		step()
		r.want(name+": ready", r.Status().Ready(), true)
		r.want(name+": failing conditions", r.failing(), []string{"nextKey"})
		r.want(name+": run error", r.runError, error(nil))
		if r.secondError == nil || !strings.Contains(r.detail("nextKey"), "port 51821: in use") {
			t.Errorf("%s: second error %v, detail %q", name, r.secondError, r.detail("nextKey"))
		}
	}
	// Changes go on, and the table is not made anew by every try.
	tables := 0
	for _, p := range r.firewall.applied {
		if p.Replace {
			tables++
		}
	}
	r.step()
	r.write("keyRotation: {server: {overlap: 24h}}\npeers:\n" + peer(2, "") + peer(3, ""))
	r.step()
	r.want("peers", len(r.device.blue().Device.Peers), 2)
	for _, p := range r.firewall.applied[len(r.firewall.applied)-1:] {
		r.want("table made anew", p.Replace, false)
	}
	if tables == 0 {
		t.Error("no table was made at all")
	}
	r.device.refuse = nil
	r.step()
	r.want("failing conditions", r.failing(), []string(nil))
	r.want("key of the second", r.device.at(key.Green).Device.PrivateKey == next, true)
}

// TestMovedRunIsRetried: where moving a route fails, it is tried again without
// waiting for the next resync.
func TestMovedRunIsRetried(t *testing.T) {
	r, _ := rotated(t)
	r.now = r.now.Add(time.Minute)
	r.shakeHands(key.Green, publicKey(2))
	r.device.errs = []error{errors.New("no buffers"), errors.New("no buffers")}
	r.want("whole run", r.watchSessions(context.Background()), true)
	if r.runError == nil {
		t.Fatal("the run that failed is not noted, so nothing would try again")
	}
	r.step()
	r.want("routes through the second", text(r.device.at(key.Green).Link.Routes), "10.8.0.2/32")
}

// TestSlotsChangeHands: who has moved is found out anew where the second of two
// becomes the first, with another one beside it.
func TestSlotsChangeHands(t *testing.T) {
	r, _ := rotated(t)
	r.now = r.now.Add(time.Minute)
	r.shakeHands(key.Green, publicKey(2))
	r.shakeHands(key.Green, publicKey(3))
	r.watchSessions(context.Background())
	// Long after, with the next but one to come: nobody knows that one yet.
	third := key.GeneratePrivate()
	r.files["key/"+key.ServerEntry(key.Blue, r.now.Add(48*time.Hour))] = []byte(third.Reveal())
	r.now = r.now.Add(26 * time.Hour)
	r.step()
	r.want("key of the second", r.device.blue().Device.PrivateKey == third, true)
	r.want("routes through the second", text(r.device.blue().Link.Routes), "")
	r.want("routes through the first", text(r.device.at(key.Green).Link.Routes), "192.168.3.0/24")
	r.want("moved", r.Status().Moved, 0)
}

// TestClockIsSetBack: what was in force by a wrong clock is undone.
func TestClockIsSetBack(t *testing.T) {
	r, next := rotated(t)
	r.now = r.now.Add(2 * time.Hour)
	r.step()
	r.want("in force", r.Status().InForce().PublicKey, next.Public())
	r.now = r.now.Add(-90 * time.Minute)
	r.step()
	r.want("in force", r.Status().InForce().PublicKey, r.serverK.Public())
	r.want("tunnels", len(r.device.tunnels), 2)
}

// TestKeysTimer: without any event, keys come in force when their time comes.
func TestKeysTimer(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	psk := key.GeneratePreshared()
	start := time.Now()
	r.Now = func() time.Time { return r.now.Add(time.Since(start)) }
	r.files["psk/a/"+key.PresharedEntry("p2", r.now.Add(2*time.Second))] = []byte(psk.Reveal())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	seen := make(chan state.Observed, 100)
	r.Published = nil
	r.Device = observer{r.device, seen}
	go func() { done <- r.Run(ctx, make(chan struct{})) }()
	for o := range seen {
		if o.Tunnels[key.Blue].Device.Peers[publicKey(2)].PresharedKey == psk {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// observer tells of everything that is applied.
type observer struct {
	*fakeDevice
	seen chan state.Observed
}

func (o observer) Apply(p plan.Plan) error {
	err := o.fakeDevice.Apply(p)
	now, _ := o.Observe()
	o.seen <- now
	return err
}

// TestHandshakesAreFollowed: a handshake that is told of moves the routes without
// waiting for the next look.
func TestHandshakesAreFollowed(t *testing.T) {
	r, _ := rotated(t)
	told := make(chan struct{})
	r.Handshakes = told
	r.Sessions, r.Resync = time.Hour, time.Hour
	r.now = r.now.Add(time.Minute)
	r.shakeHands(key.Green, publicKey(2))
	r.moved, r.inputs.Moved = nil, nil
	seen := make(chan state.Observed, 100)
	r.Device = observer{r.device, seen}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { done <- r.Run(ctx, make(chan struct{})) }()
	told <- struct{}{}
	for o := range seen {
		if len(o.Tunnels[key.Green].Link.Routes) == 1 {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestFollowerHurries: a handshake does not wait for the last look after another.
func TestFollowerHurries(t *testing.T) {
	var f follower
	f.seen()
	<-f.C()
	f.looked(0)
	<-f.C()
	f.looked(0) // the next one is due in 300 ms
	start := time.Now()
	f.seen()
	<-f.C()
	if took := time.Since(start); took > 200*time.Millisecond {
		t.Errorf("looked %v after a handshake", took)
	}
}

// TestFollower: looking takes its share of the time and no more.
func TestFollower(t *testing.T) {
	var f follower
	if f.C() != nil {
		t.Fatal("something to look for before anything was seen")
	}
	f.seen()
	f.seen()
	looks := 0
	for f.C() != nil {
		<-f.C()
		looks++
		f.looked(0)
	}
	if looks != len(followDelays()) {
		t.Errorf("looked %d times, want %d", looks, len(followDelays()))
	}
	f.seen()
	<-f.C()
	f.looked(50 * time.Millisecond)
	start := time.Now()
	<-f.C()
	if got := time.Since(start); got < 150*time.Millisecond {
		t.Errorf("after a look of 50 ms, looked again after %v", got)
	}
}
