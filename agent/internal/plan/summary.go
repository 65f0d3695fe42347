package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Summary says in words what the plan does: names of peers and of fields,
// never a secret key. Of peers, addresses and routes, it names at most limit
// each and counts the rest.
func (p Plan) Summary(limit int) []string {
	limit = max(limit, 0)
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if p.Firewall.Replace {
		say("firewall table made anew")
	} else if !p.Firewall.empty() {
		say("firewall sources +%d -%d, grants +%d -%d", len(p.Firewall.AddSources), len(p.Firewall.RemoveSources), len(p.Firewall.AddGrants), len(p.Firewall.RemoveGrants))
	}
	for i, t := range p.Tunnels {
		for _, line := range t.summary(limit, i == 0 && t.Slot != state.Interlink) {
			if !slices.Contains(out, line) { // peers are the same on both
				out = append(out, line)
			}
		}
	}
	if len(p.Forward) > 0 {
		say("forwarding on for %s", strings.Join(p.Forward, ", "))
	}
	return out
}

func (p Tunnel) summary(limit int, first bool) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch {
	case p.Remove:
		say("link %s removed", p.Link.Name)
	case !first && p.Link.Up && p.Device.PrivateKey != nil && p.Device.ListenPort != nil:
		say("link %s up beside it, public key %s, UDP port %d, %d peers", p.Link.Name, p.Device.PrivateKey.Public(), *p.Device.ListenPort, len(p.Device.Peers))
		return out
	}
	if p.Link.Up {
		say("link %s up", p.Link.Name)
	}
	if p.Link.MTU != 0 {
		say("mtu %d", p.Link.MTU)
	}
	for _, l := range []struct {
		what string
		list []netip.Prefix
	}{
		{"address added", p.Link.AddAddresses},
		{"address removed", p.Link.RemoveAddresses},
		{"route added", p.Link.AddRoutes},
		{"route removed", p.Link.RemoveRoutes},
		{"route of answers added", p.Link.AddAnswers},
		{"route of answers removed", p.Link.RemoveAnswers},
	} {
		for _, prefix := range l.list[:min(limit, len(l.list))] {
			say("%s %s", l.what, prefix)
		}
		if more := len(l.list) - limit; more > 0 {
			say("%s, %d more", l.what, more)
		}
	}
	if n := len(p.Link.AddAnswersFor) + len(p.Link.RemoveAnswersFor); n > 0 {
		say("routing rules of answers +%d -%d", len(p.Link.AddAnswersFor), len(p.Link.RemoveAnswersFor))
	}
	if p.Device.PrivateKey != nil {
		say("private key changed, public key now %s", p.Device.PrivateKey.Public())
	}
	if p.Device.ListenPort != nil {
		say("listen port %d", *p.Device.ListenPort)
	}
	for _, peer := range p.Device.Peers[:min(limit, len(p.Device.Peers))] {
		out = append(out, peer.summary())
	}
	if more := len(p.Device.Peers) - limit; more > 0 {
		say("peers changed, %d more", more)
	}
	return out
}

func (p Peer) summary() string {
	text := fmt.Sprintf("peer %s %s", p.Name, map[Operation]string{Remove: "removed", Renew: "renewed", Update: "updated", Add: "added", Call: "called", Nudge: "nudged"}[p.Operation])
	if p.Operation != Update {
		return text
	}
	var fields []string
	if p.PresharedKey != nil {
		fields = append(fields, "presharedKey")
	}
	if p.Endpoint != nil {
		fields = append(fields, "endpoint")
	}
	if p.Keepalive != nil {
		fields = append(fields, "persistentKeepalive")
	}
	if len(p.AllowedIPs)+len(p.RemoveAllowedIPs) > 0 {
		fields = append(fields, "allowedIPs")
	}
	if len(fields) == 0 { // it lost prefixes to another, which is said of that one
		return text
	}
	return text + " (" + strings.Join(fields, ", ") + ")"
}
