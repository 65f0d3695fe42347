package netns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// Balancer is a load balancer in front of Pods: each client's packets for a public
// address go to one of those that are in service, and stay there until it leaves or
// [Balancer.Move] sends them elsewhere. Its methods may be called from any goroutine.
type Balancer struct {
	topology *Topology
	public   netip.AddrPort

	sync sync.Mutex // one change of the way of clients at a time

	mu      sync.Mutex
	pods    []netip.AddrPort
	clients map[netip.Addr]netip.AddrPort
	leaving []netip.AddrPort       // Pods that clients are still sent to
	left    map[netip.AddrPort]int // how many clients a Pod had that is gone
	next    int
}

// NewBalancer balances what comes for a public address of the node.
func NewBalancer(t *Topology, public netip.AddrPort) *Balancer {
	return &Balancer{topology: t, public: public, clients: map[netip.Addr]netip.AddrPort{}, left: map[netip.AddrPort]int{}}
}

// Add takes a Pod into service. Clients that are there stay where they are.
func (b *Balancer) Add(pod netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pods = append(b.pods, pod)
	delete(b.left, pod)
}

// Client sends a new client to the Pods in turn.
func (b *Balancer) Client(a netip.Addr) error {
	b.sync.Lock()
	defer b.sync.Unlock()
	b.mu.Lock()
	if len(b.pods) == 0 {
		b.mu.Unlock()
		return fmt.Errorf("client %s: no Pod is in service", a)
	}
	pod := b.turn()
	b.mu.Unlock()
	return b.move(a, pod)
}

func (b *Balancer) turn() netip.AddrPort {
	b.next++
	return b.pods[b.next%len(b.pods)]
}

// Move sends a client's packets to a Pod, in service or not.
func (b *Balancer) Move(a netip.Addr, pod netip.AddrPort) error {
	b.sync.Lock()
	defer b.sync.Unlock()
	return b.move(a, pod)
}

func (b *Balancer) move(a netip.Addr, pod netip.AddrPort) error {
	b.mu.Lock()
	b.clients[a] = pod
	b.mu.Unlock()
	return b.topology.Move(b.public, map[netip.Addr]netip.AddrPort{a: pod})
}

// Remove takes a Pod out of service and sends its clients to the others in turn, all at
// one moment. It returns how many those were. As with kube-proxy, those Pods go together
// that are removed while a change is under way.
func (b *Balancer) Remove(pod netip.AddrPort) (moved int, err error) {
	b.mu.Lock()
	b.pods = slices.DeleteFunc(b.pods, func(p netip.AddrPort) bool { return p == pod })
	b.leaving = append(b.leaving, pod)
	b.mu.Unlock()

	b.sync.Lock()
	defer b.sync.Unlock()
	to, moved, err := b.leave(pod)
	if err != nil {
		return 0, err
	}
	return moved, b.topology.Move(b.public, to)
}

// leave sends all clients elsewhere whose Pod is gone, and returns how many of them were
// with one Pod.
func (b *Balancer) leave(pod netip.AddrPort) (to map[netip.Addr]netip.AddrPort, moved int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pods) == 0 {
		return nil, 0, fmt.Errorf("removing %s: it is the last one in service", pod)
	}
	to = map[netip.Addr]netip.AddrPort{}
	for _, a := range slices.SortedFunc(maps.Keys(b.clients), netip.Addr.Compare) {
		if at := b.clients[a]; slices.Contains(b.leaving, at) {
			b.left[at]++
			to[a] = b.turn()
		}
	}
	b.leaving = nil
	maps.Copy(b.clients, to)
	return to, b.left[pod], nil
}

// KnowFlows is [Topology.KnowFlows] for those who are connected.
func (b *Balancer) KnowFlows() error {
	b.sync.Lock()
	defer b.sync.Unlock()
	return b.topology.KnowFlows(b.public)
}

// At returns the clients of a Pod.
func (b *Balancer) At(pod netip.AddrPort) []netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []netip.Addr
	for a, p := range b.clients {
		if p == pod {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
