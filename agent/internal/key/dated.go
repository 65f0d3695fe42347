package key

import (
	"regexp"
	"strings"
	"time"
)

// TimeLayout is how a time stands in the name of a key: the basic format of ISO
// 8601 in UTC, to the second. A Secret's entries may not have a colon in their
// names, which the extended format of RFC 3339 needs.
const TimeLayout = "20060102T150405Z"

// dated is a name with a time at its end.
var dated = regexp.MustCompile(`^(.+)\.(\d{8}T\d{6}Z)$`)

// Slot says which of the gateway's two devices, each with a UDP port of its own,
// answers for a server key. While one key takes over from another both are
// there; the next key takes the slot that the last one left.
type Slot string

// The slots.
const (
	Blue  Slot = "blue"
	Green Slot = "green"
)

// Other returns the other slot.
func (s Slot) Other() Slot {
	if s == Blue {
		return Green
	}
	return Blue
}

// ServerEntry names the entry of a Secret with a server key that comes in force
// at a time, such as green.20261225T030000Z.
func ServerEntry(s Slot, from time.Time) string { return datedName(string(s), from) }

// ParseServerEntry reads what [ServerEntry] wrote; ok is false for any other name.
func ParseServerEntry(name string) (s Slot, from time.Time, ok bool) {
	base, from := parseDated(name)
	s = Slot(base)
	ok = !from.IsZero() && (s == Blue || s == Green)
	if !ok {
		return "", time.Time{}, false
	}
	return s, from, true
}

// PresharedEntry names the entry of a Secret with the pre-shared key of a peer
// that comes in force at a time, such as alice.20261225T030000Z; with the zero
// time, which stands for 'since ever', it is the peer's name.
func PresharedEntry(peer string, from time.Time) string {
	if from.IsZero() {
		return peer
	}
	return datedName(peer, from)
}

// ParsePresharedEntry reads what [PresharedEntry] wrote.
func ParsePresharedEntry(name string) (peer string, from time.Time) { return parseDated(name) }

func datedName(base string, from time.Time) string {
	return base + "." + from.UTC().Format(TimeLayout)
}

// parseDated returns the name whole, and the zero time, where no time is at its
// end. Thousands of names are read at a time, and few of them have one.
func parseDated(name string) (base string, from time.Time) {
	if !strings.HasSuffix(name, "Z") {
		return name, time.Time{}
	}
	m := dated.FindStringSubmatch(name)
	if m == nil {
		return name, time.Time{}
	}
	from, err := time.Parse(TimeLayout, m[2])
	if err != nil || from.IsZero() {
		return name, time.Time{} // such as the 31st of February
	}
	return m[1], from
}
