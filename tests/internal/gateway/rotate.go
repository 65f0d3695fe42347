package gateway

import (
	"maps"
	"net/netip"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// timeLayout is how a time stands in the name of a key.
const timeLayout = "20060102T150405Z"

// Dated is the name of an entry of a Secret that comes in force at a time, such as
// green.20261225T030000Z. The time is cut to the second.
func Dated(name string, from time.Time) string { return name + "." + from.UTC().Format(timeLayout) }

// SetKeys changes the Secret of the gateway's key, and has the kubelet refresh the
// volume. What is not in entries goes, but the key that the gateway began with
// stays under its plain name unless it is given anew. It returns the moment of the
// swap.
func (g *Gateway) SetKeys(entries map[string]wgclient.Secret) (time.Time, error) {
	g.mu.Lock()
	secret := g.secret.DeepCopy()
	secret.Data = map[string][]byte{"privateKey": secret.Data["privateKey"]}
	for name, k := range entries {
		secret.Data[name] = []byte(k.Reveal())
		g.keys = append(g.keys, k)
	}
	g.mu.Unlock()
	return g.Pod.Update(secret)
}

// GreenEndpoint is what clients of slot green dial.
func (g *Gateway) GreenEndpoint() netip.AddrPort {
	return netip.AddrPortFrom(g.Endpoint.Addr(), GreenPort)
}

// Entries copies a Secret's entries and adds one.
func Entries(have map[string]wgclient.Secret, name string, k wgclient.Secret) map[string]wgclient.Secret {
	out := maps.Clone(have)
	if out == nil {
		out = map[string]wgclient.Secret{}
	}
	out[name] = k
	return out
}
