// Package plan compares what should be with what is and says what to do about
// it: the smallest change that no unchanged peer can notice. It is pure.
package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Plan is what has to be done, part by part, in the order of application:
// first the firewall, so that no packet passes a device without it.
type Plan struct {
	Firewall Firewall
	// Tunnels in the order of [state.Desired], the interlink after them; those that
	// go come last.
	Tunnels []Tunnel
	// Forward lists the devices to switch IPv4 forwarding on for.
	Forward []string
}

// Tunnel changes one tunnel.
type Tunnel struct {
	Slot key.Slot
	// Remove takes it down; nothing else is set then but the link's name.
	Remove bool
	Link   Link
	Device Device
}

// OnlyPeers reports whether peers are all that changes.
func (t Tunnel) OnlyPeers() bool {
	return t.Device.PrivateKey == nil && t.Device.ListenPort == nil && t.Link.empty()
}

// Link changes the network device.
type Link struct {
	Name string
	// MTU in bytes; 0 leaves it alone.
	MTU int
	// Up brings the device up.
	Up                            bool
	AddAddresses, RemoveAddresses []netip.Prefix
	AddRoutes, RemoveRoutes       []netip.Prefix
	// Answers and the devices that they are for; see [state.Link].
	AddAnswers, RemoveAnswers       []netip.Prefix
	AddAnswersFor, RemoveAnswersFor []string
}

// Device patches the WireGuard configuration. Nil and empty fields leave
// things alone.
type Device struct {
	PrivateKey *key.Private
	ListenPort *uint16
	// Peers in an order of which every prefix is a valid state: wgctrl sends
	// large patches in several messages, and packets flow in between.
	Peers []Peer
}

// Operation says what a [Peer] patch does.
type Operation int

// The operations, in the order of application, but for the last two, which come first: a
// removal frees the prefixes that an addition may need.
const (
	Remove Operation = iota
	Renew            // removes and adds in one: the peer's sessions and where it was are forgotten
	Update
	Add
	Call  // has the peer shake hands: what is left of its sessions is not sent by any more
	Nudge // sends a packet by the session that there is
)

// String returns the operation's name.
func (o Operation) String() string {
	return [...]string{"remove", "renew", "update", "add", "call", "nudge"}[o]
}

// Peer patches one peer. Nil leaves a field alone.
type Peer struct {
	Operation    Operation
	Name         string
	PublicKey    key.Public
	PresharedKey *key.Preshared // zero removes it
	Endpoint     *netip.AddrPort
	Keepalive    *time.Duration // zero switches it off
	// AllowedIPs are added to the peer's, and RemoveAllowedIPs taken away, in
	// such a way that no packet misses those that stay.
	AllowedIPs, RemoveAllowedIPs []netip.Prefix
}

// Later splits off what is to be done after the routes: prefixes that nobody is
// given. Until a route leads elsewhere, packets follow it, and the device must know
// whose they are.
func (d Device) Later() (now, later Device) {
	now = d
	now.Peers = nil
	for _, p := range d.Peers {
		if p.Operation == Update && len(p.RemoveAllowedIPs) > 0 {
			later.Peers = append(later.Peers, Peer{
				Operation: Update, Name: p.Name, PublicKey: p.PublicKey, RemoveAllowedIPs: p.RemoveAllowedIPs,
			})
			p.RemoveAllowedIPs = nil
		}
		now.Peers = append(now.Peers, p)
	}
	return now, later
}

// Firewall changes the nftables table.
type Firewall struct {
	// Replace makes the table anew, in one transaction with its removal.
	Replace bool
	// Desired is the table's whole content.
	Desired state.Firewall
	// Element changes, where Replace is false.
	AddSources, RemoveSources []state.Source
	AddGrants, RemoveGrants   []state.Grant
}

// Diff plans the way from observed to desired. applied is the last desired
// state that was applied in full, nil before the first: a peer's endpoint is
// compared with it rather than with the device, because clients roam, and the
// table's elements are, because reading back 10,000 of them takes longer than
// anything else.
func Diff(desired state.Desired, observed state.Observed, applied *state.Desired) Plan {
	p := Plan{
		Firewall: diffFirewall(desired.Firewall, observed.FirewallInPlace, applied),
		Forward:  diffForwarding(desired, observed),
	}
	for _, want := range desired.Devices() {
		have := observed.Tunnels[want.Slot]
		p.add(Tunnel{
			Slot: want.Slot, Link: diffLink(want.Link, have),
			Device: diffDevice(want.Device, have.Device, lastOf(applied, want.Slot)),
		})
	}
	for _, slot := range slices.Sorted(maps.Keys(observed.Tunnels)) {
		if have := observed.Tunnels[slot]; have.LinkExists && desired.Tunnel(slot) == nil {
			p.add(Tunnel{Slot: slot, Remove: true, Link: Link{Name: have.Link.Name}})
		}
	}
	return p
}

// add leaves out what changes nothing.
func (p *Plan) add(t Tunnel) {
	if !t.empty() {
		p.Tunnels = append(p.Tunnels, t)
	}
}

// Without is the plan but for some tunnels.
func (p Plan) Without(slots ...key.Slot) Plan {
	var kept []Tunnel
	for _, t := range p.Tunnels {
		if !slices.Contains(slots, t.Slot) {
			kept = append(kept, t)
			continue
		}
		p.Forward = slices.DeleteFunc(slices.Clone(p.Forward), func(name string) bool { return name == t.Link.Name })
	}
	p.Tunnels = kept
	return p
}

// Renewed are the peers whose sessions end with it.
func (p Plan) Renewed() []key.Public {
	var out []key.Public
	for _, t := range p.Tunnels {
		for i := range t.Device.Peers {
			if t.Device.Peers[i].Operation == Renew {
				out = append(out, t.Device.Peers[i].PublicKey)
			}
		}
	}
	return out
}

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool {
	return p.Firewall.empty() && len(p.Forward) == 0 && !slices.ContainsFunc(p.Tunnels, func(t Tunnel) bool { return !t.empty() })
}

func (t Tunnel) empty() bool { return !t.Remove && t.Link.empty() && t.Device.empty() }

func diffLink(desired state.Link, o state.ObservedTunnel) Link {
	l := Link{Name: desired.Name, Up: !o.LinkExists || !o.LinkUp}
	if desired.MTU != o.Link.MTU {
		l.MTU = desired.MTU
	}
	l.AddAddresses, l.RemoveAddresses = difference(desired.Addresses, o.Link.Addresses, netip.Prefix.Compare)
	l.AddRoutes, l.RemoveRoutes = difference(desired.Routes, o.Link.Routes, netip.Prefix.Compare)
	l.AddAnswers, l.RemoveAnswers = difference(desired.Answers, o.Link.Answers, netip.Prefix.Compare)
	l.AddAnswersFor, l.RemoveAnswersFor = difference(desired.AnswersFor, o.Link.AnswersFor, strings.Compare)
	return l
}

func (l Link) empty() bool {
	return l.MTU == 0 && !l.Up && len(l.AddAddresses)+len(l.RemoveAddresses)+len(l.AddRoutes)+len(l.RemoveRoutes) == 0 &&
		len(l.AddAnswers)+len(l.RemoveAnswers)+len(l.AddAnswersFor)+len(l.RemoveAnswersFor) == 0
}

func diffForwarding(desired state.Desired, o state.Observed) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(o.Forwarding)) {
		if !o.Forwarding[name] {
			out = append(out, name)
		}
	}
	for _, t := range desired.Devices() {
		if name := t.Link.Name; !seen(o.Forwarding, name) {
			out = append(out, name) // about to be made
		}
	}
	return out
}

func seen(devices map[string]bool, name string) bool {
	_, ok := devices[name]
	return ok
}

func diffDevice(desired state.Device, observed state.ObservedDevice, last *lastApplied) Device {
	var d Device
	if desired.PrivateKey != observed.PrivateKey {
		d.PrivateKey = &desired.PrivateKey
	}
	if desired.ListenPort != observed.ListenPort {
		d.ListenPort = &desired.ListenPort
	}
	known := 0
	for i := range desired.Peers {
		want := &desired.Peers[i]
		have, exists := observed.Peers[want.PublicKey]
		if !exists {
			d.Peers = append(d.Peers, add(*want))
			continue
		}
		known++
		if p, changed := update(want, &have, last); changed {
			d.Peers = append(d.Peers, p)
		}
	}
	if known < len(observed.Peers) {
		wanted := make(map[key.Public]bool, len(desired.Peers))
		for i := range desired.Peers {
			wanted[desired.Peers[i].PublicKey] = true
		}
		for k := range observed.Peers {
			if !wanted[k] {
				d.Peers = append(d.Peers, Peer{Operation: Remove, PublicKey: k, Name: cmp.Or(last.of(k).Name, k.String())})
			}
		}
	}
	d.sort()
	return d
}

// sort puts the peers into the order of application. What one peer loses to another
// is not taken away first: whoever is given a prefix takes it from its owner, and
// no packet finds neither.
func (d Device) sort() {
	d.keepGiven()
	slices.SortFunc(d.Peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.Operation, b.Operation), strings.Compare(a.Name, b.Name), a.PublicKey.Compare(b.PublicKey))
	})
}

// keepGiven leaves out removals of prefixes that another peer is given.
func (d Device) keepGiven() {
	given := map[netip.Prefix]bool{}
	lost := false
	for i := range d.Peers {
		lost = lost || len(d.Peers[i].RemoveAllowedIPs) > 0
	}
	if !lost {
		return
	}
	for i := range d.Peers {
		for _, prefix := range d.Peers[i].AllowedIPs {
			given[prefix] = true
		}
	}
	for i := range d.Peers {
		p := &d.Peers[i]
		p.RemoveAllowedIPs = slices.DeleteFunc(slices.Clone(p.RemoveAllowedIPs), func(prefix netip.Prefix) bool { return given[prefix] })
	}
}

func (d Device) empty() bool { return d.PrivateKey == nil && d.ListenPort == nil && len(d.Peers) == 0 }

// lastApplied finds peers as a tunnel was last applied with. Few are asked for,
// mostly none.
type lastApplied struct {
	peers []state.Peer
	index map[key.Public]int
}

// lastOf takes nil for 'nothing was applied yet'.
func lastOf(applied *state.Desired, s key.Slot) *lastApplied {
	if applied == nil {
		return &lastApplied{}
	}
	t := applied.Tunnel(s)
	if t == nil {
		return &lastApplied{}
	}
	return &lastApplied{peers: t.Device.Peers}
}

// of returns the peer, or the zero one.
func (l *lastApplied) of(k key.Public) state.Peer {
	if l.index == nil {
		l.index = make(map[key.Public]int, len(l.peers))
		for i := range l.peers {
			l.index[l.peers[i].PublicKey] = i
		}
	}
	if i, ok := l.index[k]; ok {
		return l.peers[i]
	}
	return state.Peer{}
}

func add(want state.Peer) Peer {
	p := Peer{Operation: Add, Name: want.Name, PublicKey: want.PublicKey, AllowedIPs: want.AllowedIPs}
	if !want.PresharedKey.IsZero() {
		p.PresharedKey = &want.PresharedKey
	}
	if want.Endpoint.IsValid() {
		p.Endpoint = &want.Endpoint
	}
	if want.Keepalive != 0 {
		p.Keepalive = &want.Keepalive
	}
	return p
}

// update leaves want and have alone and keeps no pointer into them: nearly all
// of thousands of peers need nothing, and shall cost nothing.
func update(want *state.Peer, have *state.ObservedPeer, applied *lastApplied) (Peer, bool) {
	if want.Elsewhere && have.Endpoint.IsValid() {
		return renew(*want), true
	}
	p := Peer{Operation: Update, Name: want.Name, PublicKey: want.PublicKey}
	changed := false
	if want.PresharedKey != have.PresharedKey {
		p.PresharedKey, changed = copied(want.PresharedKey), true
	}
	if want.Keepalive != have.Keepalive {
		p.Keepalive, changed = copied(want.Keepalive), true
	}
	if moveEndpoint(want, have, applied) {
		p.Endpoint, changed = copied(want.Endpoint), true
	}
	if slices.Equal(want.AllowedIPs, have.AllowedIPs) {
		return p, changed
	}
	p.AllowedIPs, p.RemoveAllowedIPs = difference(want.AllowedIPs, have.AllowedIPs, netip.Prefix.Compare)
	return p, true
}

// renew forgets a peer's sessions, and where it was. To send nothing more to a peer
// the device must not know where it is, and there is no other way to have it forget.
func renew(want state.Peer) Peer {
	p := add(want)
	p.Operation = Renew
	return p
}

func copied[T any](v T) *T { return &v }

// moveEndpoint decides whether to tell the device where the peer is. A
// configured endpoint is where to start; where the peer went from there is its
// own business. So it counts when the user changed it, when the device knows
// none, and when the peer is lost where it went; a device found at start-up
// keeps what it learnt.
func moveEndpoint(want *state.Peer, have *state.ObservedPeer, applied *lastApplied) bool {
	switch {
	case !want.Endpoint.IsValid() || want.Endpoint == have.Endpoint:
		return false
	case !have.Endpoint.IsValid(), have.Lost:
		return true
	default:
		last := applied.of(want.PublicKey)
		return last.PublicKey == want.PublicKey && last.Endpoint != want.Endpoint
	}
}

func diffFirewall(desired state.Firewall, inPlace bool, applied *state.Desired) Firewall {
	fw := Firewall{Desired: desired}
	if !inPlace || applied == nil || !sameRules(desired, applied.Firewall) {
		fw.Replace = true
		return fw
	}
	fw.AddSources, fw.RemoveSources = difference(desired.Sources, applied.Firewall.Sources, state.Source.Compare)
	fw.AddGrants, fw.RemoveGrants = difference(desired.Grants, applied.Firewall.Grants, state.Grant.Compare)
	return fw
}

// sameRules compares everything but the elements of the sets.
func sameRules(a, b state.Firewall) bool {
	return a.Interfaces == b.Interfaces && a.ListenPorts == b.ListenPorts && a.Handshakes == b.Handshakes &&
		a.Interlink == b.Interlink && a.InterlinkPort == b.InterlinkPort && slices.Equal(a.Entry, b.Entry) &&
		a.Masquerade == b.Masquerade && a.PeerToPeer == b.PeerToPeer && a.IPv6 == b.IPv6
}

func (f Firewall) empty() bool {
	return !f.Replace && len(f.AddSources)+len(f.RemoveSources)+len(f.AddGrants)+len(f.RemoveGrants) == 0
}

// difference walks two sorted lists and returns what is only in want and what
// is only in have.
func difference[T any](want, have []T, compare func(T, T) int) (missing, extra []T) {
	for len(want) > 0 && len(have) > 0 {
		switch c := compare(want[0], have[0]); {
		case c < 0:
			missing, want = append(missing, want[0]), want[1:]
		case c > 0:
			extra, have = append(extra, have[0]), have[1:]
		default:
			want, have = want[1:], have[1:]
		}
	}
	return append(missing, want...), append(extra, have...)
}
