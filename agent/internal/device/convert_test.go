package device

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

func ipNet(text string) net.IPNet {
	ip, n, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	return net.IPNet{IP: ip, Mask: n.Mask} // not masked, IPv4 in 16 bytes
}

func TestObservedPeers(t *testing.T) {
	a, b := key.GeneratePrivate().Public(), key.GeneratePrivate().Public()
	psk := key.GeneratePreshared()
	at := time.Unix(1700000000, 5)
	c := newCollector(0)
	eachObserved(&wgtypes.Device{Peers: []wgtypes.Peer{
		{
			PublicKey: wgtypes.Key(a), PresharedKey: wgtypes.Key(psk.Bytes()),
			Endpoint:                    &net.UDPAddr{IP: net.ParseIP("203.0.113.9"), Port: 4500}, // ::ffff:203.0.113.9
			PersistentKeepaliveInterval: 25 * time.Second, LastHandshakeTime: at, ReceiveBytes: 1, TransmitBytes: 2,
			AllowedIPs: []net.IPNet{ipNet("fd00::1/64"), ipNet("192.168.7.9/24"), ipNet("10.0.0.1/32"), {IP: net.IP{1, 2, 3, 4}, Mask: net.IPMask{255, 0, 255, 0}}},
		},
		{PublicKey: wgtypes.Key(b), Endpoint: &net.UDPAddr{IP: net.ParseIP("fe80::1"), Port: 1, Zone: "eth0"}, AllowedIPs: []net.IPNet{ipNet("0.0.0.0/0")}},
	}}, c.add)
	got := c.peers
	want := map[key.Public]state.ObservedPeer{
		a: {
			Peer: state.Peer{
				PublicKey: a, PresharedKey: psk, Endpoint: netip.MustParseAddrPort("203.0.113.9:4500"), Keepalive: 25 * time.Second,
				AllowedIPs: prefixes("10.0.0.1/32", "192.168.7.0/24", "fd00::/64"),
			},
			LastHandshake: at, ReceiveBytes: 1, TransmitBytes: 2,
		},
		b: {Peer: state.Peer{PublicKey: b, Endpoint: netip.MustParseAddrPort("[fe80::1%eth0]:1"), AllowedIPs: prefixes("0.0.0.0/0")}},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
	// The peers' lists share memory; appending to one must not reach another.
	_ = append(got[a].AllowedIPs, prefixes("1.0.0.0/8")...)
	_ = append(got[b].AllowedIPs, prefixes("1.0.0.0/8")...)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})); diff != "" {
		t.Errorf("peers after appending (-want +got):\n%s", diff)
	}
}

func TestPeerConfigs(t *testing.T) {
	k := func(b byte) key.Public { return key.Public{b} }
	psk, none := key.GeneratePreshared(), key.Preshared{}
	wgPSK, wgNone := wgtypes.Key(psk.Bytes()), wgtypes.Key{}
	endpoint := netip.MustParseAddrPort("203.0.113.9:4500")
	keepalive := 25 * time.Second
	tests := []struct {
		name string
		peer plan.Peer
		want wgtypes.PeerConfig
	}{
		{"remove", plan.Peer{Operation: plan.Remove, PublicKey: k(1)}, wgtypes.PeerConfig{PublicKey: wgtypes.Key{1}, Remove: true}},
		{
			"update of the pre-shared key alone", plan.Peer{Operation: plan.Update, PublicKey: k(2), PresharedKey: &psk},
			wgtypes.PeerConfig{PublicKey: wgtypes.Key{2}, UpdateOnly: true, PresharedKey: &wgPSK},
		},
		{
			"update without a pre-shared key", plan.Peer{Operation: plan.Update, PublicKey: k(2), PresharedKey: &none},
			wgtypes.PeerConfig{PublicKey: wgtypes.Key{2}, UpdateOnly: true, PresharedKey: &wgNone},
		},
		{
			"update of allowed IPs, more", plan.Peer{Operation: plan.Update, PublicKey: k(2), AllowedIPs: prefixes("10.0.0.0/8")},
			wgtypes.PeerConfig{PublicKey: wgtypes.Key{2}, UpdateOnly: true, AllowedIPs: []net.IPNet{{IP: net.IP{10, 0, 0, 0}, Mask: net.CIDRMask(8, 32)}}},
		},
		{
			"add", plan.Peer{Operation: plan.Add, PublicKey: k(3), Endpoint: &endpoint, Keepalive: &keepalive, AllowedIPs: prefixes("fd00::/64")},
			wgtypes.PeerConfig{
				PublicKey: wgtypes.Key{3}, Endpoint: &net.UDPAddr{IP: net.IP{203, 0, 113, 9}, Port: 4500}, PersistentKeepaliveInterval: &keepalive,
				AllowedIPs: []net.IPNet{{IP: net.ParseIP("fd00::"), Mask: net.CIDRMask(64, 128)}},
			},
		},
	}
	var peers []plan.Peer
	var want []wgtypes.PeerConfig
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff([]wgtypes.PeerConfig{tt.want}, peerConfigs([]plan.Peer{tt.peer})); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
		peers, want = append(peers, tt.peer), append(want, tt.want)
	}
	if diff := cmp.Diff(want, peerConfigs(peers)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// What is taken away from anybody goes first, all at once, so that nothing that
// another peer is given then is taken from that one.
func TestPeerConfigsTakeAllowedIPsAway(t *testing.T) {
	ipNet := func(text string) net.IPNet { return *ipNetOf(netip.MustParsePrefix(text)) }
	a, b := wgtypes.Key{1}, wgtypes.Key{2}
	got := peerConfigs([]plan.Peer{
		{Operation: plan.Update, PublicKey: key.Public(a), AllowedIPs: prefixes("10.2.0.0/16"), RemoveAllowedIPs: prefixes("10.1.0.0/16", "fd00::/64")},
		{Operation: plan.Update, PublicKey: key.Public(b), AllowedIPs: prefixes("10.1.0.0/16"), RemoveAllowedIPs: prefixes("10.2.0.0/16")},
	})
	want := []wgtypes.PeerConfig{
		{PublicKey: passingPeer(), AllowedIPs: []net.IPNet{ipNet("10.1.0.0/16"), ipNet("fd00::/64"), ipNet("10.2.0.0/16")}},
		{PublicKey: passingPeer(), Remove: true},
		{PublicKey: a, UpdateOnly: true, AllowedIPs: []net.IPNet{ipNet("10.2.0.0/16")}},
		{PublicKey: b, UpdateOnly: true, AllowedIPs: []net.IPNet{ipNet("10.1.0.0/16")}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}
