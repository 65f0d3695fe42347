package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// rotationRate is how many packets a second alice sends while keys rotate, and
// skewRate while other tests run, too.
const (
	rotationRate = 1000
	skewRate     = 200
)

// rotation is a world with a client, alice, and two Secrets to rotate.
type rotation struct {
	*world
	config  gateway.Config
	overlap time.Duration
	alice   person
	client  *wgclient.Client
	stream  *stream.Stream
	rate    int                        // of the stream
	keys    map[string]wgclient.Secret // the server keys that have a time
}

const rotatedSecret = "team-psk"

// newRotation opens a world; keys overlap for a time given in seconds.
func newRotation(t *testing.T, overlap, rate int) *rotation {
	t.Helper()
	need(t)
	r := &rotation{rate: rate, overlap: time.Duration(overlap) * time.Second, alice: newPerson(t, "alice", "10.8.0.2")}
	r.alice.psk = newPSK(t)
	r.config = gateway.Config{
		Values:        fmt.Sprintf("extraArgs: [--resync=1h]\nkeyRotation: {server: {overlap: %ds}}\n", overlap),
		Peers:         []gateway.Peer{r.alice.entry()},
		PresharedKeys: map[string]map[string]wgclient.Secret{rotatedSecret: {"alice": r.alice.psk}},
	}
	r.world = newWorld(t, netns.Plan{Clients: 1}, r.config)
	target := r.echo(t).Addr()
	r.client = r.alice.connect(t, r.world, 0, "10.0.0.0/8")
	r.stream = startStream(t, r.Clients[0], target, r.rate)
	return r
}

// next schedules another server key, and waits until the gateway answers to it.
func (r *rotation) next(t *testing.T, slot string, from time.Time) wgclient.Secret {
	t.Helper()
	k, err := wgclient.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	r.keys = gateway.Entries(r.keys, gateway.Dated(slot, from), k)
	if _, err := r.SetKeys(r.keys); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the gateway to answer to the next key", func(now gateway.Readiness) bool {
		return len(now.Identities) == 2 && now.Identities[1].PublicKey == k.Public() && now.Identities[1].ListenPort != 0
	})
	return k
}

func (r *rotation) await(t *testing.T, what string, wanted func(gateway.Readiness) bool) {
	t.Helper()
	if _, err := r.Await(t.Context(), what, wanted); err != nil {
		t.Fatal(err)
	}
}

// lost is what the stream lost since the last call.
func (r *rotation) lost(t *testing.T, what string) stream.Report {
	t.Helper()
	await(t, r.stream, uint64(r.rate)/4)
	report := r.stream.Stop(time.Second)
	t.Logf("%s: %s, outage %d ms", what, report, report.LongestLoss.Milliseconds())
	r.stream = startStream(t, r.Clients[0], r.stream.To(), r.rate)
	return report
}

func until(when time.Time) { time.Sleep(time.Until(when)) }

// inSeconds is a whole second from now on, as a key's name has it.
func inSeconds(n int) time.Time {
	return time.Now().Add(time.Duration(n) * time.Second).Truncate(time.Second)
}

// schedulePSK puts a pre-shared key for alice beside the one in force.
func (r *rotation) schedulePSK(t *testing.T, from time.Time) wgclient.Secret {
	t.Helper()
	psk := newPSK(t)
	r.config.PresharedKeys[rotatedSecret] = map[string]wgclient.Secret{"alice": r.alice.psk, gateway.Dated("alice", from): psk}
	if err := r.Reload(t.Context(), r.config); err != nil {
		t.Fatal(err)
	}
	return psk
}

// TestPresharedKeyRotates: both ends switch by the clock, and no packet is lost.
func TestPresharedKeyRotates(t *testing.T) {
	r := newRotation(t, 60, rotationRate)
	for range 2 {
		from := inSeconds(3)
		psk := r.schedulePSK(t, from)
		before := deviceOf(t, r.Gateway)
		until(from)
		if err := r.client.SetPresharedKey(r.PublicKey(), psk); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pre-shared key to be in force", func() string {
			if got, was := deviceOf(t, r.Gateway).Peers, before.Peers; got[r.alice.key.Public()].PSK == was[r.alice.key.Public()].PSK {
				return "it is the old one"
			}
			return ""
		})
		r.alice.psk = psk
		wantNothingLost(t, r.lost(t, "pre-shared key"))
	}
	// The session is older than both keys: a new one takes the newest.
	if err := r.client.Close(); err != nil {
		t.Fatal(err)
	}
	r.stream.Stop(0)
	r.client = r.alice.connect(t, r.world, 0, "10.0.0.0/8")
	wantNothingLost(t, startStream(t, r.Clients[0], r.stream.To(), 100).Stop(patience))
}

// TestServerKeyRotates goes through two rotations. A stock client knows nothing of
// the first until it is given a new file; of the second it knows both keys.
func TestServerKeyRotates(t *testing.T) {
	r := newRotation(t, 6, rotationRate)
	from := inSeconds(4)
	green := r.next(t, "green", from)
	wantNothingLost(t, r.lost(t, "a second key appears"))
	until(from.Add(time.Second))
	r.await(t, "the newer key to be in force", func(now gateway.Readiness) bool { return now.PublicKey == green.Public() })
	wantNothingLost(t, r.lost(t, "on the old key while the new one comes in force"))

	file := r.client.Config()
	file.Peers[0].PublicKey, file.Peers[0].Endpoint = green.Public(), r.GreenEndpoint().String()
	if err := r.client.Sync(file); err != nil {
		t.Fatal(err)
	}
	if report := r.lost(t, "a stock client moves by its file"); report.Lost > uint64(r.rate) {
		t.Errorf("%d packets lost, want no more than those of a second", report.Lost)
	}
	if got := r.metric(t, "vpn_gateway_moved_peers"); got != 1 {
		t.Errorf("moved peers: %v, want 1", got)
	}
	until(from.Add(r.overlap + time.Second))
	r.await(t, "the old key to retire", func(now gateway.Readiness) bool { return len(now.Identities) == 1 })
	wantNothingLost(t, r.lost(t, "the old key retires"))

	from = inSeconds(3)
	r.keys = map[string]wgclient.Secret{"privateKey": green, gateway.Dated("green", time.Now().Add(-time.Hour)): green}
	blue := r.next(t, "blue", from)
	until(from)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.client.MoveTo(ctx, blue.Public(), r.Endpoint.String()); err != nil {
		t.Fatal(err)
	}
	if report := r.lost(t, "a client that knows both keys moves"); report.Lost > uint64(r.rate)/4 {
		t.Errorf("%d packets lost, want no more than those of 250 ms", report.Lost)
	}
	until(from.Add(r.overlap + time.Second))
	r.await(t, "the old key to retire", func(now gateway.Readiness) bool {
		return len(now.Identities) == 1 && now.Identities[0].Slot == "blue"
	})
	wantNothingLost(t, r.lost(t, "and back in the first slot"))
}

// TestClockSkew: the client's clock, which is the test's, is 30 s ahead of the
// gateway's or behind it, and both kinds of keys rotate. The client takes up each
// when its own clock says so.
func TestClockSkew(t *testing.T) {
	const skew = 30 * time.Second
	for name, ahead := range map[string]time.Duration{"ahead": skew, "behind": -skew} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRotation(t, 90, skewRate)
			from := inSeconds(4).Add(max(ahead, 0))
			psk := r.schedulePSK(t, from)
			green := r.next(t, "green", from.Add(2*time.Second))
			until(from.Add(-ahead))
			if err := r.client.SetPresharedKey(r.PublicKey(), psk); err != nil {
				t.Fatal(err)
			}
			wantNothingLost(t, r.lost(t, "the client has the next pre-shared key"))
			until(from.Add(2*time.Second - ahead))
			// While the pre-shared keys differ it gets no answer, and stays where it is.
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			if err := r.client.MoveTo(ctx, green.Public(), r.GreenEndpoint().String()); err != nil {
				t.Fatal(err)
			}
			if report := r.lost(t, "the client has moved to the next server key"); report.Lost > uint64(r.rate)/4 {
				t.Errorf("%d packets lost, want no more than those of 250 ms", report.Lost)
			}
			until(from.Add(3 * time.Second))
			r.await(t, "the newer key to be in force", func(now gateway.Readiness) bool { return now.PublicKey == green.Public() })
			wantNothingLost(t, r.lost(t, "both agree"))
		})
	}
}

// TestRulesetNamesTheTunnels: people read the table with nft.
func TestRulesetNamesTheTunnels(t *testing.T) {
	w := newWorld(t, netns.Plan{}, gateway.Config{})
	if text := strings.Join(ruleset(t, w.Pod.Network()), ""); !strings.Contains(text, `elements = { "wg0",`) || !strings.Contains(text, `"wg0g" }`) {
		t.Errorf("the table does not name wg0 and wg0g:\n%s", text)
	}
}
