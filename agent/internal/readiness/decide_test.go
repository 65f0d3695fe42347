package readiness

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fleet reads siblings, such as "b:alive c:dead+serving": each with its state and,
// where the API server was asked at this moment, what it said.
func fleet(t *testing.T, text string, since time.Time) []sibling {
	t.Helper()
	states := map[string]State{"alive": Alive, "mute": Alive, "draining": Draining, "dead": Dead, "left": Left}
	services := map[string]service{"serving": serving, "stopped": stopped, "gone": gone}
	var out []sibling
	for word := range strings.FieldsSeq(text) {
		name, rest, _ := strings.Cut(word, ":")
		state, asked, known := strings.Cut(rest, "+")
		s := sibling{Member: Member{Name: name, State: states[state], Since: since}, Mute: state == "mute"}
		if known {
			s.Service, s.Looked = services[asked], start
		}
		out = append(out, s)
	}
	return out
}

func TestDecide(t *testing.T) {
	for _, tt := range []struct {
		name, self, siblings string
		after                time.Duration // that the dead died
		want                 decision
	}{
		{"alone", "a", "", 0, decision{Quorum: majority}},
		{"all alive", "a", "b:alive c:alive", 0, decision{Quorum: majority}},

		{"2|1, first by name", "a", "b:alive c:dead", 0, decision{Quorum: majority, Look: []string{"c"}}},
		{"2|1, looked", "a", "b:alive c:dead+serving", 0, decision{Quorum: majority, Mark: []string{"c"}}},
		{"2|1, second by name waits", "b", "a:alive c:dead", 0, decision{Quorum: majority, Next: start.Add(rankStep)}},
		{"2|1, second by name takes its turn", "b", "a:alive c:dead", rankStep, decision{Quorum: majority, Look: []string{"c"}}},
		{"2|1, second finds it done", "b", "a:alive c:dead+stopped", rankStep, decision{Quorum: majority}},
		{"2|1, third waits longer", "d", "a:alive b:draining c:dead", rankStep, decision{Quorum: majority, Next: start.Add(rankStep)}},
		{"2|1, the one", "c", "a:dead+serving b:dead+serving", 0, decision{Quorum: minority, Mark: []string{"a", "b"}}},
		{"the dead have no turn", "b", "a:dead c:alive", 0, decision{Quorum: majority, Look: []string{"a"}}},

		{"1|1, not looked", "a", "b:dead", 0, decision{Quorum: half, Look: []string{"b"}}},
		{"1|1", "a", "b:dead+serving", 0, decision{Quorum: half, Mark: []string{"b"}}},
		{"1|1, seen from there", "b", "a:dead+serving", 0, decision{Quorum: half, Mark: []string{"a"}}},
		{"1|1, other one out of service", "a", "b:dead+stopped", 0, decision{Quorum: majority}},

		{"2|2", "a", "b:alive c:dead+serving d:dead+serving", 0, decision{Quorum: half, Mark: []string{"c", "d"}}},
		{"2|2, one of them out of service", "a", "b:alive c:dead+stopped d:dead+serving", 0, decision{Quorum: majority, Mark: []string{"d"}}},
		{"2|2, one of them not looked at", "a", "b:alive c:dead d:dead+stopped", 0, decision{Quorum: majority, Look: []string{"c"}}},
		{"3|2, the three", "a", "b:alive c:alive d:dead+serving e:dead+serving", 0, decision{Quorum: majority, Mark: []string{"d", "e"}}},
		{"3|2, the two", "d", "a:dead+serving b:dead+serving c:dead+serving e:alive", 0, decision{Quorum: minority, Mark: []string{"a", "b", "c"}}},

		{"1|2, one of the two not noticed yet", "c", "a:dead+serving b:mute", 0, decision{Quorum: minority, Mark: []string{"a"}}},
		{"2|2, one of the two not noticed yet", "b", "a:dead+serving c:alive d:mute", 0, decision{Quorum: half, Mark: []string{"a"}}},
		{"the mute have no turn", "b", "a:mute c:dead d:alive e:alive", 0, decision{Quorum: majority, Look: []string{"c"}}},

		{"3|2, then 2|2, the three", "c", "a:dead+stopped b:dead+stopped d:alive e:dead+serving", 0, decision{Quorum: majority, Mark: []string{"e"}}},
		{"3|2, then 2|2, the two", "a out of service", "b:alive c:dead+serving d:dead+serving e:dead+stopped", 0, decision{Quorum: minority, Mark: []string{"c", "d"}}},
		{"1|1, then the other one is dead", "b out of service", "a:dead+stopped", 0, decision{Quorum: half}},

		{"all siblings dead", "a", "b:dead+serving c:dead+serving d:dead+serving", 0, decision{Quorum: minority, Mark: []string{"b", "c", "d"}}},
		{"all siblings dead and gone", "a", "b:dead+gone c:dead+gone", 0, decision{Quorum: majority}},
		{"the node controller has marked all but one", "a", "b:dead+stopped c:dead+serving", 0, decision{Quorum: half, Mark: []string{"c"}}},

		{"drained ones left", "a", "b:left c:left d:left", 0, decision{Quorum: majority}},
		{"draining is not dead, and counts", "a", "b:draining c:dead+serving", 0, decision{Quorum: majority, Mark: []string{"c"}}},
		{"left does not count", "a", "b:left c:dead+serving", 0, decision{Quorum: half, Mark: []string{"c"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name, out := strings.CutSuffix(tt.self, " out of service")
			got := decide(self{Name: name, Out: out}, fleet(t, tt.siblings, start.Add(-tt.after)), start)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("decision of %s with %s (-want +got):\n%s", tt.self, tt.siblings, diff)
			}
		})
	}
}

// What was tried is left alone until its time has come, and is then looked at anew.
func TestDecideWaits(t *testing.T) {
	siblings := fleet(t, "b:alive c:dead+serving", start)
	siblings[1].Next = start.Add(again)
	for after, want := range map[time.Duration]decision{
		0:     {Quorum: majority, Next: start.Add(again)},
		again: {Quorum: majority, Look: []string{"c"}},
	} {
		if diff := cmp.Diff(want, decide(self{Name: "a"}, siblings, start.Add(after))); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", after, diff)
		}
	}
}

func TestFollow(t *testing.T) {
	known := []sibling{{Member: Member{Name: "b", State: Dead, Since: start}, Service: stopped, PodUID: "1"}}
	for name, tt := range map[string]struct {
		members []Member
		want    service
	}{
		"the same death":    {[]Member{{Name: "b", State: Dead, Since: start}}, stopped},
		"in another zone":   {[]Member{{Name: "b", State: Dead, Since: start.In(time.FixedZone("", 3600))}}, stopped},
		"came back":         {[]Member{{Name: "b", State: Alive, Since: start.Add(1)}}, unknown},
		"died once more":    {[]Member{{Name: "b", State: Dead, Since: start.Add(2)}}, unknown},
		"another of a kind": {[]Member{{Name: "b", UID: "2", State: Dead, Since: start}}, unknown},
	} {
		got := follow("a", append(tt.members, Member{Name: "a"}), known)
		if len(got) != 1 || got[0].Name != "b" || got[0].Service != tt.want {
			t.Errorf("%s: %+v, want b alone, %v", name, got, tt.want)
		}
	}
	if got := follow("a", []Member{{Name: "a"}}, known); len(got) != 1 {
		t.Errorf("the fleet has forgotten b, which has a Pod: %+v", got)
	}
	known[0].Service = gone
	if got := follow("a", []Member{{Name: "a"}}, known); len(got) != 0 {
		t.Errorf("the fleet has forgotten b, which has no Pod: %+v", got)
	}
}
