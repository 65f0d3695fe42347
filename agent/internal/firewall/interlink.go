package firewall

import (
	"net/netip"

	"github.com/google/nftables/expr"
)

// While there are siblings, packets also come and go by the interlink. WireGuard
// vouches for their sources: a sibling's own address, for what came into it from the
// cluster's side, or that of a peer that it holds.
//
// What a peer sends is checked where it leaves the fleet, by the replica that sends it
// on into a tunnel or to the cluster. That one has seen the flow from its beginning and
// can tell an answer, while the sender's replica may be one that the peer has just
// moved to. Whether peers may reach each other is no matter of flows, and is checked at
// both ends.

// Names of chains that are there with an interlink alone.
const (
	fromSibling      = "from_sibling"
	toSibling        = "to_sibling"
	fromOutside      = "from_outside"
	siblingToGateway = "sibling_to_gateway"
)

func (s switches) hasInterlink() bool { return s.interlink != "" }

// inBySibling and outBySibling match the interlink, notInBySibling all else.
func (s switches) inBySibling() []expr.Any {
	return s.isInterlink(expr.MetaKeyIIFNAME, expr.CmpOpEq)
}
func (s switches) outBySibling() []expr.Any {
	return s.isInterlink(expr.MetaKeyOIFNAME, expr.CmpOpEq)
}
func (s switches) notInBySibling() []expr.Any {
	if !s.hasInterlink() {
		return nil
	}
	return s.isInterlink(expr.MetaKeyIIFNAME, expr.CmpOpNeq)
}

func (s switches) isInterlink(k expr.MetaKey, op expr.CmpOp) []expr.Any {
	return compare(&expr.Meta{Key: k, Register: register}, op, deviceName(s.interlink))
}

// interlinkChains are those that others go to.
func (s switches) interlinkChains(at edition) []chain {
	if !s.hasInterlink() {
		return nil
	}
	return []chain{s.toSibling(at), s.fromSibling(), s.fromOutside(), s.siblingToGateway()}
}

// toSibling sees what peers send by the interlink: to peers of a sibling, or to the
// sibling itself, which takes nothing but answers.
func (s switches) toSibling(at edition) chain {
	c := chain{name: toSibling}
	if !s.peerToPeer {
		for _, f := range s.families() {
			for _, match := range f.toPeer(at) {
				c.add("routing.peerToPeer is false", seq(match, unmark(), reject(Isolated)))
			}
		}
	}
	c.add("checked by the sibling", seq(unmark(), accept()))
	return c
}

// fromSibling sees what comes by the interlink for anywhere but a tunnel: answers of
// peers to flows that came in here.
func (s switches) fromSibling() chain {
	c := chain{name: fromSibling}
	c.add("two replicas that take each other for the holder", seq(s.outBySibling(), stop(Transit)))
	c.add("answers", seq(flowState(established), flowAnswer(), accept()))
	c.add("ICMP errors", seq(flowState(related), accept()))
	c.add("", stop(Transit))
	return c
}

// fromOutside sees what has a peer's address and came by no tunnel.
func (s switches) fromOutside() chain {
	c := chain{name: fromOutside}
	c.add("a sibling's peer", seq(s.inBySibling(), goTo(fromPeer)))
	c.add("a peer's address outside the tunnel", stop(Spoofed))
	return c
}

// siblingToGateway sees what comes by the interlink for the gateway itself.
func (s switches) siblingToGateway() chain {
	c := chain{name: siblingToGateway}
	c.add("answers to the gateway", seq(flowState(established|related), accept()))
	c.add("", stop(Gateway))
	return c
}

// toPeer matches packets to the address of a peer. It takes two rules, and the packet's
// mark, as a map is only looked up into something.
func (f family) toPeer(at edition) [][]expr.Any {
	return f.lookUp(at, f.sourceOffset+f.bytes)
}

// entrySource gives what comes from the cluster's side an address of this Pod as its
// source. Answers find the way back to this replica by it, whichever holds the peer by
// then, and siblings take no packets with others from us. It is not masquerading, by
// which the kernel ends a flow whose way out changes (nf_nat_oif_changed,
// net/netfilter/nf_nat_core.c): here that is what happens when the peer moves.
//
// Where peers are not masqueraded, it is for what leaves by the interlink alone: what
// comes from the cluster's side may then be an answer to a peer, which has to keep its
// source where that can be.
func (s switches) entrySource(c *chain, at edition) {
	if s.hasInterlink() {
		for _, match := range s.fromPeers(at) {
			c.add("peers keep theirs", seq(s.outBySibling(), match, unmark(), accept()))
		}
	}
	for _, a := range s.entry {
		if !a.IsValid() {
			continue
		}
		f := familyOf(a)
		if s.hasInterlink() {
			c.add("to a peer that a sibling holds", seq(s.outBySibling(), isFamily(f), f.sourceNAT(a)))
		}
		if !s.masquerade {
			continue // it may be an answer to what a peer opened with its own address
		}
		// Only what is passed through has come in by a device.
		through := compare(&expr.Meta{Key: expr.MetaKeyIIF, Register: register}, expr.CmpOpNeq, make([]byte, 4))
		c.add("to a peer that a sibling may hold next", seq(at.outBy(), through, at.notInBy(), s.notInBySibling(), isFamily(f), f.sourceNAT(a)))
	}
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4()
	}
	return ipv6()
}

func (f family) sourceNAT(a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: register, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.number), RegAddrMin: register},
	}
}
