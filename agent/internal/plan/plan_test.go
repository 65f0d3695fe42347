package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

var (
	alice, bob, carol = key.Public{1}, key.Public{2}, key.Public{3}
	here              = netip.MustParseAddrPort("192.0.2.1:1000")
	there             = netip.MustParseAddrPort("198.51.100.1:2000")
	elsewhere         = netip.MustParseAddrPort("[2001:db8::1]:3000")
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func desiredPeers(peers ...state.Peer) state.Device {
	slices.SortFunc(peers, func(a, b state.Peer) int { return strings.Compare(a.Name, b.Name) })
	return state.Device{Peers: peers}
}

// blue is a state with one tunnel.
func blue(t state.Tunnel) state.Desired {
	t.Slot = key.Blue
	return state.Desired{Tunnels: []state.Tunnel{t}}
}

func device0(d state.Device) state.Desired { return blue(state.Tunnel{Device: d}) }

func seenBlue(t state.ObservedTunnel) state.Observed {
	return state.Observed{Tunnels: map[key.Slot]state.ObservedTunnel{key.Blue: t}}
}

// only is the change of a plan's one tunnel, or none.
func only(t *testing.T, p Plan) Tunnel {
	t.Helper()
	switch len(p.Tunnels) {
	case 0:
		return Tunnel{}
	case 1:
		return p.Tunnels[0]
	}
	t.Fatalf("%d tunnels are changed", len(p.Tunnels))
	return Tunnel{}
}

// asObserved is what a device says that was given these peers.
func asObserved(d state.Device) state.ObservedDevice {
	o := state.ObservedDevice{PrivateKey: d.PrivateKey, ListenPort: d.ListenPort, Peers: map[key.Public]state.ObservedPeer{}}
	for _, p := range d.Peers {
		p.Name = ""
		o.Peers[p.PublicKey] = state.ObservedPeer{Peer: p}
	}
	return o
}

// One field of one peer at a time.
func TestDiffUpdatesWhatDiffers(t *testing.T) {
	psk, otherPSK := key.GeneratePreshared(), key.GeneratePreshared()
	keepalive, off, none := 25*time.Second, time.Duration(0), key.Preshared{}
	base := state.Peer{
		Name: "alice", PublicKey: alice, PresharedKey: psk, Keepalive: keepalive, Endpoint: here,
		AllowedIPs: prefixes("10.8.0.2/32", "192.168.1.0/24"),
	}
	tests := []struct {
		name   string
		change func(*state.Peer)
		want   Peer // less operation, name and key
	}{
		{"name: WireGuard has none", func(p *state.Peer) { p.Name = "alicia" }, Peer{}},
		{"pre-shared key", func(p *state.Peer) { p.PresharedKey = otherPSK }, Peer{PresharedKey: &otherPSK}},
		{"no pre-shared key", func(p *state.Peer) { p.PresharedKey = none }, Peer{PresharedKey: &none}},
		{"no keepalive", func(p *state.Peer) { p.Keepalive = 0 }, Peer{Keepalive: &off}},
		{"endpoint", func(p *state.Peer) { p.Endpoint = there }, Peer{Endpoint: &there}},
		{"no endpoint: the device keeps its own", func(p *state.Peer) { p.Endpoint = netip.AddrPort{} }, Peer{}},
		{"one network more", func(p *state.Peer) { p.AllowedIPs = prefixes("10.8.0.2/32", "172.16.0.0/16", "192.168.1.0/24") },
			Peer{AllowedIPs: prefixes("172.16.0.0/16")}},
		{"one network less", func(p *state.Peer) { p.AllowedIPs = prefixes("10.8.0.2/32") },
			Peer{RemoveAllowedIPs: prefixes("192.168.1.0/24")}},
		{"one network for another", func(p *state.Peer) { p.AllowedIPs = prefixes("10.8.0.2/32", "192.168.0.0/16") },
			Peer{AllowedIPs: prefixes("192.168.0.0/16"), RemoveAllowedIPs: prefixes("192.168.1.0/24")}},
		{"no network", func(p *state.Peer) { p.AllowedIPs = nil }, Peer{RemoveAllowedIPs: prefixes("10.8.0.2/32", "192.168.1.0/24")}},
		{"all at once", func(p *state.Peer) { *p = state.Peer{Name: "alice", PublicKey: alice, Endpoint: there} },
			Peer{PresharedKey: &none, Keepalive: &off, Endpoint: &there, RemoveAllowedIPs: prefixes("10.8.0.2/32", "192.168.1.0/24")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changed := base
			tt.change(&changed)
			other := state.Peer{Name: "bob", PublicKey: bob, AllowedIPs: prefixes("10.8.0.3/32")}
			before := desiredPeers(base, other)
			applied := device0(before)
			seen := seenBlue(state.ObservedTunnel{LinkExists: true, LinkUp: true, Device: asObserved(before)})
			got := only(t, Diff(device0(desiredPeers(changed, other)), seen, &applied)).Device
			var want Device
			if !cmp.Equal(tt.want, Peer{}, byValue) {
				tt.want.Operation, tt.want.Name, tt.want.PublicKey = Update, "alice", alice
				want.Peers = []Peer{tt.want}
			}
			if diff := cmp.Diff(want, got, byValue); diff != "" {
				t.Errorf("device (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDiffEndpoint(t *testing.T) {
	none := netip.AddrPort{}
	tests := []struct {
		name                    string
		want, have, lastApplied netip.AddrPort
		known                   bool // to the last applied state
		patch                   bool
	}{
		{"client roamed", here, elsewhere, here, true, false},
		{"client without configured endpoint roamed", none, elsewhere, none, true, false},
		{"client roamed, then the user changed it", there, elsewhere, here, true, true},
		{"client roamed to where the user now says it is", there, there, here, true, false},
		{"user wrote one for the first time", here, elsewhere, none, true, true},
		{"a name resolved at last", here, none, none, true, true},
		{"device forgot it", here, none, here, true, true},
		{"found at start-up: it knows better", here, elsewhere, none, false, false},
		{"found at start-up without one", here, none, none, false, true},
		{"user took it away", none, here, here, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			peer := func(ep netip.AddrPort) state.Device {
				return desiredPeers(state.Peer{Name: "alice", PublicKey: alice, Endpoint: ep})
			}
			var applied *state.Desired
			if tt.known {
				last := device0(peer(tt.lastApplied))
				applied = &last
			}
			var want Device
			if tt.patch {
				want.Peers = []Peer{{Operation: Update, Name: "alice", PublicKey: alice, Endpoint: &tt.want}}
			}
			got := only(t, Diff(device0(peer(tt.want)), seenBlue(state.ObservedTunnel{LinkExists: true, LinkUp: true, Device: asObserved(peer(tt.have))}), applied)).Device
			if diff := cmp.Diff(want, got, byValue); diff != "" {
				t.Errorf("device (-want +got):\n%s", diff)
			}
		})
	}
}

// Removals free what additions need; within an operation, by name.
func TestDiffOrder(t *testing.T) {
	psk, keepalive := key.GeneratePreshared(), time.Second
	private, port := key.GeneratePrivate(), uint16(51820)
	dave := key.Public{4}
	before := desiredPeers(
		state.Peer{Name: "zoe", PublicKey: alice, AllowedIPs: prefixes("10.8.0.2/32")},
		state.Peer{Name: "bob", PublicKey: bob, AllowedIPs: prefixes("10.8.0.3/32")},
	)
	applied, observed := device0(before), asObserved(before)
	observed.Peers[carol] = state.ObservedPeer{Peer: state.Peer{PublicKey: carol}}
	desired := desiredPeers(
		state.Peer{Name: "zoe", PublicKey: dave, AllowedIPs: prefixes("10.8.0.2/32"), PresharedKey: psk, Keepalive: keepalive, Endpoint: here},
		state.Peer{Name: "ann", PublicKey: key.Public{5}, AllowedIPs: prefixes("10.8.0.4/32")},
		state.Peer{Name: "bob", PublicKey: bob, AllowedIPs: prefixes("10.8.0.3/32", "10.8.0.5/32")},
	)
	desired.PrivateKey, desired.ListenPort = private, port
	want := Device{PrivateKey: &private, ListenPort: &port, Peers: []Peer{
		{Operation: Remove, Name: carol.String(), PublicKey: carol},
		{Operation: Remove, Name: "zoe", PublicKey: alice},
		{Operation: Update, Name: "bob", PublicKey: bob, AllowedIPs: prefixes("10.8.0.5/32")},
		{Operation: Add, Name: "ann", PublicKey: key.Public{5}, AllowedIPs: prefixes("10.8.0.4/32")},
		{Operation: Add, Name: "zoe", PublicKey: dave, AllowedIPs: prefixes("10.8.0.2/32"), PresharedKey: &psk, Keepalive: &keepalive, Endpoint: &here},
	}}
	got := only(t, Diff(device0(desired), seenBlue(state.ObservedTunnel{Device: observed}), &applied)).Device
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
}

func TestDiffLinkAndForwarding(t *testing.T) {
	desired := state.Link{Name: "wg0", MTU: 1420, Addresses: prefixes("10.8.0.1/24", "fd00::1/64"), Routes: prefixes("172.16.0.0/16", "192.168.0.0/16")}
	both := map[string]bool{"eth0": true, "wg0": true}
	complete := state.ObservedTunnel{LinkExists: true, LinkUp: true, Link: desired}
	with := func(change func(*state.ObservedTunnel)) state.ObservedTunnel {
		o := complete
		change(&o)
		return o
	}
	tests := []struct {
		name        string
		observed    state.ObservedTunnel
		forwarding  map[string]bool
		want        Link
		wantForward []string
	}{
		{"complete", complete, both, Link{}, nil},
		{"nothing there", state.ObservedTunnel{}, map[string]bool{"net1": false, "eth0": false}, Link{
			Up: true, MTU: 1420, AddAddresses: desired.Addresses, AddRoutes: desired.Routes,
		}, []string{"eth0", "net1", "wg0"}},
		{"down", with(func(o *state.ObservedTunnel) { o.LinkUp = false }), both, Link{Up: true}, nil},
		{"other MTU", with(func(o *state.ObservedTunnel) { o.Link.MTU = 1500 }), both, Link{MTU: 1420}, nil},
		{"address and route to be swapped", with(func(o *state.ObservedTunnel) {
			o.Link.Addresses = prefixes("10.8.0.1/16", "fd00::1/64")
			o.Link.Routes = prefixes("10.99.0.0/16", "192.168.0.0/16")
		}), both, Link{
			AddAddresses: prefixes("10.8.0.1/24"), RemoveAddresses: prefixes("10.8.0.1/16"),
			AddRoutes: prefixes("172.16.0.0/16"), RemoveRoutes: prefixes("10.99.0.0/16"),
		}, nil},
		{"somebody switched forwarding off", complete, map[string]bool{"eth0": true, "wg0": false}, Link{}, []string{"wg0"}},
		{"a second network was attached", complete, map[string]bool{"eth0": true, "wg0": true, "net1": false}, Link{}, []string{"net1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			observed := seenBlue(tt.observed)
			observed.Forwarding = tt.forwarding
			got := Diff(blue(state.Tunnel{Link: desired}), observed, nil)
			changed := only(t, got).Link
			changed.Name = ""
			if diff := cmp.Diff(tt.want, changed, byValue, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("link (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.wantForward, got.Forward); diff != "" {
				t.Errorf("forwarding (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDiffFirewall(t *testing.T) {
	source := func(prefix string, p state.Policy) state.Source {
		return state.Source{Prefix: netip.MustParsePrefix(prefix), Policy: p}
	}
	grant := func(p state.Policy) state.Grant {
		return state.Grant{Policy: p, First: netip.MustParseAddr("10.0.0.0"), Last: netip.MustParseAddr("10.255.255.255"), LastProtocol: 255, LastPort: 65535}
	}
	base := state.Firewall{
		Interfaces: [2]string{"wg0", "wg0g"}, ListenPorts: [2]uint16{51820, 51821}, Masquerade: true,
		Sources: []state.Source{source("10.8.0.2/32", 7), source("10.8.0.3/32", 7)},
		Grants:  []state.Grant{grant(7)},
	}
	with := func(change func(*state.Firewall)) state.Firewall {
		fw := base
		change(&fw)
		return fw
	}
	applied := &state.Desired{Firewall: base}
	anew := func(fw state.Firewall) Firewall { return Firewall{Replace: true, Desired: fw} }
	otherPolicy := with(func(fw *state.Firewall) {
		fw.Sources = []state.Source{source("10.8.0.2/32", 9), source("10.8.0.3/32", 7)}
		fw.Grants = []state.Grant{grant(7), grant(9)}
	})
	tests := []struct {
		name    string
		desired state.Firewall
		inPlace bool
		applied *state.Desired
		want    Firewall
	}{
		{"as it was", base, true, applied, Firewall{Desired: base}},
		{"gone from the system", base, false, applied, anew(base)},
		{"found at start-up", base, true, nil, anew(base)},
		{"a peer's policy changed", otherPolicy, true, applied, Firewall{
			Desired:    otherPolicy,
			AddSources: []state.Source{source("10.8.0.2/32", 9)}, RemoveSources: []state.Source{source("10.8.0.2/32", 7)},
			AddGrants: []state.Grant{grant(9)},
		}},
		{"and back", base, true, &state.Desired{Firewall: otherPolicy}, Firewall{
			Desired:    base,
			AddSources: []state.Source{source("10.8.0.2/32", 7)}, RemoveSources: []state.Source{source("10.8.0.2/32", 9)},
			RemoveGrants: []state.Grant{grant(9)},
		}},
	}
	for name, change := range map[string]func(*state.Firewall){
		"interface":  func(fw *state.Firewall) { fw.Interfaces[0] = "wg1" },
		"port":       func(fw *state.Firewall) { fw.ListenPorts[1] = 1 },
		"handshakes": func(fw *state.Firewall) { fw.Handshakes = true },
		"masquerade": func(fw *state.Firewall) { fw.Masquerade = false },
		"isolation":  func(fw *state.Firewall) { fw.PeerToPeer = true },
		"IPv6":       func(fw *state.Firewall) { fw.IPv6 = true },
	} {
		tests = append(tests, struct {
			name    string
			desired state.Firewall
			inPlace bool
			applied *state.Desired
			want    Firewall
		}{"rules change: " + name, with(change), true, applied, anew(with(change))})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Diff(state.Desired{Firewall: tt.desired}, state.Observed{FirewallInPlace: tt.inPlace}, tt.applied).Firewall
			if diff := cmp.Diff(tt.want, got, byValue, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("firewall (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEmpty(t *testing.T) {
	private, port := key.GeneratePrivate(), uint16(1)
	if !(Plan{Tunnels: []Tunnel{{Link: Link{Name: "wg0"}}}, Firewall: Firewall{Desired: state.Firewall{Masquerade: true}}}).Empty() {
		t.Error("a plan without a change is not empty")
	}
	for name, p := range map[string]Plan{
		"firewall":       {Firewall: Firewall{Replace: true}},
		"source added":   {Firewall: Firewall{AddSources: make([]state.Source, 1)}},
		"source removed": {Firewall: Firewall{RemoveSources: make([]state.Source, 1)}},
		"grant added":    {Firewall: Firewall{AddGrants: make([]state.Grant, 1)}},
		"grant removed":  {Firewall: Firewall{RemoveGrants: make([]state.Grant, 1)}},
		"up":             {Tunnels: []Tunnel{{Link: Link{Up: true}}}},
		"MTU":            {Tunnels: []Tunnel{{Link: Link{MTU: 1}}}},
		"address":        {Tunnels: []Tunnel{{Link: Link{AddAddresses: prefixes("10.8.0.1/24")}}}},
		"no address":     {Tunnels: []Tunnel{{Link: Link{RemoveAddresses: prefixes("10.8.0.1/24")}}}},
		"route":          {Tunnels: []Tunnel{{Link: Link{AddRoutes: prefixes("10.8.0.0/24")}}}},
		"no route":       {Tunnels: []Tunnel{{Link: Link{RemoveRoutes: prefixes("10.8.0.0/24")}}}},
		"private key":    {Tunnels: []Tunnel{{}, {Device: Device{PrivateKey: &private}}}},
		"port":           {Tunnels: []Tunnel{{Device: Device{ListenPort: &port}}}},
		"peer":           {Tunnels: []Tunnel{{Device: Device{Peers: make([]Peer, 1)}}}},
		"removal":        {Tunnels: []Tunnel{{Remove: true}}},
		"forwarding":     {Forward: []string{"eth0"}},
	} {
		if p.Empty() {
			t.Errorf("%s: a plan with a change is empty", name)
		}
	}
}

func TestSummary(t *testing.T) {
	private, psk, port, keepalive := key.GeneratePrivate(), key.GeneratePreshared(), uint16(51821), time.Second
	full := Tunnel{
		Link: Link{
			Name: "wg0", Up: true, MTU: 1420,
			AddAddresses: prefixes("10.8.0.1/24"), RemoveAddresses: prefixes("10.9.0.1/24"),
			AddRoutes: prefixes("172.16.0.0/16", "172.17.0.0/16", "172.18.0.0/16"), RemoveRoutes: prefixes("172.19.0.0/16"),
		},
		Device: Device{PrivateKey: &private, ListenPort: &port, Peers: []Peer{
			{Operation: Remove, Name: "alice"},
			{Operation: Update, Name: "bob", PresharedKey: &psk, Endpoint: &here, Keepalive: &keepalive, RemoveAllowedIPs: prefixes("10.8.0.2/32")},
			{Operation: Add, Name: "carol", PresharedKey: &psk},
		}},
	}
	one := func(t ...Tunnel) Plan { return Plan{Tunnels: t} }
	peers := Tunnel{Device: Device{Peers: full.Device.Peers}}
	everything := one(full)
	everything.Firewall = Firewall{AddSources: make([]state.Source, 2), RemoveGrants: make([]state.Grant, 3)}
	everything.Forward = []string{"eth0", "wg0"}
	beside := Tunnel{
		Link:   Link{Name: "wg0g", Up: true, MTU: 1420},
		Device: Device{PrivateKey: &private, ListenPort: &port, Peers: make([]Peer, 7)},
	}
	tests := []struct {
		name  string
		plan  Plan
		limit int
		want  []string
	}{
		{"nothing", Plan{}, 10, nil},
		{"table", Plan{Firewall: Firewall{Replace: true}}, 10, []string{"firewall table made anew"}},
		{"everything", everything, 10, []string{
			"firewall sources +2 -0, grants +0 -3",
			"link wg0 up",
			"mtu 1420",
			"address added 10.8.0.1/24",
			"address removed 10.9.0.1/24",
			"route added 172.16.0.0/16", "route added 172.17.0.0/16", "route added 172.18.0.0/16",
			"route removed 172.19.0.0/16",
			"private key changed, public key now " + private.Public().String(),
			"listen port 51821",
			"peer alice removed",
			"peer bob updated (presharedKey, endpoint, persistentKeepalive, allowedIPs)",
			"peer carol added",
			"forwarding on for eth0, wg0",
		}},
		{"limited", one(Tunnel{Link: full.Link, Device: peers.Device}), 1, []string{
			"link wg0 up",
			"mtu 1420",
			"address added 10.8.0.1/24",
			"address removed 10.9.0.1/24",
			"route added 172.16.0.0/16", "route added, 2 more",
			"route removed 172.19.0.0/16",
			"peer alice removed",
			"peers changed, 2 more",
		}},
		{"counts only", one(peers), 0, []string{"peers changed, 3 more"}},
		{"a second tunnel comes", one(Tunnel{Link: Link{Name: "wg0", MTU: 1420}}, beside), 10, []string{
			"mtu 1420",
			"link wg0g up beside it, public key " + private.Public().String() + ", UDP port 51821, 7 peers",
		}},
		{"one peer on both", one(peers, peers), 10, []string{
			"peer alice removed",
			"peer bob updated (presharedKey, endpoint, persistentKeepalive, allowedIPs)",
			"peer carol added",
		}},
		{"the first one goes", one(Tunnel{Link: Link{Name: "wg0g", AddAddresses: prefixes("10.8.0.1/24")}}, Tunnel{Remove: true, Link: Link{Name: "wg0"}}), 10, []string{
			"address added 10.8.0.1/24",
			"link wg0 removed",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.plan.Summary(tt.limit)); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
		})
	}
}
