package plan

import (
	"slices"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Changes plans the way from what was applied last to what is desired now, without
// a look at the system: it is what [Diff] finds where the system is just as it was
// applied. So a change is in force before 10,000 peers are read back, which takes
// a hundred times as long as all of this; whether the system really was so is for
// [Diff] to find out afterwards. Where it was not, the changes do no harm: nobody
// is touched but whom the user changed, and none of them makes half a peer.
func Changes(desired, applied state.Desired) Plan {
	p := Plan{Firewall: diffFirewall(desired.Firewall, true, &applied)}
	for _, want := range desired.Devices() {
		have := applied.Tunnel(want.Slot)
		if have == nil {
			// Made from nothing, it takes what only Diff asks for: forwarding.
			p.Forward = append(p.Forward, want.Link.Name)
			p.add(Tunnel{
				Slot: want.Slot, Link: diffLink(want.Link, state.ObservedTunnel{}),
				Device: diffDevice(want.Device, state.ObservedDevice{}, &lastApplied{}),
			})
			continue
		}
		p.add(changedTunnel(want, have))
	}
	for _, have := range applied.Devices() {
		if desired.Tunnel(have.Slot) == nil {
			p.add(Tunnel{Slot: have.Slot, Remove: true, Link: Link{Name: have.Link.Name}})
		}
	}
	return p
}

func changedTunnel(want, have *state.Tunnel) Tunnel {
	t := Tunnel{
		Slot:   want.Slot,
		Link:   diffLink(want.Link, state.ObservedTunnel{LinkExists: true, LinkUp: true, Link: have.Link}),
		Device: Device{Peers: changedPeers(want.Device.Peers, have.Device.Peers)},
	}
	if want.Device.PrivateKey != have.Device.PrivateKey {
		t.Device.PrivateKey = &want.Device.PrivateKey
	}
	if want.Device.ListenPort != have.Device.ListenPort {
		t.Device.ListenPort = &want.Device.ListenPort
	}
	return t
}

// changedPeers walks both lists, which are sorted by name.
func changedPeers(want, have []state.Peer) []Peer {
	var d Device
	var came []*state.Peer
	gone := map[key.Public]*state.Peer{}
	last := &lastApplied{peers: have}
	change := func(now, before *state.Peer) {
		if now.Elsewhere && !before.Elsewhere { // a client's endpoint is known to the device alone
			d.Peers = append(d.Peers, renew(*now))
			return
		}
		if p, changed := update(now, &state.ObservedPeer{Peer: *before}, last); changed {
			d.Peers = append(d.Peers, p)
		}
	}
	for len(want) > 0 || len(have) > 0 {
		order := 0
		switch {
		case len(want) == 0:
			order = 1
		case len(have) == 0:
			order = -1
		default:
			order = strings.Compare(want[0].Name, have[0].Name)
		}
		if order == 0 && want[0].PublicKey == have[0].PublicKey {
			if !alike(&want[0], &have[0]) {
				change(&want[0], &have[0])
			}
			want, have = want[1:], have[1:]
			continue
		}
		if order <= 0 {
			came, want = append(came, &want[0]), want[1:]
		}
		if order >= 0 {
			gone[have[0].PublicKey], have = &have[0], have[1:]
		}
	}
	for _, now := range came {
		// To the device, a peer with another name is the same one.
		if before, renamed := gone[now.PublicKey]; renamed {
			delete(gone, now.PublicKey)
			change(now, before)
			continue
		}
		d.Peers = append(d.Peers, add(*now))
	}
	for k, before := range gone {
		d.Peers = append(d.Peers, Peer{Operation: Remove, PublicKey: k, Name: before.Name})
	}
	d.sort()
	return d.Peers
}

// alike tells whether to the device there is no difference between two peers of
// one key.
func alike(a, b *state.Peer) bool {
	return a.Elsewhere == b.Elsewhere && a.PresharedKey == b.PresharedKey && a.Endpoint == b.Endpoint && a.Keepalive == b.Keepalive &&
		slices.Equal(a.AllowedIPs, b.AllowedIPs)
}
