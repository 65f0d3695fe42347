package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

const (
	swapPeers = 1_000
	swapCount = 120
	swapGoal  = 150 * time.Millisecond
)

// fileSwaps measures from the kubelet's swap of a mounted Secret to the key in
// force, the debounce of the file events included.
func fileSwaps(ctx context.Context, b *bench) (rows []row, err error) {
	b.progress("swapping files under a gateway with %d peers, %d times", swapPeers, swapCount)
	topology, err := netns.NewTopology(netns.Plan{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, topology.Close()) }()
	peers, err := makePeers(swapPeers)
	if err != nil {
		return nil, err
	}
	config := keysApart(peers)
	r, err := b.startGateway(ctx, config, topology)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	secrets, err := r.secrets(config)
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	var all []swapped
	for range swapCount {
		// At any moment of the agent's own rhythm.
		time.Sleep(time.Duration(20+rand.IntN(60)) * time.Millisecond)
		s, err := r.swap(ctx, &peers[rand.IntN(len(peers))], secrets["keys"])
		if err != nil {
			return nil, err
		}
		took = append(took, s.took)
		all = append(all, s)
	}
	for _, n := range []string{"read", "load", "uplink", "build", "observe", "diff", "apply", "verify"} {
		var x []time.Duration
		for _, s := range all {
			x = append(x, s.reload.stage(n))
		}
		b.progress("%s p50 %v p99 %v", n, median(x), quantile(x, .99))
	}
	var x []time.Duration
	for _, s := range all {
		x = append(x, s.took-time.Duration(s.reload.Duration*1e6))
	}
	b.progress("%s p50 %v p99 %v", "before", median(x), quantile(x, .99))
	p99 := quantile(took, 0.99)
	return []row{{
		what: fmt.Sprintf("File swap to key in force, %s peers, %d swaps: p50 / p99", grouped(swapPeers), swapCount),
		ours: ms(median(took)) + " / " + ms(p99),
		goal: "p99 ≤ " + ms(swapGoal), peer: ms(swapGoal),
		met: p99 <= swapGoal,
	}}, nil
}

// grouped writes 10,000.
func grouped(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", grouped(n/1000), n%1000)
}
