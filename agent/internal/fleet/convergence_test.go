package fleet

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// BenchmarkConvergence measures a large fleet: 10,000 peers that shake hands every 120 s
// with one of 20 replicas. It tells after how long the others know of a session, and how
// many bytes that costs a replica; once more where nothing arrives straight, and gossip has
// to do. Its time is virtual: once is enough (-benchtime 1x).
func BenchmarkConvergence(b *testing.B) {
	for _, noStraight := range []bool{false, true} {
		name := "straight"
		if noStraight {
			name = "gossip"
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				measureConvergence(b, noStraight)
			}
		})
	}
}

func measureConvergence(b *testing.B, noStraight bool) {
	b.Helper()
	const peers, replicas, measured = 10_000, 20, 30 * time.Second
	w := &world{random: rand.New(rand.NewPCG(1, 2)), counts: map[string]int{}, sent: map[string]int{}, dropped: map[uint32]bool{}, noStraight: noStraight, noDevices: true}
	for i := range peers {
		w.peers = append(w.peers, Peer{PublicKey: key.Public{byte(i), byte(i >> 8), 1}})
		w.clients = append(w.clients, &client{world: w, public: w.peers[i].PublicKey})
	}
	for range replicas {
		w.newNode()
	}
	w.run(time.Second)
	made := map[uint32]time.Duration{}
	measuring := false
	var took []time.Duration
	w.news = func(_ *node, sessions []Session) {
		for _, s := range sessions {
			if at, ok := made[s.Index]; ok {
				took = append(took, w.now-at)
			}
		}
	}
	var shake func(peer int)
	shake = func(peer int) {
		n, index := w.nodes[peer%replicas], w.index()
		if measuring {
			made[index] = w.now
		}
		n.replica.Started(index, w.peers[peer].PublicKey, false, w.clock())
		n.do(n.replica.Confirmed(index, w.clock()))
		w.after(rekeyAfter, func() { shake(peer) })
	}
	for i := range peers {
		w.after(w.upTo(rekeyAfter), func() { shake(i) })
	}
	w.run(rekeyAfter + 80*time.Second) // tables are full, and forget as much as they learn
	clear(w.sent)
	measuring = true
	w.run(w.now + measured)
	longest := 0
	for _, n := range w.nodes {
		longest = max(longest, len(n.gossip))
	}
	slices.Sort(took)
	expected := len(made) * (replicas - 1)
	for _, way := range []string{"straight", "gossip", "comparing"} {
		b.ReportMetric(float64(w.sent[way])/measured.Seconds()/replicas, way+"-B/s")
	}
	b.ReportMetric(float64(len(encode(w.nodes[0].replica.State(), w.clock()))), "table-B")
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	if len(took) < expected*95/100 {
		b.Errorf("%d of %d have arrived", len(took), expected)
	}
	if longest > 10*peers/120 {
		b.Errorf("%d sessions wait for gossip, more than of ten seconds: it cannot keep up", longest)
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
