package plan

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
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

// world makes random states out of few pieces, so that they collide a lot.
type world struct {
	r         *rand.Rand
	privates  []key.Private
	preshared []key.Preshared // the first is 'none'
	prefixes  []netip.Prefix
	endpoints []netip.AddrPort // the first is 'none'
}

func newWorld(seed uint64) *world {
	return &world{
		r:         rand.New(rand.NewPCG(seed, 1)),
		privates:  []key.Private{key.GeneratePrivate(), key.GeneratePrivate()},
		preshared: []key.Preshared{{}, key.GeneratePreshared(), key.GeneratePreshared()},
		// Nested ones too: one peer's may lie inside another's, to WireGuard.
		prefixes: prefixes("10.8.0.2/32", "10.8.0.3/32", "10.8.0.4/32", "10.8.0.5/32", "10.8.0.0/30",
			"172.16.0.0/12", "172.16.0.0/16", "172.16.1.0/24", "192.168.0.0/16", "192.168.1.0/24", "fd00::2/128", "fd00::/64"),
		endpoints: []netip.AddrPort{{}, here, there, elsewhere},
	}
}

func pick[T any](w *world, from []T) T { return from[w.r.IntN(len(from))] }

func some[T any](w *world, from []T) []T {
	var out []T
	for _, x := range from {
		if w.r.IntN(2) == 0 {
			out = append(out, x)
		}
	}
	return out
}

func (w *world) desired() state.Desired {
	d := state.Desired{Firewall: state.Firewall{Interfaces: [2]string{"wg0", "wg0g"}, Masquerade: w.r.IntN(4) > 0}}
	peers := w.peers(&d.Firewall)
	slots := []key.Slot{key.Blue, key.Green}
	if w.r.IntN(4) == 0 {
		slices.Reverse(slots)
	}
	for i, slot := range slots[:1+w.r.IntN(2)] {
		d.Tunnels = append(d.Tunnels, w.tunnel(slot, i == 0))
		d.Tunnels[i].Device.Peers = slices.Clone(peers)
	}
	return d
}

func (w *world) tunnel(slot key.Slot, first bool) state.Tunnel {
	t := state.Tunnel{
		Slot: slot,
		Link: state.Link{
			Name: map[key.Slot]string{key.Blue: "wg0", key.Green: "wg0g"}[slot], MTU: pick(w, []int{1420, 1440}),
			Routes: some(w, prefixes("172.16.0.0/12", "192.168.0.0/16", "fd01::/64")),
		},
		Device: state.Device{PrivateKey: pick(w, w.privates), ListenPort: pick(w, []uint16{51820, 51821})},
	}
	if first {
		t.Link.Addresses = some(w, prefixes("10.8.0.1/24", "10.9.0.1/24", "fd00::1/64"))
	}
	return t
}

// peers also makes the sources and grants of theirs.
func (w *world) peers(fw *state.Firewall) []state.Peer {
	var peers []state.Peer
	for i := range byte(7) {
		if w.r.IntN(3) == 0 {
			continue
		}
		peers = append(peers, state.Peer{
			Name: string(rune('a' + i)), PublicKey: key.Public{i + 1}, PresharedKey: pick(w, w.preshared),
			Endpoint: pick(w, w.endpoints), Keepalive: pick(w, []time.Duration{0, 25 * time.Second}),
		})
	}
	for _, prefix := range w.prefixes {
		if len(peers) == 0 || w.r.IntN(4) == 0 {
			continue
		}
		p := &peers[w.r.IntN(len(peers))]
		p.AllowedIPs = append(p.AllowedIPs, prefix)
		slices.SortFunc(p.AllowedIPs, netip.Prefix.Compare)
		policy := state.Policy(1 + w.r.IntN(2))
		fw.Sources = append(fw.Sources, state.Source{Prefix: prefix, Policy: policy})
		fw.Grants = append(fw.Grants, state.Grant{Policy: policy, First: prefix.Addr(), LastPort: uint16(prefix.Bits())})
	}
	slices.SortFunc(fw.Sources, state.Source.Compare)
	slices.SortFunc(fw.Grants, state.Grant.Compare)
	return peers
}

// observed is what a system says that was brought to d, after a while: clients
// have roamed, counters have counted.
func (w *world) observed(d state.Desired) state.Observed {
	o := state.Observed{
		Tunnels:         map[key.Slot]state.ObservedTunnel{},
		Forwarding:      map[string]bool{"eth0": w.r.IntN(4) > 0, "wg0": w.r.IntN(4) > 0},
		FirewallInPlace: w.r.IntN(4) > 0,
	}
	for _, t := range d.Tunnels {
		seen := state.ObservedTunnel{LinkExists: true, LinkUp: w.r.IntN(4) > 0, Link: t.Link, Device: asObserved(t.Device)}
		for k, p := range seen.Device.Peers {
			if w.r.IntN(3) == 0 {
				p.Endpoint = pick(w, w.endpoints)
			}
			p.ReceiveBytes = w.r.Int64N(1000)
			seen.Device.Peers[k] = p
		}
		o.Tunnels[t.Slot] = seen
	}
	return o
}

// device is a WireGuard device as far as peers go: a prefix has one owner, and
// whoever claims it last takes it away from the one before.
type device struct {
	t     *testing.T
	peers map[key.Public]state.ObservedPeer
}

// apply does one patch and returns whom it took prefixes from.
func (d *device) apply(p Peer) (robbed []key.Public) {
	d.t.Helper()
	have, exists := d.peers[p.PublicKey]
	if exists == (p.Operation == Add) {
		d.t.Fatalf("%s of peer %s, which exists: %t", p.Operation, p.Name, exists)
	}
	if p.Operation == Remove {
		delete(d.peers, p.PublicKey)
		return nil
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
	have.AllowedIPs = slices.DeleteFunc(slices.Clone(have.AllowedIPs), func(a netip.Prefix) bool {
		return slices.Contains(p.RemoveAllowedIPs, a)
	})
	for _, prefix := range p.AllowedIPs {
		for k, other := range d.peers {
			if i := slices.Index(other.AllowedIPs, prefix); i >= 0 && k != p.PublicKey {
				other.AllowedIPs = slices.Delete(slices.Clone(other.AllowedIPs), i, i+1)
				d.peers[k] = other
				robbed = append(robbed, k)
			}
		}
		have.AllowedIPs = append(slices.Clone(have.AllowedIPs), prefix)
	}
	slices.SortFunc(have.AllowedIPs, netip.Prefix.Compare)
	d.peers[p.PublicKey] = have
	return robbed
}

func TestPlanProperties(t *testing.T) {
	for seed := range uint64(500) {
		w := newWorld(seed)
		before, desired := w.desired(), w.desired()
		switch seed % 3 {
		case 1:
			desired = before
		case 2: // one peer changes
			desired = before
			desired.Tunnels = slices.Clone(before.Tunnels)
			for i := range desired.Tunnels {
				peers := slices.Clone(before.Tunnels[i].Device.Peers)
				if len(peers) > 0 {
					one := &peers[w.r.IntN(len(peers))]
					one.PresharedKey, one.Endpoint = pick(w, w.preshared), pick(w, w.endpoints)
				}
				desired.Tunnels[i].Device.Peers = peers
			}
		}
		observed := w.observed(before)
		applied := &before
		if w.r.IntN(4) == 0 {
			applied = nil // the agent has just started
		}
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			checkPlan(t, w, desired, observed, applied)
		})
	}
}

// What the changes are must not depend on whether the system was looked at.
func TestChangesAreTheDifferenceToWhatWasApplied(t *testing.T) {
	for seed := range uint64(500) {
		w := newWorld(seed)
		applied, desired := w.desired(), w.desired()
		if seed%2 == 1 { // renamed, and names that changed hands
			for _, t := range applied.Tunnels {
				for i := range t.Device.Peers {
					t.Device.Peers[i].Name = pick(w, []string{"a", "c", "x", "y"}) + string(rune('0'+i))
				}
				slices.SortFunc(t.Device.Peers, func(a, b state.Peer) int { return strings.Compare(a.Name, b.Name) })
			}
		}
		observed := state.Observed{Tunnels: map[key.Slot]state.ObservedTunnel{}, Forwarding: map[string]bool{}, FirewallInPlace: true}
		for _, t := range applied.Tunnels {
			observed.Tunnels[t.Slot] = state.ObservedTunnel{LinkExists: true, LinkUp: true, Link: t.Link, Device: asObserved(t.Device)}
			observed.Forwarding[t.Link.Name] = true
		}
		want := Diff(desired, observed, &applied)
		if diff := cmp.Diff(want, Changes(desired, applied), byValue, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("seed %d: changes (-difference +got):\n%s", seed, diff)
		}
	}
}

func checkPlan(t *testing.T, w *world, desired state.Desired, observed state.Observed, applied *state.Desired) {
	p := Diff(desired, observed, applied)
	after := observed
	after.Tunnels = maps.Clone(observed.Tunnels)
	for _, change := range p.Tunnels {
		if change.Remove {
			if desired.Tunnel(change.Slot) != nil || change.Link.Name != observed.Tunnels[change.Slot].Link.Name {
				t.Errorf("takes down %s", change.Link.Name)
			}
			delete(after.Tunnels, change.Slot)
		}
	}
	for i := range desired.Tunnels {
		want := &desired.Tunnels[i]
		var change Tunnel
		for _, c := range p.Tunnels {
			if c.Slot == want.Slot {
				change = c
			}
		}
		change.Link.Name = want.Link.Name
		have := observed.Tunnels[want.Slot]
		have.Device = checkPeers(t, change.Device, want.Device, have.Device, lastOf(applied, want.Slot))
		have.Link = applyLink(t, change.Link, have.Link)
		have.LinkExists, have.LinkUp = have.LinkExists || change.Link.Up, have.LinkUp || change.Link.Up
		after.Tunnels[want.Slot] = have
		if diff := cmp.Diff(want.Link, have.Link, byValue, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("link after the plan (-desired +got):\n%s", diff)
		}
	}
	after.Forwarding = maps.Clone(observed.Forwarding)
	for _, name := range p.Forward {
		after.Forwarding[name] = true
	}
	checkFirewall(t, p.Firewall, desired.Firewall, applied)
	after.FirewallInPlace = true

	if again := Diff(desired, after, &desired); !again.Empty() {
		t.Errorf("a second plan is not empty: %v", again.Summary(10))
	}
	checkNoKeys(t, w, p)
}

// checkPeers applies the patches one by one, as a device sees them that gets
// them in several messages, and returns the outcome.
func checkPeers(t *testing.T, p Device, desired state.Device, observed state.ObservedDevice, last *lastApplied) state.ObservedDevice {
	patched := map[key.Public]Operation{}
	for _, peer := range p.Peers {
		if _, twice := patched[peer.PublicKey]; twice {
			t.Errorf("peer %s is patched twice", peer.Name)
		}
		patched[peer.PublicKey] = peer.Operation
	}
	d := &device{t: t, peers: maps.Clone(observed.Peers)}
	if d.peers == nil {
		d.peers = map[key.Public]state.ObservedPeer{}
	}
	for i, patch := range p.Peers {
		for _, k := range d.apply(patch) {
			if op, ok := patched[k]; !ok || op != Update {
				t.Errorf("patch %d (%s %s) takes a prefix from peer %s, which is to be left alone or gone", i, patch.Operation, patch.Name, k)
			}
		}
		for k, have := range d.peers {
			old := observed.Peers[k]
			want, _ := desired.Peer(k)
			if _, ok := patched[k]; !ok && !same(have, old) {
				t.Errorf("after patch %d: peer %s changed without being in the plan", i, k)
			}
			for _, prefix := range have.AllowedIPs {
				if !slices.Contains(old.AllowedIPs, prefix) && !slices.Contains(want.AllowedIPs, prefix) {
					t.Errorf("after patch %d: peer %s has %s, neither before nor after", i, k, prefix)
				}
			}
		}
	}
	want := asObserved(desired)
	for k, peer := range want.Peers {
		old, existed := observed.Peers[k]
		peer.ReceiveBytes = 0
		if existed {
			peer.ReceiveBytes = old.ReceiveBytes // it is the same peer, session and all
			now, _ := desired.Peer(k)
			peer.Endpoint = endpointAfter(now, old, last)
		}
		want.Peers[k] = peer
		if _, planned := patched[k]; existed && planned == same(old, peer) {
			t.Errorf("peer %s in the plan: %t, which is not whether it changes", k, planned)
		}
	}
	got := state.ObservedDevice{PrivateKey: observed.PrivateKey, ListenPort: observed.ListenPort, Peers: d.peers}
	if p.PrivateKey != nil {
		got.PrivateKey = *p.PrivateKey
	}
	if p.ListenPort != nil {
		got.ListenPort = *p.ListenPort
	}
	if diff := cmp.Diff(want, got, byValue, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("device after the plan (-want +got):\n%s", diff)
	}
	return got
}

// same is what cmp.Equal would say, at a hundredth of the time.
func same(a, b state.ObservedPeer) bool {
	return a.PublicKey == b.PublicKey && a.PresharedKey == b.PresharedKey && a.Endpoint == b.Endpoint &&
		a.Keepalive == b.Keepalive && a.ReceiveBytes == b.ReceiveBytes && slices.Equal(a.AllowedIPs, b.AllowedIPs)
}

// endpointAfter says in other words than the plan does where a peer is called.
func endpointAfter(want state.Peer, old state.ObservedPeer, last *lastApplied) netip.AddrPort {
	before := last.of(want.PublicKey)
	userChangedIt := !before.PublicKey.IsZero() && before.Endpoint != want.Endpoint
	if want.Endpoint.IsValid() && (userChangedIt || !old.Endpoint.IsValid()) {
		return want.Endpoint
	}
	return old.Endpoint
}

func applyLink(t *testing.T, p Link, have state.Link) state.Link {
	have.Name = p.Name
	if p.MTU != 0 {
		have.MTU = p.MTU
	}
	have.Addresses = applySet(t, have.Addresses, p.AddAddresses, p.RemoveAddresses, netip.Prefix.Compare)
	have.Routes = applySet(t, have.Routes, p.AddRoutes, p.RemoveRoutes, netip.Prefix.Compare)
	return have
}

func checkFirewall(t *testing.T, p Firewall, desired state.Firewall, applied *state.Desired) {
	if diff := cmp.Diff(desired, p.Desired, byValue); diff != "" {
		t.Errorf("the plan's firewall (-desired +got):\n%s", diff)
	}
	if p.Replace {
		return
	}
	got := applied.Firewall
	got.Sources = applySet(t, got.Sources, p.AddSources, p.RemoveSources, state.Source.Compare)
	got.Grants = applySet(t, got.Grants, p.AddGrants, p.RemoveGrants, state.Grant.Compare)
	if diff := cmp.Diff(desired, got, byValue, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("firewall after the plan (-desired +got):\n%s", diff)
	}
}

// applySet removes and adds, as strict as the kernel: what is removed must be
// there, what is added must not.
func applySet[T comparable](t *testing.T, have, add, remove []T, compare func(T, T) int) []T {
	t.Helper()
	out := slices.Clone(have)
	for _, x := range remove {
		i := slices.Index(out, x)
		if i < 0 {
			t.Fatalf("%v is removed and was not there", x)
		}
		out = slices.Delete(out, i, i+1)
	}
	for _, x := range add {
		if slices.Contains(out, x) {
			t.Fatalf("%v is added and was there", x)
		}
		out = append(out, x)
	}
	slices.SortFunc(out, compare)
	return out
}

// checkNoKeys looks for secrets in every text that a plan can become.
func checkNoKeys(t *testing.T, w *world, p Plan) {
	js, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(append(p.Summary(100), fmt.Sprintf("%v %+v %#v", p, p, p), string(js)), "\n")
	secrets := [][key.Len]byte{w.privates[0].Bytes(), w.privates[1].Bytes(), w.preshared[1].Bytes(), w.preshared[2].Bytes()}
	for _, s := range secrets {
		for _, form := range []string{
			strings.TrimRight(base64.StdEncoding.EncodeToString(s[:]), "="), hex.EncodeToString(s[:]),
			strings.Trim(fmt.Sprint(s), "[]"),
		} {
			if strings.Contains(text, form) {
				t.Fatal("the plan's text has key material")
			}
		}
	}
}
