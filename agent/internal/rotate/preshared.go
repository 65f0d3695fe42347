package rotate

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// serverEntry is how the entry of the server's key is called unless somebody says
// otherwise. To take it for a peer's would overwrite it in the end.
const serverEntry = "privateKey"

// parsePreshared reads the pre-shared keys of a Secret, by the names of peers.
func parsePreshared(data map[string][]byte) (map[string]*line[key.Preshared], Faults) {
	lines := map[string]*line[key.Preshared]{}
	var faults Faults
	for _, entry := range slices.Sorted(maps.Keys(data)) {
		peer, from := key.ParsePresharedEntry(entry)
		if peer == serverEntry {
			faults = append(faults, Fault{Entry: entry, Problem: "the name of a server key among pre-shared keys", Fix: "keep the two in Secrets of their own"})
			continue
		}
		if !datable(peer) {
			faults = append(faults, Fault{Entry: entry, Problem: "no key of a peer of that name can have a time", Fix: "rename the peer, so that its name does not end in a time, or remove the entry"})
			continue
		}
		l := lines[peer]
		if l == nil {
			l = &line[key.Preshared]{undated: peer}
			lines[peer] = l
		}
		if fault := l.add(dated[key.Preshared]{from: from, entry: entry, text: data[entry]}, key.ParsePreshared, "wg genpsk"); fault != nil {
			faults = append(faults, *fault)
		}
	}
	for _, peer := range slices.Sorted(maps.Keys(lines)) {
		faults = append(faults, lines[peer].settle()...)
	}
	return lines, faults
}

// datable reports whether the names of a peer's entries lead back to the peer, and
// to no other: those of alice.20261225T030000Z would not.
func datable(peer string) bool {
	some := time.Date(2026, 12, 25, 3, 0, 0, 0, time.UTC)
	for _, from := range []time.Time{{}, some} {
		of, at := key.ParsePresharedEntry(key.PresharedEntry(peer, from))
		if of != peer || !at.Equal(from) {
			return false
		}
	}
	return true
}

// planPreshared says how the pre-shared keys of a Secret's peers go on, each by
// itself, all new ones with one time. It is pure; generate makes keys. The error
// is [Faults] of either Secret: one that is garbled keeps all from being rotated.
func planPreshared(r reading, generate func() key.Preshared) (step, error) {
	have, faults := parsePreshared(r.data)
	var mounted map[string]*line[key.Preshared]
	if r.mounted != nil {
		var more Faults
		mounted, more = parsePreshared(r.mounted)
		faults = append(faults, ofMounted(more)...)
	}
	if len(faults) > 0 {
		return step{}, faults
	}
	from, err := activation(r.now, r.lead)
	if err != nil {
		return step{}, err
	}
	all := maps.Clone(mounted)
	if all == nil {
		all = map[string]*line[key.Preshared]{}
	}
	maps.Copy(all, have)
	p := presharedPlan{reading: r, write: map[string][]byte{}, peers: map[verdict][]string{}}
	for _, peer := range slices.Sorted(maps.Keys(all)) {
		l, against := all[peer], mounted[peer]
		var ours map[string][]byte
		if have[peer] == nil { // the Secret of --source gets what is mounted
			p.seeded++
			against = nil
		} else {
			ours = l.raw
			if r.mounted != nil && against == nil {
				against = &line[key.Preshared]{}
			}
		}
		v, fault := judge(l, against, r.withoutOverlap())
		if fault != nil {
			faults = append(faults, *fault)
			continue
		}
		p.peers[v] = append(p.peers[v], peer)
		want := l.raw
		switch v {
		case due:
			k := generate()
			want = l.followedBy(dated[key.Preshared]{key: k, from: from, entry: key.PresharedEntry(peer, from), text: []byte(k.Reveal())}, r.now)
		case waits:
			p.wait(l)
		}
		maps.Copy(p.write, difference(r.data, ours, want))
	}
	if len(faults) > 0 {
		return step{}, faults
	}
	return p.step(stamp(from)), nil
}

// withoutOverlap is for keys of which a peer has one at a time.
func (r reading) withoutOverlap() reading {
	r.overlap = 0
	return r
}

// presharedPlan gathers what is to be said of many peers.
type presharedPlan struct {
	reading
	write   map[string][]byte
	peers   map[verdict][]string
	seeded  int
	waiting string // of the first that waits, or of the first that is suspicious
	warn    bool
}

func (p *presharedPlan) wait(l *line[key.Preshared]) {
	message, warn := waiting(l, p.reading)
	if p.waiting == "" || warn && !p.warn {
		p.waiting, p.warn = "peer "+show(l.undated)+": "+message, warn
	}
}

func (p *presharedPlan) step(from string) step {
	out := step{write: p.write, result: Unchanged, warn: p.warn, pending: len(p.peers[waits]) > 0}
	var parts []string
	if peers := p.peers[due]; len(peers) > 0 {
		out.result, out.pending = Rotated, true
		parts = append(parts, fmt.Sprintf("%s made, in force from %s", count(len(peers), "next key"), from))
		out.attrs = append(out.attrs, slog.Any("peers", names(peers)), slog.String("nextFrom", from))
	}
	if peers := p.peers[waits]; len(peers) > 0 {
		parts = append(parts, fmt.Sprintf("%s with a next key already (%s)", count(len(peers), "peer"), p.waiting))
		out.attrs = append(out.attrs, slog.Any("waiting", names(peers)))
	}
	if peers := p.peers[travels]; len(peers) > 0 {
		out.warn = true
		parts = append(parts, fmt.Sprintf("of %s the newest key in the Secret of --source is not in the mounted one yet; see whether the PushSecret and the ExternalSecret are ready", count(len(peers), "peer")))
		out.attrs = append(out.attrs, slog.Any("travelling", names(peers)))
	}
	if p.seeded > 0 {
		parts = append(parts, fmt.Sprintf("the Secret of --source got the keys of %s from what is mounted", count(p.seeded, "peer")))
	}
	if len(parts) == 0 {
		parts = append(parts, "there are no pre-shared keys")
	}
	out.message = strings.Join(parts, "; ")
	return out
}

// namesShown bounds a line of the log: a Secret may have thousands of peers.
const namesShown = 100

func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func names(peers []string) []string {
	out := make([]string, 0, min(len(peers), namesShown+1))
	for _, peer := range peers[:min(len(peers), namesShown)] {
		out = append(out, show(peer))
	}
	if more := len(peers) - namesShown; more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return out
}
