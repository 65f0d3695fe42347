package main

import (
	"bufio"
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	corev1 "k8s.io/api/core/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// peer is somebody who is configured and never calls.
type peer struct {
	name      string
	publicKey wgtypes.Key
	psk       wgclient.Secret
	address   netip.Addr
}

// makePeers makes peers whose addresses are in no order, out of 10.128.0.0/16.
func makePeers(n int) ([]peer, error) {
	out := make([]peer, n)
	for i, place := range rand.Perm(n) {
		psk, err := wgclient.NewPresharedKey()
		if err != nil {
			return nil, err
		}
		host := place + 256
		out[i] = peer{
			name: fmt.Sprintf("peer-%05d", i), psk: psk,
			address: netip.AddrFrom4([4]byte{10, 128, byte(host >> 8), byte(host)}),
		}
		_, _ = crand.Read(out[i].publicKey[:]) // any 32 bytes are a public key
	}
	return out, nil
}

// values is a gateway's values file. All data planes but userspace stay out:
// wireguard-go is what it is compared with.
const values = `
server:
  dataPlane: userspace
  addresses: [10.128.0.1/16]
  mtu: 1420
`

// perSecret is how many peers with their keys go into one Secret, which the API
// server limits to 1 MiB.
const perSecret = 1000

// inSecrets is the configuration of peers that are written, with their pre-shared
// keys, in Secrets of their own: the way for thousands of peers.
func inSecrets(peers []peer) gateway.Config {
	c := gateway.Config{Values: values, PeersFrom: map[string]map[string][]gateway.Peer{}}
	for i, p := range peers {
		name := fmt.Sprintf("peers-%02d", i/perSecret)
		if c.PeersFrom[name] == nil {
			c.PeersFrom[name] = map[string][]gateway.Peer{}
		}
		entry := p.entry()
		entry.PresharedKey = p.psk
		c.PeersFrom[name]["peers.yaml"] = append(c.PeersFrom[name]["peers.yaml"], entry)
	}
	return c
}

// keysApart is the configuration of peers that are written in the values, with
// their pre-shared keys in a Secret with a file for each.
func keysApart(peers []peer) gateway.Config {
	keys := map[string]wgclient.Secret{}
	c := gateway.Config{Values: values, PresharedKeys: map[string]map[string]wgclient.Secret{"keys": keys}}
	for _, p := range peers {
		c.Peers = append(c.Peers, p.entry())
		keys[p.name] = p.psk
	}
	return c
}

func (p peer) entry() gateway.Peer {
	return gateway.Peer{Name: p.name, PublicKey: p.publicKey.String(), Addresses: []string{p.address.String()}}
}

// rig is a gateway that runs, and what is used to look at it from outside.
type rig struct {
	*gateway.Gateway
	topology *netns.Topology
	log      *reloadLog
	dumper   *dumper
}

// startGateway starts a gateway and waits until it is ready.
func (b *bench) startGateway(ctx context.Context, c gateway.Config, topology *netns.Topology) (*rig, error) {
	logs, err := os.MkdirTemp(b.dir, "gateway-")
	if err != nil {
		return nil, err
	}
	r := &rig{topology: topology}
	r.Gateway, err = gateway.Start(ctx, gateway.Options{Config: c, Binary: b.agent, Topology: topology, LogDir: logs})
	if err == nil {
		err = r.WaitReady(ctx)
	}
	if err == nil {
		r.dumper, err = newDumper(r.Container().PID())
	}
	if err == nil {
		r.log, err = openReloadLog(r.Container().LogPath())
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	_, err = r.log.next(ctx) // the start is a reload, too
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rig) close() error {
	var errs []error
	if r.dumper != nil {
		errs = append(errs, r.dumper.close())
	}
	if r.log != nil {
		errs = append(errs, r.log.file.Close())
	}
	if r.Gateway != nil && r.Pod != nil {
		errs = append(errs, r.Pod.Close())
	}
	return errors.Join(errs...)
}

// secrets are the user's Secrets of a configuration, by name.
func (r *rig) secrets(c gateway.Config) (map[string]*corev1.Secret, error) {
	objects, err := r.Upgrade(c)
	if err != nil {
		return nil, err
	}
	out := map[string]*corev1.Secret{}
	for _, o := range objects {
		if s, ok := o.(*corev1.Secret); ok {
			out[s.Name] = s
		}
	}
	return out, nil
}

// rotate gives the peer a new pre-shared key and writes it into the Secret, in
// the place of the old one.
func (p *peer) rotate(s *corev1.Secret) error {
	psk, err := wgclient.NewPresharedKey()
	if err != nil {
		return err
	}
	before, after := p.psk.Reveal(), psk.Reveal()
	found := false
	for name, text := range s.Data {
		if bytes.Contains(text, []byte(before)) {
			s.Data[name], found = bytes.ReplaceAll(text, []byte(before), []byte(after)), true
		}
	}
	if !found {
		return fmt.Errorf("the Secret %s does not hold the key of %s", s.Name, p.name)
	}
	p.psk = psk
	return nil
}

// swapped is one change of a file, from the moment just before the kubelet's swap
// of the ..data link to the agent's line about it. The agent writes that line when
// it has read the device again and found it as wanted, so the key was in force
// before. Nothing is asked of the device meanwhile, which would slow the agent.
type swapped struct {
	took   time.Duration
	reload reload
}

// swap changes the peer's key in the Secret, waits for the agent, and verifies
// that the device has the key.
func (r *rig) swap(ctx context.Context, p *peer, s *corev1.Secret) (swapped, error) {
	if err := p.rotate(s); err != nil {
		return swapped{}, err
	}
	at, err := r.Pod.Update(s)
	if err != nil {
		return swapped{}, err
	}
	line, err := r.log.next(ctx)
	if err != nil {
		return swapped{}, fmt.Errorf("after a change of %s: %w", p.name, err)
	}
	device, _, err := r.dumper.device(r.Interface)
	if err != nil {
		return swapped{}, err
	}
	for i := range device.Peers {
		if device.Peers[i].PublicKey == p.publicKey {
			if base64.StdEncoding.EncodeToString(device.Peers[i].PresharedKey[:]) != p.psk.Reveal() {
				return swapped{}, fmt.Errorf("the agent reports a reload, but the device has another key for %s", p.name)
			}
			return swapped{took: line.Time.Sub(at), reload: line}, nil
		}
	}
	return swapped{}, fmt.Errorf("the device does not know %s", p.name)
}

// reload is the agent's line about one.
type reload struct {
	Time       time.Time          `json:"time"`
	Message    string             `json:"msg"`
	Generation uint64             `json:"generation"`
	Duration   float64            `json:"durationMs"`
	Stages     map[string]float64 `json:"stagesMs"`
	Errors     []string           `json:"errors"`
}

// took is how long it took, from the run's begin to its end.
func (r reload) took() time.Duration { return time.Duration(r.Duration * float64(time.Millisecond)) }

// stage is how long parts of the reload took together.
func (r reload) stage(names ...string) time.Duration {
	total := 0.0
	for _, n := range names {
		total += r.Stages[n]
	}
	return time.Duration(total * float64(time.Millisecond))
}

// reloadLog follows an agent's log.
type reloadLog struct {
	file  *os.File
	lines *bufio.Reader
	part  []byte // of a line that is being written
}

func openReloadLog(path string) (*reloadLog, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &reloadLog{file: f, lines: bufio.NewReader(f)}, nil
}

// reloadTime is how long a reload may take before something is wrong.
const reloadTime = 30 * time.Second

// next returns the next reload; one that failed is an error.
func (l *reloadLog) next(ctx context.Context) (reload, error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	for {
		line, err := l.lines.ReadBytes('\n')
		l.part = append(l.part, line...)
		switch {
		case errors.Is(err, io.EOF):
			select {
			case <-time.After(2 * time.Millisecond):
				continue
			case <-ctx.Done():
				return reload{}, fmt.Errorf("waiting for a reload: %w", context.Cause(ctx))
			}
		case err != nil:
			return reload{}, err
		}
		var r reload
		if err := json.Unmarshal(l.part, &r); err != nil {
			return reload{}, fmt.Errorf("the agent says %q: %w", l.part, err)
		}
		l.part = nil
		switch {
		case strings.HasPrefix(r.Message, "configuration reloaded"):
			return r, nil
		case strings.HasPrefix(r.Message, "reload failed"):
			return reload{}, fmt.Errorf("reload failed: %s", strings.Join(r.Errors, "; "))
		}
	}
}
