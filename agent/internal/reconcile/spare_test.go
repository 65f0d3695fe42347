package reconcile

import (
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

// linkedFleet has one sibling, which holds one peer.
type linkedFleet struct {
	*state.Fleet
	forgotten []key.Public
	over      key.Public // its calls are over
	changed   chan struct{}
	came      chan struct{}
	calls     chan state.Call
}

func (f *linkedFleet) Configure(*spec.Snapshot) {}

func (f *linkedFleet) State() *state.Fleet { return f.Fleet }

func (f *linkedFleet) Changed() <-chan struct{} { return f.changed }

func (f *linkedFleet) Came() <-chan struct{} { return f.came }

func (f *linkedFleet) Calls() <-chan state.Call { return f.calls }

func (f *linkedFleet) Forgot(peers []key.Public) { f.forgotten = append(f.forgotten, peers...) }

func (f *linkedFleet) IsOver(c state.Call) bool { return c.Peer == f.over }

func newLinkedFleet(held ...key.Public) *linkedFleet {
	f := &state.Fleet{
		Elsewhere: map[key.Public]string{},
		Siblings:  []state.Sibling{{Name: "b", Address: netip.MustParseAddr("10.244.0.2"), LinkKey: key.Public{1}, LinkPort: 51840}},
		Link:      &state.LinkConfig{PrivateKey: key.NewPrivate([key.Len]byte{7}), ListenPort: 51840, Address: netip.MustParseAddr("10.244.0.1")},
	}
	for _, k := range held {
		f.Elsewhere[k] = "b"
	}
	return &linkedFleet{Fleet: f}
}

// TestInterlinkFails: that there is no link to other replicas costs no tunnel, holds up
// no change of who holds whom, and is told.
func TestInterlinkFails(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, "")+peer(3, ""))
	r.Fleet = newLinkedFleet()
	r.device.refuse = &state.TunnelError{Slot: state.Interlink, Err: errors.New("port 51840: in use")}
	r.step()
	r.want("ready", r.Status().Ready(), true)
	r.want("failing conditions", r.failing(), []string{"link"})
	r.want("run error", r.runError, error(nil))
	if !strings.Contains(r.detail("link"), "port 51840: in use") {
		t.Errorf("detail %q", r.detail("link"))
	}
	r.want("peers", len(r.device.blue().Device.Peers), 2)
	r.Fleet = newLinkedFleet(publicKey(2))
	r.want("who holds whom is followed", r.follow(), true)
	for _, p := range r.desired.Tunnels[0].Device.Peers {
		r.want("elsewhere", p.Elsewhere, p.PublicKey == publicKey(2))
	}
	r.device.refuse = nil
	r.step()
	r.want("failing conditions", r.failing(), []string(nil))
	r.want("siblings", len(r.device.at(state.Interlink).Device.Peers), 1)
	r.want("routes", len(r.device.at(state.Interlink).Link.Routes), 1)
	r.Fleet = newLinkedFleet()
	r.want("it comes back", r.follow(), true)
	r.want("routes then", len(r.device.at(state.Interlink).Link.Routes), 0)
	r.Fleet = nil
	r.step()
	if _, there := r.device.tunnels[state.Interlink]; there {
		t.Error("the link stays without siblings")
	}
	r.want("condition", r.detail("link"), "no condition link")
}

// TestInterlinkFailsLate: where a change breaks it, the next run tries again at once.
func TestInterlinkFailsLate(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	r.Fleet = newLinkedFleet()
	r.step()
	r.want("failing conditions", r.failing(), []string(nil))
	r.device.refuse = &state.TunnelError{Slot: state.Interlink, Err: errors.New("no buffers")}
	r.Fleet = newLinkedFleet(publicKey(2))
	r.want("followed", r.follow(), false)
	r.step()
	r.want("failing conditions", r.failing(), []string{"link"})
	r.want("run error", r.runError, error(nil))
}

// TestForgets: the fleet is told whose sessions a run ended. It may know that one of them
// has come to this replica, after the run began and before it looked at the device.
func TestForgets(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, "")+peer(3, ""))
	fleet := newLinkedFleet(publicKey(2))
	r.Fleet = fleet
	r.step()
	r.want("nobody was here", fleet.forgotten, []key.Public(nil))
	come := r.device.blue().Device.Peers[publicKey(2)]
	come.Endpoint = netip.MustParseAddrPort("192.0.2.1:4500")
	r.device.blue().Device.Peers[publicKey(2)] = come
	r.step()
	r.want("who was forgotten", fleet.forgotten, []key.Public{publicKey(2)})
}

// TestCallIsOver: a peer that came by itself, while a call to it waited, keeps its session.
func TestCallIsOver(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, "")+peer(3, ""))
	fleet := newLinkedFleet()
	fleet.over = publicKey(2)
	r.Fleet = fleet
	r.step()
	waiting := make(chan state.Call, 1)
	waiting <- state.Call{Slot: key.Blue, Peer: publicKey(3)}
	r.call(state.Call{Slot: key.Blue, Peer: publicKey(2)}, waiting)
	plans := r.device.applied
	r.want("called", calledBy(plans[len(plans)-1]), []key.Public{publicKey(3)})
}

// calledBy are the peers that a plan calls.
func calledBy(p plan.Plan) (out []key.Public) {
	for _, t := range p.Tunnels {
		for _, peer := range t.Device.Peers {
			if peer.Operation == plan.Call {
				out = append(out, peer.PublicKey)
			}
		}
	}
	return out
}

// TestWhoWaitsComesFirst: a client that has come here waits for a route, another one for a
// call, and for what is known of others nobody does. After that was taken up once, it rests,
// so that what changes meanwhile is taken up together.
func TestWhoWaitsComesFirst(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, "")+peer(3, ""))
	fleet := newLinkedFleet()
	fleet.changed, fleet.came, fleet.calls = make(chan struct{}, 1), make(chan struct{}, 1), make(chan state.Call, 1)
	r.Fleet = fleet
	r.step()
	e := r.events(nil)
	defer e.stop()
	came, others := followRest(0)
	for range 20 { // a select takes any that is ready
		r.device.applied = nil
		fleet.calls <- state.Call{Slot: key.Blue, Peer: publicKey(3)}
		fleet.changed <- struct{}{}
		r.next(t.Context(), e)
		r.want("called", calledBy(r.device.applied[0]), []key.Public{publicKey(3)})
		r.want("to be followed", len(fleet.changed), 1)
		start := time.Now()
		r.next(t.Context(), e)
		r.want("to be followed then", len(fleet.changed), 0)

		fleet.came <- struct{}{}
		fleet.changed <- struct{}{}
		time.Sleep(came)
		fleet.calls <- state.Call{Slot: key.Blue, Peer: publicKey(3)}
		r.next(t.Context(), e) // the end of the shorter rest, though a call waits
		r.want("to be followed while it rests", len(fleet.came)+len(fleet.changed), 2)
		if took := time.Since(start); took < came {
			t.Errorf("rested for %v, want %v at least", took, came)
		}
		start = time.Now()
		r.next(t.Context(), e)
		r.want("to be followed after those came", len(fleet.came)+len(fleet.changed), 0)
		r.want("calls waiting", len(fleet.calls), 1)
		r.next(t.Context(), e)
		r.want("calls waiting after that", len(fleet.calls), 0)

		fleet.changed <- struct{}{}
		r.next(t.Context(), e)
		r.next(t.Context(), e) // the end of both rests
		r.want("to be followed while others rest", len(fleet.changed), 1)
		if took := time.Since(start); took < others {
			t.Errorf("rested for %v, want %v at least", took, others)
		}
		<-fleet.changed
	}
}

func TestFollowRest(t *testing.T) {
	for _, tt := range []struct{ took, came, others time.Duration }{
		{0, 15 * time.Millisecond, 60 * time.Millisecond},
		{5 * time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond},
		{time.Second, 25 * time.Millisecond, 100 * time.Millisecond},
	} {
		if came, others := followRest(tt.took); came != tt.came || others != tt.others {
			t.Errorf("after %v it rests for %v and %v, want %v and %v", tt.took, came, others, tt.came, tt.others)
		}
	}
}
