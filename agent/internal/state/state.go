// Package state holds the two pictures that a run compares: what should be
// ([Desired], built from the user's files alone) and what is ([Observed], read
// from the system). Both are plain values, normalised so that equal means ==.
//
// The package is pure: no clock, no network, no files.
package state

import (
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Desired is the whole state of a gateway as the user's files ask for it.
type Desired struct {
	// Tunnels is one, or two while a rotation of the server key is under way. The
	// first has the older key, and the pools' addresses; the second the routes to
	// those peers that have moved to it.
	Tunnels []Tunnel
	// Interlink is the device by which replicas pass packets on to each other, nil
	// where there are no others. Its peers are the siblings.
	Interlink *Tunnel
	Firewall  Firewall
}

// Devices are the tunnels and, where there is one, the interlink.
func (d *Desired) Devices() []*Tunnel {
	out := make([]*Tunnel, 0, 3)
	for i := range d.Tunnels {
		out = append(out, &d.Tunnels[i])
	}
	if d.Interlink != nil {
		out = append(out, d.Interlink)
	}
	return out
}

// Tunnel returns that of a slot, nil where it has none.
func (d *Desired) Tunnel(s key.Slot) *Tunnel {
	for i := range d.Tunnels {
		if d.Tunnels[i].Slot == s {
			return &d.Tunnels[i]
		}
	}
	if s == Interlink {
		return d.Interlink
	}
	return nil
}

// Tunnel is a network device with a WireGuard configuration.
type Tunnel struct {
	Slot   key.Slot
	Link   Link
	Device Device
}

// Link is the network device and what hangs on it.
type Link struct {
	Name string
	// MTU in bytes.
	MTU int
	// Addresses of the gateway with the length of their pool, sorted.
	Addresses []netip.Prefix
	// Routes into the tunnel beside the pools, masked and sorted.
	Routes []netip.Prefix
	// Answers are addresses, sorted, that lie behind the device for what comes in by
	// the devices of AnswersFor, and for nothing else: their routes are in a table of
	// their own, with a routing rule for each of those devices, sorted by name.
	Answers    []netip.Prefix
	AnswersFor []string
}

// Device is the WireGuard configuration.
type Device struct {
	PrivateKey key.Private
	ListenPort uint16
	// Peers sorted by name; no name and no public key is there twice. A list and
	// not a map: there may be 10,000, which are built anew for every run.
	Peers []Peer
}

// Peer finds a peer by its public key, by looking at all of them.
func (d Device) Peer(k key.Public) (p Peer, ok bool) {
	for i := range d.Peers {
		if d.Peers[i].PublicKey == k {
			return d.Peers[i], true
		}
	}
	return Peer{}, false
}

// Peer is one peer as WireGuard knows it.
type Peer struct {
	Name         string // for people; WireGuard has none
	PublicKey    key.Public
	PresharedKey key.Preshared
	// Endpoint is where to call the peer; the zero value leaves it alone.
	Endpoint netip.AddrPort
	// Keepalive is the interval of persistent keepalives; 0 is off.
	Keepalive time.Duration
	// AllowedIPs, masked, sorted, unique.
	AllowedIPs []netip.Prefix
	// Elsewhere says that a sibling has the peer's session: nothing is sent to it
	// from here, because an answer from another address would draw it away.
	Elsewhere bool
}

// Observed is what the system says. It is read afresh for every run.
type Observed struct {
	// Tunnels are those that there are, by slot.
	Tunnels map[key.Slot]ObservedTunnel
	// Forwarding says for every device but loopback whether IPv4 packets that
	// come in by it are forwarded (IPV4_DEVCONF_FORWARDING, linux/ip.h).
	Forwarding map[string]bool
	// IPv6Forwarding is the Pod's sysctl net.ipv6.conf.all.forwarding.
	IPv6Forwarding bool
	// FirewallInPlace is false where our nftables table is missing or does not
	// hold the chains and rules that it was made with.
	FirewallInPlace bool
}

// ObservedTunnel is a tunnel as it runs.
type ObservedTunnel struct {
	// LinkExists is false before the first run and after somebody removed it.
	LinkExists bool
	LinkUp     bool
	Link       Link
	Device     ObservedDevice
}

// ObservedDevice is a WireGuard device as it runs.
type ObservedDevice struct {
	PrivateKey key.Private
	ListenPort uint16
	Peers      map[key.Public]ObservedPeer
}

// ObservedPeer is a peer with its counters. Peer.Name is empty and
// Peer.Endpoint is where packets last came from.
type ObservedPeer struct {
	Peer
	// LastHandshake is zero where there was none.
	LastHandshake time.Time
	ReceiveBytes  int64
	TransmitBytes int64
	// Lost says that the peer is [Dead]: it does not answer where it was last.
	Lost bool
}
