package rotate

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// agreed is a gateway that mounts a Secret, of server keys and of pre-shared ones.
func agreed(t *testing.T, data map[string][]byte, overlap time.Duration) *spec.Snapshot {
	t.Helper()
	files := spec.Files{spec.GatewayFile: []byte("server: {addresses: [10.8.0.1/24]}\n" +
		"peers:\n- {name: alice, publicKey: " + public(t, testKey("alice")).String() + ", addresses: [10.8.0.2]}\n" +
		"- {name: bob, publicKey: " + public(t, testKey("bob")).String() + ", addresses: [10.8.0.3]}\n")}
	for entry, text := range data {
		if of, _ := key.ParsePresharedEntry(entry); of == "alice" || of == "bob" {
			files[spec.PresharedDir+"team/"+entry] = text
		} else {
			files[spec.KeyDir+entry] = text
		}
	}
	if len(files[spec.PrivateKeyFile]) == 0 { // a Secret of pre-shared keys alone
		files[spec.PrivateKeyFile] = []byte(testKey("gateway"))
	}
	s, err := spec.Load(files)
	if err != nil {
		t.Fatalf("the gateway does not take what a rotation takes: %v", err)
	}
	s.Gateway.KeyRotation.Server.Overlap = overlap
	return s
}

// turns are the times around which a line's answers change, and some others.
func turns[K secretKey](l *line[K], r reading) []time.Time {
	out := []time.Time{r.now, r.now.Add(r.lead), r.now.Add(-r.overlap)}
	for _, d := range l.keys {
		for _, at := range []time.Time{d.from, d.from.Add(r.overlap)} {
			out = append(out, at.Add(-time.Nanosecond), at, at.Add(time.Nanosecond))
		}
	}
	// Before the first year nothing is, and what ends after the last one ends with it.
	return slices.DeleteFunc(out, func(at time.Time) bool { return at.Year() < 1 || at.Year() >= 9999 })
}

// wantServerAgreed wants of a Secret without fault that the gateway answers to the
// keys that are published, until then, and has the same one in force.
func wantServerAgreed(t *testing.T, data map[string][]byte, r reading) {
	t.Helper()
	l := serverLine(t, data)
	s := agreed(t, data, r.overlap)
	for _, now := range turns(l, r) {
		if len(crowded(l, now, r.overlap)) > 0 {
			continue // refused; the gateway makes the best of it
		}
		var want []Identity
		for _, id := range state.Identities(s, now) {
			i := Identity{PublicKey: id.Key.Public(), Slot: id.Slot, From: id.From}
			if !id.Retires.IsZero() {
				i.Retires = end(id.Retires, 0) // as far as JSON can say it
			}
			want = append(want, i)
		}
		if diff := cmp.Diff(want, identities(l, now, r.overlap, Endpoints{})); diff != "" {
			t.Fatalf("at %v (-gateway +rotation):\n%s", now, diff)
		}
		if got, want := l.keys[l.current(now)].key, state.InForce(state.Identities(s, now), now).Key; got != want {
			t.Fatalf("at %v in force is %s to the gateway, %s to a rotation", now, want.Public(), got.Public())
		}
	}
}

// wantPresharedAgreed is the same of pre-shared keys, of alice and bob.
func wantPresharedAgreed(t *testing.T, data map[string][]byte, r reading) {
	t.Helper()
	lines, faults := parsePreshared(data)
	if len(faults) > 0 {
		t.Fatalf("faults in what was taken or written: %v", faults)
	}
	ours := map[string][]byte{}
	for entry, text := range data {
		if of, _ := key.ParsePresharedEntry(entry); of == "alice" || of == "bob" {
			ours[entry] = text
		}
	}
	s := agreed(t, ours, r.overlap)
	for i := range s.Peers {
		l := lines[s.Peers[i].Name]
		if l == nil {
			continue
		}
		for _, now := range turns(l, r) {
			var want key.Preshared
			switch d := l.keys[l.current(now)]; {
			case !d.from.After(now):
				want = d.key
			case l.copied >= 0: // the entry without a time counts, though its key's is to come
				want = l.keys[l.copied].key
			}
			if state.PresharedKey(&s.Peers[i], now) != want {
				t.Fatalf("at %v gateway and rotation have different keys of %s in force", now, s.Peers[i].Name)
			}
		}
	}
}

// The rule of what is in force stands in package state, for the gateway, and here,
// for whoever writes keys. They must not differ, whatever is in a Secret.
func TestRotationAgreesWithGateway(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 11))
	when := func() time.Duration { return time.Duration(rnd.IntN(40)-20) * 12 * time.Hour }
	text := func() []byte { return []byte(testKey(strconv.Itoa(rnd.IntN(5)))) }
	random := func(undated string, dated func(time.Time) string) map[string][]byte {
		data := map[string][]byte{undated: text()}
		for range rnd.IntN(4) {
			data[dated(tests2026.Add(when()))] = text()
		}
		return data
	}
	slots := []key.Slot{key.Blue, key.Green}
	server, preshared := 0, 0
	for range 1000 {
		r := reading{now: tests2026.Add(when()), lead: lead, overlap: time.Duration(rnd.IntN(20)) * 24 * time.Hour}
		r.data = random(serverEntry, func(from time.Time) string { return key.ServerEntry(slots[rnd.IntN(2)], from) })
		if got, err := planServer(r, serverEntry, func() key.Private { return testPrivate(t, made) }); err == nil {
			server++
			wantServerAgreed(t, r.data, r)
			wantServerAgreed(t, patched(r.data, got.write), r)
		} else if !errors.As(err, new(Faults)) {
			t.Fatal(err)
		}
		r.data = random("alice", func(from time.Time) string { return key.PresharedEntry("alice", from) })
		maps.Copy(r.data, random("bob", func(from time.Time) string { return key.PresharedEntry("bob", from) }))
		if rnd.IntN(2) == 0 {
			delete(r.data, "bob") // has keys with times alone
		}
		if got, err := planPreshared(r, func() key.Preshared { return testPreshared(t, made+strconv.Itoa(rnd.Int())) }); err == nil {
			preshared++
			wantPresharedAgreed(t, r.data, r)
			wantPresharedAgreed(t, patched(r.data, got.write), r)
		}
	}
	if server < 100 || preshared < 100 {
		t.Errorf("only %d and %d Secrets were without fault", server, preshared)
	}
}
