package firewall

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// replace makes the table anew, whatever it held before.
//
// One transaction would do, but not for the packets: the kernel puts the rules
// into force first and the content of new sets after that, one by one (in
// nf_tables_commit, up to Linux 6.18 at least), and with many peers that is
// milliseconds in which nobody is known. So the new sets come first, beside the
// old ones; then, in one transaction, the rules that look into them; at last the
// old sets go.
func (f *Firewall) replace(want state.Firewall) error {
	f.made = nil
	asked := switchesOf(want)
	at, err := swap(want)
	if want.Handshakes && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP)) {
		f.log.Warn("the kernel cannot log handshakes (CONFIG_NFT_LOG), who has moved to a newer server key is seen later", "error", err)
		want.Handshakes = false
		at, err = swap(want)
	}
	if err != nil {
		// Something is in the way, of somebody's making: take no care then.
		at = editionA
		if again := commit(func(c *nftables.Conn) error { return startOver(c, want, at) }); again != nil {
			return fmt.Errorf("nftables table %s (sources %d, grants %d): %w", Table, len(want.Sources), len(want.Grants), again)
		}
	}
	seen, rules, err := survey()
	if err != nil {
		return fmt.Errorf("nftables table %s: %w", Table, err)
	}
	f.made = &made{switches: asked, edition: at, seen: seen, rules: rules}
	return nil
}

// startOver puts the whole exchange of the table into one batch.
func startOver(c *nftables.Conn, want state.Firewall, at edition) error {
	c.AddTable(table()) // makes the deletion of a missing table no error
	c.DelTable(table())
	c.AddTable(table())
	if err := addSets(c, want, at); err != nil {
		return err
	}
	addChains(c, switchesOf(want), at)
	return nil
}

// swap exchanges the table's content without a gap, and returns the edition that
// is in use from then on.
func swap(want state.Firewall) (edition, error) {
	before, err := contents()
	if err != nil {
		return "", err
	}
	// One edition is in use, or none. A crash may have left the sets of the other,
	// too; then only trying tells which they are.
	at := editionA
	if before.has(at) {
		at = at.other()
	}
	if err = fill(want, at, before); err != nil && before.has(at) {
		at = at.other()
		err = fill(want, at, before)
	}
	if err != nil {
		return "", err
	}
	err = commit(func(c *nftables.Conn) error {
		c.FlushTable(table())
		for _, name := range before.chains {
			c.DelChain(&nftables.Chain{Table: table(), Name: name})
		}
		addChains(c, switchesOf(want), at)
		return nil
	})
	if err != nil {
		return "", err
	}
	return at, sweep(at)
}

// fill makes the sets of an edition. Where rules look into them already, it fails.
func fill(want state.Firewall, at edition, before inventory) error {
	return commit(func(c *nftables.Conn) error {
		c.AddTable(table())
		for _, s := range sets(at) {
			if slices.Contains(before.sets, s.Name) {
				c.DelSet(s)
			}
		}
		return addSets(c, want, at)
	})
}

// sweep removes all sets but those of an edition.
func sweep(at edition) error {
	now, err := contents()
	if err != nil {
		return err
	}
	return commit(func(c *nftables.Conn) error {
		for _, name := range now.sets {
			if !slices.ContainsFunc(sets(at), func(s *nftables.Set) bool { return s.Name == name }) {
				c.DelSet(&nftables.Set{Table: table(), Name: name})
			}
		}
		return nil
	})
}

// inventory is what the table holds, by name.
type inventory struct{ chains, sets []string }

// has reports whether there is some set of the edition.
func (i inventory) has(at edition) bool {
	return slices.ContainsFunc(sets(at), func(s *nftables.Set) bool { return slices.Contains(i.sets, s.Name) })
}
