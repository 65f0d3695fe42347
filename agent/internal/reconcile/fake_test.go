package reconcile

import (
	"errors"
	"maps"
	"slices"

	"net/netip"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// fakeDevice implements [Device] in memory: a plan does to it what netlink and
// wgctrl would do to real ones.
type fakeDevice struct {
	tunnels    map[key.Slot]*fakeTunnel
	Forwarding map[string]bool
	applied    []plan.Plan // every plan, in order
	errs       []error     // of the next calls of Apply
	// refuse, where not nil, is what every change of its tunnel ends with.
	refuse *state.TunnelError
	calls  []string // of Observe and Apply
}

type fakeTunnel struct{ state.ObservedTunnel }

// newFakeDevice is a Pod before the first run: no tunnel, one other device.
func newFakeDevice() *fakeDevice {
	return &fakeDevice{tunnels: map[key.Slot]*fakeTunnel{}, Forwarding: map[string]bool{"eth0": false}}
}

// at is the tunnel of a slot, made where there is none.
func (f *fakeDevice) at(s key.Slot) *fakeTunnel {
	if f.tunnels[s] == nil {
		f.tunnels[s] = &fakeTunnel{}
		f.tunnels[s].Device.Peers = map[key.Public]state.ObservedPeer{}
	}
	return f.tunnels[s]
}

func (f *fakeDevice) blue() *fakeTunnel { return f.at(key.Blue) }

func (f *fakeDevice) Observe() (state.Observed, error) {
	f.calls = append(f.calls, "observe")
	o := state.Observed{Tunnels: map[key.Slot]state.ObservedTunnel{}, Forwarding: maps.Clone(f.Forwarding)}
	for slot, t := range f.tunnels {
		seen := t.ObservedTunnel
		seen.Device.Peers = maps.Clone(seen.Device.Peers)
		o.Tunnels[slot] = seen
	}
	return o, nil
}

func (f *fakeDevice) EachPeer(s key.Slot, visit func(*state.ObservedPeer)) error {
	return state.Each(f.at(s).Device.Peers)(visit)
}

func (f *fakeDevice) Apply(p plan.Plan) error {
	f.calls = append(f.calls, "apply")
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return err
	}
	f.applied = append(f.applied, p)
	var refused error
	for _, change := range p.Tunnels {
		switch {
		case f.refuse != nil && change.Slot == f.refuse.Slot:
			refused = f.refuse
		case change.Remove:
			delete(f.tunnels, change.Slot)
		default:
			f.at(change.Slot).apply(change)
		}
	}
	for _, name := range p.Forward {
		f.Forwarding[name] = true
	}
	return refused
}

func (f *fakeTunnel) apply(p plan.Tunnel) {
	f.LinkExists, f.LinkUp = true, f.LinkUp || p.Link.Up
	f.Link.Name = p.Link.Name
	if p.Link.MTU != 0 {
		f.Link.MTU = p.Link.MTU
	}
	f.Link.Addresses = patch(f.Link.Addresses, p.Link.AddAddresses, p.Link.RemoveAddresses)
	f.Link.Routes = patch(f.Link.Routes, p.Link.AddRoutes, p.Link.RemoveRoutes)
	f.Link.Answers = patch(f.Link.Answers, p.Link.AddAnswers, p.Link.RemoveAnswers)
	f.Link.AnswersFor = append(f.Link.AnswersFor, p.Link.AddAnswersFor...)
	if p.Device.PrivateKey != nil {
		f.Device.PrivateKey = *p.Device.PrivateKey
	}
	if p.Device.ListenPort != nil {
		f.Device.ListenPort = *p.Device.ListenPort
	}
	for _, peer := range p.Device.Peers {
		f.patchPeer(peer)
	}
}

func (f *fakeTunnel) patchPeer(p plan.Peer) {
	if f.Device.Peers == nil {
		f.Device.Peers = map[key.Public]state.ObservedPeer{}
	}
	if p.Operation == plan.Remove {
		delete(f.Device.Peers, p.PublicKey)
		return
	}
	have, exists := f.Device.Peers[p.PublicKey]
	if p.Operation == plan.Update && !exists {
		return // as with WireGuard's own update_only
	}
	have.PublicKey = p.PublicKey
	if p.PresharedKey != nil {
		have.PresharedKey = *p.PresharedKey
	}
	if p.Endpoint != nil {
		have.Endpoint = *p.Endpoint
	}
	if p.Keepalive != nil {
		have.Keepalive = *p.Keepalive
	}
	have.AllowedIPs = patch(have.AllowedIPs, p.AllowedIPs, p.RemoveAllowedIPs)
	f.Device.Peers[p.PublicKey] = have
}

func patch(list, add, remove []netip.Prefix) []netip.Prefix {
	out := slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool { return slices.Contains(remove, p) })
	out = append(out, add...)
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// fakeFirewall implements [Firewall] in memory.
type fakeFirewall struct {
	inPlace bool
	applied []plan.Firewall
}

func (f *fakeFirewall) InPlace(state.Firewall) (bool, error) { return f.inPlace, nil }

func (f *fakeFirewall) Apply(p plan.Firewall) error {
	if !p.Replace && !f.inPlace {
		return errors.New("no such table")
	}
	f.inPlace = true
	f.applied = append(f.applied, p)
	return nil
}
