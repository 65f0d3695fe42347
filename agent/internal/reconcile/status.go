package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
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
	s.PublicKey = r.observed.Device.PrivateKey.Public()
	s.ListenPort = r.observed.Device.ListenPort
	s.Sessions = r.sessions.Count()
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
		if !on {
			off = name
		}
	}
	ipv6 := !r.snapshot.Gateway.IPv6.Enabled || o.IPv6Forwarding
	forwardingProblem := fmt.Sprintf("IPv4 forwarding is off for %s", off)
	if !ipv6 {
		forwardingProblem = "sysctl net.ipv6.conf.all.forwarding is off; the Pod needs it set, which the kubelet must allow (--allowed-unsafe-sysctls)"
	}
	conditions := []telemetry.Condition{
		check("device", o.LinkExists && o.LinkUp, fmt.Sprintf("%s is up", d.Link.Name), fmt.Sprintf("%s is missing or down", d.Link.Name)),
		check("key", o.Device.PrivateKey == d.Device.PrivateKey && !d.Device.PrivateKey.IsZero(), "the private key of the files is in force", "the device has another private key than the files"),
		check("port", o.Device.ListenPort == d.Device.ListenPort, fmt.Sprintf("UDP port %d is bound", o.Device.ListenPort), fmt.Sprintf("UDP port %d is not bound", d.Device.ListenPort)),
		check("forwarding", off == "" && ipv6, "packets are forwarded", forwardingProblem),
		check("firewall", o.FirewallInPlace, "the nftables table is in place", "the nftables table is missing or was changed"),
		check(conditionServing, true, "serving", ""),
		{Name: "config", OK: r.reloads.LastOK, Detail: "the files are in force", Informational: true},
	}
	if config := &conditions[len(conditions)-1]; !config.OK {
		config.Detail = "the last good state stays: " + r.reloads.LastError
	}
	return conditions
}
