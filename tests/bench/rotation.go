package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

const (
	// keyLead is for how long a key lies there before its time, in whole seconds,
	// and keyOverlap for how long the one before it is answered after that. The
	// moves are made in the overlap.
	keyLead    = 4
	keyOverlap = 40 * time.Second
	// skew is by how much the two ends' clocks differ.
	skew = 100 * time.Millisecond
	// fileAfter is after how long a client gets the file with the gateway's new
	// key, where the gateway has one alone.
	fileAfter = time.Second
	// replacements is how often a server key is replaced without a rotation.
	replacements = 3
	// fileMoves and ownMoves are odd in sum: the client ends on the newer key.
	fileMoves   = 5
	ownMoves    = 4
	fileGoal    = time.Second
	ownGoal     = 250 * time.Millisecond
	pskSecret   = "keys"
	rotatedPeer = "client"
)

// rotationValues let a gateway that is restarted go at once.
const rotationValues = `
server:
  dataPlane: userspace
  addresses: [10.128.0.1/16]
  mtu: 1420
  drain: 0s
keyRotation: {server: {overlap: %s}}
`

// rotating is a gateway with one client, whose keys change.
type rotating struct {
	*bench
	rig    *rig
	config gateway.Config
	psk    wgclient.Secret // that both ends have
	client *wgclient.Client
	flow   flow
}

// rotated is what was measured of our gateway. Durations are outages.
type rotated struct {
	preshared, server kept
	byFile, byItself  []time.Duration
	restartPSK        time.Duration
	restartServer     []time.Duration
}

// keyRotation measures what it costs a stock client that keys rotate, and what the
// same costs without the rotation: by `wg setconf` on a bare wireguard-go, and by a
// restart of the gateway's Pod.
func keyRotation(ctx context.Context, b *bench) (rows []row, err error) {
	topology, err := netns.NewTopology(netns.Plan{Clients: 2})
	if err != nil {
		return nil, err
	}
	var closers closeAll
	closers.add(topology.Close)
	defer func() { err = errors.Join(err, closers.close()) }()
	echo, err := stream.ListenEcho(topology.Service, netip.AddrPortFrom(topology.ServiceIP(), 0))
	if err != nil {
		return nil, err
	}
	closers.add(echo.Close)
	b.progress("starting a gateway and a wireguard-go, each with a stock client")
	r, err := b.startRotating(ctx, topology, echo.Addr(), &closers)
	if err != nil {
		return nil, err
	}
	n, err := b.startNative(ctx, topology, echo.Addr(), &closers)
	if err != nil {
		return nil, err
	}
	ours, err := r.measure(ctx)
	if err != nil {
		return nil, err
	}
	theirs, err := n.measure(ctx)
	if err != nil {
		return nil, err
	}
	return rotationRows(ours, theirs), nil
}

// startRotating starts a gateway and its client.
func (b *bench) startRotating(ctx context.Context, topology *netns.Topology, to netip.AddrPort, closers *closeAll) (*rotating, error) {
	r := &rotating{bench: b, flow: flow{from: topology.Clients[0], to: to}}
	key, err := wgclient.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	if r.psk, err = wgclient.NewPresharedKey(); err != nil {
		return nil, err
	}
	r.config = gateway.Config{
		Values:        fmt.Sprintf(rotationValues, keyOverlap),
		Peers:         []gateway.Peer{{Name: rotatedPeer, PublicKey: key.Public(), Addresses: []string{clientAddress}}},
		PresharedKeys: map[string]map[string]wgclient.Secret{pskSecret: {rotatedPeer: r.psk}},
	}
	if r.rig, err = b.startGateway(ctx, r.config, topology); err != nil {
		return nil, err
	}
	closers.add(r.rig.close)
	r.client, err = b.stockClient(ctx, topology.Clients[0], key, wgclient.Peer{
		PublicKey: r.rig.PublicKey(), PresharedKey: r.psk, Endpoint: r.rig.Endpoint.String(),
	}, closers)
	return r, err
}

// stockClient brings up Debian's wireguard-go, which sends what goes to the service
// through the gateway.
func (b *bench) stockClient(ctx context.Context, ns *netns.NS, key wgclient.Secret, to wgclient.Peer, closers *closeAll) (*wgclient.Client, error) {
	to.AllowedIPs = []netip.Prefix{netip.MustParsePrefix(throughputPlace)}
	c, err := wgclient.Up(ctx, wgclient.Config{
		PrivateKey: key,
		Addresses:  []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(clientAddress), 32)},
		Peers:      []wgclient.Peer{to},
	}, wgclient.Options{NS: ns, LogDir: b.dir})
	if err != nil {
		return nil, err
	}
	closers.add(c.Close)
	return c, nil
}

func (r *rotating) measure(ctx context.Context) (out rotated, err error) {
	for _, ahead := range []time.Duration{skew, -skew} {
		report, err := r.presharedKey(ctx, ahead)
		if err != nil {
			return out, fmt.Errorf("rotating the pre-shared key: %w", err)
		}
		out.preshared.add(report)
	}
	if err := r.serverKey(ctx, &out); err != nil {
		return out, fmt.Errorf("rotating the server key: %w", err)
	}
	if out.restartPSK, err = r.presharedKeyByRestart(ctx); err != nil {
		return out, fmt.Errorf("changing the pre-shared key by a restart: %w", err)
	}
	for range replacements {
		outage, err := r.serverKeyByRestart(ctx)
		if err != nil {
			return out, fmt.Errorf("changing the server key by a restart: %w", err)
		}
		out.restartServer = append(out.restartServer, outage)
	}
	return out, nil
}

// presharedKey lays the next key beside the one in force, and has each end take it
// up by its own clock, of which the client's is ahead.
func (r *rotating) presharedKey(ctx context.Context, ahead time.Duration) (loss, error) {
	psk, err := wgclient.NewPresharedKey()
	if err != nil {
		return loss{}, err
	}
	report, err := r.flow.during(ctx, func() error {
		from := inSeconds(keyLead)
		if err := r.rig.Reload(ctx, r.withKeys(map[string]wgclient.Secret{rotatedPeer: r.psk, gateway.Dated(rotatedPeer, from): psk})); err != nil {
			return err
		}
		if err := untilTime(ctx, from.Add(-ahead)); err != nil {
			return err
		}
		if err := r.client.SetPresharedKey(r.client.Config().Peers[0].PublicKey, psk); err != nil {
			return err
		}
		if err := until(ctx, from.Add(skew)); err != nil {
			return err
		}
		return r.wantPresharedKey(ctx, psk)
	})
	r.psk = psk
	r.progress("pre-shared key rotated, the client's clock %v ahead: %s", ahead, report)
	return report, err
}

// withKeys is the configuration with other entries in the Secret of pre-shared keys.
func (r *rotating) withKeys(entries map[string]wgclient.Secret) gateway.Config {
	c := r.config
	c.PresharedKeys = map[string]map[string]wgclient.Secret{pskSecret: entries}
	return c
}

// wantPresharedKey waits until the gateway's device has the key: a rotation that
// does not happen loses no packets either.
func (r *rotating) wantPresharedKey(ctx context.Context, psk wgclient.Secret) error {
	for deadline := time.Now().Add(reloadTime); ; {
		device, _, err := r.rig.dumper.device(r.rig.Interface)
		if err != nil {
			return err
		}
		if len(device.Peers) == 1 && device.Peers[0].PresharedKey.String() == psk.Reveal() {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the gateway's device does not have the next pre-shared key, though its time has come")
		}
		if err := until(ctx, time.Now().Add(10*time.Millisecond)); err != nil {
			return err
		}
	}
}

// serverKey goes through a rotation of the gateway's key. In the overlap the client
// moves, by one means and the other, to and fro between the two keys.
func (r *rotating) serverKey(ctx context.Context, out *rotated) error {
	next, err := wgclient.NewPrivateKey()
	if err != nil {
		return err
	}
	from := inSeconds(keyLead)
	report, err := r.flow.during(ctx, func() error {
		if _, err := r.rig.SetKeys(gateway.Entries(nil, gateway.Dated("green", from), next)); err != nil {
			return err
		}
		if _, err := r.rig.Await(ctx, "the gateway to answer to the next key", func(now gateway.Readiness) bool {
			return len(now.Identities) == 2 && now.Identities[1].ListenPort != 0
		}); err != nil {
			return err
		}
		if err := untilTime(ctx, from); err != nil {
			return err
		}
		_, err := r.rig.Await(ctx, "the next key to be in force", func(now gateway.Readiness) bool { return now.PublicKey == next.Public() })
		return err
	})
	r.progress("the next server key appears and comes in force: %s", report)
	if err != nil {
		return err
	}
	out.server.add(report)
	if err := r.moves(ctx, next, out); err != nil {
		return err
	}
	report, err = r.flow.during(ctx, func() error {
		if err := untilTime(ctx, from.Add(keyOverlap)); err != nil {
			return err
		}
		_, err := r.rig.Await(ctx, "the old key to retire", func(now gateway.Readiness) bool { return len(now.Identities) == 1 })
		return err
	})
	r.progress("the old server key retires: %s", report)
	out.server.add(report)
	return err
}

// identity is a server key and where it is answered.
type identity struct{ publicKey, endpoint string }

// moves has the client move between the gateway's keys and ends on the next one.
func (r *rotating) moves(ctx context.Context, next wgclient.Secret, out *rotated) error {
	here := identity{r.rig.PublicKey(), r.rig.Endpoint.String()}
	there := identity{next.Public(), r.rig.GreenEndpoint().String()}
	move := func(how string, to func(identity) error) (time.Duration, error) {
		report, err := r.flow.during(ctx, func() error { return to(there) })
		r.progress("the client moves %s: %s, outage %d ms", how, report, report.LongestLoss.Milliseconds())
		here, there = there, here
		return report.LongestLoss, err
	}
	for range fileMoves {
		outage, err := move("by its file", r.giveFile)
		if err != nil {
			return err
		}
		out.byFile = append(out.byFile, outage)
	}
	for range ownMoves {
		outage, err := move("by itself", func(to identity) error {
			ctx, cancel := context.WithTimeout(ctx, backAfter)
			defer cancel()
			return r.client.MoveTo(ctx, to.publicKey, to.endpoint)
		})
		if err != nil {
			return err
		}
		out.byItself = append(out.byItself, outage)
	}
	return nil
}

// giveFile gives the client a file with another key of the gateway.
func (r *rotating) giveFile(to identity) error {
	file := r.client.Config()
	file.Peers = slices.Clone(file.Peers)
	file.Peers[0].PublicKey, file.Peers[0].Endpoint = to.publicKey, to.endpoint
	return r.client.Sync(file)
}

// presharedKeyByRestart has the gateway take up another key by being restarted.
// The client gets it at that moment in the way that keeps its session, and does not
// know that the gateway has lost the other end of it.
func (r *rotating) presharedKeyByRestart(ctx context.Context) (time.Duration, error) {
	psk, err := wgclient.NewPresharedKey()
	if err != nil {
		return 0, err
	}
	report, err := r.flow.during(ctx, func() error {
		return errors.Join(
			r.restart(ctx, func() error {
				_, err := r.rig.Update(r.withKeys(map[string]wgclient.Secret{rotatedPeer: psk}))
				return err
			}),
			r.client.SetPresharedKey(r.client.Config().Peers[0].PublicKey, psk),
		)
	})
	r.psk = psk
	r.progress("restarted with another pre-shared key: %s, outage %d ms", report, report.LongestLoss.Milliseconds())
	return report.LongestLoss, err
}

// serverKeyByRestart has the gateway take up another key by being restarted, and
// gives the client its new file later.
func (r *rotating) serverKeyByRestart(ctx context.Context) (time.Duration, error) {
	key, err := wgclient.NewPrivateKey()
	if err != nil {
		return 0, err
	}
	report, err := r.flow.during(ctx, func() error {
		later := time.Now().Add(fileAfter)
		err := r.restart(ctx, func() error {
			_, err := r.rig.SetKeys(map[string]wgclient.Secret{"privateKey": key})
			return err
		})
		if err != nil {
			return err
		}
		if err := until(ctx, later); err != nil {
			return err
		}
		return r.giveFile(identity{key.Public(), r.rig.Endpoint.String()})
	})
	r.progress("restarted with another server key: %s, outage %d ms", report, report.LongestLoss.Milliseconds())
	return report.LongestLoss, err
}

// restart ends the gateway's container and starts it again with other files. A
// cluster would need longer: nothing is scheduled or pulled here.
func (r *rotating) restart(ctx context.Context, change func() error) error {
	if _, err := r.rig.Container().Terminate(ctx, startTime); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return r.rig.Container().Start()
}

func rotationRows(ours rotated, theirs byHand) []row {
	server := fmt.Sprintf("`wg setconf` %s; Pod restart %s", medianAndWorst(theirs.server), medianAndWorst(ours.restartServer))
	moved := func(what string, outages []time.Duration, goal time.Duration) row {
		return row{
			what: fmt.Sprintf("… %s, in the overlap: outage, median / worst of %d", what, len(outages)),
			ours: medianAndWorst(outages), peer: server,
			goal: "≤ " + ms(goal), met: slices.Max(outages) <= goal,
		}
	}
	lost := fmt.Sprintf("packets lost at %s a second", grouped(rotationRate))
	return []row{
		{
			what: fmt.Sprintf("Pre-shared key rotated, each end by its own clock, %s apart, twice: %s (peer: the outage when both ends of a wireguard-go get it by "+
				"`wg setconf`, as far apart, and when the gateway's Pod is restarted with it and the client gets it by `wg set`)", ms(skew), lost),
			ours: ours.preshared.String(),
			peer: fmt.Sprintf("`wg setconf` %s (gateway first), %s (client first); Pod restart %s", ms(theirs.gatewayFirst), ms(theirs.clientFirst), ms(ours.restartPSK)),
			goal: "0 lost", met: ours.preshared.none(),
		},
		{
			what: fmt.Sprintf("Server key rotated with an overlap, a stock client on the old key until it moves: %s while the next key appears, comes in force and the "+
				"old one retires (peer, here and below: the outage when the key is replaced, by `wg setconf` on a wireguard-go or by a restart of the gateway's Pod, "+
				"and the client gets its new file %.0f s later, median / worst of %d)", lost, fileAfter.Seconds(), replacements),
			ours: ours.server.String(), peer: server,
			goal: "0 lost", met: ours.server.none(),
		},
		moved("the stock client moves by its new file (`wg syncconf`)", ours.byFile, fileGoal),
		moved("a client that knows both keys moves", ours.byItself, ownGoal),
	}
}

func medianAndWorst(outages []time.Duration) string {
	return ms(median(outages)) + " / " + ms(slices.Max(outages))
}
