package fleet

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// BenchmarkConvergence measures a large fleet: 10,000 peers that shake hands every 120 s
// with one of 20 replicas, and what that costs; once more where nothing arrives straight,
// and gossip has to do. Run it with -benchtime 1x -v: it prints.
func BenchmarkConvergence(b *testing.B) {
	for _, noStraight := range []bool{false, true} {
		name := "as it is"
		if noStraight {
			name = "by gossip alone"
		}
		b.Run(name, func(b *testing.B) {
			for range b.N {
				measureConvergence(b, noStraight)
			}
		})
	}
}

func measureConvergence(t testing.TB, noStraight bool) {
	t.Helper()
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
	each := func(way string) float64 { return float64(w.sent[way]) / measured.Seconds() / replicas }
	t.Logf("%d peers, %d replicas, %d sessions in %s; state %d bytes", peers, replicas, len(made), measured, len(encode(w.nodes[0].replica.State(), w.clock())))
	t.Logf("known to the others after p50 %s, p99 %s, longest %s; %d of %d so far", took[len(took)/2], took[len(took)*99/100], took[len(took)-1], len(took), expected)
	t.Logf("bytes that a replica sends in a second: straight %.0f, gossip %.0f, comparing %.0f; %d sessions wait for gossip at most",
		each("straight"), each("gossip"), each("comparing"), longest)
	if len(took) < expected*95/100 {
		t.Errorf("%d of %d have arrived", len(took), expected)
	}
	if longest > 10*peers/120 {
		t.Errorf("%d sessions wait for gossip, more than of ten seconds: it cannot keep up", longest)
	}
}
