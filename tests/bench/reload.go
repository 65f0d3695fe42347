package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

const (
	manyCount   = 10_000
	churn       = 100 // reloads
	syncs       = 9   // of wg syncconf
	scrapes     = 15
	scrapeGoal  = 200 * time.Millisecond
	scrapeRatio = 1.5
	planGoal    = 10 * time.Millisecond
	syncRatio   = 50
	memoryRatio = 1.2
	// settle is how long a process is left alone before its memory is read.
	settle = 5 * time.Second
	// collectAfter is when Go collects garbage that nothing else made it collect
	// (runtime/proc.go, forcegcperiod).
	collectAfter = 2 * time.Minute
)

// many is a gateway and a bare wireguard-go with the same peers.
type many struct {
	*bench
	rig   *rig
	bare  *bare
	peers []peer
	// bareSince is when the bare one had all peers.
	bareSince time.Time
}

// manyPeers measures what depends on the number of peers.
func manyPeers(ctx context.Context, b *bench) (rows []row, err error) {
	topology, err := netns.NewTopology(netns.Plan{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, topology.Close()) }()
	m := &many{bench: b}
	if m.peers, err = makePeers(manyCount); err != nil {
		return nil, err
	}
	b.progress("starting a gateway with %s peers", grouped(manyCount))
	config := inSecrets(m.peers)
	if m.rig, err = b.startGateway(ctx, config, topology); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.rig.close()) }()
	b.progress("giving the same peers to wireguard-go")
	pod, _, err := topology.AddPod()
	if err != nil {
		return nil, err
	}
	if m.bare, err = b.startBare(ctx, pod); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.bare.close()) }()
	if err := m.configureBare(); err != nil {
		return nil, err
	}
	b.progress("reading metrics")
	metrics, err := m.metrics(ctx)
	if err != nil {
		return nil, err
	}
	first, err := m.memory(ctx, "after the first configuration")
	if err != nil {
		return nil, err
	}
	b.progress("changing one peer's key, %d times", churn)
	changes, err := m.changes(ctx)
	if err != nil {
		return nil, err
	}
	after, err := m.memory(ctx, fmt.Sprintf("after %d reloads", churn))
	if err != nil {
		return nil, err
	}
	b.progress("changing one peer's key by wg syncconf, %d times", syncs)
	synced, err := m.syncconf()
	if err != nil {
		return nil, err
	}
	rows = append(m.planRows(changes, synced), metrics...)
	return append(rows, first, after), nil
}

// configureBare gives wireguard-go what the agent gave its own: one message with
// all peers.
func (m *many) configureBare() error {
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return err
	}
	if err := testenv.AppendSecret(private.String()); err != nil {
		return err
	}
	port := 51820
	c := wgtypes.Config{PrivateKey: &private, ListenPort: &port}
	for i := range m.peers {
		c.Peers = append(c.Peers, m.peers[i].config())
	}
	if err := m.bare.configure(c); err != nil {
		return err
	}
	m.bareSince = time.Now()
	return m.bare.ns.SetUp(m.bare.name, true)
}

func (p *peer) config() wgtypes.PeerConfig {
	psk, err := wgtypes.ParseKey(p.psk.Reveal())
	if err != nil {
		panic(err) // it was made here
	}
	network := hostNetwork(p.address)
	return wgtypes.PeerConfig{PublicKey: p.publicKey, PresharedKey: &psk, AllowedIPs: []net.IPNet{network}}
}

// memory compares what both processes have in memory, at rest: after both have
// collected garbage since they have their peers. The agent does so by itself. Until
// wireguard-go does, it has never looked at most of what it allocated, and there
// are kernels to which memory that nobody has looked at is not resident.
func (m *many) memory(ctx context.Context, when string) (row, error) {
	if wait := time.Until(m.bareSince.Add(collectAfter)); wait > 0 {
		m.progress("waiting %v for wireguard-go to collect its garbage", wait.Round(time.Second))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return row{}, context.Cause(ctx)
		}
	}
	// An idle process finds out late that it is time to: this asks nothing of it.
	if err := m.bare.configure(wgtypes.Config{}); err != nil {
		return row{}, err
	}
	time.Sleep(settle)
	ours, err := m.rig.Container().Usage()
	if err != nil {
		return row{}, err
	}
	bare, err := m.bare.usage()
	if err != nil {
		return row{}, err
	}
	ratio := float64(ours.RSS) / float64(bare.RSS)
	return row{
		what: fmt.Sprintf("Resident memory with %s peers, at rest %s (wireguard-go: the same patches)", grouped(manyCount), when),
		ours: mib(ours.RSS), peer: mib(bare.RSS), ratio: times(ratio),
		goal: fmt.Sprintf("≤ %.1f ×", memoryRatio), met: ratio <= memoryRatio,
	}, nil
}

// metrics compares each scrape with wgctrl's dump of the same device right after
// it, both from outside.
func (m *many) metrics(ctx context.Context) ([]row, error) {
	var scraped, dumped []time.Duration
	client := m.rig.Pod.Network().HTTPClient()
	for range scrapes {
		took, err := scrape(ctx, client, "http://"+net.JoinHostPort(m.rig.Pod.IP().String(), "8080")+"/metrics")
		if err != nil {
			return nil, err
		}
		scraped = append(scraped, took)
		_, took, err = m.rig.dumper.device(m.rig.Interface)
		if err != nil {
			return nil, err
		}
		dumped = append(dumped, took)
	}
	ours, dump, ratio := median(scraped), median(dumped), medianRatio(scraped, dumped)
	what := fmt.Sprintf("/metrics with %s peers", grouped(manyCount))
	return []row{
		{what: what, ours: ms(ours), peer: ms(scrapeGoal), goal: "≤ " + ms(scrapeGoal), met: ours <= scrapeGoal},
		{
			what: what + ", against wgctrl's dump of the device alone", ours: ms(ours), peer: ms(dump), ratio: times(ratio),
			goal: fmt.Sprintf("≤ %.1f ×", scrapeRatio), met: ratio <= scrapeRatio,
		},
	}, nil
}

func scrape(ctx context.Context, client *http.Client, url string) (time.Duration, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	n, err := io.Copy(io.Discard, response.Body)
	took := time.Since(start)
	if err == nil && (response.StatusCode != http.StatusOK || n < manyCount) {
		err = fmt.Errorf("%s: status %d, %d bytes", url, response.StatusCode, n)
	}
	return took, err
}

// changes changes one peer's key after the other, in the gateway by its Secret,
// in the bare wireguard-go by the same patch.
func (m *many) changes(ctx context.Context) ([]swapped, error) {
	secrets, err := m.rig.secrets(inSecrets(m.peers))
	if err != nil {
		return nil, err
	}
	var out []swapped
	for range churn {
		// Changes come one by one: the last one's garbage is out of the way.
		time.Sleep(time.Duration(200+rand.IntN(200)) * time.Millisecond)
		i := rand.IntN(len(m.peers))
		s, err := m.rig.swap(ctx, &m.peers[i], secrets[fmt.Sprintf("peers-%02d", i/perSecret)])
		if err != nil {
			return nil, err
		}
		out = append(out, s)
		patch := m.peers[i].config()
		patch.UpdateOnly, patch.AllowedIPs = true, nil
		if err := m.bare.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{patch}}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// syncconf measures `wg syncconf` with one peer's key changed, on the bare
// wireguard-go.
func (m *many) syncconf() ([]time.Duration, error) {
	path := filepath.Join(m.dir, "syncconf.conf")
	defer os.Remove(path)
	var out []time.Duration
	for range syncs {
		p := &m.peers[rand.IntN(len(m.peers))]
		before := p.psk
		psk, err := wgtypes.GenerateKey()
		if err != nil {
			return nil, err
		}
		if err := testenv.AppendSecret(psk.String()); err != nil {
			return nil, err
		}
		text := strings.Replace(m.wgConfig(), before.Reveal(), psk.String(), 1)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
		start := time.Now()
		if _, err := m.bare.ns.Run(exec.Command(m.wg, "syncconf", m.bare.name, path)); err != nil {
			return nil, err
		}
		out = append(out, time.Since(start))
	}
	return out, nil
}

// wgConfig is a file for wg. The interface stays as it is: what a file leaves out
// of that, syncconf leaves alone, apart from the peers.
func (m *many) wgConfig() string {
	var b strings.Builder
	b.WriteString("[Interface]\n")
	for i := range m.peers {
		p := &m.peers[i]
		fmt.Fprintf(&b, "[Peer]\nPublicKey = %s\nPresharedKey = %s\nAllowedIPs = %s/32\n", p.publicKey, p.psk.Reveal(), p.address)
	}
	return b.String()
}

func (m *many) planRows(changes []swapped, synced []time.Duration) []row {
	stage := func(names ...string) time.Duration {
		var all []time.Duration
		for _, c := range changes {
			all = append(all, c.reload.stage(names...))
		}
		return median(all)
	}
	var whole []time.Duration
	for _, c := range changes {
		whole = append(whole, c.took)
	}
	total, sync := stage("build", "diff", "apply"), median(synced)
	ratio := float64(sync) / float64(total)
	what := fmt.Sprintf("One peer's key changed among %s: plan and apply", grouped(manyCount))
	return []row{
		{
			what: fmt.Sprintf("%s (build %s, diff %s, apply %s)", what, ms(stage("build")), ms(stage("diff")), ms(stage("apply"))),
			ours: ms(total), peer: ms(planGoal), goal: "≤ " + ms(planGoal), met: total <= planGoal,
		},
		{
			what: what + ", against `wg syncconf`", ours: ms(total), peer: ms(sync), ratio: times(ratio) + " faster",
			goal: fmt.Sprintf("≥ %d × faster", syncRatio), met: ratio >= syncRatio,
		},
		{
			what: fmt.Sprintf("… file swap to key in force and verified, %s peers: p50 / p99 (of it reading %s, parsing %s, observing the device twice %s)",
				grouped(manyCount), ms(stage("read")), ms(stage("load")), ms(stage("observe", "verify"))),
			ours: ms(median(whole)) + " / " + ms(quantile(whole, 0.99)),
		},
	}
}
