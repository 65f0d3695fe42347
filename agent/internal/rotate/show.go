package rotate

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// State of an entry of a Secret.
type State string

// The states.
const (
	Current  State = "current"  // the key in force
	Next     State = "next"     // its time is to come
	Retiring State = "retiring" // no more in force, still answered
	Retired  State = "retired"  // answered no more
	Copy     State = "copy"     // of a key that stands in another entry
)

// Row says of an entry of a Secret what everybody may know.
type Row struct {
	Kind  Kind
	Entry string
	// Peer of a pre-shared key; Slot and PublicKey of a server key.
	Peer      string
	Slot      key.Slot
	PublicKey key.Public
	State     State
	// From is when the key comes in force; zero: since ever.
	From time.Time
	// Retires is when it is answered no more; zero where no other takes over.
	Retires time.Time
}

// ShowServer says what the server keys of a Secret are, oldest first. Rows of
// entries that are well stand beside an error, [Faults], of the others.
func ShowServer(data map[string][]byte, name string, now time.Time, overlap time.Duration) ([]Row, error) {
	l, faults := parseServer(data, name)
	if len(faults) == 0 {
		faults = crowded(l, now, overlap)
	}
	return rows(l, now, overlap, func(d dated[key.Private]) Row {
		return Row{Kind: Server, Slot: d.slot, PublicKey: d.key.Public()}
	}), faults.orNil()
}

// ShowPreshared is [ShowServer] for pre-shared keys, by the names of peers.
func ShowPreshared(data map[string][]byte, now time.Time) ([]Row, error) {
	lines, faults := parsePreshared(data)
	var out []Row
	for _, peer := range slices.Sorted(maps.Keys(lines)) {
		out = append(out, rows(lines[peer], now, 0, func(dated[key.Preshared]) Row {
			return Row{Kind: Preshared, Peer: show(peer)}
		})...)
	}
	return out, faults.orNil()
}

func rows[K secretKey](l *line[K], now time.Time, overlap time.Duration, row func(dated[K]) Row) []Row {
	var out []Row
	current := l.current(now)
	for i, d := range l.keys {
		r := row(d)
		r.Entry, r.From, r.Retires = show(d.entry), d.from, l.retires(i, overlap)
		switch {
		case i == current && (!d.from.After(now) || i == l.copied):
			r.State = Current
		case i >= current: // of a peer that has no key until then, too
			r.State = Next
		case l.retired(i, now, overlap):
			r.State = Retired
		default:
			r.State = Retiring
		}
		if i == l.copied {
			c := r
			c.Entry, c.State = show(l.undated), Copy
			out = append(out, c)
		}
		out = append(out, r)
	}
	return out
}

// Age is for how long the key has been in force; empty where it is not yet, or
// nobody knows.
func (r Row) Age(now time.Time) string {
	if r.From.IsZero() || r.From.After(now) {
		return ""
	}
	return span(now.Sub(r.From))
}

// Due says what comes next, and in how long; empty where nothing does.
func (r Row) Due(now time.Time) string {
	switch {
	case r.State == Copy:
		return ""
	case r.From.After(now):
		return "in force in " + span(r.From.Sub(now))
	case r.State == Retired:
		return "goes with the next rotation"
	case !r.Retires.IsZero():
		return "retires in " + span(r.Retires.Sub(now))
	default:
		return ""
	}
}

// span is a duration in its two largest units: 12d4h, 8m10s.
func span(d time.Duration) string {
	days, hours := int64(d.Hours())/24, int64(d.Hours())%24
	minutes, seconds := int64(d.Minutes())%60, int64(d.Seconds())%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm%ds", minutes, seconds)
	default:
		return fmt.Sprintf("%ds", seconds)
	}
}
