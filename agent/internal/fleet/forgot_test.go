package fleet

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// TestForgot: where the device was told to forget a peer that had come meanwhile, what it
// had with us does not count as ours, and it is called at once.
func TestForgot(t *testing.T) {
	alice, at, now := key.Public{1}, netip.MustParseAddrPort("192.0.2.1:4500"), time.Now()
	come := func() *Replica {
		r := NewReplica("a", false)
		r.Configure([]Peer{{PublicKey: alice}})
		r.SetMembers([]Member{{Name: "a"}, {Name: "b"}})
		r.Heard([]Session{{Index: 1, Peer: IDOf(alice), Seq: 1, Holder: ReplicaIDOf("b"), Since: now}}, now)
		r.Started(7, alice, true, now)
		r.Located(7, 51820, at)
		return r
	}

	r := come()
	r.Confirmed(7, now)
	if len(r.Elsewhere()) != 0 || !r.Holds(alice) {
		t.Fatal("it has not come")
	}
	e := r.Forgot([]key.Public{alice}, now)
	if len(e.Calls) != 1 || e.Calls[0] != (Call{Peer: alice, Port: 51820, Endpoint: at}) || !slices.Equal(e.Strangers, []uint32{7}) {
		t.Errorf("its session is lost, and what follows is %+v", e)
	}
	if e := r.Forgot([]key.Public{alice}, now); len(e.Calls)+len(e.Strangers) != 0 {
		t.Errorf("it is told twice, and what follows is %+v", e)
	}

	if r.Holds(alice) {
		t.Error("its session is lost, and counts")
	}

	r = come() // and has not said anything yet
	r.Forgot([]key.Public{alice}, now)
	r.Confirmed(7, now)
	if e := r.Stranger(7, 51820, at, now.Add(time.Millisecond)); len(e.Calls) != 1 || e.Calls[0].Nudge {
		t.Errorf("it sends by a session that is lost, and what follows is %+v", e)
	}
}
