package integration

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/crowd"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	crowdSize = 200
	rotations = 30
	// settled is after how many rotations everything has been made once that
	// stays: from then on, nothing may grow.
	settled = 5
	// pingEvery is how often each client sends a packet.
	pingEvery = 200 * time.Millisecond
	// spread is by how much the clients' clocks differ.
	spread = 500 * time.Millisecond
	// silence is after how long without an answer a session counts as lost: it is
	// REKEY_TIMEOUT, after which WireGuard calls anew. What a move costs is measured
	// by TestServerKeyRotates.
	silence = 5 * time.Second
)

// TestManyRotations rotates the server key and all pre-shared keys again and
// again, under clients that follow: half an hour of rotations a minute apart, with
// the waiting left out. No client may lose its session, and the gateway may not
// grow.
func TestManyRotations(t *testing.T) {
	need(t)
	t.Parallel()
	people := make([]person, crowdSize)
	config := gateway.Config{
		Values:        "extraArgs: [--resync=1h]\nserver: {addresses: [10.8.0.1/16]}\nkeyRotation: {server: {overlap: 2s}}\n",
		PresharedKeys: map[string]map[string]wgclient.Secret{rotatedSecret: {}},
	}
	for i := range people {
		people[i] = newPerson(t, fmt.Sprintf("client-%03d", i), netip.AddrFrom4([4]byte{10, 8, 1, byte(i + 1)}).String())
		people[i].psk = newPSK(t)
		config.Peers = append(config.Peers, people[i].entry())
		config.PresharedKeys[rotatedSecret][people[i].name] = people[i].psk
	}
	w := newWorld(t, netns.Plan{Clients: 1}, config)
	clients := make([]*crowd.Client, crowdSize)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var pinging sync.WaitGroup
	for i, p := range people {
		from := netip.AddrFrom4([4]byte{198, 51, 100, byte(20 + i)})
		if err := w.Clients[0].AddAddress(netns.UplinkInterface, netip.PrefixFrom(from, 24)); err != nil {
			t.Fatal(err)
		}
		var err error
		clients[i], err = crowd.Start(crowd.Options{
			NS: w.Clients[0], From: from, PrivateKey: p.key, Address: p.addresses[0],
			Gateway: crowd.Identity{PublicKey: w.PublicKey(), Endpoint: w.Endpoint, PresharedKey: p.psk},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(clients[i].Close)
		pinging.Go(func() { clients[i].Ping(ctx, w.ServiceIP(), pingEvery) })
	}
	everyoneAnswered(t, clients)

	var before footprint
	current, slot := map[string]wgclient.Secret{}, "green"
	for n := range rotations {
		if n == settled {
			before = footprintOf(t, w)
		}
		current = rotateAll(t, w, &config, people, clients, current, slot)
		slot = map[string]string{"green": "blue", "blue": "green"}[slot]
	}
	after := footprintOf(t, w)
	cancel()
	pinging.Wait()
	time.Sleep(time.Second) // for what is under way
	var sent, received uint64
	var longest time.Duration
	for i, c := range clients {
		s, r, gap := c.Counts()
		sent, received, longest = sent+s, received+r, max(longest, gap)
		if gap > silence {
			t.Errorf("%s heard nothing for %v", people[i].name, gap)
		}
	}
	t.Logf("%d rotations under %d clients: %d packets sent, %d lost, longest silence %d ms; %v, then %v",
		rotations, crowdSize, sent, sent-received, longest.Milliseconds(), before, after)
	if after.files > before.files || after.objects > before.objects || after.goroutines > before.goroutines+crowdSize/10 {
		t.Errorf("grew from %v to %v", before, after)
	}
	if after.memory > before.memory*5/4 {
		t.Errorf("memory grew from %v to %v", before, after)
	}
}

// rotateAll writes the next server key and the next pre-shared keys, waits until
// their time, has the clients follow and the older server key retire. It returns
// the entry of the key that is in force then. The two kinds do not come in force
// in one second: a handshake in the moment in which only one end has the newer
// pre-shared key fails, and WireGuard tries again after 5 s.
func rotateAll(t *testing.T, w *world, config *gateway.Config, people []person, clients []*crowd.Client, current map[string]wgclient.Secret, slot string) map[string]wgclient.Secret {
	t.Helper()
	next, err := wgclient.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	pskFrom := time.Now().Add(3 * time.Second / 2).Truncate(time.Second) // half a second at least, to be read
	from := pskFrom.Add(time.Second)
	name := gateway.Dated(slot, from)
	entries := gateway.Entries(current, name, next)
	for _, k := range current {
		entries["privateKey"] = k
	}
	if _, err := w.SetKeys(entries); err != nil {
		t.Fatal(err)
	}
	psks := map[string]wgclient.Secret{}
	for i := range people {
		psks[people[i].name] = people[i].psk
		people[i].psk = newPSK(t)
		psks[gateway.Dated(people[i].name, pskFrom)] = people[i].psk
	}
	config.PresharedKeys = map[string]map[string]wgclient.Secret{rotatedSecret: psks}
	if _, err := w.Update(*config); err != nil {
		t.Fatal(err)
	}
	waitFor := func(what string, wanted func(gateway.Readiness) bool) {
		t.Helper()
		if _, err := w.Await(t.Context(), what, wanted); err != nil {
			t.Fatal(err)
		}
	}
	waitFor("the next key", func(r gateway.Readiness) bool { return len(r.Identities) == 2 && r.Condition("config").OK })
	until(pskFrom)
	for i, c := range clients {
		if err := c.SetPresharedKey(people[i].psk); err != nil {
			t.Fatal(err)
		}
	}
	until(from)
	endpoint := w.Endpoint
	if slot == "green" {
		endpoint = w.GreenEndpoint()
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var moving sync.WaitGroup
	for i, c := range clients {
		moving.Go(func() {
			time.Sleep(time.Duration(i) * spread / crowdSize)
			if err := c.MoveTo(ctx, crowd.Identity{PublicKey: next.Public(), Endpoint: endpoint, PresharedKey: people[i].psk}); err != nil {
				t.Error(err)
			}
		})
	}
	moving.Wait()
	waitFor("the older key to retire", func(r gateway.Readiness) bool {
		return len(r.Identities) == 1 && r.PublicKey == next.Public()
	})
	return map[string]wgclient.Secret{name: next}
}

func everyoneAnswered(t *testing.T, clients []*crowd.Client) {
	t.Helper()
	eventually(t, "an answer to everybody", func() string {
		silent := slices.IndexFunc(clients, func(c *crowd.Client) bool { _, received, _ := c.Counts(); return received == 0 })
		if silent < 0 {
			return ""
		}
		return fmt.Sprintf("none to client %d yet", silent)
	})
}

// footprint is what the gateway takes of the system.
type footprint struct {
	memory     uint64 // bytes, resident
	files      int    // descriptors
	objects    int    // lines of the nftables ruleset, less elements
	goroutines int
}

// String is for the log.
func (f footprint) String() string {
	return fmt.Sprintf("%d MiB, %d files, %d lines of nftables, %d goroutines", f.memory>>20, f.files, f.objects, f.goroutines)
}

// footprintOf looks at the gateway once it has given back what it can.
func footprintOf(t *testing.T, w *world) footprint {
	t.Helper()
	time.Sleep(3 * time.Second)
	usage, err := w.Container().Usage()
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(w.Container().PID()), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return footprint{
		memory: uint64(usage.RSS), files: len(files), objects: len(ruleset(t, w.Pod.Network())),
		goroutines: int(w.metric(t, "go_goroutines")),
	}
}
