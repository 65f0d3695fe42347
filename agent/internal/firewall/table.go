package firewall

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Reason says why a packet was stopped. It is the name of a counter in the
// table, and good as a metric's label.
type Reason string

// The reasons.
const (
	Spoofed     Reason = "spoofed"     // the source is not, or only outside the tunnel, a peer's; dropped
	Destination Reason = "destination" // outside the peer's allowedDestinations; rejected
	Isolated    Reason = "isolated"    // from peer to peer, without routing.peerToPeer; rejected
	Transit     Reason = "transit"     // from one of the Pod's other networks to another
	Gateway     Reason = "gateway"     // out of the tunnel to the gateway itself, and no ping; dropped
	Invalid     Reason = "invalid"     // no flow that could be masqueraded; dropped
	IPv6        Reason = "ipv6"        // IPv6, which is switched off; dropped
)

// Reasons lists every reason, for metrics that must show zeros too.
func Reasons() []Reason {
	return []Reason{Spoofed, Destination, Isolated, Transit, Gateway, Invalid, IPv6}
}

// switches is what the rules follow from: [state.Firewall] less the elements of
// the sets.
type switches struct {
	tunnels    [2]string
	ports      [2]uint16
	interlink  string
	linkPort   uint16
	entry      [2]netip.Addr
	handshakes bool
	masquerade bool
	peerToPeer bool
	ipv6       bool
}

func switchesOf(f state.Firewall) switches {
	s := switches{
		tunnels:    f.Interfaces,
		ports:      f.ListenPorts,
		interlink:  f.Interlink,
		linkPort:   f.InterlinkPort,
		handshakes: f.Handshakes,
		masquerade: f.Masquerade,
		peerToPeer: f.PeerToPeer,
		ipv6:       f.IPv6,
	}
	copy(s.entry[:], f.Entry)
	return s
}

// families are those that peers may use.
func (s switches) families() []family {
	if s.ipv6 {
		return []family{ipv4(), ipv6()}
	}
	return []family{ipv4()}
}

// fromPeers are the matches of [family.fromPeer] for all families.
func (s switches) fromPeers(at edition) [][]expr.Any {
	var out [][]expr.Any
	for _, f := range s.families() {
		out = append(out, f.fromPeer(at)...)
	}
	return out
}

// chain is a chain of the table as it should be. Without hook it is there for
// others to go to.
type chain struct {
	name     string
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	kind     nftables.ChainType
	rules    []rule
}

// rule is a rule of a chain; its comment is for people who list the table.
type rule struct {
	comment string
	exprs   []expr.Any
}

// Names of the chains that have no hook.
const (
	fromTunnel    = "from_tunnel"
	fromPeer      = "from_peer"
	intoTunnel    = "into_tunnel"
	toGateway     = "to_gateway"
	peerToGateway = "peer_to_gateway"
)

// chains returns the whole table but its sets, those first that others go to.
// Rules look into the sets of one edition.
//
// A destination is checked for every packet of a peer, not for the first one of
// a flow only: when a policy gets tighter, what it no longer allows stops at
// once. Two more look-ups a packet are the price. Only answers to flows that
// others opened, the cluster side or a peer that may, pass without a grant.
func (s switches) chains(at edition) []chain {
	chains := []chain{
		s.fromPeer(at), s.fromTunnel(at), s.intoTunnel(at), s.peerToGateway(), s.toGateway(at),
	}
	chains = append(chains, s.interlinkChains(at)...)
	chains = append(chains, s.forward(at), s.input(at), s.output(at), s.segmentSize(at), s.postrouting(at))
	if s.handshakes {
		chains = append(chains, s.responsesOut(at), s.handshakesIn(at))
	}
	return chains
}

// forward sees what passes through the gateway.
func (s switches) forward(at edition) chain {
	c := chain{
		name: "forward", kind: nftables.ChainTypeFilter,
		hook: nftables.ChainHookForward, priority: nftables.ChainPriorityFilter,
	}
	c.add("", seq(at.inBy(), goTo(fromTunnel)))
	c.add("", seq(at.outBy(), goTo(intoTunnel)))
	if s.hasInterlink() {
		c.add("", seq(s.inBySibling(), goTo(fromSibling)))
		c.add("on the way to a tunnel of a sibling", seq(s.outBySibling(), goTo(intoTunnel)))
	}
	// Forwarding is on for every device; a Pod with several networks must not become a
	// router between them.
	c.add("none of the tunnel's business", stop(Transit))
	return c
}

// segmentSize has TCP make packets that fit.
func (s switches) segmentSize(at edition) chain {
	c := chain{
		name: "segment_size", kind: nftables.ChainTypeFilter,
		hook: nftables.ChainHookForward, priority: nftables.ChainPriorityMangle,
	}
	// The device comes last: it costs every packet a look-up, and SYNs are few.
	c.add("path MTU where ICMP gets lost", seq(opensTCP(), at.inBy(), clampSegmentSize()))
	c.add("", seq(opensTCP(), at.outBy(), clampSegmentSize()))
	if s.hasInterlink() {
		c.add("", seq(opensTCP(), s.inBySibling(), clampSegmentSize()))
		c.add("", seq(opensTCP(), s.outBySibling(), clampSegmentSize()))
	}
	return c
}

// fromTunnel sees what peers send through the gateway.
func (s switches) fromTunnel(at edition) chain {
	c := chain{name: fromTunnel, rules: s.withoutIPv6()}
	for _, match := range s.fromPeers(at) {
		c.add("", seq(match, goTo(fromPeer)))
	}
	c.add("no peer has this address", stop(Spoofed))
	return c
}

// fromPeer sees what known peers send through the gateway. Their policy is the
// packet's mark.
func (s switches) fromPeer(at edition) chain {
	c := chain{name: fromPeer}
	if !s.peerToPeer {
		c.add("routing.peerToPeer is false", seq(at.outBy(), reject(Isolated)))
	}
	if s.hasInterlink() {
		c.add("", seq(s.outBySibling(), goTo(toSibling)))
	}
	if s.masquerade {
		// What a sibling passes on goes to a peer. A flow that went by here long ago is
		// one that the kernel does not know what to make of.
		c.add("would keep the peer's own address", seq(flowState(invalid), s.notInBySibling(), stop(Invalid)))
	}
	for _, f := range s.families() {
		c.add("allowedDestinations", seq(f.granted(at), unmark(), accept()))
	}
	c.add("", unmark())
	c.add("answers", seq(flowState(established), flowAnswer(), accept()))
	c.add("ICMP errors", seq(flowState(related), accept()))
	c.add("", reject(Destination))
	return c
}

// intoTunnel sees what the cluster side sends to peers: answers, and flows of
// its own to the networks behind them; and what siblings pass on.
func (s switches) intoTunnel(at edition) chain {
	c := chain{name: intoTunnel, rules: s.withoutIPv6()}
	for _, match := range s.fromPeers(at) {
		if s.hasInterlink() {
			c.add("", seq(match, goTo(fromOutside)))
		} else {
			c.add("a peer's address outside the tunnel", seq(match, stop(Spoofed)))
		}
	}
	return c
}

// input guards the gateway's own ports.
func (s switches) input(at edition) chain {
	c := chain{
		name: "input", kind: nftables.ChainTypeFilter,
		hook: nftables.ChainHookInput, priority: nftables.ChainPriorityFilter,
	}
	c.add("", seq(at.inBy(), goTo(toGateway)))
	ports := s.ports[:]
	if s.hasInterlink() {
		c.add("", seq(s.inBySibling(), goTo(siblingToGateway)))
		ports = append(ports[:len(ports):len(ports)], s.linkPort)
	}
	for _, port := range ports {
		c.add("WireGuard knows its peers by key", seq(udpTo(port), accept()))
	}
	for _, match := range s.fromPeers(at) {
		c.add("a peer's address outside the tunnel", seq(match, stop(Spoofed)))
	}
	return c
}

// toGateway sees what comes out of the tunnel for the gateway itself.
func (s switches) toGateway(at edition) chain {
	c := chain{name: toGateway, rules: s.withoutIPv6()}
	c.add("answers to the gateway", seq(flowState(established|related), accept()))
	for _, match := range s.fromPeers(at) {
		c.add("", seq(match, goTo(peerToGateway)))
	}
	c.add("no peer has this address", stop(Spoofed))
	return c
}

// peerToGateway sees what known peers send to the gateway itself.
func (s switches) peerToGateway() chain {
	c := chain{name: peerToGateway}
	for _, f := range s.families() {
		c.add("ping", seq(f.echoRequest(), unmark(), accept()))
	}
	c.add("", stop(Gateway))
	return c
}

// output sees what the gateway itself sends.
func (s switches) output(at edition) chain {
	c := chain{
		name: "output", kind: nftables.ChainTypeFilter,
		hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityFilter,
	}
	if !s.ipv6 {
		c.add("ipv6.enabled is false", seq(at.outBy(), isFamily(ipv6()), stop(IPv6)))
	}
	return c
}

func (s switches) postrouting(at edition) chain {
	c := chain{
		name: "postrouting", kind: nftables.ChainTypeNAT,
		hook: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityNATSource,
	}
	s.entrySource(&c, at)
	if s.masquerade {
		for _, match := range s.fromPeers(at) {
			// By whichever device the route leads to.
			c.add("routing.masquerade", seq(at.notOutBy(), match, unmark(), []expr.Any{&expr.Masq{}}))
		}
	}
	return c
}

// withoutIPv6 drops IPv6 where it is switched off.
func (s switches) withoutIPv6() []rule {
	if s.ipv6 {
		return nil
	}
	return []rule{{"ipv6.enabled is false", seq(isFamily(ipv6()), stop(IPv6))}}
}

func (c *chain) add(comment string, exprs []expr.Any) {
	c.rules = append(c.rules, rule{comment, exprs})
}

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
}

// addSets puts the making of the sets of one edition into the connection's batch.
func addSets(c *nftables.Conn, want state.Firewall, at edition) error {
	for _, s := range sets(at) {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	if err := c.SetAddElements(at.tunnels(), deviceElements(want.Interfaces)); err != nil {
		return err
	}
	return elementChange{addSources: want.Sources, addGrants: want.Grants}.put(c, at)
}

// addChains puts the making of the chains, their rules and the counters into
// the connection's batch. Counters that exist go on counting.
func addChains(c *nftables.Conn, want switches, at edition) {
	t := table()
	for _, r := range Reasons() {
		c.AddObj(&nftables.NamedObj{Table: t, Name: string(r), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	chains := want.chains(at)
	for _, ch := range chains {
		c.AddChain(ch.nftables(t))
	}
	for _, ch := range chains {
		for _, r := range ch.rules {
			c.AddRule(commented(&nftables.Rule{Table: t, Chain: ch.nftables(t), Exprs: r.exprs}, r.comment))
		}
	}
}

func commented(r *nftables.Rule, comment string) *nftables.Rule {
	if comment != "" {
		r.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	return r
}

func (c chain) nftables(t *nftables.Table) *nftables.Chain {
	out := &nftables.Chain{Table: t, Name: c.name, Type: c.kind, Hooknum: c.hook, Priority: c.priority}
	if c.hook != nil {
		policy := nftables.ChainPolicyAccept
		out.Policy = &policy
	}
	return out
}
