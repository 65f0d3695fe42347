// Package firewall keeps the gateway's one nftables table, "inet vpn_gateway":
// who may send what through the tunnel, masquerading, and the clamping of TCP's
// segment size. Tables of others are never touched.
//
// The rules follow from a few switches and are always the same few; peers are
// elements of sets, so that a packet costs two or three look-ups however many there are:
//
//	hosts4, hosts6         peer's address → policy
//	networks4, networks6   network behind a peer → its peer's policy
//	grants4, grants6       policy . destination . protocol . port
//
// It talks netlink to the kernel (nf_tables of Linux 5.6 or later, for sets of
// concatenated ranges) and needs CAP_NET_ADMIN in the network namespace, nothing
// else.
package firewall

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Table is the name of the one table, of family inet.
const Table = "vpn_gateway"

// Firewall is the table of the network namespace that the methods are called
// in. Its methods may be called from several goroutines.
type Firewall struct {
	log *slog.Logger
	mu  sync.Mutex
	// made is what the last Apply left behind; nil while that is unknown.
	made *made
}

// made is the memory of a table.
type made struct {
	switches switches
	// edition is where its rules look for peers and grants.
	edition edition
	// seen is the generation of the namespace's ruleset (NFTA_GEN_ID,
	// linux/netfilter/nf_tables.h) at which the table was last known to be
	// whole: the kernel counts it up with every change of any table.
	seen uint32
	// rules is a digest of the table's chains and rules.
	rules [sha256.Size]byte
}

// New returns a firewall that has made no table yet. The error says what is
// missing for nftables to work.
func New(log *slog.Logger) (*Firewall, error) {
	if _, err := generation(); err != nil {
		switch {
		case errors.Is(err, os.ErrPermission):
			return nil, fmt.Errorf("nftables: %w: add the capability NET_ADMIN to the container", err)
		case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			return nil, fmt.Errorf("nftables: %w: the node's kernel lacks nf_tables (CONFIG_NF_TABLES)", err)
		default:
			return nil, fmt.Errorf("nftables: %w", err)
		}
	}
	return &Firewall{log: log}, nil
}

// InPlace reports whether the table holds exactly the chains and rules that
// Apply made it with, and these are the ones that want asks for. Elements of
// the sets are not looked at: the caller remembers what it applied, and reading
// back 10,000 of them takes longer than writing them. A table that an earlier
// process left is not in place, since nobody knows its elements.
//
// It costs one round trip to the kernel while nobody changes any table of the
// network namespace, and a few hundred microseconds after somebody did.
func (f *Firewall) InPlace(want state.Firewall) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made == nil || f.made.switches != switchesOf(want) {
		return false, nil
	}
	now, err := generation()
	if err != nil {
		return false, fmt.Errorf("nftables generation: %w", err)
	}
	if now == f.made.seen {
		return true, nil
	}
	seen, rules, err := survey()
	if err != nil {
		return false, fmt.Errorf("nftables table %s: %w", Table, err)
	}
	if rules != f.made.rules {
		return false, nil
	}
	f.made.seen = seen
	return true, nil
}

// Apply does what the plan says. A flow that is allowed before and after loses
// no packet, and keeps its translation. Where it returns an error, the rules in
// force are still whole: the old ones or the new ones. Where element changes do
// not fit what is there, because somebody else was at the table, the whole table
// is made anew.
func (f *Firewall) Apply(p plan.Firewall) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.Replace || f.made == nil {
		return f.replace(p.Desired)
	}
	for _, change := range inOrder(p) {
		if change.empty() {
			continue
		}
		if err := commit(func(c *nftables.Conn) error { return change.put(c, f.made.edition) }); err != nil {
			if again := f.replace(p.Desired); again != nil {
				return fmt.Errorf("nftables elements (sources +%d -%d, grants +%d -%d): %w, then %w",
					len(p.AddSources), len(p.RemoveSources), len(p.AddGrants), len(p.RemoveGrants), err, again)
			}
			return nil
		}
		f.made.seen++
	}
	// Where somebody else changed something in the meantime, the count does not
	// fit, and the next InPlace looks.
	return nil
}

// Remove deletes the table. It is no error if there is none.
func (f *Firewall) Remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made = nil
	err := commit(func(c *nftables.Conn) error {
		c.AddTable(table())
		c.DelTable(table())
		return nil
	})
	if err != nil {
		return fmt.Errorf("nftables table %s: %w", Table, err)
	}
	return nil
}

// Count is what was stopped for one reason since the table was last made anew.
type Count struct{ Packets, Bytes uint64 }

// Stopped returns what was stopped, by reason; every reason is present. It
// fails where there is no table.
func (f *Firewall) Stopped() (map[Reason]Count, error) {
	c, err := nftables.New(socketOptions())
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	objects, err := c.GetObjects(table())
	if err != nil {
		return nil, fmt.Errorf("nftables counters of table %s: %w", Table, err)
	}
	found := make(map[string]Count, len(objects))
	for _, o := range objects {
		if counter, ok := o.(*nftables.CounterObj); ok {
			found[counter.Name] = Count{Packets: counter.Packets, Bytes: counter.Bytes}
		}
	}
	out := make(map[Reason]Count, len(Reasons()))
	for _, r := range Reasons() {
		count, ok := found[string(r)]
		if !ok {
			return nil, fmt.Errorf("nftables table %s has no counter %s", Table, r)
		}
		out[r] = count
	}
	return out, nil
}
