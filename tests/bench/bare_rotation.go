package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// byHandPort is the bare gateway's on the node, where ours has two.
const byHandPort = 51830

// native is a bare wireguard-go as a gateway, with one client: whose keys change as
// they do without us, by `wg setconf`.
type native struct {
	*bench
	gateway    *bare
	key, psk   wgclient.Secret
	clientKey  wgclient.Secret
	client     *wgclient.Client
	clientFlow flow
}

// byHand is what was measured of it: outages.
type byHand struct {
	gatewayFirst, clientFirst time.Duration // the pre-shared key
	server                    []time.Duration
}

// startNative starts a wireguard-go that forwards and masquerades, and its client.
func (b *bench) startNative(ctx context.Context, topology *netns.Topology, to netip.AddrPort, closers *closeAll) (*native, error) {
	n := &native{bench: b, clientFlow: flow{from: topology.Clients[1], to: to}}
	for _, key := range []*wgclient.Secret{&n.key, &n.clientKey} {
		var err error
		if *key, err = wgclient.NewPrivateKey(); err != nil {
			return nil, err
		}
	}
	var err error
	if n.psk, err = wgclient.NewPresharedKey(); err != nil {
		return nil, err
	}
	var index int
	if n.gateway, index, err = b.startBareGateway(ctx, topology); err != nil {
		return nil, err
	}
	closers.add(n.gateway.close)
	if err := n.setGateway(); err != nil {
		return nil, err
	}
	if err := n.gateway.up(netip.MustParsePrefix(bareGateway)); err != nil {
		return nil, err
	}
	endpoint := netip.AddrPortFrom(topology.PublicIP(), byHandPort)
	if err := topology.Publish(endpoint, netip.AddrPortFrom(topology.PodIP(index), gateway.Port)); err != nil {
		return nil, err
	}
	n.client, err = b.stockClient(ctx, topology.Clients[1], n.clientKey, wgclient.Peer{
		PublicKey: n.key.Public(), PresharedKey: n.psk, Endpoint: endpoint.String(),
	}, closers)
	return n, err
}

// setGateway gives the gateway its file, with the keys as they are now.
func (n *native) setGateway() error {
	cmd := exec.Command(n.wg, "setconf", n.gateway.name, "/dev/stdin")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(
		"[Interface]\nPrivateKey = %s\nListenPort = %d\n[Peer]\nPublicKey = %s\nPresharedKey = %s\nAllowedIPs = %s/32\n",
		n.key.Reveal(), gateway.Port, n.clientKey.Public(), n.psk.Reveal(), clientAddress))
	_, err := n.gateway.ns.Run(cmd)
	return err
}

// setClient gives the client its file, with the keys as they are now.
func (n *native) setClient() error {
	file := n.client.Config()
	to := file.Peers[0]
	to.PublicKey, to.PresharedKey = n.key.Public(), n.psk
	file.Peers = []wgclient.Peer{to}
	return n.client.Replace(file)
}

func (n *native) measure(ctx context.Context) (out byHand, err error) {
	out.gatewayFirst, err = n.change(ctx, "another pre-shared key by wg setconf, gateway first", &n.psk, wgclient.NewPresharedKey, n.setGateway, n.setClient, skew)
	if err != nil {
		return out, err
	}
	out.clientFirst, err = n.change(ctx, "another pre-shared key by wg setconf, client first", &n.psk, wgclient.NewPresharedKey, n.setClient, n.setGateway, skew)
	if err != nil {
		return out, err
	}
	for range replacements {
		outage, err := n.change(ctx, "another server key by wg setconf", &n.key, wgclient.NewPrivateKey, n.setGateway, n.setClient, fileAfter)
		if err != nil {
			return out, err
		}
		out.server = append(out.server, outage)
	}
	return out, nil
}

// change makes a key anew and gives both ends their files, the second one later.
func (n *native) change(ctx context.Context, what string, key *wgclient.Secret, makeKey func() (wgclient.Secret, error),
	first, second func() error, apart time.Duration) (time.Duration, error) {
	var err error
	if *key, err = makeKey(); err != nil {
		return 0, err
	}
	report, err := n.clientFlow.during(ctx, func() error {
		later := time.Now().Add(apart)
		if err := first(); err != nil {
			return err
		}
		if err := until(ctx, later); err != nil {
			return err
		}
		return second()
	})
	n.progress("%s: %s, outage %d ms", what, report, report.LongestLoss.Milliseconds())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	return report.LongestLoss, nil
}
