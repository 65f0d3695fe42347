package spec

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// MTU bounds: 576 is the least an IPv4 host must take (RFC 791), 1280 the least
// an IPv6 link must carry (RFC 8200 section 5). The upper one leaves room for
// WireGuard's overhead in a 65,535-byte packet.
const (
	minMTU4 = 576
	minMTU6 = 1280
	maxMTU  = 65455
)

var (
	// interfaceName is what the kernel takes (dev_valid_name in net/core/dev.c),
	// less what needs quoting.
	interfaceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)
	// peerName is what a key of a Secret may be called, less the leading dot
	// that the kubelet keeps for itself.
	peerName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$`)
)

func (l *loader) validate(s *Snapshot) {
	l.mounts(GatewayFile, "peersFrom", PeersDir, s.Gateway.PeersFrom)
	l.mounts(GatewayFile, "presharedKeys", PresharedDir, s.Gateway.PresharedKeys)
	l.server(s)
	l.keyRotation(s)
	l.routing(s)
	if len(s.Gateway.Server.Addresses) == 0 {
		return // every single peer would be called outside the pool
	}
	own := map[key.Public]bool{} // made once: as dear as all else about a peer together
	for _, k := range s.ServerKeys {
		own[k.Key.Public()] = true
	}
	for i := range s.Peers {
		l.peer(s, &s.Peers[i], own)
	}
	l.uniquePeers(s.Peers)
	l.disjointPeers(s.Peers)
}

// mounts reports Secrets that are not mounted.
func (l *loader) mounts(file, section, dir string, from Secrets) {
	for i, name := range from.ExistingSecrets {
		below := dir + name + "/"
		found := false
		for f := range l.files {
			found = found || strings.HasPrefix(f, below)
		}
		if !found {
			l.fault(file, at(section, "existingSecrets", i), show(name), "not mounted at "+below,
				"mount that Secret there; a running Pod takes no new mount, the one that replaces it will have it")
		}
	}
}

func (l *loader) server(s *Snapshot) {
	g := s.Gateway.Server
	fault := func(where []any, value, problem, fix string) {
		l.fault(GatewayFile, append(at("server"), where...), value, problem, fix)
	}
	if !interfaceName.MatchString(g.Interface) {
		fault(at("interface"), show(g.Interface), "not a name for a network device", "use up to 15 letters, digits, '_', '.' or '-', such as wg0")
	}
	if g.ListenPort == 0 {
		fault(at("listenPort"), "0", "out of range", "use a port from 1 to 65535, such as 51820")
	}
	if g.MTU != 0 {
		least := minMTU4
		if s.Gateway.IPv6.Enabled {
			least = minMTU6
		}
		if g.MTU < least || g.MTU > maxMTU {
			fault(at("mtu"), strconv.Itoa(g.MTU), "out of range", fmt.Sprintf("use %d to %d, or leave it out to have it derived", least, maxMTU))
		}
	}
	if g.Drain < 0 {
		fault(at("drain"), g.Drain.String(), "negative", "use 0s or more, such as 30s")
	}
	if len(g.Addresses) == 0 {
		fault(at("addresses"), "", "missing", "give the gateway an address with the length of its pool, such as 10.8.0.1/24")
	}
	for i, a := range g.Addresses {
		where := at("addresses", i)
		if !a.IsValid() {
			continue // reported by the decoder
		}
		if a.Addr().Is6() && !s.Gateway.IPv6.Enabled {
			fault(where, a.String(), "IPv6 is switched off", "set ipv6.enabled: true or remove it")
		}
		if a.Addr() == a.Masked().Addr() && a.Bits() < a.Addr().BitLen()-1 {
			fault(where, a.String(), "the network's own address, not a host's", "use the next one, "+a.Addr().Next().String()+"/"+strconv.Itoa(a.Bits()))
		}
		for j, b := range g.Addresses[:i] {
			if a.Overlaps(b) {
				fault(where, a.String(), fmt.Sprintf("overlaps addresses[%d] %s", j, b), "give each pool a network of its own")
			}
		}
	}
}

// keyRotation checks what slot green makes of the settings. Where nothing ever
// came in force in it, it may be as it likes.
func (l *loader) keyRotation(s *Snapshot) {
	g, r := &s.Gateway, s.Gateway.KeyRotation.Server
	fault := func(where []any, value, problem, fix string) {
		l.fault(GatewayFile, append(at("keyRotation", "server"), where...), value, problem, fix)
	}
	if r.Overlap < 0 {
		fault(at("overlap"), r.Overlap.String(), "negative", "use 0s or more, such as 168h")
	}
	if !slices.ContainsFunc(s.ServerKeys, func(k ServerKey) bool { return k.Slot == key.Green }) {
		return
	}
	if name := g.Interface(key.Green); !interfaceName.MatchString(name) {
		l.fault(GatewayFile, at("server", "interface"), show(g.Server.Interface), "leaves no room for the second device of a key rotation, "+name,
			"use up to 14 characters, such as wg0")
	}
	if port := g.ListenPort(key.Green); port == 0 || port == g.Server.ListenPort {
		fault(at("listenPort"), strconv.Itoa(int(port)), "not a port beside server.listenPort", "use one from 1 to 65535 of its own, such as 51821")
	}
	if e := g.Endpoint(key.Green); !e.IsZero() && (e.Port == 0 || e.Port == g.Server.PublicEndpoint.Port) {
		fault(at("publicPort"), strconv.Itoa(int(e.Port)), "not a port beside that of server.publicEndpoint", "use one from 1 to 65535 of its own, such as 51821")
	}
}

func (l *loader) routing(s *Snapshot) {
	r := s.Gateway.Routing
	l.destinations(s, GatewayFile, at("routing", "allowedDestinations"), r.AllowedDestinations)
	for i, p := range r.Routes {
		if p.IsValid() && p.Addr().Is6() && !s.Gateway.IPv6.Enabled {
			l.fault(GatewayFile, at("routing", "routes", i), p.String(), "IPv6 is switched off", "set ipv6.enabled: true or remove it")
		}
	}
}

func (l *loader) destinations(s *Snapshot, file string, where []any, ds []Destination) {
	for i, d := range ds {
		here := append(slices.Clone(where), i)
		if !d.CIDR.IsValid() {
			if l.silent(file, append(here, "cidr")) {
				l.fault(file, append(here, "cidr"), "", "missing", "give a network such as 10.0.0.0/8")
			}
			continue
		}
		if d.CIDR.Addr().Is6() && !s.Gateway.IPv6.Enabled {
			l.fault(file, append(here, "cidr"), d.CIDR.String(), "IPv6 is switched off", "set ipv6.enabled: true or remove it")
		}
		if len(d.Ports) > 0 && d.Protocol != TCP && d.Protocol != UDP {
			l.fault(file, append(here, "ports"), "", "ports with protocol "+string(d.Protocol), "set protocol: tcp or udp (one entry each for both), or remove the ports")
		}
	}
}

func (l *loader) peer(s *Snapshot, p *Peer, own map[key.Public]bool) {
	fault := func(where []any, value, problem, fix string) {
		l.fault(p.source.file, append(at("peers", p.source.index), where...), value, problem, fix)
	}
	l.peerName(p, fault)
	switch {
	case p.PublicKey.IsZero():
		if l.silent(p.source.file, at("peers", p.source.index, "publicKey")) {
			fault(at("publicKey"), "", "missing", "give the output of 'wg pubkey' on the peer's side, or make one with 'vpn-agent peer new'")
		}
	case own[p.PublicKey]:
		fault(at("publicKey"), p.PublicKey.String(), "the gateway's own key", "give the key of the peer: each end has its own")
	}
	if len(p.Addresses) == 0 && len(p.AllowedIPs) == 0 {
		fault(at("addresses"), "", "missing", "give the peer an address out of "+pools(s))
	}
	for i, a := range p.Addresses {
		if a.IsValid() {
			l.peerAddress(s, a, func(problem, fix string) { fault(at("addresses", i), a.String(), problem, fix) })
		}
	}
	for i, n := range p.AllowedIPs {
		if !n.IsValid() {
			continue
		}
		if n.Addr().Is6() && !s.Gateway.IPv6.Enabled {
			fault(at("allowedIPs", i), n.String(), "IPv6 is switched off", "set ipv6.enabled: true or remove it")
		}
		if call, literal := p.Endpoint.AddrPort(); literal && n.Contains(call.Addr()) {
			fault(at("allowedIPs", i), n.String(), "covers the peer's own endpoint "+p.Endpoint.String()+", so that encrypted packets would be routed into the tunnel",
				"leave the endpoint's network out")
		}
		for _, own := range s.Gateway.Server.Addresses {
			if n.Contains(own.Addr()) {
				fault(at("allowedIPs", i), n.String(), "covers the gateway's own address "+own.Addr().String(), "list the networks behind the peer only")
			}
		}
	}
	l.destinations(s, p.source.file, at("peers", p.source.index, "allowedDestinations"), p.AllowedDestinations)
}

// peerName refuses what cannot be, or can be misread as, the name of a key of a Secret.
func (l *loader) peerName(p *Peer, fault func(where []any, value, problem, fix string)) {
	switch {
	case p.Name == "":
		fault(at("name"), "", "missing", "name the peer, such as alice-laptop")
	case !peerName.MatchString(p.Name):
		fault(at("name"), show(p.Name), "not a name that a key of a Secret can have", "use up to 63 letters, digits, '_', '-' or '.', not starting with '.' or '-'")
	default:
		if base, from := key.ParsePresharedEntry(p.Name); !from.IsZero() {
			fault(at("name"), show(p.Name), "ends like the name of a pre-shared key that comes in force at a time", "name the peer without it, such as "+base)
		}
	}
}

func (l *loader) peerAddress(s *Snapshot, a netip.Addr, fault func(problem, fix string)) {
	inPool := false
	for _, own := range s.Gateway.Server.Addresses {
		inPool = inPool || own.IsValid() && own.Contains(a)
		switch {
		case a == own.Addr():
			fault("the gateway's own address", "choose another one out of "+pools(s))
		case own.IsValid() && a.Is4() && own.Bits() < 31 && own.Contains(a) && (a == own.Masked().Addr() || !own.Contains(a.Next())):
			fault("the first or last address of the pool, which names no host", "choose another one out of "+pools(s))
		}
	}
	if !inPool {
		fault("outside the pool "+pools(s), "choose one inside, or write networks behind the peer as allowedIPs")
	}
}

func pools(s *Snapshot) string {
	text := ""
	for _, a := range s.Gateway.Server.Addresses {
		if !a.IsValid() {
			continue
		}
		if text != "" {
			text += ", "
		}
		text += a.Masked().String()
	}
	if text == "" {
		return "server.addresses"
	}
	return text
}

// uniquePeers reports names and public keys that stand twice.
func (l *loader) uniquePeers(peers []Peer) {
	names := make(map[string]source, len(peers))
	keys := make(map[key.Public]string, len(peers))
	for i := range peers {
		p := &peers[i]
		if first, dup := names[p.Name]; dup && p.Name != "" {
			l.fault(p.source.file, at("peers", p.source.index, "name"), show(p.Name),
				fmt.Sprintf("used already by peers[%d] of %s", first.index, first.file), "give each peer a name of its own")
		} else {
			names[p.Name] = p.source
		}
		if first, dup := keys[p.PublicKey]; dup && !p.PublicKey.IsZero() {
			l.fault(p.source.file, at("peers", p.source.index, "publicKey"), p.PublicKey.String(),
				"used already by peer "+first, "give each peer a key pair of its own: WireGuard knows peers by their key")
		} else {
			keys[p.PublicKey] = p.Name
		}
	}
}

// disjointPeers reports prefixes of two peers that overlap: WireGuard would
// give the packets to one of them without a word.
func (l *loader) disjointPeers(peers []Peer) {
	type claim struct {
		prefix netip.Prefix
		peer   int
		field  string // of the peer
		index  int    // in the field
	}
	n := 0
	for i := range peers {
		n += len(peers[i].Addresses) + len(peers[i].AllowedIPs)
	}
	claims := make([]claim, 0, n)
	for i := range peers {
		for j, a := range peers[i].Addresses {
			if a.IsValid() {
				claims = append(claims, claim{netip.PrefixFrom(a, a.BitLen()), i, "addresses", j})
			}
		}
		for j, n := range peers[i].AllowedIPs {
			if n.IsValid() {
				claims = append(claims, claim{n, i, "allowedIPs", j})
			}
		}
	}
	// Sorted by address, a network comes right before all that it contains.
	slices.SortStableFunc(claims, func(a, b claim) int { return a.prefix.Compare(b.prefix) })
	var open []claim // networks that contain the current one, outermost first
	for _, c := range claims {
		for len(open) > 0 && !open[len(open)-1].prefix.Contains(c.prefix.Addr()) {
			open = open[:len(open)-1]
		}
		for _, o := range open {
			if o.peer == c.peer {
				continue
			}
			// Blame the later one in the order of writing.
			late, early := c, o
			if late.peer < early.peer {
				late, early = early, late
			}
			src := peers[late.peer].source
			l.fault(src.file, at("peers", src.index, late.field, late.index), late.prefix.String(),
				fmt.Sprintf("overlaps %s of peer %s", early.prefix, peers[early.peer].Name), "give each peer networks of its own")
			break
		}
		open = append(open, c)
	}
}

// silent reports whether no fault names that field yet, so that a value that
// did not parse is not called missing too.
func (l *loader) silent(file string, where []any) bool {
	text := pathText(where)
	return !slices.ContainsFunc(l.faults, func(f Fault) bool { return f.File == file && f.Path == text })
}
