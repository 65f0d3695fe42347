// Package clientconf writes what a new client and its gateway have to be told:
// the client's wg-quick(8) file, the same as a QR code, and the entry for the
// chart's values.
//
// The package is pure. What holds a secret comes out of methods that are named
// Reveal…, as in package key.
package clientconf

import (
	"fmt"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// Client is a client and what it has to know of its gateway.
type Client struct {
	Name       string
	PrivateKey key.Private
	// PresharedKey of the two ends; zero means 'none'.
	PresharedKey key.Preshared
	// Addresses of the client inside the tunnel.
	Addresses []netip.Addr
	// DNS servers to use while the tunnel is up; may be empty.
	DNS []netip.Addr
	// MTU of the client's device in bytes; 0 leaves it to the client.
	MTU int

	// ServerPublicKey and Endpoint are the gateway's.
	ServerPublicKey key.Public
	Endpoint        spec.Endpoint
	// AllowedIPs are what the client sends into the tunnel.
	AllowedIPs []netip.Prefix
	// Keepalive in seconds; 0 is off.
	Keepalive uint16
}

// RevealConfig returns the client's file in the form of wg-quick(8), which the
// WireGuard apps import as well. It holds the client's private key.
func (c Client) RevealConfig() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Interface]\nPrivateKey = %s\n", c.PrivateKey.Reveal())
	hosts := make([]netip.Prefix, len(c.Addresses))
	for i, a := range c.Addresses {
		hosts[i] = netip.PrefixFrom(a, a.BitLen())
	}
	list(&b, "Address", hosts)
	list(&b, "DNS", c.DNS)
	if c.MTU != 0 {
		fmt.Fprintf(&b, "MTU = %d\n", c.MTU)
	}
	fmt.Fprintf(&b, "\n[Peer]\nPublicKey = %s\n", c.ServerPublicKey)
	if !c.PresharedKey.IsZero() {
		fmt.Fprintf(&b, "PresharedKey = %s\n", c.PresharedKey.Reveal())
	}
	list(&b, "AllowedIPs", c.AllowedIPs)
	fmt.Fprintf(&b, "Endpoint = %s\n", c.Endpoint)
	if c.Keepalive != 0 {
		fmt.Fprintf(&b, "PersistentKeepalive = %d\n", c.Keepalive)
	}
	return b.String()
}

func list[T fmt.Stringer](b *strings.Builder, field string, values []T) {
	if len(values) == 0 {
		return
	}
	b.WriteString(field + " = ")
	for i, v := range values {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(v.String())
	}
	b.WriteString("\n")
}

// Entry is the client as an element of the list peers, in the chart's values
// and in the gateway's files. It holds no secret.
type Entry struct {
	Name      string       `json:"name" yaml:"name"`
	PublicKey key.Public   `json:"publicKey" yaml:"publicKey"`
	Addresses []netip.Addr `json:"addresses" yaml:"addresses,flow"`
}

// Entry returns the client's element of the list peers.
func (c Client) Entry() Entry {
	return Entry{Name: c.Name, PublicKey: c.PrivateKey.Public(), Addresses: c.Addresses}
}

// PeersYAML returns a document `peers: [entry]`, for the chart's values or a
// file of peers.d.
func (e Entry) PeersYAML() string {
	return encode(struct {
		Peers []Entry `yaml:"peers"`
	}{[]Entry{e}})
}

type manifest struct {
	APIVersion string            `yaml:"apiVersion"`
	Kind       string            `yaml:"kind"`
	Metadata   map[string]string `yaml:"metadata"`
	StringData map[string]string `yaml:"stringData"`
}

// RevealPresharedSecret returns the manifest of a Secret that holds the
// client's pre-shared key under the client's name. Applied to a Secret that
// exists it adds the key to those there.
func (c Client) RevealPresharedSecret(secret string) string {
	return presharedSecret(secret, c.Name, c.PresharedKey.Reveal())
}

// PresharedSecret is [Client.RevealPresharedSecret] with a remark in place of
// the key.
func (c Client) PresharedSecret(secret string) string {
	return presharedSecret(secret, c.Name, "<PresharedKey of the client's file>")
}

func presharedSecret(secret, name, value string) string {
	return encode(manifest{
		APIVersion: "v1",
		Kind:       "Secret",
		Metadata:   map[string]string{"name": secret},
		StringData: map[string]string{name: value},
	})
}

// encode cannot fail: a strings.Builder takes everything, and the types above
// have no cycles, channels or functions.
func encode(v any) string {
	var b strings.Builder
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	e.CompactSeqIndent()
	_ = e.Encode(v)
	_ = e.Close()
	return b.String()
}
