package rotate

import (
	"fmt"
	"log/slog"
	"time"
)

// Result of a run, for people and for metrics.
type Result string

// The results.
const (
	Rotated   Result = "rotated"
	Unchanged Result = "unchanged"
	Failed    Result = "failed"
)

// reading is what a rotation goes by.
type reading struct {
	// data of the Secret that is written.
	data map[string][]byte
	// mounted is the data of the Secret that the gateway mounts, where that is
	// another one (--source); nil where it is the same.
	mounted map[string][]byte
	now     time.Time
	lead    time.Duration
	overlap time.Duration
}

// step is what to do to a Secret, and what to say about it. Nothing in it but
// write is secret.
type step struct {
	// write is a merge patch of the Secret's data, all of it or nothing.
	write  map[string][]byte
	result Result
	// message is the reason in words, with names and times.
	message string
	// warn says that somebody should look into it.
	warn bool
	// pending says that a key is there whose time is to come: mounts are to be
	// renewed, by this run or by the one before.
	pending bool
	// attrs are names, public keys and times for the log.
	attrs []slog.Attr
}

// verdict on the keys of one party.
type verdict int

const (
	due      verdict = iota // it is time for a next key
	waits                   // a next key is there
	overlaps                // the key before is still answered
	travels                 // the mounted Secret has not got the newest key yet
)

// judge says what to do about a party. Of have, the keys in the Secret that is
// written, there is one at least; mounted is nil where the gateway mounts the same
// Secret. The fault is that the mounted Secret knows better.
func judge[K secretKey](have, mounted *line[K], r reading) (verdict, *Fault) {
	behind := false
	if mounted != nil {
		ours, theirs := have.newest(), mounted.newest()
		switch {
		case mounted.empty() || ours.from.After(theirs.from):
			behind = true
		case ours.key != theirs.key || !ours.from.Equal(theirs.from):
			return 0, &Fault{
				Entry:   theirs.entry,
				Problem: "the mounted Secret has another key there than the Secret of --source, which has none that is newer; somebody else wrote to the backend",
				Fix:     "to go on from what is mounted, remove all entries of that key or peer from the Secret of --source",
			}
		}
	}
	current := have.current(r.now)
	switch {
	case have.pending(r.now) != nil:
		return waits, nil
	case behind:
		return travels, nil
	case current > 0 && !have.retired(current-1, r.now, r.overlap):
		return overlaps, nil
	default:
		return due, nil
	}
}

// farAhead is how much later than the lead a next key's time may lie before a
// clock is suspected.
const farAhead = time.Hour

// waiting says for when the next key waits, and whether that is suspicious.
func waiting[K secretKey](l *line[K], r reading) (message string, warn bool) {
	next := l.pending(r.now)
	message = "the next key comes in force at " + stamp(next.from)
	if next.from.Sub(r.now) > r.lead+farAhead {
		return message + fmt.Sprintf(", further ahead than --lead has it; it is respected. If a clock was wrong, remove entry %q to have the key made anew", show(next.entry)), true
	}
	return message, false
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
