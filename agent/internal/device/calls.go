package device

import (
	"errors"
	"io/fs"
	"time"

	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
)

// A handshake is the last thing that a client waits for which has come to another
// replica. Neither data plane has a command for it: the kernel is led to it by a
// keepalive, and wireguard-go in this process is asked.

// apart splits off what is waited for.
func apart(list []plan.Peer) (changes, calls []plan.Peer) {
	for i := range list {
		switch list[i].Operation {
		case plan.Call, plan.Nudge:
			calls = append(calls, list[i])
		default:
			changes = append(changes, list[i])
		}
	}
	return changes, calls
}

// wake is a keepalive interval for peers that have none: switching it on sends a
// packet at once, and without a session that is a handshake.
const wake = 25 * time.Second

// call makes peers anew that shall shake hands: as long as a session lasts, the kernel
// sends by it.
func (k *kernel) call(list []plan.Peer) error {
	return k.write(wgtypes.Config{Peers: callConfigs(list)})
}

// callConfigs has first all handshakes, which are waited for, and then what puts things
// right again.
func callConfigs(list []plan.Peer) []wgtypes.PeerConfig {
	var wakes, rests []plan.Peer
	update := func(p plan.Peer, keepalive time.Duration) plan.Peer {
		return plan.Peer{Operation: plan.Update, PublicKey: p.PublicKey, Keepalive: &keepalive}
	}
	for _, p := range list {
		on := wake
		if p.Keepalive != nil {
			on = *p.Keepalive
		} else {
			rests = append(rests, update(p, 0))
		}
		if p.Operation == plan.Nudge {
			off := update(p, 0)
			off.Endpoint = p.Endpoint
			wakes = append(wakes, off, update(p, on))
			continue
		}
		p.Operation, p.Keepalive = plan.Renew, &on
		wakes = append(wakes, p)
	}
	return peerConfigs(append(wakes, rests...))
}

// call asks wireguard-go itself. What it has of a session stays, to understand what is
// under way, and is not sent by any more. To make the peer anew, as with the kernel, would
// be to wait until its goroutines have ended: on a machine that is short of CPU that was
// 10 to 70 ms, for each peer, while everybody who shakes hands waits behind it.
func (u *userspace) call(list []plan.Peer) error {
	device := u.device.Load()
	if device == nil {
		return fs.ErrClosed
	}
	bind := device.Bind() // for which all senders wait
	var errs []error
	for i := range list {
		p := &list[i]
		peer := device.LookupPeer(wgdevice.NoisePublicKey(p.PublicKey))
		if peer == nil {
			continue // removed meanwhile, or not there yet: it comes by itself, or is called again
		}
		if p.Endpoint != nil {
			endpoint, err := bind.ParseEndpoint(p.Endpoint.String())
			if err != nil {
				errs = append(errs, err)
				continue
			}
			peer.SetEndpointFromPacket(endpoint)
		}
		if p.Operation == plan.Nudge {
			peer.SendKeepalive()
			continue
		}
		peer.ExpireCurrentKeypairs()
		// What cannot be sent is repeated, like what is lost, and wireguard-go has said so.
		_ = peer.SendHandshakeInitiation(false)
	}
	return errors.Join(errs...)
}
