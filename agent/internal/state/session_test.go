package state

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func TestSessionsLook(t *testing.T) {
	here, there := netip.MustParseAddrPort("192.0.2.1:1000"), netip.MustParseAddrPort("198.51.100.1:2000")
	k := key.Public{1}
	// A step is an observation, at a second since the start. A handshake is
	// such a second too; 0 means that there was none.
	type step struct {
		at, handshake int
		endpoint      netip.AddrPort
		sent          int64
		gone          bool
		want          Activity
		wantEvents    []Event
	}
	connected := []Event{{Kind: PeerConnected, PublicKey: k, To: here}}
	disconnected := []Event{{Kind: PeerDisconnected, PublicKey: k, To: here}}
	tests := []struct {
		name  string
		steps []step
	}{
		{"never heard of", []step{
			{at: 1, want: Never},
			{at: 900, want: Never},
		}},
		{"called in vain from the start", []step{
			{at: 1, endpoint: here, sent: 148, want: Never},
			{at: 100, endpoint: here, sent: 1480, want: Never},
		}},
		{"connects, and lasts exactly a session's lifetime", []step{
			{at: 1, want: Never},
			{at: 10, handshake: 9, endpoint: here, want: Connected, wantEvents: connected},
			{at: 188, handshake: 9, endpoint: here, want: Connected},
			{at: 189, handshake: 9, endpoint: here, want: Idle, wantEvents: disconnected},
		}},
		{"renews its session", []step{
			{at: 10, handshake: 9, endpoint: here, want: Connected, wantEvents: connected},
			{at: 150, handshake: 129, endpoint: here, sent: 5000, want: Connected},
			{at: 300, handshake: 249, endpoint: here, sent: 9000, want: Connected},
		}},
		{"found connected, clock of the system behind", []step{
			{at: 10, handshake: 12, endpoint: here, want: Connected, wantEvents: connected},
		}},
		{"found idle at start-up", []step{
			{at: 1000, handshake: 9, endpoint: here, sent: 7777, want: Idle},
			{at: 1030, handshake: 9, endpoint: here, sent: 7777, want: Idle},
			{at: 1060, handshake: 9, endpoint: here, sent: 7777, want: Idle},
		}},
		{"roams", []step{
			{at: 10, handshake: 9, endpoint: here, want: Connected, wantEvents: connected},
			{at: 20, handshake: 9, endpoint: there, want: Connected, wantEvents: []Event{{Kind: PeerRoamed, PublicKey: k, From: here, To: there}}},
			{at: 30, handshake: 9, endpoint: there, want: Connected},
		}},
		{"comes back from elsewhere: a connection, no roaming", []step{
			{at: 10, handshake: 9, endpoint: there, want: Connected, wantEvents: []Event{{Kind: PeerConnected, PublicKey: k, To: there}}},
			{at: 300, handshake: 9, endpoint: there, want: Idle, wantEvents: []Event{{Kind: PeerDisconnected, PublicKey: k, To: there}}},
			{at: 310, handshake: 309, endpoint: here, want: Connected, wantEvents: connected},
		}},
		{"an endpoint becomes known: no roaming", []step{
			{at: 10, handshake: 9, want: Connected, wantEvents: []Event{{Kind: PeerConnected, PublicKey: k}}},
			{at: 20, handshake: 9, endpoint: here, want: Connected},
		}},
		{"an idle peer is given another endpoint: nothing happened", []step{
			{at: 900, handshake: 9, endpoint: here, want: Idle},
			{at: 910, handshake: 9, endpoint: there, want: Idle},
		}},
		{"what was sent before the session's end is no call", []step{
			{at: 10, handshake: 9, endpoint: here, sent: 100, want: Connected, wantEvents: connected},
			{at: 200, handshake: 9, endpoint: here, sent: 900, want: Idle, wantEvents: disconnected},
			{at: 300, handshake: 9, endpoint: here, sent: 900, want: Idle},
		}},
		{"dead once calls stayed unanswered for 15 s", []step{
			{at: 900, handshake: 9, endpoint: here, sent: 100, want: Idle},
			{at: 930, handshake: 9, endpoint: here, sent: 248, want: Idle},
			{at: 944, handshake: 9, endpoint: here, sent: 396, want: Idle},
			{at: 945, handshake: 9, endpoint: here, sent: 396, want: Dead},
		}},
		{"dead for as long as it is called", []step{
			{at: 900, handshake: 9, endpoint: here, sent: 100, want: Idle},
			{at: 930, handshake: 9, endpoint: here, sent: 248, want: Idle},
			{at: 1000, handshake: 9, endpoint: here, sent: 396, want: Dead},
			{at: 2000, handshake: 9, endpoint: here, sent: 544, want: Dead},
		}},
		{"idle again once the gateway gave up", []step{
			{at: 900, handshake: 9, endpoint: here, sent: 100, want: Idle},
			{at: 930, handshake: 9, endpoint: here, sent: 248, want: Idle},
			{at: 960, handshake: 9, endpoint: here, sent: 396, want: Dead},
			{at: 1110, handshake: 9, endpoint: here, sent: 396, want: Dead},
			{at: 1111, handshake: 9, endpoint: here, sent: 396, want: Idle},
			{at: 1200, handshake: 9, endpoint: here, sent: 544, want: Idle},
			{at: 1215, handshake: 9, endpoint: here, sent: 692, want: Dead},
		}},
		{"dead and answers", []step{
			{at: 900, handshake: 9, endpoint: here, sent: 100, want: Idle},
			{at: 930, handshake: 9, endpoint: here, sent: 248, want: Idle},
			{at: 960, handshake: 9, endpoint: here, sent: 396, want: Dead},
			{at: 970, handshake: 965, endpoint: here, sent: 544, want: Connected, wantEvents: connected},
			{at: 1200, handshake: 965, endpoint: here, sent: 900, want: Idle, wantEvents: disconnected},
			{at: 1230, handshake: 965, endpoint: here, sent: 900, want: Idle},
		}},
		{"taken off the device while connected, and put back", []step{
			{at: 10, handshake: 9, endpoint: here, sent: 900, want: Connected, wantEvents: connected},
			{at: 20, gone: true, wantEvents: disconnected},
			{at: 30, gone: true},
			{at: 40, want: Never},
			{at: 50, handshake: 49, endpoint: here, sent: 92, want: Connected, wantEvents: connected},
		}},
		{"taken off the device while idle", []step{
			{at: 900, handshake: 9, endpoint: here, want: Idle},
			{at: 910, gone: true},
		}},
		{"the device was made anew between two looks", []step{
			{at: 10, handshake: 9, endpoint: here, sent: 900, want: Connected, wantEvents: connected},
			{at: 20, want: Never, wantEvents: []Event{{Kind: PeerDisconnected, PublicKey: k}}},
		}},
	}
	epoch := time.Unix(1_700_000_000, 0)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var sessions Sessions
			for _, s := range tt.steps {
				peers := map[key.Public]ObservedPeer{}
				if !s.gone {
					p := ObservedPeer{Peer: Peer{PublicKey: k, Endpoint: s.endpoint}, TransmitBytes: s.sent}
					if s.handshake != 0 {
						p.LastHandshake = epoch.Add(time.Duration(s.handshake) * time.Second)
					}
					peers[k] = p
				}
				events, err := sessions.Look(Each(peers), epoch.Add(time.Duration(s.at)*time.Second))
				if err != nil {
					t.Fatal(err)
				}
				if got := sessions.Of(k).Activity; got != s.want {
					t.Errorf("at %d s: got %q, want %q", s.at, got, s.want)
				}
				if diff := cmp.Diff(s.wantEvents, events, byValue); diff != "" {
					t.Errorf("at %d s: events (-want +got):\n%s", s.at, diff)
				}
				if len(sessions.peers) != len(peers) {
					t.Errorf("at %d s: %d sessions of %d peers", s.at, len(sessions.peers), len(peers))
				}
			}
		})
	}
}

// What a look did not come to is not gone.
func TestSessionsLookThatFails(t *testing.T) {
	now, broken := time.Unix(1_700_000_000, 0), errors.New("broken")
	a, b := key.Public{1}, key.Public{2}
	peers := map[key.Public]ObservedPeer{
		a: {Peer: Peer{PublicKey: a}, LastHandshake: now},
		b: {Peer: Peer{PublicKey: b}, LastHandshake: now},
	}
	var sessions Sessions
	if _, err := sessions.Look(Each(peers), now); err != nil {
		t.Fatal(err)
	}
	events, err := sessions.Look(func(visit func(*ObservedPeer)) error {
		visit(&ObservedPeer{Peer: Peer{PublicKey: a}})
		return broken
	}, now)
	if !errors.Is(err, broken) {
		t.Errorf("error: got %v, want %v", err, broken)
	}
	if diff := cmp.Diff([]Event{{Kind: PeerDisconnected, PublicKey: a}}, events, byValue); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[Activity]int{Connected: 1, Idle: 0, Dead: 0, Never: 1, Elsewhere: 0}, sessions.Count(nil)); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

func TestEventsAreSorted(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	peers := map[key.Public]ObservedPeer{}
	var want, got []key.Public
	for i := range 50 {
		k := key.Public{byte(i)}
		peers[k] = ObservedPeer{Peer: Peer{PublicKey: k}, LastHandshake: now}
		want = append(want, k)
	}
	events, err := new(Sessions).Look(Each(peers), now)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		got = append(got, e.PublicKey)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of events (-want +got):\n%s", diff)
	}
}

func TestSessionsCount(t *testing.T) {
	tests := []struct {
		name     string
		sessions Sessions
		fleet    *Fleet
		want     map[Activity]int
	}{
		{"none", Sessions{}, nil, map[Activity]int{Connected: 0, Idle: 0, Dead: 0, Never: 0, Elsewhere: 0}},
		{"some", Sessions{peers: map[key.Public]Session{{1}: {Activity: Dead}, {2}: {Activity: Never}, {3}: {Activity: Dead}}}, nil,
			map[Activity]int{Connected: 0, Idle: 0, Dead: 2, Never: 1, Elsewhere: 0}},
		{"some with others, one of them not yet", Sessions{peers: map[key.Public]Session{{1}: {Activity: Connected}, {2}: {Activity: Never}, {3}: {Activity: Never}}},
			&Fleet{Elsewhere: map[key.Public]string{{1}: "b", {2}: "b"}},
			map[Activity]int{Connected: 1, Idle: 0, Dead: 0, Never: 1, Elsewhere: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.sessions.Count(tt.fleet)); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
		})
	}
}
