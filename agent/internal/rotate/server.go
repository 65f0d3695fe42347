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

// parseServer reads the server keys of a Secret, whose undated entry has the
// given name. Entries that are nobody's business here are left alone.
func parseServer(data map[string][]byte, name string) (*line[key.Private], Faults) {
	l := &line[key.Private]{undated: name}
	var faults Faults
	for _, entry := range slices.Sorted(maps.Keys(data)) {
		d := dated[key.Private]{slot: key.Blue, entry: entry, text: data[entry]}
		if entry != name {
			slot, from, ok := key.ParseServerEntry(entry)
			switch {
			case ok:
				d.slot, d.from = slot, from
			case misnamed(entry, name):
				faults = append(faults, Fault{
					Entry: entry, Problem: "not the name of a server key",
					Fix: "name it like " + key.ServerEntry(key.Green, time.Date(2026, 12, 25, 3, 0, 0, 0, time.UTC)) + ", or remove it",
				})
				continue
			default:
				continue
			}
		} else if len(d.text) == 0 {
			continue // as good as missing
		}
		if fault := l.add(d, key.ParsePrivate, "wg genkey"); fault != nil {
			faults = append(faults, *fault)
		}
	}
	faults = append(faults, l.settle()...)
	if len(l.raw) > 0 && l.raw[name] == nil && len(faults) == 0 {
		faults = append(faults, Fault{Entry: name, Problem: "missing", Fix: "copy the entry of the key in force there; the gateway does not start without"})
	}
	return l, faults
}

// misnamed tells an entry that was meant to be a server key from those of other
// people.
func misnamed(entry, undated string) bool {
	base, _, dotted := strings.Cut(entry, ".")
	slot := key.Slot(strings.ToLower(base))
	if dotted && (slot == key.Blue || slot == key.Green) {
		return true
	}
	of, from := key.ParsePresharedEntry(entry)
	return of == undated && !from.IsZero()
}

// crowded reports keys that are answered at one time and want one slot.
func crowded(l *line[key.Private], now time.Time, overlap time.Duration) Faults {
	var faults Faults
	before := map[key.Slot]string{}
	for i, d := range l.keys {
		if l.retired(i, now, overlap) {
			continue
		}
		if entry, taken := before[d.slot]; taken {
			faults = append(faults, Fault{
				Entry:   d.entry,
				Problem: fmt.Sprintf("slot %s still answers for the key of entry %q", d.slot, show(entry)),
				Fix:     "remove it, and have the next key made by 'keys rotate' in the other slot",
			})
		}
		before[d.slot] = d.entry
	}
	return faults
}

// planServer says how the server key goes on: whether it is time to put a next
// key beside the one in force. It is pure; generate makes the key. The error is
// [Faults] of either Secret.
func planServer(r reading, name string, generate func() key.Private) (step, error) {
	have, faults := parseServer(r.data, name)
	var mounted *line[key.Private]
	if r.mounted != nil {
		var more Faults
		mounted, more = parseServer(r.mounted, name)
		faults = append(faults, ofMounted(more)...)
	}
	if len(faults) > 0 {
		return step{}, faults
	}
	base := have // what the next key comes after
	if have.empty() && mounted != nil {
		base = mounted
	}
	if base.empty() {
		return step{}, Faults{{Entry: name, Problem: "there is no key", Fix: "have the first one made by 'vpn-agent keys init'"}}
	}
	if faults := crowded(base, r.now, r.overlap); len(faults) > 0 {
		return step{}, faults
	}
	against := mounted
	if base == mounted {
		against = nil
	}
	v, fault := judge(base, against, r)
	if fault != nil {
		return step{}, Faults{*fault}
	}
	out, want, err := serverVerdict(v, base, r, generate)
	if err != nil {
		return step{}, err
	}
	if base == mounted {
		out.message += "; the Secret of --source was empty and got the keys that are mounted"
	}
	out.write = difference(r.data, have.raw, want)
	return out, nil
}

// serverVerdict carries a verdict out: what to say, and the entries there are to be.
func serverVerdict(v verdict, base *line[key.Private], r reading, generate func() key.Private) (step, map[string][]byte, error) {
	current := base.current(r.now)
	inForce := base.keys[current]
	out := step{result: Unchanged}
	out.attrs = []slog.Attr{slog.String("publicKey", inForce.key.Public().String()), slog.String("slot", string(inForce.slot))}
	switch v {
	case waits:
		out.pending = true
		out.message, out.warn = waiting(base, r)
	case overlaps:
		out.message = "the key before is answered until " + stamp(base.retires(current-1, r.overlap)) + "; the next rotation is possible then"
	case travels:
		out.message, out.warn = travelling(base.newest().from), true
	case due:
		from, err := activation(r.now, r.lead)
		if err != nil {
			return step{}, nil, err
		}
		k := generate()
		next := dated[key.Private]{key: k, from: from, slot: inForce.slot.Other(), text: []byte(k.Reveal())}
		next.entry = key.ServerEntry(next.slot, from)
		retires := end(from, r.overlap)
		out.result, out.pending = Rotated, true
		out.message = fmt.Sprintf("the next key comes in force at %s; the one before is answered until %s", stamp(from), stamp(retires))
		out.attrs = append(out.attrs,
			slog.String("nextPublicKey", k.Public().String()), slog.String("nextSlot", string(next.slot)),
			slog.Time("nextFrom", from), slog.Time("retires", retires))
		return out, base.followedBy(next, r.now), nil
	}
	return out, base.raw, nil
}

// answered are the keys that the gateway answers for or will soon. Where the one
// in force has not come as far as the mounted Secret, they are what that holds.
func answered(data, mounted map[string][]byte, name string, now time.Time) (*line[key.Private], error) {
	l, faults := parseServer(data, name)
	if err := faults.orNil(); err != nil {
		return nil, err
	}
	if mounted != nil {
		m, faults := parseServer(mounted, name)
		if err := ofMounted(faults).orNil(); err != nil {
			return nil, err
		}
		if !m.empty() && (l.empty() || !m.has(l.keys[l.current(now)].key)) {
			l = m
		}
	}
	if l.empty() {
		return nil, Faults{{Entry: name, Problem: "there is no key", Fix: "have the first one made by 'vpn-agent keys init'"}}
	}
	return l, nil
}

// travelling says that a key has not arrived though its time has come.
func travelling(from time.Time) string {
	since := ""
	if !from.IsZero() {
		since = ", in force since " + stamp(from) + ","
	}
	return "the newest key of the Secret of --source" + since + " is not in the mounted one yet; see whether the PushSecret and the ExternalSecret are ready"
}

// ofMounted says of faults that they are in the other Secret.
func ofMounted(faults Faults) Faults {
	for i := range faults {
		faults[i].Problem += " (in the mounted Secret)"
	}
	return faults
}
