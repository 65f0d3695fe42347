package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

type renderOptions struct {
	uplink     state.Uplink
	output, at string
}

func newRenderCommand(env environment) *cobra.Command {
	var o renderOptions
	cmd := &cobra.Command{
		Use:   "render [DIR]",
		Short: "Print what a gateway would make of a configuration directory",
		Long: "Print the state that a gateway would bring about from the configuration directory DIR: the link, the WireGuard " +
			"device, and the firewall with who may send what where. Secrets are shown as " + key.Redacted + ". The output is " +
			"sorted, so that two of them can be compared.\n\n" +
			"DNS names of endpoints are shown as such; the gateway resolves them as it runs.\n\n" + dirHelp,
		Args: atMostDir,
		RunE: func(_ *cobra.Command, args []string) error {
			if o.output != "text" && o.output != "json" {
				return fmt.Errorf("--output %q is unknown; use text or json", o.output)
			}
			now := time.Now()
			if o.at != "" {
				var err error
				if now, err = time.Parse(time.RFC3339, o.at); err != nil {
					return fmt.Errorf("--at %q is no time; write one such as 2026-12-25T03:00:00Z", o.at)
				}
			}
			snapshot, _, err := loadDir(env, args)
			if err != nil {
				return err
			}
			return printView(env.Out, o.output, newView(snapshot, state.Build(state.Inputs{Snapshot: snapshot, Now: now, Uplink: o.uplink})))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.output, "output", "text", "text (YAML) or json")
	f.StringVar(&o.at, "at", "", "the state at that time, such as 2026-12-25T03:00:00Z, where keys come in force at a time; default: now")
	f.IntVar(&o.uplink.MTU, "uplink-mtu", 0, "MTU in bytes of the gateway's route to the Internet, from which the tunnel's follows where server.mtu is not set; 0: as if there were no route")
	f.BoolVar(&o.uplink.IPv6, "uplink-ipv6", false, "reckon with clients that connect over IPv6, whose headers take 20 bytes more")
	return cmd
}

func printView(out io.Writer, format string, v view) error {
	if format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	e := yaml.NewEncoder(out)
	e.SetIndent(2)
	e.CompactSeqIndent()
	if err := e.Encode(v); err != nil {
		return err
	}
	return e.Close()
}

// view is a desired state for people.
type view struct {
	Link   viewLink   `json:"link" yaml:"link"`
	Device viewDevice `json:"device" yaml:"device"`
	// Second has the newer server key, while there are two. Its peers are those of
	// the first.
	Second   *viewSecond  `json:"second,omitempty" yaml:"second,omitempty"`
	Firewall viewFirewall `json:"firewall" yaml:"firewall"`
}

type viewSecond struct {
	Link       string      `json:"link" yaml:"link"`
	ListenPort uint16      `json:"listenPort" yaml:"listenPort"`
	PublicKey  key.Public  `json:"publicKey" yaml:"publicKey"`
	PrivateKey key.Private `json:"privateKey" yaml:"privateKey"`
}

type viewLink struct {
	Name      string         `json:"name" yaml:"name"`
	MTU       int            `json:"mtu" yaml:"mtu"`
	Addresses []netip.Prefix `json:"addresses" yaml:"addresses,flow"`
	Routes    []netip.Prefix `json:"routes" yaml:"routes,flow"`
}

type viewDevice struct {
	DataPlane  spec.DataPlane `json:"dataPlane" yaml:"dataPlane"`
	ListenPort uint16         `json:"listenPort" yaml:"listenPort"`
	PublicKey  key.Public     `json:"publicKey" yaml:"publicKey"`
	PrivateKey key.Private    `json:"privateKey" yaml:"privateKey"`
	Peers      []viewPeer     `json:"peers" yaml:"peers"`
}

type viewPeer struct {
	Name         string         `json:"name" yaml:"name"`
	PublicKey    key.Public     `json:"publicKey" yaml:"publicKey"`
	PresharedKey string         `json:"presharedKey,omitempty" yaml:"presharedKey,omitempty"`
	Endpoint     string         `json:"endpoint,omitempty" yaml:"endpoint,omitempty"`
	Keepalive    string         `json:"persistentKeepalive,omitempty" yaml:"persistentKeepalive,omitempty"`
	AllowedIPs   []netip.Prefix `json:"allowedIPs" yaml:"allowedIPs,flow"`
}

type viewFirewall struct {
	Masquerade bool         `json:"masquerade" yaml:"masquerade"`
	PeerToPeer bool         `json:"peerToPeer" yaml:"peerToPeer"`
	IPv6       bool         `json:"ipv6" yaml:"ipv6"`
	Policies   []viewPolicy `json:"policies" yaml:"policies"`
}

// viewPolicy joins what the firewall keeps in two sets, sources and grants.
type viewPolicy struct {
	Policy string `json:"policy" yaml:"policy"`
	// Peers and Sources that it is for.
	Peers   []string       `json:"peers" yaml:"peers,flow"`
	Sources []netip.Prefix `json:"sources" yaml:"sources,flow"`
	// Grants are what those may reach; none: nothing.
	Grants []string `json:"grants" yaml:"grants"`
}

func newView(s *spec.Snapshot, d state.Desired) view {
	first := &d.Tunnels[0]
	v := view{
		Link: viewLink{Name: first.Link.Name, MTU: first.Link.MTU, Addresses: first.Link.Addresses, Routes: first.Link.Routes},
		Device: viewDevice{
			DataPlane: s.Gateway.Server.DataPlane, ListenPort: first.Device.ListenPort,
			PublicKey: first.Device.PrivateKey.Public(), PrivateKey: first.Device.PrivateKey,
			Peers: []viewPeer{}, // a list in JSON, not null
		},
		Firewall: viewFirewall{
			Masquerade: d.Firewall.Masquerade, PeerToPeer: d.Firewall.PeerToPeer, IPv6: d.Firewall.IPv6,
			Policies: viewPolicies(d),
		},
	}
	if len(d.Tunnels) > 1 {
		second := &d.Tunnels[1]
		v.Second = &viewSecond{
			Link: second.Link.Name, ListenPort: second.Device.ListenPort,
			PublicKey: second.Device.PrivateKey.Public(), PrivateKey: second.Device.PrivateKey,
		}
	}
	if v.Link.Routes == nil {
		v.Link.Routes = []netip.Prefix{}
	}
	for i, p := range s.Peers { // in the same order
		v.Device.Peers = append(v.Device.Peers, newViewPeer(p, first.Device.Peers[i]))
	}
	return v
}

func newViewPeer(p spec.Peer, d state.Peer) viewPeer {
	v := viewPeer{Name: d.Name, PublicKey: d.PublicKey, Endpoint: p.Endpoint.String(), AllowedIPs: d.AllowedIPs}
	if !d.PresharedKey.IsZero() {
		v.PresharedKey = d.PresharedKey.String()
	}
	if d.Keepalive > 0 {
		v.Keepalive = d.Keepalive.String()
	}
	return v
}

func viewPolicies(d state.Desired) []viewPolicy {
	peers := map[netip.Prefix]string{}
	for _, p := range d.Tunnels[0].Device.Peers {
		for _, n := range p.AllowedIPs {
			peers[n] = p.Name
		}
	}
	byID := map[state.Policy]*viewPolicy{}
	get := func(id state.Policy) *viewPolicy {
		if byID[id] == nil {
			byID[id] = &viewPolicy{Policy: fmt.Sprintf("%08x", uint32(id)), Peers: []string{}, Sources: []netip.Prefix{}, Grants: []string{}}
		}
		return byID[id]
	}
	for _, s := range d.Firewall.Sources {
		p := get(s.Policy)
		p.Sources = append(p.Sources, s.Prefix)
		p.Peers = append(p.Peers, peers[s.Prefix])
	}
	for _, g := range d.Firewall.Grants {
		p := get(g.Policy)
		p.Grants = append(p.Grants, grantText(g))
	}
	out := make([]viewPolicy, 0, len(byID))
	for _, p := range byID {
		slices.Sort(p.Peers)
		p.Peers = slices.Compact(p.Peers)
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b viewPolicy) int { return cmp.Compare(a.Policy, b.Policy) })
	return out
}

// grantText is a grant as it would be written down: 10.0.0.0/8 tcp 443.
func grantText(g state.Grant) string {
	text := rangeText(g.First, g.Last)
	switch {
	case g.FirstProtocol == g.LastProtocol:
		text += " " + protocolName(g.FirstProtocol)
	case g.FirstProtocol != 0 || g.LastProtocol != 255:
		text += fmt.Sprintf(" protocols %d-%d", g.FirstProtocol, g.LastProtocol)
	}
	switch {
	case g.FirstPort == g.LastPort:
		text += fmt.Sprintf(" %d", g.FirstPort)
	case g.FirstPort != 0 || g.LastPort != 65535:
		text += fmt.Sprintf(" %d-%d", g.FirstPort, g.LastPort)
	}
	return text
}

// rangeText is a network or an address where the range is one.
func rangeText(first, last netip.Addr) string {
	if first == last {
		return first.String()
	}
	for bits := range first.BitLen() {
		n := netip.PrefixFrom(first, bits)
		if n == n.Masked() && (state.Source{Prefix: n}).Last() == last {
			return n.String()
		}
	}
	return first.String() + "-" + last.String()
}

// protocolName is IANA's keyword for those that a configuration can name.
func protocolName(p uint8) string {
	switch p {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "ipv6-icmp"
	default:
		return fmt.Sprintf("protocol %d", p)
	}
}
