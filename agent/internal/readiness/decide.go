package readiness

import (
	"slices"
	"strings"
	"time"
)

// State of a replica, as the fleet knows it.
type State int

// The states of a replica.
const (
	// Alive serves.
	Alive State = iota
	// Draining still serves, and is about to leave.
	Draining
	// Dead has not answered, and did not say that it would leave.
	Dead
	// Left said that it would.
	Left
)

// Member is a replica of the gateway.
type Member struct {
	// Name of its Pod.
	Name string
	// UID of its Pod; empty where it is not known. A Pod of the same name and
	// another UID is left alone.
	UID   string
	State State
	// Since when it has been in that state, by this replica's clock. A member that
	// dies anew has a new one.
	Since time.Time
}

// service says whether packets are still sent to a dead sibling's Pod.
type service int

const (
	unknown service = iota // nobody has looked
	serving                // the Pod is Ready
	stopped                // it is not
	gone                   // there is no such Pod
)

// sibling is another replica, with what the API server said about its Pod.
type sibling struct {
	Member
	// Mute says that it is alive by what the fleet knows, and did not answer when it
	// was asked just now.
	Mute    bool
	Service service
	// PodUID is that of the Pod which was looked at.
	PodUID string
	// Looked is when the API server was asked. Where that is the time of the
	// decision, the answer may be acted upon.
	Looked time.Time
	// Beat is its last proof of life, and Same how many looks in a row have found it so.
	Beat string
	Same int
	// Lives says that there was a new one since it seems to be dead.
	Lives bool
	// Silenced says that it is out of service because there was none.
	Silenced bool
	// Next is when there is something to do again, once there was.
	Next    time.Time
	trouble trouble
	// refused is why it was not marked, when last asked for.
	refused string
}

// answers says whether it is there, as far as is known.
func (s *sibling) answers() bool { return (s.State == Alive || s.State == Draining) && !s.Mute }

// isMissing says whether it may be dead, and has a Pod.
func (s *sibling) isMissing() bool { return (s.State == Dead || s.Mute) && s.Service != gone }

// age is for how long it has been dead.
func (s *sibling) age(now time.Time) time.Duration {
	if s.State != Dead {
		return 0
	}
	return now.Sub(s.Since)
}

// observe takes in what a look found as its proof of life.
func (s *sibling) observe(beat string) {
	switch {
	case s.Looked.IsZero():
		s.Same = 1
	case s.Beat != beat:
		s.Lives, s.Same = true, 1
	default:
		s.Same++
	}
	s.Beat = beat
}

// quorum says how much of the fleet a replica sees alive, itself included.
type quorum int

const (
	minority quorum = iota // fewer than half
	half
	majority // more than half
)

// self is the replica that decides.
type self struct {
	// Name of its Pod.
	Name string
	// Out says that siblings have taken it out of service.
	Out bool
}

// decision is what a replica does about its dead siblings.
type decision struct {
	Quorum quorum
	// Look are dead siblings whose Pods are to be looked at.
	Look []string
	// Mark are those that are to be marked.
	Mark []string
	// Refused is why none is, where that is for longer than it takes to know.
	Refused string
	// Next is when to decide again, where nothing changes before; zero: never.
	Next time.Time
}

// rankStep is by how much each survivor waits for those before it. A look and a
// patch take some ten milliseconds.
const rankStep = 300 * time.Millisecond

// Proofs of life are how replicas that do not hear each other tell isolation from death:
// each writes a new one into its own Pod for as long as it sees siblings dead that are
// in service. Where they are dead, nobody does.
const (
	// beatFirst is how often. The time that is written has whole seconds.
	beatFirst = time.Second
	// beatLater is how often once that goes on for beatFirstFor: a fleet that is
	// broken for long is not to keep the API server busy.
	beatFirstFor = time.Minute
	beatLater    = 10 * time.Second
	// noticedApart is by how much siblings may have noticed before, so that they write
	// less often by now.
	noticedApart = 30 * time.Second
	// silentLooks in a row find the same where a sibling is silent. They are half as far
	// apart as the proofs, and so span one and a half of them, at first 1.5 s: that of a
	// sibling which noticed a second later is still seen.
	silentLooks = 4
	// settled is how long a minority mostly takes to know.
	settled = 3 * time.Second
)

func beatEvery(age time.Duration) time.Duration {
	if age < beatFirstFor {
		return beatFirst
	}
	return beatLater
}

func lookEvery(age time.Duration) time.Duration { return beatEvery(age+noticedApart) / 2 }

// nextBeat is when a replica whose last proof of life is of a time owes another one;
// zero: never. A majority looks first, and has mostly marked the dead by then; a minority
// is waited for. A new death begins anew: its siblings may have to decide about it.
func nextBeat(self self, siblings []sibling, last, now time.Time) time.Time {
	doubts := quorumOf(self, siblings) == minority
	var newest *sibling
	for i := range siblings {
		s := &siblings[i]
		isContested := s.Service == serving || s.Service == unknown && (doubts || s.trouble.text != "")
		if s.State == Dead && isContested && (newest == nil || s.Since.After(newest.Since)) {
			newest = s
		}
	}
	if newest == nil {
		return time.Time{}
	}
	return last.Add(beatEvery(newest.age(now)))
}

// decide says who looks at whom, and who marks whom. The survivors take turns by
// name, so that normally one of them asks the API server and the others find it
// done.
//
// The members that count are those that were alive when last heard of, less those
// that the API server knows to be out of service: nobody can be cut off by them. A
// minority that reaches the API server still sees the Pods of the majority Ready,
// and stays one; also when it has marked them for their silence, since they come back
// where they can show that they live. A replica that is out of service itself leaves
// none out: it must not take over because those that have cut it off become fewer. And
// those that do not answer count, but not as alive: who is cut off notices the death of
// one sibling after the other, and would mark the first one while it still believes in
// the rest.
func decide(self self, siblings []sibling, now time.Time) decision {
	d := decision{Quorum: quorumOf(self, siblings)}
	wait := time.Duration(rank(self.Name, siblings)) * rankStep
	for _, s := range siblings {
		if !s.isMissing() {
			continue
		}
		due := s.Since.Add(wait)
		if s.Next.After(due) {
			due = s.Next
		}
		isFresh := !s.Looked.Before(now)
		if isFresh && s.State == Dead && s.Service == serving {
			d.Mark = append(d.Mark, s.Name)
		}
		switch {
		case due.After(now):
			if d.Next.IsZero() || due.Before(d.Next) {
				d.Next = due
			}
		case !isFresh:
			d.Look = append(d.Look, s.Name)
		}
	}
	if d.Quorum == minority && len(d.Mark) > 0 {
		var may bool
		if may, d.Refused = witness(self, siblings, now); !may {
			d.Mark = nil
		}
	}
	return d
}

// witness says whether a minority may mark its dead siblings, and if not, why; without
// a reason it is too early to tell. It is all of them or none: one that shows life says
// that this replica is cut off, and then the others may live just as well.
func witness(self self, siblings []sibling, now time.Time) (may bool, reason string) {
	may = true
	var age time.Duration
	for _, s := range siblings {
		if !s.isMissing() || s.Service == stopped {
			continue
		}
		if s.Lives {
			return false, refusedAlive
		}
		may = may && s.Same >= silentLooks
		age = max(age, s.age(now))
	}
	if self.Out || !may && age > settled {
		return false, refusedMinority
	}
	return may, ""
}

func quorumOf(self self, siblings []sibling) quorum {
	alive, known := 1, 1
	for _, s := range siblings {
		switch s.State {
		case Alive, Draining:
			known++
			if !s.Mute {
				alive++
			}
		case Dead:
			if s.Service != gone && (s.Service != stopped || s.Silenced || self.Out) {
				known++
			}
		case Left:
		}
	}
	switch {
	case 2*alive > known:
		return majority
	case 2*alive == known:
		return half
	}
	return minority
}

// rank is how many survivors come before this one.
func rank(self string, siblings []sibling) int {
	before := 0
	for _, s := range siblings {
		if s.answers() && s.Name < self {
			before++
		}
	}
	return before
}

// follow takes what the fleet knows over into what is known: a sibling that came
// back, or died anew, is a new case. The fleet forgets the dead after a while; here they
// count for as long as they have Pods. Else those who are cut off would be all there are
// after a minute, and let themselves back into service.
func follow(self string, members []Member, known []sibling) []sibling {
	out := make([]sibling, 0, len(members))
	for _, m := range members {
		if m.Name == self {
			continue
		}
		s := sibling{Member: m}
		i := slices.IndexFunc(known, func(k sibling) bool { return k.Name == m.Name })
		switch {
		case i < 0 || known[i].UID != m.UID:
		case known[i].State == m.State && known[i].Since.Equal(m.Since):
			s = known[i]
		case known[i].Mute && m.State == Dead:
			// It was suspected already: what was seen since then counts.
			s = known[i]
			s.Member, s.Mute = m, false
		}
		out = append(out, s)
	}
	for _, k := range known {
		isForgotten := !slices.ContainsFunc(members, func(m Member) bool { return m.Name == k.Name })
		if isForgotten && k.State == Dead && k.Service != gone {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b sibling) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// String says it for people.
func (q quorum) String() string {
	switch q {
	case half:
		return "half"
	case majority:
		return "more than half"
	case minority:
	}
	return "fewer than half"
}
