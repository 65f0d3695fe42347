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
// wgctrl would do to a real one.
type fakeDevice struct {
	state.Observed
	applied []plan.Plan // every plan, in order
	errs    []error     // of the next calls of Apply
	calls   []string    // of Observe and Apply
}

// newFakeDevice is a Pod before the first run: no tunnel, one other device.
func newFakeDevice() *fakeDevice {
	return &fakeDevice{Observed: state.Observed{
		Device:     state.ObservedDevice{Peers: map[key.Public]state.ObservedPeer{}},
		Forwarding: map[string]bool{"eth0": false},
	}}
}

func (f *fakeDevice) Observe() (state.Observed, error) {
	f.calls = append(f.calls, "observe")
	o := f.Observed
	o.Device.Peers = maps.Clone(o.Device.Peers)
	o.Forwarding = maps.Clone(o.Forwarding)
	return o, nil
}

func (f *fakeDevice) EachPeer(visit func(*state.ObservedPeer)) error {
	return state.Each(f.Device.Peers)(visit)
}

func (f *fakeDevice) Apply(p plan.Plan) error {
	f.calls = append(f.calls, "apply")
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return err
	}
	f.applied = append(f.applied, p)
	f.LinkExists, f.LinkUp = true, f.LinkUp || p.Link.Up
	f.Link.Name = p.Link.Name
	if p.Link.MTU != 0 {
		f.Link.MTU = p.Link.MTU
	}
	f.Link.Addresses = patch(f.Link.Addresses, p.Link.AddAddresses, p.Link.RemoveAddresses)
	f.Link.Routes = patch(f.Link.Routes, p.Link.AddRoutes, p.Link.RemoveRoutes)
	for _, name := range p.Forward {
		f.Forwarding[name] = true
	}
	if p.Device.PrivateKey != nil {
		f.Device.PrivateKey = *p.Device.PrivateKey
	}
	if p.Device.ListenPort != nil {
		f.Device.ListenPort = *p.Device.ListenPort
	}
	for _, peer := range p.Device.Peers {
		f.patchPeer(peer)
	}
	return nil
}

func (f *fakeDevice) patchPeer(p plan.Peer) {
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
