package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

const conditionServing = "serving"

// faultsShown bounds what probes and logs say of a configuration with many faults.
const faultsShown = 20

// Status is what is known after the last run.
func (r *Reconciler) Status() telemetry.Status {
	s := *r.status.Load()
	problem := ""
	if silent := r.Now().Sub(time.Unix(0, r.lastRun.Load())); silent > r.tooOld() {
		problem = fmt.Sprintf("nothing was looked at for %s: the agent hangs", silent.Round(time.Second))
	}
	if r.draining.Load() {
		problem = "draining: leaving after SIGTERM"
	}
	if problem == "" {
		return s
	}
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Conditions {
		if s.Conditions[i].Name == conditionServing {
			s.Conditions[i].OK, s.Conditions[i].Detail = false, problem
		}
	}
	return s
}

// tooOld is when what was seen last says nothing of now any more.
func (r *Reconciler) tooOld() time.Duration { return 3*r.Resync + 30*time.Second }

// publish makes what is known now visible to probes and metrics.
func (r *Reconciler) publish() {
	s := r.Base
	s.Conditions = r.conditions()
	s.Generation = r.generation
	s.Hash = r.inForce.String()
	s.Reloads = r.reloads
	now := r.Now()
	ids := state.Identities(r.snapshot, now)
	inForce := state.InForce(ids, now)
	for _, id := range ids {
		t := r.observed.Tunnels[id.Slot]
		shown := telemetry.Identity{
			PublicKey: id.Key.Public(), Slot: id.Slot, From: id.From, Retires: id.Retires,
			Interface: r.snapshot.Gateway.Interface(id.Slot), ListenPort: t.Device.ListenPort,
			InForce: id.Key == inForce.Key,
		}
		if t.Device.PrivateKey != id.Key {
			shown.ListenPort = 0 // it does not answer
		}
		s.Identities = append(s.Identities, shown)
	}
	s.Moved = len(r.moved)
	s.Keys = state.TimesOfKeys(r.snapshot, now)
	s.Rotations = r.snapshot.Rotations
	s.Sessions = r.sessions.Count(r.inputs.Fleet)
	s.PeerNames = r.peerNames
	r.status.Store(&s)
	r.announce()
}

func (r *Reconciler) announce() {
	if r.Published == nil {
		return
	}
	r.publishing.Lock()
	defer r.publishing.Unlock()
	r.Published(r.Status())
}

// brief is an error's text with a bounded number of faults.
func brief(err error) string {
	var faults spec.Faults
	if errors.As(err, &faults) {
		return strings.Join(faults.Summary(faultsShown), "\n")
	}
	return err.Error()
}

// conditions says what 'packets would be forwarded' consists of.
func (r *Reconciler) conditions() []telemetry.Condition {
	d, o := r.desired, r.observed
	started := r.generation > 0
	check := func(name string, ok bool, good, bad string) telemetry.Condition {
		c := telemetry.Condition{Name: name, OK: ok && started, Detail: good}
		if !c.OK {
			c.Detail = bad
		}
		if !started {
			c.Detail = "not started yet"
		}
		return c
	}
	off := ""
	for name, on := range o.Forwarding {
		if !on && name != state.InterlinkName(&r.snapshot.Gateway) {
			off = name
		}
	}
	ipv6 := !r.snapshot.Gateway.IPv6.Enabled || o.IPv6Forwarding
	forwardingProblem := fmt.Sprintf("IPv4 forwarding is off for %s", off)
	if !ipv6 {
		forwardingProblem = "sysctl net.ipv6.conf.all.forwarding is off; the Pod needs it set, which the kubelet must allow (--allowed-unsafe-sysctls)"
	}
	tunnels := r.tunnelFaults()
	conditions := []telemetry.Condition{
		check("device", tunnels.device == "", list(tunnels.names, "is up", "are up"), tunnels.device),
		check("key", tunnels.key == "", r.keyDetail(), tunnels.key),
		check("port", tunnels.port == "", "UDP port "+list(tunnels.ports, "is bound", "are bound"), tunnels.port),
		check("forwarding", off == "" && ipv6, "packets are forwarded", forwardingProblem),
		check("firewall", o.FirewallInPlace, "the nftables table is in place", "the nftables table is missing or was changed"),
		check(conditionServing, true, "serving", ""),
		{Name: "config", OK: r.reloads.LastOK, Detail: "the files are in force", Informational: true},
	}
	if config := &conditions[len(conditions)-1]; !config.OK {
		config.Detail = "the last good state stays: " + r.reloads.LastError
	}
	if len(d.Tunnels) == 2 {
		second := telemetry.Condition{Name: "nextKey", OK: r.secondError == nil, Detail: "both server keys are answered to", Informational: true}
		if !second.OK {
			second.Detail = "the newer server key is not answered to: " + r.secondError.Error()
		}
		conditions = append(conditions, second)
	}
	if d.Interlink != nil || r.interlinkError != nil {
		conditions = append(conditions, r.linkCondition())
	}
	return conditions
}

// linkCondition says whether packets for peers of other replicas get there.
func (r *Reconciler) linkCondition() telemetry.Condition {
	c := telemetry.Condition{Name: "link", OK: r.interlinkError == nil, Informational: true}
	if !c.OK {
		c.Detail = "packets are not passed on to other replicas: " + r.interlinkError.Error()
		return c
	}
	c.Detail = fmt.Sprintf("packets are passed on to %d other replicas", len(r.desired.Interlink.Device.Peers))
	return c
}

// tunnelFaults is what the tunnels lack, in words; empty where they lack nothing.
type tunnelFaults struct {
	device, key, port string
	names, ports      []string // of those that are to be there
}

func (r *Reconciler) tunnelFaults() (f tunnelFaults) {
	for i, want := range r.desired.Tunnels {
		if i > 0 && r.secondError != nil {
			continue // a condition of its own tells
		}
		t := r.observed.Tunnels[want.Slot]
		f.names, f.ports = append(f.names, want.Link.Name), append(f.ports, fmt.Sprint(want.Device.ListenPort))
		if !t.LinkExists || !t.LinkUp {
			f.device = want.Link.Name + " is missing or down"
		}
		if t.Device.PrivateKey != want.Device.PrivateKey || want.Device.PrivateKey.IsZero() {
			f.key = want.Link.Name + " has another private key than the files"
		}
		if t.Device.ListenPort != want.Device.ListenPort {
			f.port = fmt.Sprintf("UDP port %d is not bound", want.Device.ListenPort)
		}
	}
	return f
}

// list is "a is up", or "a and b are up".
func list(names []string, one, many string) string {
	if len(names) == 1 {
		return names[0] + " " + one
	}
	return strings.Join(names, " and ") + " " + many
}

// keyDetail says what is to be known of the server key.
func (r *Reconciler) keyDetail() string {
	now := r.Now()
	ids := state.Identities(r.snapshot, now)
	day := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	if first := r.snapshot.ServerKeys[0]; first.From.IsZero() && ids[0].Key != first.Key {
		return "privateKey has retired, the key of " + day(ids[0].From) + " has taken its place"
	}
	if len(ids) < 2 {
		return "the private key of the files is in force"
	}
	if next := ids[1]; next.From.After(now) {
		return "the private key of the files is in force, the next one from " + day(next.From)
	}
	return "the newer of two private keys is in force; the older one is answered to until " + day(ids[0].Retires)
}
