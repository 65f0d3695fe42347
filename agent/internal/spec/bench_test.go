package spec

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// manyPeers is a directory with n peers in Secrets of 1,000 each, which is about
// as many as fit into one. Half of them bring their pre-shared key along, the
// others have it in a file of its own.
func manyPeers(n int) Files {
	private, _ := testKey(1)
	files := Files{
		GatewayFile:    []byte("server:\n  publicEndpoint: vpn.example.com:51820\n  addresses: [10.0.0.1/8]\n"),
		PrivateKeyFile: []byte(private.Reveal()),
	}
	var text strings.Builder
	for i := range n {
		if i%1000 == 0 {
			text.Reset()
			text.WriteString("peers:\n")
		}
		var raw [key.Len]byte
		binary.BigEndian.PutUint64(raw[:], uint64(i)+1)
		encoded := base64.StdEncoding.EncodeToString(raw[:])
		fmt.Fprintf(&text, "- name: peer-%05d\n  publicKey: %s\n  addresses:\n  - 10.1.%d.%d\n", i, encoded, i>>8, i&255)
		if i%2 == 0 {
			fmt.Fprintf(&text, "  presharedKey: %s\n", encoded)
		} else {
			files[fmt.Sprintf("psk/team/peer-%05d", i)] = []byte(encoded)
		}
		files[fmt.Sprintf("peers.d/team-%02d/peers.yaml", i/1000)] = []byte(text.String())
	}
	return files
}

func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			files := manyPeers(n)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Load(files); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReload loads a directory of which one file of peers.d changes each time.
func BenchmarkReload(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			files, other := manyPeers(n), manyPeers(n)
			const changes = "peers.d/team-00/peers.yaml"
			other[changes] = append([]byte("# changed\n"), other[changes]...)
			l := NewLoader()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Load(files); err != nil {
					b.Fatal(err)
				}
				files, other = other, files
			}
		})
	}
}
