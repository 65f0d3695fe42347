package fleet

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

func TestMemory(t *testing.T) {
	good := []Session{session(1, 1, 2, "a", 0), session(2, 9, 3, "a", time.Minute)}
	for _, tt := range []struct {
		name      string
		spoil     func([]byte) []byte
		want      []Session
		malformed bool
	}{
		{name: "as written", spoil: func(b []byte) []byte { return b }, want: good},
		{name: "of before the machine was started", spoil: func(b []byte) []byte {
			binary.BigEndian.PutUint64(b[1:], uint64(1<<62))
			return b
		}},
		{name: "of long ago", spoil: func(b []byte) []byte {
			binary.BigEndian.PutUint64(b[1:], binary.BigEndian.Uint64(b[1:])-uint64(sessionLifetime))
			return b
		}},
		{name: "of a minute ago", spoil: func(b []byte) []byte {
			binary.BigEndian.PutUint64(b[1:], binary.BigEndian.Uint64(b[1:])-uint64(time.Minute))
			return b
		}, want: []Session{session(1, 1, 2, "a", time.Minute), session(2, 9, 3, "a", 2*time.Minute)}},
		{name: "cut short", spoil: func(b []byte) []byte { return b[:len(b)-1] }, malformed: true},
		{name: "cut shorter", spoil: func(b []byte) []byte { return b[:3] }, malformed: true},
		{name: "empty", spoil: func([]byte) []byte { return nil }, malformed: true},
		{name: "of another version", spoil: func(b []byte) []byte { b[0]++; return b }, malformed: true},
		{name: "of something else", spoil: func([]byte) []byte { return []byte("sessions") }, malformed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sessions")
			if err := writeMemory(path, good, epoch); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, tt.spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readMemory(path, epoch)
			if errors.Is(err, errMalformed) != tt.malformed || (err == nil) == tt.malformed {
				t.Errorf("error %v, want malformed: %t", err, tt.malformed)
			}
			// The clock goes on between writing and reading.
			near := cmp.Comparer(func(a, b Session) bool {
				d := a.Since.Sub(b.Since).Abs()
				a.Since, b.Since = time.Time{}, time.Time{}
				return d < time.Second && a == b
			})
			if d := cmp.Diff(tt.want, got, near, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	if got, err := readMemory(filepath.Join(t.TempDir(), "none"), epoch); got != nil || err != nil {
		t.Errorf("without a file: %v, %v", got, err)
	}
}

// TestMemoryIsBounded writes no more than what the volume has room for, twice.
func TestMemoryIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sessions")
	if err := writeMemory(path, make([]Session, memoryMost/wireSession+1), epoch); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > memoryMost {
		t.Errorf("%v, %v: want %d bytes at most", info.Size(), err, memoryMost)
	}
}

// TestReborn starts a Pod's process anew, after it was killed.
func TestReborn(t *testing.T) {
	alice, bob, carol := person(1), person(2), person(3)
	peers := []Peer{{PublicKey: alice}, {PublicKey: bob}, {PublicKey: carol}}
	for _, inherited := range []bool{false, true} {
		tr := newTroupe(t, peers, "a")
		tr.serve("a", alice, 1)
		tr.serve("a", bob, 2)
		tr.pass(time.Minute)
		tr.serve("a", bob, 3)
		own := tr.all["a"].Own()
		slices.SortFunc(own, func(a, b Session) int { return int(a.Index) - int(b.Index) })
		if len(own) != 2 || own[0].Index != 1 || own[1].Index != 3 {
			t.Fatalf("own sessions: %+v", own)
		}
		a := NewReplica("a", inherited)
		a.Configure(peers)
		e := a.Remembered(own, tr.now)
		tr.all["a"] = a
		if inherited {
			tr.want("its own session", tr.stranger("a", 1, home), NotRefused)
			tr.pass(orphanedAfter)
			tr.want("nobody is called", a.Tick(tr.now), NotRefused)
			continue
		}
		slices.Sort(e.Strangers)
		if d := cmp.Diff([]uint32{1, 3}, e.Strangers); d != "" {
			t.Errorf("strangers (-want +got):\n%s", d)
		}
		there := netip.MustParseAddrPort("192.0.2.77:1")
		tr.want("who sends is called where it is", tr.stranger("a", 1, there), NotRefused, Call{Peer: alice, Port: 51820, Endpoint: there})
		tr.serve("a", alice, 4)
		tr.want("who does not has its time", a.Tick(tr.now), NotRefused)
		tr.pass(orphanedAfter)
		tr.want("and is called where it was", a.Tick(tr.now), NotRefused, Call{Peer: bob, Port: 51820, Endpoint: home})
		a.Started(5, bob, false, tr.now)
		a.Confirmed(5, tr.now)
		for range 10 {
			tr.pass(orphanEvery)
			if e := a.Tick(tr.now); slices.ContainsFunc(e.Calls, func(c Call) bool { return c.Peer != (key.Public{}) }) {
				t.Errorf("called again: %+v", e.Calls)
			}
		}
	}
}
