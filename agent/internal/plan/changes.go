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
	p := Plan{
		Firewall: diffFirewall(desired.Firewall, true, &applied),
		Link:     diffLink(desired.Link, state.Observed{LinkExists: true, LinkUp: true, Link: applied.Link}),
		Device:   Device{Peers: changedPeers(desired.Device.Peers, applied)},
	}
	if desired.Device.PrivateKey != applied.Device.PrivateKey {
		p.Device.PrivateKey = &desired.Device.PrivateKey
	}
	if desired.Device.ListenPort != applied.Device.ListenPort {
		p.Device.ListenPort = &desired.Device.ListenPort
	}
	return p
}

// changedPeers walks both lists, which are sorted by name.
func changedPeers(want []state.Peer, applied state.Desired) []Peer {
	var d Device
	var came []*state.Peer
	gone := map[key.Public]*state.Peer{}
	change := func(now, before *state.Peer) {
		if p, changed := update(now, &state.ObservedPeer{Peer: *before}, &lastApplied{desired: &applied}); changed {
			d.Peers = append(d.Peers, p)
		}
	}
	have := applied.Device.Peers
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
	return a.PresharedKey == b.PresharedKey && a.Endpoint == b.Endpoint && a.Keepalive == b.Keepalive &&
		slices.Equal(a.AllowedIPs, b.AllowedIPs)
}
