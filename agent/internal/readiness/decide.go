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
	// Next is when there is something to do again, once there was.
	Next    time.Time
	trouble trouble
	// refused is why it was not marked, when last asked for.
	refused string
}

// answers says whether it is there, as far as is known.
func (s *sibling) answers() bool { return (s.State == Alive || s.State == Draining) && !s.Mute }

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
	// Mark are those that are to be marked, in a minority: that would be.
	Mark []string
	// Next is when to decide again, where nothing changes before; zero: never.
	Next time.Time
}

// rankStep is by how much each survivor waits for those before it. A look and a
// patch take some ten milliseconds.
const rankStep = 300 * time.Millisecond

// decide says who looks at whom, and who marks whom. The survivors take turns by
// name, so that normally one of them asks the API server and the others find it
// done.
//
// The members that count are those that were alive when last heard of, less those
// that the API server knows to be out of service: nobody can be cut off by them. A
// minority that reaches the API server still sees the Pods of the majority Ready,
// and stays one. A replica that is out of service itself leaves none out: it must
// not take over because those that have cut it off become fewer.
func decide(self self, siblings []sibling, now time.Time) decision {
	d := decision{Quorum: quorumOf(self, siblings)}
	wait := time.Duration(rank(self.Name, siblings)) * rankStep
	for _, s := range siblings {
		if s.State != Dead || s.Service == gone {
			continue
		}
		due := s.Since.Add(wait)
		if s.Next.After(due) {
			due = s.Next
		}
		switch {
		case due.After(now):
			if d.Next.IsZero() || due.Before(d.Next) {
				d.Next = due
			}
		case s.Looked.Before(now):
			d.Look = append(d.Look, s.Name)
		case s.Service == serving:
			d.Mark = append(d.Mark, s.Name)
		}
	}
	return d
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
			if s.Service != gone && (s.Service != stopped || self.Out) {
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
		if i >= 0 && m.State == Dead && known[i].State == Dead && known[i].UID == m.UID && known[i].Since.Equal(m.Since) {
			s = known[i]
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
