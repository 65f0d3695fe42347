package fleet

import "time"

const (
	// LeaveLook is how often to look whether everybody has gone.
	LeaveLook = 100 * time.Millisecond
	// leaveLeast is how long to serve on at least: it takes a moment until new flows go to
	// other Pods.
	leaveLeast = 3 * time.Second
	// leaveSettle is for how long nobody may have been here for everybody to have gone.
	leaveSettle = time.Second
	// handOverEvery is how often to ask siblings to call those that stay.
	handOverEvery = 2 * time.Second
)

// Leaving is how far a replica is that is about to leave. After half of the time that
// there is, those that stay are handed over: mostly they send nothing, or no load balancer
// moves them.
type Leaving struct{ start, empty, offered time.Time }

// NewLeaving begins. most is how long there is.
func NewLeaving(now time.Time, most time.Duration) *Leaving {
	return &Leaving{start: now, empty: now, offered: now.Add(most/2 - handOverEvery)}
}

// Look is called every [LeaveLook]. held says that connected peers have their session here
// still, alone that there is no sibling that could take them over. It reports whether to
// hand over those that stay, and whether everybody has gone.
func (l *Leaving) Look(now time.Time, held, alone bool) (handOver, gone bool) {
	if held || alone {
		l.empty = now
	}
	if handOver = held && now.Sub(l.offered) >= handOverEvery; handOver {
		l.offered = now
	}
	return handOver, now.Sub(l.start) >= leaveLeast && now.Sub(l.empty) >= leaveSettle
}
