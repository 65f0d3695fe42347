package gateway

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// Config is what a user of the chart writes: values, and Secrets beside them.
type Config struct {
	// Values is a values file. What it must have is filled in:
	// server.publicEndpoint, and the lists of peers and Secrets from below.
	Values string
	// Peers are those of the values.
	Peers []Peer
	// PresharedKeys are Secrets: name → peer's name → key.
	PresharedKeys map[string]map[string]wgclient.Secret
	// PeersFrom are Secrets with peers: name → file → peers.
	PeersFrom map[string]map[string][]Peer
}

// Peer is an entry of the values' list peers.
type Peer struct {
	Name                string   `json:"name"`
	PublicKey           string   `json:"publicKey"`
	Addresses           []string `json:"addresses,omitempty"`
	AllowedIPs          []string `json:"allowedIPs,omitempty"`
	Endpoint            string   `json:"endpoint,omitempty"`
	PersistentKeepalive int      `json:"persistentKeepalive,omitempty"`
	// AllowedDestinations: nil is not written.
	AllowedDestinations []Destination `json:"allowedDestinations,omitempty"`
	// PresharedKey is written in PeersFrom only.
	PresharedKey wgclient.Secret `json:"-"`
}

// Destination is an entry of allowedDestinations.
type Destination struct {
	CIDR     string `json:"cidr"`
	Protocol string `json:"protocol,omitempty"`
	// Ports are numbers, or ranges such as "8000-8080".
	Ports []any `json:"ports,omitempty"`
}

// values is the values file with what is filled in.
func (c Config) values() (map[string]any, error) {
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(c.Values), &values); err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	server, _ := values["server"].(map[string]any)
	server = maps.Clone(server)
	if server == nil {
		server = map[string]any{}
	}
	if server["publicEndpoint"] == nil {
		server["publicEndpoint"] = fmt.Sprintf("203.0.113.1:%d", Port)
	}
	values["server"] = server
	text, err := yaml.Marshal(map[string]any{
		"peers":         append([]Peer{}, c.Peers...),
		"presharedKeys": map[string]any{"existingSecrets": slices.Sorted(maps.Keys(c.PresharedKeys))},
		"peersFrom":     map[string]any{"existingSecrets": slices.Sorted(maps.Keys(c.PeersFrom))},
	})
	if err != nil {
		return nil, err
	}
	return values, yaml.Unmarshal(text, &values)
}

// link is the name of the tunnel's interface.
func (c Config) link(values map[string]any) string {
	server, _ := values["server"].(map[string]any)
	if name, ok := server["interface"].(string); ok {
		return name
	}
	return "wg0"
}

// secrets are the Secrets that the user makes beside the release.
func (c Config) secrets() ([]runtime.Object, error) {
	var out []runtime.Object
	for _, name := range slices.Sorted(maps.Keys(c.PresharedKeys)) {
		secret := newSecret(name)
		for peer, psk := range c.PresharedKeys[name] {
			secret.Data[peer] = []byte(psk.Reveal())
		}
		out = append(out, secret)
	}
	for _, name := range slices.Sorted(maps.Keys(c.PeersFrom)) {
		secret := newSecret(name)
		for file, peers := range c.PeersFrom[name] {
			text, err := peersFile(peers)
			if err != nil {
				return nil, err
			}
			secret.Data[file] = text
		}
		out = append(out, secret)
	}
	return out, nil
}

func newSecret(name string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{}}
}

// peersFile is a file of peers.d.
func peersFile(peers []Peer) ([]byte, error) {
	type entry struct {
		Peer         `json:",inline"`
		PresharedKey string `json:"presharedKey,omitempty"`
	}
	list := make([]entry, len(peers))
	for i, p := range peers {
		list[i].Peer = p
		if !p.PresharedKey.IsZero() {
			list[i].PresharedKey = p.PresharedKey.Reveal()
		}
	}
	return yaml.Marshal(map[string]any{"peers": list})
}

// keys returns every secret key of c.
func (c Config) keys() []wgclient.Secret {
	var out []wgclient.Secret
	for _, secret := range c.PresharedKeys {
		out = slices.AppendSeq(out, maps.Values(secret))
	}
	for _, secret := range c.PeersFrom {
		for _, peers := range secret {
			for _, p := range peers {
				if !p.PresharedKey.IsZero() {
					out = append(out, p.PresharedKey)
				}
			}
		}
	}
	return out
}
