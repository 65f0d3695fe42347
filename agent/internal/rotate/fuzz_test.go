package rotate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// FuzzRotate holds rotations to what gateways and clients rely on, for any Secret
// at any time: an error and no change, or a change that keeps the key in force and
// adds one that is to come.
//
// A line of text is an entry: its name, a space, and its content, where a single
// character stands for a key.
func FuzzRotate(f *testing.F) {
	for _, text := range []string{
		"", "privateKey 0", "privateKey 0\ngreen.20261225T030000Z 1", "privateKey 1\ngreen.20261225T030000Z 1\nblue.20270125T030000Z 2",
		"privateKey 1\ngreen.20261225T030000Z 1", "privateKey 0\nblue.20261225T030000Z 1", "privateKey xx\ngreen.20261225T030000Z", "green.20261225T030000Z 1",
		"alice a", "alice a\nalice.20261225T030000Z b\nbob c", "alice b\nalice.20261225T030000Z b\nalice.20261226T030000Z c",
		"privateKey 9\nblue.20200101T000000Z 1\ngreen.20210101T000000Z 2\nblue.20220101T000000Z 3\ngreen.20230101T000000Z 4\nother x",
		"privateKey 0\ngreen.99991231T235959Z 1", "privateKey 0\ngreen.20261231T250000Z 1\nGreen.20261225T030000Z 2",
	} {
		f.Add(text, text, tests2026.UnixNano(), int64(lead), int64(overlap))
		f.Add(text, "", tests2026.Add(overlap).UnixNano(), int64(1), int64(0))
	}
	f.Fuzz(func(t *testing.T, text, mountedText string, now, lead, overlap int64) {
		if len(text)+len(mountedText) > 1<<12 {
			t.Skip("long ones show nothing that short ones do not")
		}
		r := reading{data: fuzzData(text), now: time.Unix(0, now), lead: time.Duration(max(lead, 1)), overlap: time.Duration(max(overlap, 0))}
		fuzzServer(t, r)
		fuzzPreshared(t, r)
		r.mounted = fuzzData(mountedText)
		fuzzServer(t, r)
		fuzzPreshared(t, r)
	})
}

func fuzzData(text string) map[string][]byte {
	data := map[string][]byte{}
	for entry := range strings.SplitSeq(text, "\n") {
		name, content, _ := strings.Cut(entry, " ")
		if len(content) == 1 {
			content = testKey(content)
		}
		data[name] = []byte(content)
	}
	return data
}

func fuzzServer(t *testing.T, r reading) {
	data, mounted := maps.Clone(r.data), maps.Clone(r.mounted)
	got, err := planServer(r, serverEntry, func() key.Private { return testPrivate(t, made) })
	if !cmp.Equal(data, r.data) || !cmp.Equal(mounted, r.mounted) {
		t.Fatal("the reading was changed")
	}
	rows, showErr := ShowServer(r.data, serverEntry, r.now, r.overlap)
	said := fmt.Sprint(err, got.message, got.attrs, rows, showErr)
	if err != nil {
		if got.write != nil {
			t.Fatalf("a change beside the error %v", err)
		}
		wantNoKeys(t, said, r.data, r.mounted)
		return
	}
	after := patched(r.data, got.write)
	wantNoKeys(t, said, r.data, r.mounted, after)
	wantForeignKept(t, r.data, after, func(name string) bool {
		_, _, dated := key.ParseServerEntry(name)
		return dated || name == serverEntry
	})
	wantServerAgreed(t, after, r)
	l := serverLine(t, after)
	if got.result == Unchanged && len(got.write) > 0 && len(serverLine(t, r.data).keys) > 0 {
		t.Fatalf("unchanged, but for %d entries", len(got.write))
	}
	before := serverLine(t, r.data)
	if before.empty() {
		before = serverLine(t, r.mounted)
	}
	inForce := before.keys[before.current(r.now)]
	if now := l.keys[l.current(r.now)]; now.key != inForce.key || now.slot != inForce.slot {
		t.Fatalf("the key in force changed from %s %s to %s %s", inForce.slot, inForce.key.Public(), now.slot, now.key.Public())
	}
	if got.result == Rotated {
		wantNext(t, l, r, inForce)
		if len(l.raw) > 3 || string(l.raw[serverEntry]) != string(inForce.text) {
			t.Fatalf("%d entries, and the undated one is a copy of the key in force: %t", len(l.raw), string(l.raw[serverEntry]) == string(inForce.text))
		}
		if next := l.newest(); next.slot != inForce.slot.Other() {
			t.Fatalf("the next key takes the slot %s of the one in force", next.slot)
		}
	}
	for _, later := range []time.Duration{0, r.lead, r.lead + r.overlap} {
		if faults := crowded(l, r.now.Add(later), r.overlap); len(faults) > 0 {
			t.Fatalf("after %s: %v", later, faults)
		}
	}
	if patch, err := publication(l, r.now, r.overlap, Endpoints{}); err != nil {
		t.Fatal(err)
	} else {
		for _, text := range patch {
			wantNoKeys(t, string(text), r.data, r.mounted, after)
		}
	}
	again := reading{data: after, mounted: r.mounted, now: r.now, lead: r.lead, overlap: r.overlap}
	if twice, err := planServer(again, serverEntry, func() key.Private { return testPrivate(t, made+" again") }); err != nil || twice.result != Unchanged || len(twice.write) > 0 {
		t.Fatalf("once more: %s, %d entries, %v", twice.result, len(twice.write), err)
	}
}

func fuzzPreshared(t *testing.T, r reading) {
	data, mounted := maps.Clone(r.data), maps.Clone(r.mounted)
	n := 0
	generate := func() key.Preshared {
		n++
		return testPreshared(t, fmt.Sprint(made, n))
	}
	got, err := planPreshared(r, generate)
	if !cmp.Equal(data, r.data) || !cmp.Equal(mounted, r.mounted) {
		t.Fatal("the reading was changed")
	}
	rows, showErr := ShowPreshared(r.data, r.now)
	said := fmt.Sprint(err, got.message, got.attrs, rows, showErr)
	if err != nil {
		if got.write != nil {
			t.Fatalf("a change beside the error %v", err)
		}
		wantNoKeys(t, said, r.data, r.mounted)
		return
	}
	after := patched(r.data, got.write)
	wantNoKeys(t, said, r.data, r.mounted, after)
	lines, faults := parsePreshared(after)
	if len(faults) > 0 {
		t.Fatalf("what was written has faults: %v", faults)
	}
	wantPresharedAgreed(t, after, r)
	before, _ := parsePreshared(r.data)
	seed, _ := parsePreshared(r.mounted)
	next := time.Time{}
	for peer, l := range lines {
		from := before[peer]
		if from == nil {
			from = seed[peer]
		}
		inForce := from.keys[from.current(r.now)]
		if now := l.keys[l.current(r.now)]; now.key != inForce.key {
			t.Fatalf("the key in force of %q changed", peer)
		}
		if maps.EqualFunc(l.raw, from.raw, func(a, b []byte) bool { return string(a) == string(b) }) {
			continue // waits or travels
		}
		wantNext(t, l, r, inForce)
		if !next.IsZero() && !next.Equal(l.newest().from) {
			t.Fatalf("next keys at %s and %s", next, l.newest().from)
		}
		next = l.newest().from
		if len(l.raw) > 3 || string(l.raw[peer]) != string(inForce.text) {
			t.Fatalf("%d entries of %q", len(l.raw), peer)
		}
	}
	if next.IsZero() != (got.result == Unchanged) {
		t.Fatalf("%s, with next keys at %s", got.result, next)
	}
	again := reading{data: after, mounted: r.mounted, now: r.now, lead: r.lead, overlap: r.overlap}
	if twice, err := planPreshared(again, generate); err != nil || twice.result != Unchanged || len(twice.write) > 0 {
		t.Fatalf("once more: %s, %d entries, %v", twice.result, len(twice.write), err)
	}
}

// serverLine are the keys of what must be without fault.
func serverLine(t *testing.T, data map[string][]byte) *line[key.Private] {
	t.Helper()
	l, faults := parseServer(data, serverEntry)
	if len(faults) > 0 {
		t.Fatalf("faults in what was taken or written: %v", faults)
	}
	return l
}

// wantNext wants one key, and one only, to come, at the first full second that is
// no sooner than the lead.
func wantNext[K secretKey](t *testing.T, l *line[K], r reading, inForce dated[K]) {
	t.Helper()
	if len(l.keys) != 2 || l.keys[0].key != inForce.key {
		t.Fatalf("%d keys, want the one in force and the next", len(l.keys))
	}
	ahead := l.newest().from.Sub(r.now)
	if ahead < r.lead || ahead >= r.lead+time.Second {
		t.Fatalf("the next key comes in force in %s, want %s", ahead, r.lead)
	}
}

// wantForeignKept wants entries that are no keys of ours as they were.
func wantForeignKept(t *testing.T, before, after map[string][]byte, ours func(string) bool) {
	t.Helper()
	foreign := func(data map[string][]byte) map[string][]byte {
		out := maps.Clone(data)
		maps.DeleteFunc(out, func(name string, _ []byte) bool { return ours(name) })
		return out
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(foreign(before))), slices.Sorted(maps.Keys(foreign(after)))); diff != "" {
		t.Fatalf("other entries (-before +after):\n%s", diff)
	}
}
