package device

import (
	"crypto/sha256"
	"net"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// eachObserved shows the peers of wgctrl's dump to visit, as [Tunnels.EachPeer]
// does, and returns the rest of it.
func eachObserved(d *wgtypes.Device, visit func(*state.ObservedPeer)) state.ObservedDevice {
	var allowed []netip.Prefix
	for i := range d.Peers {
		p := &d.Peers[i]
		allowed = allowed[:0]
		for j := range p.AllowedIPs {
			if prefix, ok := prefixOf(&p.AllowedIPs[j]); ok {
				allowed = append(allowed, prefix.Masked())
			}
		}
		slices.SortFunc(allowed, netip.Prefix.Compare)
		visit(&state.ObservedPeer{
			Peer: state.Peer{
				PublicKey:    key.Public(p.PublicKey),
				PresharedKey: key.NewPreshared(p.PresharedKey),
				Endpoint:     addrPortOf(p.Endpoint),
				Keepalive:    p.PersistentKeepaliveInterval,
				AllowedIPs:   allowed,
			},
			LastHandshake: p.LastHandshakeTime,
			ReceiveBytes:  p.ReceiveBytes,
			TransmitBytes: p.TransmitBytes,
		})
	}
	return state.ObservedDevice{PrivateKey: key.NewPrivate(d.PrivateKey), ListenPort: uint16(d.ListenPort)}
}

// peerConfigs keeps the plan's order and sends nothing that it leaves alone.
func peerConfigs(list []plan.Peer) []wgtypes.PeerConfig {
	out := removals(list)
	for _, p := range list {
		c := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.PublicKey)}
		if p.Operation == plan.Remove {
			c.Remove = true
			out = append(out, c)
			continue
		}
		if p.Operation == plan.Renew {
			out = append(out, wgtypes.PeerConfig{PublicKey: c.PublicKey, Remove: true})
		}
		// A peer that somebody removed meanwhile must not come back by halves.
		c.UpdateOnly = p.Operation == plan.Update
		if p.PresharedKey != nil {
			k := wgtypes.Key(p.PresharedKey.Bytes())
			c.PresharedKey = &k
		}
		if p.Endpoint != nil {
			c.Endpoint = net.UDPAddrFromAddrPort(*p.Endpoint)
		}
		c.PersistentKeepaliveInterval = p.Keepalive
		c.AllowedIPs = ipNetsOf(p.AllowedIPs)
		out = append(out, c)
	}
	return out
}

// removals takes allowed IPs away from their peers. Before Linux 6.16 there was no
// message for that, and to replace all of a peer's by those that stay leaves it
// without any for a moment, in which packets are lost. But whoever is given an
// allowed IP takes it from its owner: a passing peer takes them all, and leaves.
// This comes first, since the plan may give some of them to others.
func removals(list []plan.Peer) []wgtypes.PeerConfig {
	var unwanted []net.IPNet
	for _, p := range list {
		unwanted = append(unwanted, ipNetsOf(p.RemoveAllowedIPs)...)
	}
	out := make([]wgtypes.PeerConfig, 0, len(list)+2)
	if len(unwanted) == 0 {
		return out
	}
	passing := passingPeer()
	return append(out, wgtypes.PeerConfig{PublicKey: passing, AllowedIPs: unwanted}, wgtypes.PeerConfig{PublicKey: passing, Remove: true})
}

// passingPeer is a public key that nobody has the private key of. Should such a
// peer stay behind, the next observation finds a peer that nobody asked for.
func passingPeer() wgtypes.Key {
	return wgtypes.Key(sha256.Sum256([]byte("vpn-gateway: takes allowed IPs away")))
}

// prefixOf is false for nil and for masks with holes.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if bits == 32 {
		addr = addr.Unmap() // net.IP often holds IPv4 in 16 bytes
	}
	if !ok || bits != addr.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, ones), true
}

func ipNetsOf(list []netip.Prefix) []net.IPNet {
	var out []net.IPNet
	for _, p := range list {
		out = append(out, *ipNetOf(p))
	}
	return out
}

func ipNetOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func addrPortOf(a *net.UDPAddr) netip.AddrPort {
	ap := a.AddrPort() // zero for nil
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
