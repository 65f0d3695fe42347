package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/stream"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// place is where the story happens.
type place interface {
	// needs names what the place takes beside root, a TUN device and a client.
	needs() []testenv.Requirement
	// title is one line about the place.
	title() string
	// open brings up everything but the client, and tells of it.
	open(ctx context.Context, out *screen, logs string) error
	// exec runs the agent's command line in the gateway's container.
	exec(ctx context.Context, args ...string) ([]byte, error)
	// addPeers adds to the peers in the values, and to the pre-shared keys, and
	// returns when they are in force, with how that went.
	addPeers(ctx context.Context, peers ...peer) (string, error)
	// changeKey puts another pre-shared key into the Secret, likewise.
	changeKey(ctx context.Context, p peer, psk wgclient.Secret) (string, error)
	// client is the network of the machine that the client runs on.
	client() *netns.NS
	// web and echo are services behind the gateway, as the client finds them
	// through the tunnel.
	web(ctx context.Context) (url string, at netip.AddrPort, err error)
	echo(ctx context.Context) (netip.AddrPort, error)
	// identity says what the agent's process may do.
	identity(ctx context.Context) (string, error)
	// restarts of the agent since open.
	restarts(ctx context.Context) (int, error)
	// farewell says what is left when close has been called.
	farewell() string
	// close removes what open made.
	close() error
}

// peer is a client as `vpn-agent peer new` made it.
type peer struct {
	entry gateway.Peer    // for the list peers of the values
	file  wgclient.Config // of the client
	psk   wgclient.Secret // zero where it has none
}

const (
	rate       = 100 // packets a second
	patience   = 2 * time.Minute
	atLeast    = rate // packets between one event of the story and the next
	firstReply = 20 * time.Second
)

// story is told in a place.
type story struct {
	place place
	out   *screen
	logs  string

	alice, bob peer
	tunnel     *wgclient.Client
	flow       *stream.Stream
}

// tell tells the whole story and then removes everything.
func tell(ctx context.Context, s story) (err error) {
	s.out.title(s.place.title())
	defer func() {
		if e := s.end(); e != nil {
			err = errors.Join(err, leftover{e})
		}
		if err == nil {
			s.out.write("\n" + s.place.farewell() + "\n")
		}
	}()
	if err := s.place.open(ctx, s.out, s.logs); err != nil {
		return err
	}
	for _, chapter := range []func(context.Context) error{
		s.makeAlice, s.connect, s.visit, s.startFlow, s.addBob, s.changeKey, s.stopFlow, s.dialAgain, s.lookBack,
	} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) end() error {
	if s.flow != nil {
		s.flow.Stop(0)
	}
	var err error
	if s.tunnel != nil {
		err = s.tunnel.Close()
	}
	return errors.Join(err, s.place.close())
}

// newPeer makes a client the way a user does, in the gateway's container.
func (s *story) newPeer(ctx context.Context, name string, flags ...string) (peer, error) {
	// What --output=json prints.
	var made struct {
		Config string       `json:"config"`
		Peer   gateway.Peer `json:"peer"`
	}
	out, err := s.place.exec(ctx, append([]string{"/vpn-agent", "peer", "new", name, "--output=json"}, flags...)...)
	if err == nil {
		err = json.Unmarshal(out, &made)
	}
	p := peer{entry: made.Peer}
	if err == nil {
		p.file, err = wgclient.Parse(made.Config)
	}
	if err == nil && len(p.file.Peers) != 1 {
		err = fmt.Errorf("the client's file has %d peers, want the gateway alone", len(p.file.Peers))
	}
	if err != nil {
		return p, fmt.Errorf("making %s: %w", name, err)
	}
	p.psk = p.file.Peers[0].PresharedKey
	return p, nil
}

func (s *story) makeAlice(ctx context.Context) error {
	return s.out.step("alice", "making her file", func(func(string)) (string, error) {
		var err error
		if s.alice, err = s.newPeer(ctx, "alice", "--preshared-key"); err != nil {
			return "", err
		}
		how, err := s.place.addPeers(ctx, s.alice)
		return "made by `vpn-agent peer new alice --preshared-key`; " + how, err
	})
}

func (s *story) connect(ctx context.Context) error {
	return s.out.step("tunnel", "dialing in", func(func(string)) (string, error) {
		took, err := s.dial(ctx, s.alice.file)
		if err != nil {
			return "", err
		}
		config := s.tunnel.Config()
		return fmt.Sprintf("a stock wireguard-go, set up by wg with her file, to %s: first answer after %s", config.Peers[0].Endpoint, short(took)), nil
	})
}

// dial brings a client up, in place of the one before, and returns the time from
// then on to the first packet back.
func (s *story) dial(ctx context.Context, config wgclient.Config) (took time.Duration, err error) {
	if s.tunnel != nil {
		if err := s.tunnel.Close(); err != nil {
			return 0, err
		}
	}
	if s.tunnel, err = wgclient.Up(ctx, config, wgclient.Options{NS: s.place.client(), LogDir: s.logs}); err != nil {
		return 0, err
	}
	target, err := s.place.echo(ctx)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	first, err := stream.Start(stream.Options{From: s.place.client(), To: target, Rate: rate})
	if err != nil {
		return 0, err
	}
	defer first.Stop(0)
	ctx, cancel := context.WithTimeout(ctx, firstReply)
	defer cancel()
	err = first.Await(ctx, 1)
	return time.Since(start), err
}

func (s *story) visit(ctx context.Context) error {
	return s.out.step("service", "calling it", func(func(string)) (string, error) {
		url, at, err := s.place.web(ctx)
		if err != nil {
			return "", err
		}
		start := time.Now()
		body, err := s.fetch(ctx, url, at)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s through the tunnel says %q, in %s", url, body, short(time.Since(start))), nil
	})
}

// fetch gets url from the server at the given address, through the tunnel.
func (s *story) fetch(ctx context.Context, url string, at netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return s.place.client().DialContext(ctx, network, at.String())
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, response.Status)
	}
	return strings.TrimSpace(string(body)), err
}

func (s *story) startFlow(ctx context.Context) error {
	return s.out.step("stream", "starting", func(func(string)) (string, error) {
		target, err := s.place.echo(ctx)
		if err != nil {
			return "", err
		}
		if s.flow, err = stream.Start(stream.Options{From: s.place.client(), To: target, Rate: rate}); err != nil {
			return "", err
		}
		return fmt.Sprintf("%d packets a second from alice to the service and back, while", rate), s.await(ctx)
	})
}

// await lets the stream flow on for a while.
func (s *story) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.flow.Await(ctx, atLeast)
}

func (s *story) addBob(ctx context.Context) error {
	return s.out.step("  bob", "adding him", func(func(string)) (string, error) {
		var err error
		if s.bob, err = s.newPeer(ctx, "bob"); err != nil {
			return "", err
		}
		how, err := s.place.addPeers(ctx, s.bob)
		if err != nil {
			return "", err
		}
		return "is added to the peers: " + how, s.await(ctx)
	})
}

func (s *story) changeKey(ctx context.Context) error {
	return s.out.step("  key", "changing it", func(func(string)) (string, error) {
		psk, err := wgclient.NewPresharedKey()
		if err != nil {
			return "", err
		}
		how, err := s.place.changeKey(ctx, s.alice, psk)
		if err != nil {
			return "", err
		}
		server := s.tunnel.Config().Peers[0].PublicKey
		if err := s.tunnel.SetPresharedKey(server, psk); err != nil {
			return "", err
		}
		return "alice's pre-shared key is changed in its Secret: " + how + ", and then at her end by `wg set`", s.await(ctx)
	})
}

func (s *story) stopFlow(context.Context) error {
	return s.out.step("stream", "waiting for the last packets", func(func(string)) (string, error) {
		r := s.flow.Stop(5 * time.Second)
		if r.Lost > 0 {
			return "", fmt.Errorf("the stream lost packets: %+v", r)
		}
		return fmt.Sprintf("%d packets sent, %d lost, longest gap %d ms", r.Sent, r.Lost, r.LongestGap.Milliseconds()), nil
	})
}

// dialAgain shows that the changed key is in force: a new handshake needs it.
func (s *story) dialAgain(ctx context.Context) error {
	return s.out.step("new key", "dialing in again", func(func(string)) (string, error) {
		took, err := s.dial(ctx, s.tunnel.Config())
		return fmt.Sprintf("alice dials in anew, which takes it on both sides: first answer after %s", short(took)), err
	})
}

func (s *story) lookBack(ctx context.Context) error {
	return s.out.step("agent", "looking back", func(func(string)) (string, error) {
		who, err := s.place.identity(ctx)
		if err != nil {
			return "", err
		}
		n, err := s.place.restarts(ctx)
		if err == nil && n > 0 {
			err = fmt.Errorf("the agent was restarted %d times", n)
		}
		return fmt.Sprintf("%d restarts\n%s", n, who), err
	})
}
