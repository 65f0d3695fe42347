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

	mu      sync.Mutex
	pods    []netip.AddrPort
	clients map[netip.Addr]netip.AddrPort
	next    int
}

// NewBalancer balances what comes for a public address of the node.
func NewBalancer(t *Topology, public netip.AddrPort) *Balancer {
	return &Balancer{topology: t, public: public, clients: map[netip.Addr]netip.AddrPort{}}
}

// Add takes a Pod into service. Clients that are there stay where they are.
func (b *Balancer) Add(pod netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pods = append(b.pods, pod)
}

// Client sends a new client to the Pods in turn.
func (b *Balancer) Client(a netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pods) == 0 {
		return fmt.Errorf("client %s: no Pod is in service", a)
	}
	return b.move(a, b.turn())
}

func (b *Balancer) turn() netip.AddrPort {
	b.next++
	return b.pods[b.next%len(b.pods)]
}

func (b *Balancer) move(a netip.Addr, pod netip.AddrPort) error {
	b.clients[a] = pod
	return b.topology.Move(b.public, map[netip.Addr]netip.AddrPort{a: pod})
}

// Move sends a client's packets to a Pod, in service or not.
func (b *Balancer) Move(a netip.Addr, pod netip.AddrPort) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.move(a, pod)
}

// Remove takes a Pod out of service and sends its clients to the others in turn, all at
// one moment, as kube-proxy does. It returns how many those were.
func (b *Balancer) Remove(pod netip.AddrPort) (moved int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pods = slices.DeleteFunc(b.pods, func(p netip.AddrPort) bool { return p == pod })
	if len(b.pods) == 0 {
		return 0, fmt.Errorf("removing %s: it is the last one in service", pod)
	}
	to := map[netip.Addr]netip.AddrPort{}
	for _, a := range slices.SortedFunc(maps.Keys(b.clients), netip.Addr.Compare) {
		if b.clients[a] == pod {
			to[a] = b.turn()
		}
	}
	maps.Copy(b.clients, to)
	return len(to), b.topology.Move(b.public, to)
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
