package fleet

import (
	"bytes"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWireRoundTrip(t *testing.T) {
	for _, tt := range []struct {
		name       string
		sent, want []Session
	}{
		{name: "none", want: []Session{}},
		{
			name: "several",
			sent: []Session{session(1, 1, 2, "a", 0), session(math.MaxUint32, 9, math.MaxUint32, "b", 150*time.Second)},
			want: []Session{session(1, 1, 2, "a", 0), session(math.MaxUint32, 9, math.MaxUint32, "b", 150*time.Second)},
		},
		{name: "age in full steps", sent: []Session{session(1, 1, 2, "a", wireAge*3/2)}, want: []Session{session(1, 1, 2, "a", wireAge)}},
		{name: "over for long", sent: []Session{session(1, 1, 2, "a", time.Hour)}, want: []Session{session(1, 1, 2, "a", math.MaxUint16*wireAge)}},
		{name: "from the future", sent: []Session{session(1, 1, 2, "a", -time.Hour)}, want: []Session{session(1, 1, 2, "a", 0)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decode(encode(tt.sent, epoch), epoch)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	if longest := math.MaxUint16 * wireAge; longest <= sessionLifetime {
		t.Errorf("the greatest age is %s, by which no session is over", longest)
	}
}

func TestWireRefuses(t *testing.T) {
	good := encode([]Session{session(1, 1, 2, "a", 0), session(2, 1, 3, "a", 0)}, epoch)
	for n := range good {
		_, err := decode(good[:n], epoch)
		if whole := n%wireSession == 1; whole != (err == nil) {
			t.Errorf("first %d bytes of %d: error %v", n, len(good), err)
		} else if err != nil && !errors.Is(err, errMalformed) {
			t.Errorf("first %d bytes: error %v is no errMalformed", n, err)
		}
	}
	for version := range 256 {
		b := bytes.Clone(good)
		b[0] = byte(version)
		if _, err := decode(b, epoch); (version == wireVersion) != (err == nil) {
			t.Errorf("version %d: error %v", version, err)
		}
	}
	if _, err := decode(append([]byte{wireVersion}, make([]byte, (mostSessions+1)*wireSession)...), epoch); err == nil {
		t.Error("too long a message was read")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{wireVersion})
	f.Add(encode([]Session{session(1, 1, 2, "a", 0), session(2, 1, 3, "b", 199*time.Second)}, epoch))
	f.Fuzz(func(t *testing.T, b []byte) {
		sessions, err := decode(b, epoch)
		if err != nil {
			if !errors.Is(err, errMalformed) || sessions != nil {
				t.Fatalf("%d sessions and error %v", len(sessions), err)
			}
			return
		}
		if d := cmp.Diff(b, encode(sessions, epoch)); d != "" {
			t.Fatalf("not what was read:\n%s", d)
		}
		// Whatever a sibling says, the replica stands it, and forgets it in time.
		r := NewReplica("a", false)
		r.Heard(sessions, epoch)
		r.Heard(sessions, epoch)
		r.Tick(epoch.Add(sessionLifetime))
		if n := len(r.table.peers) + len(r.table.indices) + len(r.mine) + len(r.elsewhere); n != 0 {
			t.Fatalf("%d entries are left", n)
		}
	})
}
