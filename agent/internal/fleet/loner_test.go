package fleet

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// newLoner has no siblings, and one peer.
func newLoner(t *testing.T, alice key.Public, watch func(add, _ []uint32) error) *Fleet {
	t.Helper()
	f, err := Start(t.Context(), Options{
		Name: "a", Address: netip.MustParseAddrPort("127.0.0.1:0"), Log: slog.New(slog.DiscardHandler),
		Initial: &spec.Snapshot{
			ServerKeys: []spec.ServerKey{{Key: key.GeneratePrivate(), Slot: key.Blue}},
			Peers:      []spec.Peer{{PublicKey: alice}},
		},
		Watch: watch,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestGossipOfOne: a replica without siblings keeps nothing for them.
func TestGossipOfOne(t *testing.T) {
	alice := key.Public{1}
	f := newLoner(t, alice, func(_, _ []uint32) error { return nil })
	for i := range uint32(100) {
		f.do(func(now time.Time) Effects {
			f.replica.Started(i, alice, true, now)
			return f.replica.Confirmed(i, now)
		})
	}
	for range 500 {
		if f.queue.NumQueued() == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d sessions wait to be gossiped to nobody", f.queue.NumQueued())
}

// TestKeysOfSiblings: a sibling whose clock is ahead or behind is understood, at the moment
// at which a key takes the slot of another one, or without overlap its place.
func TestKeysOfSiblings(t *testing.T) {
	f := newLoner(t, key.Public{1}, func(_, _ []uint32) error { return nil })
	s, now := *f.snapshot, time.Now()
	first, second := s.ServerKeys[0], spec.ServerKey{Key: key.GeneratePrivate(), Slot: key.Blue, From: now}
	s.ServerKeys = []spec.ServerKey{first, second}
	for after, want := range map[time.Duration]struct {
		primary spec.ServerKey
		keys    int
	}{-time.Second: {first, 2}, 0: {second, 2}, time.Second: {second, 2}, keyLasts: {second, 1}} {
		primary, err := messageKey(want.primary.Key)
		if err != nil {
			t.Fatal(err)
		}
		f.do(func(time.Time) Effects { // and no tick in between
			f.snapshot = &s
			f.useKeys(now.Add(after))
			if n := len(f.ring.GetKeys()); n != want.keys || !bytes.Equal(f.ring.GetPrimaryKey(), primary) {
				t.Errorf("%s after the change: %d keys, want %d, or the wrong one is used", after, n, want.keys)
			}
			return Effects{}
		})
	}
}

// TestWatchAgain: indices that the kernel refused to watch are not forgotten.
func TestWatchAgain(t *testing.T) {
	alice, watched := key.Public{1}, make(chan []uint32, 16)
	fails := true
	f := newLoner(t, alice, func(add, _ []uint32) error {
		if fails {
			fails = false
			return errors.New("no buffer space available")
		}
		watched <- add
		return nil
	})
	f.do(func(now time.Time) Effects {
		return f.replica.Heard([]Session{{Index: 7, Peer: IDOf(alice), Seq: 1, Holder: ReplicaIDOf("b"), Since: now}}, now)
	})
	select {
	case add := <-watched:
		if len(add) != 1 || add[0] != 7 {
			t.Errorf("watched are %v, want 7", add)
		}
	case <-time.After(10 * time.Second):
		t.Error("never tried again")
	}
}
