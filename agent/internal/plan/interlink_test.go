package plan

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// linked is a gateway with two siblings, which hold peers with these prefixes.
func linked(b, c string) state.Desired {
	d := device0(state.Device{PrivateKey: key.NewPrivate([key.Len]byte{1}), ListenPort: 51820})
	d.Firewall.Interlink = "wg0l"
	var routes []netip.Prefix
	sibling := func(name string, k byte, own, held string) state.Peer {
		p := state.Peer{Name: name, PublicKey: key.Public{k}, Keepalive: 25 * time.Second, AllowedIPs: prefixes(own)}
		if held != "" {
			p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(held))
			routes = append(routes, netip.MustParsePrefix(held))
		}
		slices.SortFunc(p.AllowedIPs, netip.Prefix.Compare)
		return p
	}
	peers := []state.Peer{sibling("b", 2, "10.244.0.2/32", b), sibling("c", 3, "10.244.0.3/32", c)}
	d.Interlink = &state.Tunnel{
		Slot: state.Interlink,
		Link: state.Link{
			Name: "wg0l", MTU: 1440, Addresses: prefixes("10.244.0.1/32"), Routes: routes,
			Answers: prefixes("10.244.0.2/32", "10.244.0.3/32"), AnswersFor: []string{"wg0", "wg0g"},
		},
		Device: state.Device{PrivateKey: key.NewPrivate([key.Len]byte{2}), ListenPort: 51840, Peers: peers},
	}
	return d
}

// asSeen is the system just as it was applied.
func asSeen(d state.Desired) state.Observed {
	o := state.Observed{Tunnels: map[key.Slot]state.ObservedTunnel{}, Forwarding: map[string]bool{}, FirewallInPlace: true}
	for _, t := range d.Devices() {
		o.Tunnels[t.Slot] = state.ObservedTunnel{LinkExists: true, LinkUp: true, Link: t.Link, Device: asObserved(t.Device)}
		o.Forwarding[t.Link.Name] = true
	}
	return o
}

func TestInterlink(t *testing.T) {
	const alice = "10.8.0.2/32"
	none := device0(state.Device{PrivateKey: key.NewPrivate([key.Len]byte{1}), ListenPort: 51820})
	for _, test := range []struct {
		name     string
		from, to state.Desired
		want     []Tunnel
	}{
		{"nothing changes", linked(alice, ""), linked(alice, ""), nil},
		{"the holder changes: the route stays, and nobody loses the prefix before the other has it", linked(alice, ""), linked("", alice), []Tunnel{{
			Slot: state.Interlink, Link: Link{Name: "wg0l"},
			Device: Device{Peers: []Peer{
				{Operation: Update, Name: "b", PublicKey: key.Public{2}},
				{Operation: Update, Name: "c", PublicKey: key.Public{3}, AllowedIPs: prefixes(alice)},
			}},
		}}},
		{"a sibling takes a peer", linked("", ""), linked("", alice), []Tunnel{{
			Slot: state.Interlink, Link: Link{Name: "wg0l", AddRoutes: prefixes(alice)},
			Device: Device{Peers: []Peer{{Operation: Update, Name: "c", PublicKey: key.Public{3}, AllowedIPs: prefixes(alice)}}},
		}}},
		{"it comes back", linked("", alice), linked("", ""), []Tunnel{{
			Slot: state.Interlink, Link: Link{Name: "wg0l", RemoveRoutes: prefixes(alice)},
			Device: Device{Peers: []Peer{{Operation: Update, Name: "c", PublicKey: key.Public{3}, RemoveAllowedIPs: prefixes(alice)}}},
		}}},
		{"the last sibling goes", linked(alice, ""), none, []Tunnel{{Slot: state.Interlink, Remove: true, Link: Link{Name: "wg0l"}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			equal := []cmp.Option{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()}
			if diff := cmp.Diff(test.want, Changes(test.to, test.from).Tunnels, equal...); diff != "" {
				t.Errorf("without a look:\n%s", diff)
			}
			if diff := cmp.Diff(test.want, Diff(test.to, asSeen(test.from), &test.from).Tunnels, equal...); diff != "" {
				t.Errorf("with a look:\n%s", diff)
			}
		})
	}
	t.Run("the first sibling comes", func(t *testing.T) {
		p := Changes(linked(alice, ""), none)
		want := []string{"firewall table made anew", "link wg0l up beside it, public key " + key.NewPrivate([key.Len]byte{2}).Public().String() + ", UDP port 51840, 2 peers", "forwarding on for wg0l"}
		if diff := cmp.Diff(want, p.Summary(9)); diff != "" {
			t.Error(diff)
		}
		if left := p.Without(state.Interlink); len(left.Tunnels)+len(left.Forward) > 0 {
			t.Errorf("without it there is %q", left.Summary(9))
		}
	})
}

// TestLater: what a device loses it loses after the routes, what it gains before.
func TestLater(t *testing.T) {
	d := Device{Peers: []Peer{
		{Operation: Remove, Name: "a"},
		{Operation: Update, Name: "b", AllowedIPs: prefixes("10.8.0.2/32"), RemoveAllowedIPs: prefixes("10.8.0.3/32")},
		{Operation: Add, Name: "c", AllowedIPs: prefixes("10.8.0.4/32")},
	}}
	now, later := d.Later()
	equal := []cmp.Option{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()}
	if diff := cmp.Diff([]Peer{
		{Operation: Remove, Name: "a"}, {Operation: Update, Name: "b", AllowedIPs: prefixes("10.8.0.2/32")},
		{Operation: Add, Name: "c", AllowedIPs: prefixes("10.8.0.4/32")},
	}, now.Peers, equal...); diff != "" {
		t.Errorf("now:\n%s", diff)
	}
	if diff := cmp.Diff([]Peer{{Operation: Update, Name: "b", RemoveAllowedIPs: prefixes("10.8.0.3/32")}}, later.Peers, equal...); diff != "" {
		t.Errorf("later:\n%s", diff)
	}
	if len(d.Peers[1].RemoveAllowedIPs) != 1 {
		t.Error("the plan itself was changed")
	}
}
