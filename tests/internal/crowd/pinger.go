package crowd

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// pingGroups are the parts of a [Pinger]'s interval, in each of which some of the
// clients send.
const pingGroups = 5

// Pinger sends the echo requests of many clients, each at the interval. A timer for each
// client would wake the processor thousands of times a second: time that whoever is to
// answer them lacks, where it is on the same machine.
type Pinger struct {
	to     netip.Addr
	mu     sync.Mutex
	groups [pingGroups][]*Client
	added  int
}

// Ping sends until ctx ends.
func (p *Pinger) Ping(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every / pingGroups)
	defer tick.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		group := p.groups[turn%pingGroups]
		p.mu.Unlock()
		for _, c := range group {
			c.ping(ctx, p.to)
		}
	}
}

// NewPinger returns one without clients, of requests to an address in the tunnel.
func NewPinger(to netip.Addr) *Pinger { return &Pinger{to: to} }

// Add has a client take part.
func (p *Pinger) Add(c *Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.groups[p.added%pingGroups] = append(p.groups[p.added%pingGroups], c)
	p.added++
}
