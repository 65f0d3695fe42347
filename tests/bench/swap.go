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
	var took, waited, read []time.Duration
	for range swapCount {
		// At any moment of the agent's own rhythm.
		time.Sleep(time.Duration(20+rand.IntN(60)) * time.Millisecond)
		s, err := r.swap(ctx, &peers[rand.IntN(len(peers))], secrets["keys"])
		if err != nil {
			return nil, err
		}
		took = append(took, s.took)
		waited = append(waited, s.took-s.reload.took())
		read = append(read, s.reload.stage("read"))
	}
	p99 := quantile(took, 0.99)
	return []row{{
		what: fmt.Sprintf("File swap to key in force, %s peers, %d swaps: p50 / p99 (of it until the run begins, debounce included, %s, reading %s)",
			grouped(swapPeers), swapCount, ms(median(waited)), ms(median(read))),
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
