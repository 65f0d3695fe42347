package firewall

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The building blocks of rules: each returns expressions that go on where they
// match and end the rule where they do not. They compile to what nft(8) makes
// of the same words, so that it lists them back readably.

// Registers of nf_tables: register is 16 bytes wide and shares its place with
// word to word+3, of four bytes each (linux/netfilter/nf_tables.h, enum
// nft_registers).
const (
	register = unix.NFT_REG_1
	word     = unix.NFT_REG32_00
)

// Offsets in headers, in bytes.
const (
	sourcePortOffset = 0  // source port of TCP (RFC 9293) and UDP (RFC 768)
	portOffset       = 2  // destination port of them
	typeOffset       = 0  // type of ICMP (RFC 792) and ICMPv6 (RFC 4443)
	flagsOffset      = 13 // flags of TCP
)

// seq strings building blocks together.
func seq(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// inBy, outBy and their opposites look a device up among the tunnels: a second one comes
// and goes without a change of the rules.
func (at edition) inBy() []expr.Any     { return at.device(expr.MetaKeyIIFNAME, false) }
func (at edition) notInBy() []expr.Any  { return at.device(expr.MetaKeyIIFNAME, true) }
func (at edition) outBy() []expr.Any    { return at.device(expr.MetaKeyOIFNAME, false) }
func (at edition) notOutBy() []expr.Any { return at.device(expr.MetaKeyOIFNAME, true) }

func (at edition) device(k expr.MetaKey, not bool) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: k, Register: register},
		&expr.Lookup{SourceRegister: register, SetName: at.tunnels().Name, Invert: not},
	}
}

// deviceName is a device's name as the kernel compares it, padded with zeros.
func deviceName(name string) []byte {
	out := make([]byte, unix.IFNAMSIZ)
	copy(out, name)
	return out
}

func compare(load expr.Any, op expr.CmpOp, value []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: op, Register: register, Data: value}}
}

func isFamily(f family) []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register}, expr.CmpOpEq, []byte{f.number})
}

func isProtocol(number byte) []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, expr.CmpOpEq, []byte{number})
}

func transport(offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func udpTo(port uint16) []expr.Any {
	return seq(isProtocol(unix.IPPROTO_UDP),
		compare(transport(portOffset, 2), expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)))
}

func udpFrom(port uint16) []expr.Any {
	return seq(isProtocol(unix.IPPROTO_UDP),
		compare(transport(sourcePortOffset, 2), expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)))
}

func (f family) echoRequest() []expr.Any {
	return seq(isFamily(f), isProtocol(f.icmp), compare(transport(typeOffset, 1), expr.CmpOpEq, []byte{f.echo}))
}

// fromPeer matches packets with the source address of a peer, and leaves the
// peer's policy in their mark for granted: nft(8) up to 1.0.6 at least cannot
// list a table in which a looked-up value is part of another look-up. It takes
// two rules.
func (f family) fromPeer(at edition) [][]expr.Any { return f.lookUp(at, f.sourceOffset) }

// lookUp is for the address at an offset in the header.
func (f family) lookUp(at edition, offset uint32) [][]expr.Any {
	var out [][]expr.Any
	for _, set := range []*nftables.Set{f.hosts(at), f.networks(at)} {
		out = append(out, seq(isFamily(f), []expr.Any{
			&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.bytes},
			&expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: set.Name},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register},
		}))
	}
	return out
}

// unmark takes the policy off the packet again, before it leaves the table:
// marks mean something to others.
func unmark() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: register, Data: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register},
	}
}

// granted matches packets that the policy in their mark allows.
//
// What has no ports has something else in their place, such as the checksum of
// ICMP; its grants span every port. What has not even four bytes behind the IP
// header does not match. Fragments are whole here: connection tracking puts
// them together before any chain of ours, and the kernel takes them apart again
// afterwards.
func (f family) granted(at edition) []expr.Any {
	destination := uint32(word + 1)
	protocol := destination + f.bytes/4
	port := protocol + 1
	return seq(isFamily(f), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: register},
		&expr.Payload{DestRegister: destination, Base: expr.PayloadBaseNetworkHeader, Offset: f.sourceOffset + f.bytes, Len: f.bytes},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: protocol},
		&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: portOffset, Len: 2},
		&expr.Lookup{SourceRegister: register, SetName: f.grants(at).Name},
	})
}

// States of connection tracking.
const (
	invalid     = expr.CtStateBitINVALID
	established = expr.CtStateBitESTABLISHED
	related     = expr.CtStateBitRELATED
)

func flowState(states uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: register},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(states), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)},
	}
}

// flowAnswer matches packets against the direction in which their flow was
// opened (IP_CT_DIR_REPLY, linux/netfilter/nf_conntrack_tuple_common.h).
func flowAnswer() []expr.Any {
	return compare(&expr.Ct{Key: expr.CtKeyDIRECTION, Register: register}, expr.CmpOpEq, []byte{1})
}

// opensTCP matches the SYNs of TCP, of which there are two in a connection.
func opensTCP() []expr.Any {
	const syn, rst = 0x02, 0x04
	return seq(isProtocol(unix.IPPROTO_TCP), []expr.Any{
		transport(flagsOffset, 1),
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{syn}},
	})
}

// clampSegmentSize lowers the MSS option (kind 2, RFC 9293) of a SYN to what
// fits the route of either direction.
func clampSegmentSize() []expr.Any {
	return []expr.Any{
		&expr.Rt{Register: register, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: register, DestRegister: register, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: register, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func goTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func count(r Reason) expr.Any {
	return &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: string(r)}
}

// stop drops packets without a word.
func stop(r Reason) []expr.Any {
	return []expr.Any{count(r), &expr.Verdict{Kind: expr.VerdictDrop}}
}

// reject drops packets and says so to their sender (ICMP type 3 code 13,
// ICMPv6 type 1 code 1), who sees an error at once instead of a timeout.
func reject(r Reason) []expr.Any {
	return []expr.Any{count(r), &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}
