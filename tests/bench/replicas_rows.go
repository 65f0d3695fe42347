package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// manyReplicas measures what it costs clients that their packets come to another
// replica: of ours, and of wireguard-go with the same key and peers.
func manyReplicas(ctx context.Context, b *bench) ([]row, error) {
	var rows []row
	for _, measure := range []func(context.Context, *bench) (row, error){movedFlow, rollingUpgrade, rollingUpgradeWithoutNAT, scaleIn, killed, nodeGone, passedOn} {
		r, err := measure(ctx, b)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// movedFlow moves one client from replica to replica.
func movedFlow(ctx context.Context, b *bench) (row, error) {
	b.progress("moving a client's packets to another replica, %d times", flowMoves)
	ours, err := b.event(ctx, setting{servers: 2, clients: 1, nat: true}, func(r *replicas) (cost, error) { return r.moves(flowMoves, 2*time.Second) })
	if err != nil {
		return row{}, err
	}
	native, err := b.event(ctx, setting{servers: 2, clients: 1, nat: true, native: true}, func(r *replicas) (cost, error) { return r.moves(1, nativeWaits) })
	if err != nil {
		return row{}, err
	}
	each := (ours.lost + flowMoves - 1) / flowMoves
	return row{
		what: fmt.Sprintf("A client's packets come to another replica, %d times, at 100 a second: outage, median / worst, and packets lost (peer, here and below: wireguard-go, each replica with the same key and peers; clients behind a NAT unless said otherwise)", flowMoves),
		ours: ours.text(), peer: native.text(), ratio: timesShorter(native.worst(), ours.worst()),
		goal: fmt.Sprintf("≤ %s, %d packets", ms(moveGoal), moveLost),
		met:  ours.worst() <= moveGoal && each <= moveLost,
	}, nil
}

// moves moves the one client there and back.
func (r *replicas) moves(n int, after time.Duration) (all cost, err error) {
	for i := range n {
		here := slices.IndexFunc([]int{0, 1}, func(p int) bool { return len(r.balancer.At(r.pod(p))) == 0 })
		c, err := r.during(func() error { return r.balancer.Move(r.from[0], r.pod(here)) }, after)
		if err != nil {
			return all, fmt.Errorf("move %d: %w", i+1, err)
		}
		all.sent, all.lost, all.outages = all.sent+c.sent, all.lost+c.lost, append(all.outages, c.outages...)
	}
	slices.Sort(all.outages)
	return all, nil
}

// event starts replicas with clients and measures something of them.
func (b *bench) event(ctx context.Context, s setting, measure func(*replicas) (cost, error)) (c cost, err error) {
	r, err := b.startReplicas(ctx, s)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.connectAll(ctx); err != nil {
		return c, err
	}
	return measure(r)
}

func rollingUpgrade(ctx context.Context, b *bench) (row, error) {
	return b.manyMoved(ctx, setting{servers: 3, clients: crowdSize, nat: true}, "Rolling upgrade of 3 replicas", upgrade(ctx))
}

func rollingUpgradeWithoutNAT(ctx context.Context, b *bench) (row, error) {
	return b.manyMoved(ctx, setting{servers: 3, clients: crowdSize}, "… the same, clients without a NAT, whom late packets draw away", upgrade(ctx))
}

// upgrade replaces three replicas, one after the other.
func upgrade(ctx context.Context) func(*replicas) error {
	return func(r *replicas) error {
		for i := range 3 {
			if err := r.grow(ctx); err != nil {
				return err
			}
			if err := r.known(ctx, 4); err != nil {
				return err
			}
			if err := r.retire(ctx, i); err != nil {
				return err
			}
		}
		return nil
	}
}

func scaleIn(ctx context.Context, b *bench) (row, error) {
	return b.manyMoved(ctx, setting{servers: 5, clients: crowdSize, nat: true}, "Scale-in from 5 replicas to 2", func(r *replicas) error {
		var errs [3]error
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() { errs[i] = r.retire(ctx, i) })
		}
		all.Wait()
		return errors.Join(errs[:]...)
	})
}

// manyMoved is a row of an event that moves many clients.
func (b *bench) manyMoved(ctx context.Context, s setting, what string, event func(*replicas) error) (row, error) {
	b.progress("%s, under %d clients", what, crowdSize)
	measure := func(after time.Duration) func(*replicas) (cost, error) {
		return func(r *replicas) (cost, error) {
			return r.during(func() error { return event(r) }, after)
		}
	}
	ours, err := b.event(ctx, s, measure(2*time.Second))
	if err != nil {
		return row{}, fmt.Errorf("%s: %w", what, err)
	}
	s.native = true
	native, err := b.event(ctx, s, measure(nativeWaits))
	if err != nil {
		return row{}, fmt.Errorf("%s, wireguard-go: %w", what, err)
	}
	return row{
		what: fmt.Sprintf("%s, %d clients at 100 packets a second: outage of each that had one, median / worst, and packets lost; none left behind", what, crowdSize),
		ours: ours.text(), peer: native.text(), ratio: timesShorter(native.worst(), ours.worst()),
		goal: "≤ " + ms(moveGoal) + " each", met: ours.worst() <= moveGoal,
	}, nil
}

func killed(ctx context.Context, b *bench) (row, error) {
	return b.death(ctx, "Replica killed with SIGKILL", killGoal, func(r *replicas) error { return r.running[0].kill() })
}

func nodeGone(ctx context.Context, b *bench) (row, error) {
	return b.death(ctx, "Node gone without a word", nodeGoal, func(r *replicas) error {
		return r.running[0].network().SetUp(netns.UplinkInterface, false)
	})
}

// death is a row of a replica that dies. The load balancer learns of it when a
// survivor knows; with wireguard-go alone, as long after the death as it took ours,
// though nobody would tell it.
func (b *bench) death(ctx context.Context, what string, goal time.Duration, die func(*replicas) error) (row, error) {
	b.progress("%s, under %d clients", what, crowdSize)
	var noticed time.Duration
	s := setting{servers: 3, clients: crowdSize, nat: true}
	ours, err := b.event(ctx, s, func(r *replicas) (cost, error) {
		return r.during(func() error {
			start := time.Now()
			if err := die(r); err != nil {
				return err
			}
			if err := r.awaitDead(ctx, 1, 0); err != nil {
				return err
			}
			noticed = time.Since(start)
			_, err := r.balancer.Remove(r.pod(0))
			return err
		}, 2*time.Second)
	})
	if err != nil {
		return row{}, fmt.Errorf("%s: %w", what, err)
	}
	s.native = true
	native, err := b.event(ctx, s, func(r *replicas) (cost, error) {
		return r.during(func() error {
			if err := die(r); err != nil {
				return err
			}
			time.Sleep(noticed)
			_, err := r.balancer.Remove(r.pod(0))
			return err
		}, nativeWaits)
	})
	if err != nil {
		return row{}, fmt.Errorf("%s, wireguard-go: %w", what, err)
	}
	return row{
		what: fmt.Sprintf("%s, noticed by the others after %s (wireguard-go's load balancer is told as soon, though nobody would): outage of each client that had one, median / worst", what, ms(noticed)),
		ours: ours.text(), peer: native.text(), ratio: timesShorter(native.worst(), ours.worst()),
		goal: "≤ " + ms(goal), met: ours.worst() <= goal,
	}, nil
}

// timesShorter is how much longer the peer's outage is.
func timesShorter(peer, ours time.Duration) string {
	if ours <= 0 {
		return ""
	}
	return fmt.Sprintf("%.0f × shorter", float64(peer)/float64(ours))
}
