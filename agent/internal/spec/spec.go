// Package spec is what the user wrote: the files of a gateway's configuration
// directory, parsed strictly and validated as a whole. Every fault is reported
// at once with its place, its value and its fix; nothing is applied from files
// that have one.
//
// The package is pure: it sees [Files], never a disk.
package spec

import (
	"cmp"
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Files is a configuration directory read into memory: slash-separated path
// below the directory → content. The layout is
//
//	config/gateway.yaml            the gateway and its peers (a ConfigMap)
//	key/privateKey                 the gateway's private key (a Secret)
//	key/<slot>.<time>              one that comes in force at a time, see [key.ServerEntry]
//	psk/<secret>/<peer name>       pre-shared keys (any number of Secrets)
//	psk/<secret>/<name>.<time>     ones that come in force at a time
//	rotation/rotation.json         how the last rotations went (a ConfigMap)
//	peers.d/<secret>/<name>.yaml   more peers (any number of Secrets)
//
// A path with a slash at its end is a directory, which may be empty.
type Files map[string][]byte

// Paths of the files that must exist, and the folders of those that may.
const (
	GatewayFile    = "config/gateway.yaml"
	PrivateKeyFile = "key/privateKey"
	KeyDir         = "key/"
	PresharedDir   = "psk/"
	PeersDir       = "peers.d/"
	RotationFile   = "rotation/rotation.json"
)

// Snapshot is one consistent, valid reading of all files.
type Snapshot struct {
	Gateway Gateway
	// ServerKeys holds the gateway's private keys, the oldest first; it is never
	// empty. Mostly there is one: others come and go with a rotation.
	ServerKeys []ServerKey
	// Peers of all files, sorted by name; pre-shared keys filled in.
	Peers []Peer
	// Rotations is how the last rotation of each kind of key went, as far as known.
	Rotations map[string]RotationResult
	// Warnings do not keep the snapshot from being applied.
	Warnings Faults
}

// ServerKey is a private key of the gateway, and since when it counts.
type ServerKey struct {
	Key  key.Private
	Slot key.Slot
	// From is when the key comes in force; zero is 'since ever'.
	From time.Time
}

// Gateway is gateway.yaml without its peers. Its sections have the names and
// shapes of the chart's values.
type Gateway struct {
	Server  Server  `yaml:"server"`
	Routing Routing `yaml:"routing"`
	IPv6    IPv6    `yaml:"ipv6"`
	// PeersFrom and PresharedKeys name the Secrets that must be mounted in
	// peers.d/ and psk/.
	PeersFrom     Secrets     `yaml:"peersFrom"`
	PresharedKeys Secrets     `yaml:"presharedKeys"`
	KeyRotation   KeyRotation `yaml:"keyRotation"`
}

// KeyRotation says how one key takes over from another.
type KeyRotation struct {
	Server ServerRotation `yaml:"server"`
}

// ServerRotation is the rotation of the gateway's own key. Its clients know the
// gateway by that key, so that for a while there have to be two gateways in one:
// slot blue has server.interface and server.listenPort, slot green what is here.
type ServerRotation struct {
	// Overlap is for how long the old key is answered to after the new one came
	// in force.
	Overlap time.Duration `yaml:"overlap"`
	// ListenPort is the UDP port of slot green in the Pod; 0: server.listenPort + 1.
	ListenPort uint16 `yaml:"listenPort"`
	// PublicPort is the one that clients dial; 0: that of server.publicEndpoint + 1.
	PublicPort uint16 `yaml:"publicPort"`
}

// DefaultOverlap is long enough for people to be told of a new key and to take it.
const DefaultOverlap = 7 * 24 * time.Hour

// Interface is the name of a slot's device.
func (g *Gateway) Interface(s key.Slot) string {
	if s == key.Green {
		return g.Server.Interface + greenSuffix
	}
	return g.Server.Interface
}

// greenSuffix makes another name of server.interface.
const greenSuffix = "g"

// ListenPort is the UDP port of a slot in the Pod.
func (g *Gateway) ListenPort(s key.Slot) uint16 {
	if s == key.Green {
		return cmp.Or(g.KeyRotation.Server.ListenPort, g.Server.ListenPort+1)
	}
	return g.Server.ListenPort
}

// Endpoint is where clients of a slot connect to; zero where server.publicEndpoint is.
func (g *Gateway) Endpoint(s key.Slot) Endpoint {
	e := g.Server.PublicEndpoint
	if s == key.Green && !e.IsZero() {
		e.Port = cmp.Or(g.KeyRotation.Server.PublicPort, e.Port+1)
	}
	return e
}

// Secrets names the Secrets that files come from. A Pod of an older ReplicaSet sees
// a new ConfigMap, but never a new mount: without the names it would take peers
// that moved to a Secret for removed.
type Secrets struct {
	ExistingSecrets []string `yaml:"existingSecrets"`
}

// Server describes the WireGuard device itself.
type Server struct {
	// PublicEndpoint is where clients connect to; it goes into their files.
	PublicEndpoint Endpoint `yaml:"publicEndpoint"`
	// Interface is the device's name, at most 15 bytes (IFNAMSIZ-1, linux/if.h).
	Interface string `yaml:"interface"`
	// ListenPort is the UDP port inside the Pod.
	ListenPort uint16 `yaml:"listenPort"`
	// Addresses are the gateway's own, each with the length of its pool:
	// 10.8.0.1/24 means that peers' addresses come from 10.8.0.0/24.
	Addresses []netip.Prefix `yaml:"addresses"`
	// MTU of the device in bytes; 0 derives it from the route to the Internet.
	MTU int `yaml:"mtu"`
	// DataPlane says who encrypts.
	DataPlane DataPlane `yaml:"dataPlane"`
	// Drain is how long to go on serving after SIGTERM.
	Drain time.Duration `yaml:"drain"`
}

// DataPlane names an implementation of WireGuard.
type DataPlane string

// The data planes.
const (
	Auto      DataPlane = "auto"      // kernel where the node has it, else userspace
	Kernel    DataPlane = "kernel"    // the node's WireGuard module
	Userspace DataPlane = "userspace" // wireguard-go inside the agent, over /dev/net/tun
)

// Routing says where peers' packets may go.
type Routing struct {
	// Masquerade rewrites the source of what leaves towards the cluster, so
	// that answers find their way back. Without it the network must route the
	// pool to the gateway.
	Masquerade bool `yaml:"masquerade"`
	// PeerToPeer lets peers reach each other through the gateway, where their
	// AllowedDestinations let them.
	PeerToPeer bool `yaml:"peerToPeer"`
	// AllowedDestinations hold for every peer that has none of its own.
	AllowedDestinations []Destination `yaml:"allowedDestinations"`
	// Routes are what clients send into the tunnel (their AllowedIPs).
	Routes []netip.Prefix `yaml:"routes"`
	// DNS servers for the client files.
	DNS []netip.Addr `yaml:"dns"`
}

// Destination is a set of flows that a peer may open: a network, narrowed to a
// protocol and to ports.
type Destination struct {
	CIDR     netip.Prefix `yaml:"cidr"`
	Protocol Protocol     `yaml:"protocol"`
	// Ports of TCP or UDP; empty means all.
	Ports []PortRange `yaml:"ports"`
}

// Protocol narrows a [Destination].
type Protocol string

// The protocols. ICMP is ICMPv6 where the network is IPv6.
const (
	AnyProtocol Protocol = "any"
	TCP         Protocol = "tcp"
	UDP         Protocol = "udp"
	ICMP        Protocol = "icmp"
)

// PortRange is an inclusive range of ports, written 443 or "8000-8080".
type PortRange struct{ First, Last uint16 }

// IPv6 switches the second address family on.
type IPv6 struct {
	Enabled bool `yaml:"enabled"`
}

// Peer is a client or a site.
type Peer struct {
	// Name is unique, and it names the file of the peer's pre-shared key.
	Name      string     `yaml:"name"`
	PublicKey key.Public `yaml:"publicKey"`
	// Addresses of the peer inside the tunnel, out of the gateway's pools.
	Addresses []netip.Addr `yaml:"addresses"`
	// AllowedIPs are further networks behind the peer (site-to-site).
	AllowedIPs []netip.Prefix `yaml:"allowedIPs"`
	// Endpoint is where the gateway calls the peer; empty: the peer calls.
	Endpoint Endpoint `yaml:"endpoint"`
	// PersistentKeepalive in seconds; 0 is off.
	PersistentKeepalive uint16 `yaml:"persistentKeepalive"`
	// AllowedDestinations, where given (even empty), stand in for the
	// gateway's.
	AllowedDestinations []Destination `yaml:"allowedDestinations"`
	// PresharedKey may be written in files that come from Secrets only.
	PresharedKey key.Preshared `yaml:"presharedKey"`
	// Scheduled are pre-shared keys that come in force at a time and stand in for
	// PresharedKey from then on, the earliest first. Mostly there is none.
	Scheduled []ScheduledKey `yaml:"-"`

	source source
}

// ScheduledKey is a pre-shared key that comes in force at a time.
type ScheduledKey struct {
	Key  key.Preshared
	From time.Time
}

// Prefixes returns everything that the peer may send from: its addresses as
// single-host prefixes, then its networks. Masked, neither sorted nor unique.
func (p *Peer) Prefixes() []netip.Prefix {
	return p.AppendPrefixes(make([]netip.Prefix, 0, len(p.Addresses)+len(p.AllowedIPs)))
}

// AppendPrefixes is [Peer.Prefixes] for many peers at a time.
func (p *Peer) AppendPrefixes(out []netip.Prefix) []netip.Prefix {
	for _, a := range p.Addresses {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return append(out, p.AllowedIPs...)
}

// source is where a peer was written.
type source struct {
	file  string
	index int
}

// document is gateway.yaml as a whole.
type document struct {
	Gateway `yaml:",inline"`
	Peers   []Peer `yaml:"peers"`
}

// peersDocument is a file of peers.d.
type peersDocument struct {
	Peers []Peer `yaml:"peers"`
}

func defaults() Gateway {
	return Gateway{
		Server: Server{
			Interface:  "wg0",
			ListenPort: 51820,
			DataPlane:  Auto,
			Drain:      30 * time.Second,
		},
		Routing:     Routing{Masquerade: true},
		KeyRotation: KeyRotation{Server: ServerRotation{Overlap: DefaultOverlap}},
	}
}
