package readiness

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fleet reads siblings, such as "b:alive c:dead+serving d:dead+serving+silent": each with
// its state and, where the API server was asked at this moment, what it said; and
// whether it has been silent for long, lives, or is out of service for its silence.
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
			asked, life, _ := strings.Cut(asked, "+")
			s.Service, s.Looked, s.Same = services[asked], start, 1
			if life == "silent" {
				s.Same = silentLooks
			}
			s.Lives, s.Silenced = life == "lives", life == "silenced"
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
		{"2|1, the one", "c", "a:dead+serving b:dead+serving", 0, decision{Quorum: minority}},
		{"the dead have no turn", "b", "a:dead c:alive", 0, decision{Quorum: majority, Look: []string{"a"}}},

		{"1|1, not looked", "a", "b:dead", 0, decision{Quorum: half, Look: []string{"b"}}},
		{"1|1", "a", "b:dead+serving", 0, decision{Quorum: half, Mark: []string{"b"}}},
		{"1|1, seen from there", "b", "a:dead+serving", 0, decision{Quorum: half, Mark: []string{"a"}}},
		{"1|1, other one out of service", "a", "b:dead+stopped", 0, decision{Quorum: majority}},

		{"2|2", "a", "b:alive c:dead+serving d:dead+serving", 0, decision{Quorum: half, Mark: []string{"c", "d"}}},
		{"2|2, one of them out of service", "a", "b:alive c:dead+stopped d:dead+serving", 0, decision{Quorum: majority, Mark: []string{"d"}}},
		{"2|2, one of them not looked at", "a", "b:alive c:dead d:dead+stopped", 0, decision{Quorum: majority, Look: []string{"c"}}},
		{"3|2, the three", "a", "b:alive c:alive d:dead+serving e:dead+serving", 0, decision{Quorum: majority, Mark: []string{"d", "e"}}},
		{"3|2, the two", "d", "a:dead+serving b:dead+serving c:dead+serving e:alive", 0, decision{Quorum: minority}},

		{"1|2, one of the two not noticed yet", "c", "a:dead+serving b:mute", 0, decision{Quorum: minority, Look: []string{"b"}}},
		{"2|2, one of the two not noticed yet", "b", "a:dead+serving c:alive d:mute+serving", 0, decision{Quorum: half, Mark: []string{"a"}}},
		{"the mute have no turn", "b", "a:mute+serving c:dead d:alive e:alive", 0, decision{Quorum: majority, Look: []string{"c"}}},

		{"3|2, then 2|2, the three", "c", "a:dead+stopped b:dead+stopped d:alive e:dead+serving", 0, decision{Quorum: majority, Mark: []string{"e"}}},
		{"3|2, then 2|2, the two", "a out of service", "b:alive c:dead+serving d:dead+serving e:dead+stopped", 0, decision{Quorum: minority, Refused: refusedMinority}},
		{"1|1, then the other one is dead", "b out of service", "a:dead+stopped", 0, decision{Quorum: half}},

		{"all siblings dead", "a", "b:dead+serving c:dead+serving d:dead+serving", 0, decision{Quorum: minority}},
		{"all siblings dead and silent", "a", "b:dead+serving+silent c:dead+serving+silent d:dead+serving+silent", 0, decision{Quorum: minority, Mark: []string{"b", "c", "d"}}},
		{"one of them not for long enough", "a", "b:dead+serving+silent c:dead+serving d:dead+serving+silent", 0, decision{Quorum: minority}},
		{"one of them not looked at", "a", "b:dead+serving+silent c:dead d:dead+serving+silent", 0, decision{Quorum: minority, Look: []string{"c"}}},
		{"one of them for too long not known", "a", "b:dead+serving+silent c:dead+serving", settled + 1, decision{Quorum: minority, Refused: refusedMinority}},
		{"one of them lives", "a", "b:dead+serving+silent c:dead+serving+lives", 0, decision{Quorum: minority, Refused: refusedAlive}},
		{"one of them suspected, and not silent for long enough", "a", "b:dead+serving+silent c:mute+serving", 0, decision{Quorum: minority}},
		{"one of them suspected", "a", "b:dead+serving+silent c:mute+serving+silent", 0, decision{Quorum: minority, Mark: []string{"b"}}},
		{"one of them suspected, and lives", "a", "b:dead+serving+silent c:mute+serving+lives", 0, decision{Quorum: minority, Refused: refusedAlive}},
		{"one of them out of service", "a", "b:dead+serving+silent c:dead+stopped d:dead+serving+silent", 0, decision{Quorum: minority, Mark: []string{"b", "d"}}},
		{"one of them out of service for its silence", "a", "b:dead+stopped+silenced c:dead+serving", 0, decision{Quorum: minority}},
		{"all silent, to one that is out of service", "a out of service", "b:dead+serving+silent c:dead+serving+silent", 0, decision{Quorum: minority, Refused: refusedMinority}},
		{"silence does not matter to a half", "a", "b:dead+serving+lives", 0, decision{Quorum: half, Mark: []string{"b"}}},
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
		1:     {Quorum: majority, Next: start.Add(again)},
		again: {Quorum: majority, Look: []string{"c"}},
	} {
		if diff := cmp.Diff(want, decide(self{Name: "a"}, siblings, start.Add(after))); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", after, diff)
		}
	}
}

// A sibling is silent once the same is found for two proofs of life and longer.
func TestObserve(t *testing.T) {
	type seen struct {
		Same  int
		Lives bool
	}
	for beats, want := range map[string]seen{
		"-":           {1, false},
		"1":           {1, false},
		"- -":         {2, false},
		"1 1 1":       {3, false},
		"- 1":         {1, true},
		"1 1 2":       {1, true},
		"1 2 2 2":     {3, true},
		"1 1 error":   {0, false},
		"1 1 error 1": {1, false},
		"1 1 error 2": {1, true},
		"error 1 1":   {2, false},
	} {
		var s sibling
		for beat := range strings.FieldsSeq(beats) {
			if beat == "error" {
				s.Same = 0
				continue
			}
			s.observe(strings.Trim(beat, "-"))
			s.Looked = start
		}
		if diff := cmp.Diff(want, seen{s.Same, s.Lives}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", beats, diff)
		}
	}
}

// The newest death says how often a proof of life is due; where nobody dead is in
// service, none is, nor where one of a majority has yet to look.
func TestNextBeat(t *testing.T) {
	last := start.Add(-time.Millisecond)
	for _, tt := range []struct {
		siblings string
		ages     []time.Duration
		want     time.Duration // after the last one
	}{
		{"b:alive c:dead d:dead+stopped e:dead+gone f:mute+serving", []time.Duration{0, 0, 0, 0, 0}, 0},
		{"b:mute c:dead", []time.Duration{0, 0}, beatFirst},
		{"b:dead+serving", []time.Duration{0}, beatFirst},
		{"b:dead+serving", []time.Duration{beatFirstFor}, beatLater},
		{"b:dead+serving c:dead+serving", []time.Duration{beatFirstFor, 1}, beatFirst},
		{"b:dead+serving c:dead+stopped", []time.Duration{beatFirstFor, 1}, beatLater},
	} {
		siblings := fleet(t, tt.siblings, start)
		for i, age := range tt.ages {
			siblings[i].Since = start.Add(-age)
		}
		var want time.Time
		if tt.want > 0 {
			want = last.Add(tt.want)
		}
		if got := nextBeat(self{Name: "a"}, siblings, last, start); !got.Equal(want) {
			t.Errorf("%s, dead for %v: %v, want %v", tt.siblings, tt.ages, got, want)
		}
	}
}

// Whenever siblings may write their proofs of life less often already, they are given
// the time that this takes and half as much again: of who noticed that much later, a proof
// is seen.
func TestLooksSpanBeats(t *testing.T) {
	for age := time.Duration(0); age < 2*beatFirstFor; age += 100 * time.Millisecond {
		span := time.Duration(0)
		for range silentLooks - 1 {
			span += lookEvery(age + span)
		}
		if want := beatEvery(age+noticedApart) * 3 / 2; span < want {
			t.Fatalf("dead for %s: silent after %s, want %s at least", age, span, want)
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
	suspected := []sibling{{Member: Member{Name: "b", State: Alive, Since: start}, Mute: true, Same: 3}}
	if got := follow("a", []Member{{Name: "b", State: Dead, Since: start.Add(1)}}, suspected); got[0].Same != 3 || got[0].Mute || got[0].State != Dead {
		t.Errorf("b was suspected, and is dead: %+v, want what was known", got[0])
	}
	suspected[0].Mute = false
	if got := follow("a", []Member{{Name: "b", State: Dead, Since: start.Add(1)}}, suspected); got[0].Same != 0 {
		t.Errorf("b was not suspected, and is dead: %+v, want nothing known", got[0])
	}
	known[0].Service = gone
	if got := follow("a", []Member{{Name: "a"}}, known); len(got) != 0 {
		t.Errorf("the fleet has forgotten b, which has no Pod: %+v", got)
	}
}
