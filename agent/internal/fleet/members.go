package fleet

import (
	"encoding/json"
	"log"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// A sibling that does not answer is dead after a second or two: it is asked every
// probeEvery, has probeWithin to answer itself or by others, and is suspected for
// suspicion × probeEvery before it is called dead, whether or not others suspect it too:
// where most of the replicas die with a node, the one that is left has nobody to agree
// with it. A replica that is short of CPU gives others up to slowdown times as long
// (Lifeguard, arXiv:1707.00788).
const (
	probeEvery  = 250 * time.Millisecond
	probeWithin = 150 * time.Millisecond
	suspicion   = 4
	slowdown    = 4
	gossipEvery = 100 * time.Millisecond
	// gossipTo siblings at a time, each message retransmits × log10(replicas+1) times.
	gossipTo    = 3
	retransmits = 4
	// sessionRetransmits is for sessions, all of which are sent straight to everybody
	// first: what is lost there arrives so, and packets do not fill up.
	sessionRetransmits = 3
	// compareEvery is how often to compare everything with one sibling.
	compareEvery = 30 * time.Second
	// packetSize fits the least MTU of IPv6 (1280 bytes), WireGuard or VXLAN around it.
	packetSize = 1180
)

const (
	refusedEncryption = "encryption"
	refusedMalformed  = "malformed"
)

// meta is what a replica says of itself.
type meta struct {
	Draining bool       `json:"draining,omitempty"`
	LinkKey  key.Public `json:"linkKey,omitzero"`
	LinkPort uint16     `json:"linkPort,omitempty"`
}

func (f *Fleet) config(network memberlist.Transport) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = f.options.Name
	c.Transport = network
	c.BindAddr, c.BindPort = f.options.Address.Addr().String(), int(f.options.Address.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.Keyring = f.ring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.ProbeInterval, c.ProbeTimeout = probeEvery, probeWithin
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicion, 1
	c.AwarenessMaxMultiplier = slowdown
	c.GossipInterval, c.GossipNodes, c.RetransmitMult = gossipEvery, gossipTo, retransmits
	c.GossipToTheDeadTime = 30 * time.Second // a partition that heals is noticed by itself
	c.PushPullInterval = compareEvery
	c.TCPTimeout = 2 * time.Second
	c.DeadNodeReclaimTime = time.Second // Pods of a StatefulSet come back by the same name
	c.EnableCompression = false         // sessions are random numbers
	c.UDPBufferSize = packetSize
	c.HandoffQueueDepth = 16384
	c.Delegate, c.Events = delegate{f}, events{f}
	c.Logger = log.New(logWriter{f}, "", 0)
	return c
}

func addressOf(n *memberlist.Node) netip.Addr {
	a, _ := netip.AddrFromSlice(n.Addr)
	return a.Unmap()
}

// replicas is how many are alive, this one included.
func (f *Fleet) replicas() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 1
	for _, s := range f.siblings {
		if s.state == Alive || s.state == Draining {
			n++
		}
	}
	return n
}

// events hears from memberlist who comes and goes. It holds a lock meanwhile: nothing
// here may call it back.
type events struct{ *Fleet }

// NotifyJoin implements [memberlist.EventDelegate].
func (e events) NotifyJoin(n *memberlist.Node) { e.note(n, Alive) }

// NotifyUpdate implements [memberlist.EventDelegate].
func (e events) NotifyUpdate(n *memberlist.Node) { e.note(n, Alive) }

// NotifyLeave implements [memberlist.EventDelegate]. It does not say whether the node
// has left or is dead; but who leaves was draining before.
func (e events) NotifyLeave(n *memberlist.Node) { e.note(n, Dead) }

func (e events) note(n *memberlist.Node, now MemberState) {
	if n.Name == e.options.Name {
		return
	}
	var m meta
	if len(n.Meta) > 0 {
		if err := json.Unmarshal(n.Meta, &m); err != nil {
			e.refusedMessages.count(refusedMalformed)
		}
	}
	switch {
	case now == Alive && m.Draining:
		now = Draining
	case now == Dead && m.Draining:
		now = Left
	}
	kept := *n // memberlist changes its own
	e.mu.Lock()
	was := e.siblings[n.Name]
	since := was.since
	if was.state != now {
		since = time.Now()
	}
	e.siblings[n.Name] = sibling{node: &kept, meta: m, state: now, since: since}
	e.mu.Unlock()
	if was.state != now {
		if now != Alive { // its peers are about to come
			e.moving()
		}
		e.options.Log.Info("replica has another state", "replica", n.Name, "state", string(now), "address", addressOf(n).String())
	}
	e.membersChanged()
}

// membersChanged tells the replica who is alive.
func (f *Fleet) membersChanged() {
	wake(f.moved)
	f.do(func(time.Time) Effects {
		members := []Member{{Name: f.options.Name, Draining: f.draining}}
		for name, s := range f.siblings {
			if s.state == Alive || s.state == Draining {
				members = append(members, Member{Name: name, Draining: s.state == Draining})
			}
		}
		e := f.replica.SetMembers(members)
		e.Elsewhere = true // siblings are part of the state, too
		return e
	})
}

// linked are the siblings that packets can be passed on to.
func (f *Fleet) linked() []state.Sibling {
	var out []state.Sibling
	for name, s := range f.siblings {
		if s.state == Alive || s.state == Draining {
			out = append(out, state.Sibling{
				Name: name, Address: addressOf(s.node), LinkKey: s.meta.LinkKey, LinkPort: s.meta.LinkPort,
			})
		}
	}
	slices.SortFunc(out, func(a, b state.Sibling) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// MemberInfo is a replica, as this one sees it.
type MemberInfo struct {
	Name    string
	Address netip.Addr
	State   MemberState
	Since   time.Time
}

// Members are all replicas by name, those that are gone for a minute after.
func (f *Fleet) Members() []MemberInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	self := MemberInfo{Name: f.options.Name, Address: f.options.Address.Addr(), State: Alive}
	if f.draining {
		self.State = Draining
	}
	out := []MemberInfo{self}
	for name, s := range f.siblings {
		out = append(out, MemberInfo{Name: name, Address: addressOf(s.node), State: s.state, Since: s.since})
	}
	slices.SortFunc(out, func(a, b MemberInfo) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Answering asks siblings whether they are there, and returns those that say so within
// probeWithin. What the fleet knows of the others may be two seconds old.
func (f *Fleet) Answering(names []string) []string {
	f.mu.Lock()
	addresses := make([]*net.UDPAddr, len(names)) // nil: nobody has heard of it
	for i, name := range names {
		if n := f.siblings[name].node; n != nil {
			addresses[i] = &net.UDPAddr{IP: n.Addr, Port: int(n.Port)}
		}
	}
	f.mu.Unlock()
	answered := make([]bool, len(names))
	var all sync.WaitGroup
	for i, address := range addresses {
		if address != nil {
			all.Go(func() {
				_, err := f.list.Ping(names[i], address)
				answered[i] = err == nil
			})
		}
	}
	all.Wait()
	var out []string
	for i, name := range names {
		if answered[i] {
			out = append(out, name)
		}
	}
	return out
}

// View is what people and autoscalers are told.
func (f *Fleet) View() telemetry.FleetView {
	members := f.Members()
	f.mu.Lock()
	connected := f.replica.Connected(time.Now())
	f.mu.Unlock()
	v := telemetry.FleetView{Replica: f.options.Name, Members: []telemetry.FleetMember{}}
	for _, m := range members {
		n := connected[m.Name]
		v.Members = append(v.Members, telemetry.FleetMember{
			Name: m.Name, Address: m.Address.String(), State: string(m.State), ConnectedPeers: n,
		})
		switch m.State {
		case Draining:
			v.Draining++
			fallthrough
		case Alive:
			v.Replicas++
			v.ConnectedPeers += n
		case Dead, Left:
		}
	}
	v.PerReplica = float64(v.ConnectedPeers) / float64(v.Replicas)
	return v
}
