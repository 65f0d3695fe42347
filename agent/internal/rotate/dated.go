package rotate

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// secretKey is a [key.Private] or a [key.Preshared].
type secretKey interface {
	comparable
	IsZero() bool
	Reveal() string
}

// dated is a key of a Secret and the time that it comes in force.
type dated[K secretKey] struct {
	key   K
	from  time.Time // zero: since ever
	slot  key.Slot  // of a server key
	entry string    // that it stands in; its own, where a copy stands in another
	text  []byte    // as it stands there
}

// line is all keys of one party, the gateway or a peer.
type line[K secretKey] struct {
	// undated is the name of the entry without a time.
	undated string
	// keys are each there once, oldest first.
	keys []dated[K]
	// copied is the index of the key that the undated entry is a copy of; -1
	// where it is a key of its own, or missing.
	copied int
	// raw are the entries.
	raw map[string][]byte
}

// add takes an entry. What it says of a fault is that of the content.
func (l *line[K]) add(d dated[K], parse func(string) (K, error), command string) *Fault {
	k, err := parse(string(d.text))
	problem := ""
	switch {
	case len(d.text) == 0:
		problem = "empty"
	case err != nil:
		problem = err.Error() // never quotes the text
	case k.IsZero():
		problem = "32 zero bytes"
	}
	if problem != "" {
		return &Fault{Entry: d.entry, Problem: problem, Fix: "store the output of '" + command + "' there, or remove it"}
	}
	d.key = k
	l.keys = append(l.keys, d)
	if l.raw == nil {
		l.raw = map[string][]byte{}
	}
	l.raw[d.entry] = d.text
	return nil
}

// settle puts the keys in order, once all are there.
func (l *line[K]) settle() Faults {
	l.copied = -1
	slices.SortStableFunc(l.keys, func(a, b dated[K]) int {
		return cmp.Or(a.from.Compare(b.from), strings.Compare(a.entry, b.entry))
	})
	var faults Faults
	entries := map[K]string{}
	var before dated[K]
	for i, d := range l.keys {
		switch same := entries[d.key]; {
		case d.from.IsZero():
			continue // the undated entry may be a copy
		case same != "":
			faults = append(faults, Fault{Entry: d.entry, Problem: fmt.Sprintf("the same key as entry %q", show(same)), Fix: "remove one of the two"})
		case i > 0 && d.from.Equal(before.from):
			faults = append(faults, Fault{Entry: d.entry, Problem: fmt.Sprintf("comes in force at the time of entry %q", show(before.entry)), Fix: "remove one of the two"})
		}
		entries[d.key] = d.entry
		before = d
	}
	if len(l.keys) > 0 && l.keys[0].from.IsZero() {
		if entry, copied := entries[l.keys[0].key]; copied {
			l.keys = l.keys[1:]
			l.copied = slices.IndexFunc(l.keys, func(d dated[K]) bool { return d.entry == entry })
		}
	}
	return faults
}

// current is the index of the key in force: the newest whose time has come. Where
// that of none has, as after a clock went backwards, it is the oldest: to have no
// key would be worse.
func (l *line[K]) current(now time.Time) int {
	at := 0
	for i, d := range l.keys {
		if !d.from.After(now) {
			at = i
		}
	}
	return at
}

// pending is the first key whose time is to come; nil where there is none.
func (l *line[K]) pending(now time.Time) *dated[K] {
	for i, d := range l.keys {
		if d.from.After(now) {
			return &l.keys[i]
		}
	}
	return nil
}

// retires is when the key of that index is answered no more; zero where no other
// takes over from it.
func (l *line[K]) retires(i int, overlap time.Duration) time.Time {
	if i+1 >= len(l.keys) {
		return time.Time{}
	}
	return end(l.keys[i+1].from, overlap)
}

// end is when the key before one that comes in force at from is answered no more.
// JSON and RFC 3339 have no years of five digits: what lies further ahead ends with
// the last year of four.
func end(from time.Time, overlap time.Duration) time.Time {
	at := from.Add(overlap)
	if last := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC); at.After(last) {
		return last
	}
	return at
}

// retired reports whether that time has come.
func (l *line[K]) retired(i int, now time.Time, overlap time.Duration) bool {
	at := l.retires(i, overlap)
	return !at.IsZero() && !at.After(now)
}

// newest of them; the zero value where there is none.
func (l *line[K]) newest() dated[K] {
	if len(l.keys) == 0 {
		return dated[K]{}
	}
	return l.keys[len(l.keys)-1]
}

func (l *line[K]) empty() bool { return len(l.keys) == 0 }

func (l *line[K]) has(k K) bool {
	return slices.ContainsFunc(l.keys, func(d dated[K]) bool { return d.key == k })
}

// followedBy gives the entries that leave the key in force and the next one, and
// nothing of older ones: the undated entry becomes a copy of the key in force.
func (l *line[K]) followedBy(next dated[K], now time.Time) map[string][]byte {
	inForce := l.keys[l.current(now)]
	return map[string][]byte{l.undated: inForce.text, inForce.entry: inForce.text, next.entry: next.text}
}

// activation is when a key that is made now comes in force. Names have seconds:
// it is the next full one, or the lead would be cut short.
func activation(now time.Time, lead time.Duration) (time.Time, error) {
	at := now.Add(lead)
	if full := at.Truncate(time.Second); full.Before(at) {
		at = full.Add(time.Second)
	}
	at = at.UTC()
	if _, back, ok := key.ParseServerEntry(key.ServerEntry(key.Blue, at)); !ok || !back.Equal(at) {
		return time.Time{}, fmt.Errorf("the clock says %s, and a key would come in force at a time that no name can hold; set the clock, or give a smaller --lead", now.UTC().Format(time.RFC3339))
	}
	return at, nil
}

// difference is the merge patch that turns the entries have into want; those of
// data that are in neither stay.
func difference(data, have, want map[string][]byte) map[string][]byte {
	patch := map[string][]byte{}
	for entry, text := range want {
		if before, there := data[entry]; !there || !bytes.Equal(before, text) {
			patch[entry] = text
		}
	}
	for entry := range have {
		if _, stays := want[entry]; !stays {
			patch[entry] = nil
		}
	}
	return patch
}
