package spec

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// What a loader remembers must not show: whatever the files were before, its
// answer is that of a fresh one, and snapshots of before stay as they were.
func TestLoaderRemembersNothingThatShows(t *testing.T) {
	peer := func(n byte, more string) string {
		return fmt.Sprintf("peers: [{name: p%d, publicKey: %q, addresses: [10.8.0.%d]%s}]", n, pub(n), n, more)
	}
	contents := map[string][]string{
		GatewayFile: {
			"server: {addresses: [10.8.0.1/24]}\n" + peer(2, ", allowedIPs: [192.168.50.7/24]"),
			"server: {addresses: [10.8.0.1/24]}\nrouting: {routes: [10.1.2.3/8], allowedDestinations: [{cidr: 10.1.2.3/8}]}\n" + peer(2, ""),
			"server: {addresses: [10.8.0.1/24]}\n" + peer(3, ""),
			"server: {addresses: [fd00::1/64], mtu: 1}\n" + peer(2, ""),
			"- no gateway", "", "a: [",
		},
		PrivateKeyFile:       {testKeyText(1), testKeyText(2), "no key"},
		"peers.d/a/x.yaml":   {peer(3, ""), peer(3, ", allowedDestinations: [{cidr: 10.9.8.7/8}]"), peer(2, ""), "peers: []", "unknown: 1"},
		"peers.d/a/y.yaml":   {peer(4, ", allowedIPs: [172.16.9.9/12]"), peer(4, ", presharedKey: "+testPSK(4).Reveal()), peer(5, "")},
		"psk/team/p2":        {testPSK(1).Reveal(), testPSK(2).Reveal(), "no key"},
		"psk/team/p4":        {testPSK(1).Reveal(), testPSK(2).Reveal()},
		"peers.d/a/note.txt": {"what?"},
	}
	rnd := rand.New(rand.NewPCG(3, 5))
	opts := []cmp.Option{cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmp.AllowUnexported(Peer{}, source{})}
	files := Files{GatewayFile: []byte(contents[GatewayFile][0]), PrivateKeyFile: []byte(testKeyText(1))}
	l := NewLoader()
	valid := 0
	for step := range 3000 {
		got, gotErr := l.Load(files)
		want, wantErr := Load(files)
		if diff := cmp.Diff(fmt.Sprint(wantErr), fmt.Sprint(gotErr)); diff != "" {
			t.Fatalf("step %d: error (-fresh +remembering):\n%s", step, diff)
		}
		if diff := cmp.Diff(want, got, opts...); diff != "" {
			t.Fatalf("step %d: snapshot (-fresh +remembering):\n%s", step, diff)
		}
		before := maps.Clone(files)
		change(rnd, files, contents)
		if got == nil {
			continue
		}
		valid++
		_, _ = l.Load(files)
		if again, _ := Load(before); cmp.Diff(again, got, opts...) != "" {
			t.Fatalf("step %d: a later loading changed the snapshot:\n%s", step, cmp.Diff(again, got, opts...))
		}
	}
	if valid < 100 {
		t.Errorf("only %d of the steps were valid: the test proves little", valid)
	}
}

// change gives one file another content or takes it away; the two that must be
// there come back by and by.
func change(rnd *rand.Rand, files Files, contents map[string][]string) {
	names := []string{GatewayFile, PrivateKeyFile, "peers.d/a/x.yaml", "peers.d/a/y.yaml", "psk/team/p2", "psk/team/p4", "peers.d/a/note.txt"}
	name := names[rnd.IntN(len(names))]
	list := contents[name]
	switch choice := rnd.IntN(3 * len(list)); {
	case choice < len(list):
		files[name] = []byte(list[choice])
	case choice < 2*len(list):
		files[name] = []byte(list[0])
		if name != GatewayFile && name != PrivateKeyFile {
			delete(files, name)
		}
	case rnd.IntN(20) == 0:
		delete(files, name)
	}
}
