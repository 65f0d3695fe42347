package reconcile

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// summaryLimit bounds the peers that one log line names.
const summaryLimit = 20

// run does the whole flow once.
func (r *Reconciler) run(ctx context.Context, reason string) {
	start := r.Now()
	r.stages, r.stageStart = nil, start
	defer r.endReload()
	r.reload()
	if r.pending {
		r.beginReload()
	}
	changes, err := r.converge(ctx)
	took := r.Now().Sub(start)
	r.Instruments.RunDuration.Observe(took.Seconds())
	switch {
	case err != nil:
		r.fail(err)
	case r.pending:
		r.pending = false
		r.generation++
		r.reloads.Succeeded++
		r.reloads.LastOK, r.reloads.LastSuccess, r.reloads.LastError = true, r.Now(), ""
		r.Instruments.ReloadDuration.Observe(took.Seconds())
		telemetry.LogReload(r.Log, telemetry.Reload{
			Hash: r.inForce.String(), Generation: r.generation, Peers: len(r.snapshot.Peers),
			Changes: changes, Warnings: r.snapshot.Warnings, Took: took, Stages: r.stages,
		})
	case len(changes) > 0 && reason == "resync":
		r.Log.Warn("repaired what others had changed", "changes", changes)
	case len(changes) > 0:
		r.Log.Info("applied", "reason", reason, "changes", changes)
	}
	r.runError = err
	r.announceKey()
	for slot, t := range r.observed.Tunnels {
		t.Device.Peers = nil // as many as configured, and read afresh by every run
		r.observed.Tunnels[slot] = t
	}
	r.lastRun.Store(r.Now().UnixNano())
	r.publish()
}

// announceKey says in the log which server key new clients get, when that changes.
func (r *Reconciler) announceKey() {
	now := r.Now()
	id := state.InForce(state.Identities(r.snapshot, now), now)
	if public := id.Key.Public(); public != r.announced && r.runError == nil {
		r.announced = public
		r.Log.Info("server key in force", "publicKey", public.String(), "slot", string(id.Slot))
	}
}

func (r *Reconciler) beginReload() {
	if r.reloaded == nil && r.Reloading != nil {
		r.reloaded = r.Reloading()
	}
}

func (r *Reconciler) endReload() {
	if r.reloaded != nil {
		r.reloaded()
		r.reloaded = nil
	}
}

// stage notes that a part of the run has ended.
func (r *Reconciler) stage(name string) {
	now := r.Now()
	r.stages = append(r.stages, telemetry.Stage{Name: name, Took: now.Sub(r.stageStart)})
	r.stageStart = now
}

// fail notes a run that could not be finished, and logs every new reason once.
func (r *Reconciler) fail(err error) {
	if r.runError == nil || r.runError.Error() != err.Error() {
		r.Log.Error("cannot apply, trying again", "error", err)
	}
	if r.pending && r.reloads.LastError != err.Error() {
		r.reloads.Failed++
		r.reloads.LastOK, r.reloads.LastFailure, r.reloads.LastError = false, r.Now(), err.Error()
	}
}

// reload reads the files and adopts them where they have changed and are valid.
func (r *Reconciler) reload() {
	files, err := r.Read()
	if err != nil {
		r.refuse(fingerprint(sha256.Sum256([]byte(err.Error()))), err)
		return
	}
	now := fingerprintOf(files)
	r.stage("read")
	if now == r.files {
		return
	}
	r.beginReload()
	s, err := r.Load(files)
	r.stage("load")
	if err == nil {
		err = r.reloadable(s)
	}
	if err != nil {
		r.refuse(now, err)
		return
	}
	r.files = now
	if now == r.inForce && !r.pending {
		r.reloads.LastOK, r.reloads.LastError = true, ""
		r.Log.Info("the files are again what is in force", "hash", r.inForce.String())
		return
	}
	r.adopt(s, now)
}

// adopt makes a snapshot the one to converge to.
func (r *Reconciler) adopt(s *spec.Snapshot, f fingerprint) {
	r.snapshot, r.inForce, r.pending = s, f, true
	r.drain.Store(int64(s.Gateway.Server.Drain))
	names := make(map[key.Public]string, len(s.Peers))
	for i := range s.Peers {
		names[s.Peers[i].PublicKey] = s.Peers[i].Name
	}
	r.formerNames = map[key.Public]string{}
	for k, name := range r.peerNames {
		if _, stays := names[k]; !stays {
			r.formerNames[k] = name
		}
	}
	if r.Fleet != nil {
		r.Fleet.Configure(s)
	}
	r.peerNames = names // a new map: probes and metrics may be reading the old one
}

// refuse keeps the last good state and says why, once for every new reason.
func (r *Reconciler) refuse(now fingerprint, err error) {
	if now == r.files {
		return
	}
	r.files = now
	r.reloads.Failed++
	r.reloads.LastOK, r.reloads.LastFailure, r.reloads.LastError = false, r.Now(), brief(err)
	telemetry.LogReload(r.Log, telemetry.Reload{
		Err: err, Hash: r.inForce.String(), Generation: r.generation, Peers: len(r.snapshot.Peers),
	})
}

// reloadable refuses what only a new Pod can change: the device itself, and what
// the Pod's own specification says too. An old Pod that took it up while the new
// one cannot start would leave nobody to serve.
func (r *Reconciler) reloadable(s *spec.Snapshot) error {
	was, is := r.opened, s.Gateway
	var faults spec.Faults
	for _, field := range []struct {
		path    string
		was, is any
	}{
		{"server.interface", was.Server.Interface, is.Server.Interface},
		{"server.listenPort", was.Server.ListenPort, is.Server.ListenPort},
		{"server.dataPlane", was.Server.DataPlane, is.Server.DataPlane},
		{"ipv6.enabled", was.IPv6.Enabled, is.IPv6.Enabled},
		{"keyRotation.server.listenPort", was.ListenPort(key.Green), is.ListenPort(key.Green)},
	} {
		if field.was != field.is {
			faults = append(faults, spec.Fault{
				File: spec.GatewayFile, Path: field.path, Value: fmt.Sprint(field.is),
				Problem: fmt.Sprintf("cannot change while the gateway runs, it is %v", field.was),
				Fix:     "restart the Pod, as the chart does on upgrade",
			})
		}
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

// converge makes the system equal to the snapshot and returns what it changed.
func (r *Reconciler) converge(ctx context.Context) ([]string, error) {
	uplink, err := r.Uplink()
	if err != nil {
		return nil, fmt.Errorf("find the route to the Internet: %w", err)
	}
	if uplink.MTU > 0 {
		r.uplink = uplink // a route that is gone for a moment leaves the MTU alone
	}
	resolved := r.resolver.lookup(ctx, r.snapshot)
	r.stage("uplink")
	if err := r.lookAnew(); err != nil {
		return nil, fmt.Errorf("observe the device: %w", err)
	}
	r.secondError, r.interlinkError = nil, nil
	inputs := state.Inputs{Snapshot: r.snapshot, Now: r.Now(), Moved: r.moved, Resolved: resolved, Uplink: r.uplink, Fleet: r.fleet()}
	if !inputs.Same(r.inputs) {
		r.inputs, r.desired = inputs, state.Build(inputs)
	}
	r.stage("build")
	changes := r.applyChanges()
	if err := r.observe(); err != nil {
		return changes, err
	}
	r.stage("observe")
	seen := r.observed
	seen.FirewallInPlace = seen.FirewallInPlace && !r.tableInDoubt
	p := r.withoutFault(plan.Diff(r.desired, seen, r.applied))
	r.stage("compare")
	if p.Empty() {
		r.keepApplied()
		return changes, nil
	}
	changes = append(changes, p.Summary(summaryLimit)...)
	if err := r.apply(p); err != nil {
		return changes, errors.Join(err, r.observe())
	}
	r.stage("repair")
	if err := r.observe(); err != nil {
		return changes, err
	}
	if left := r.withoutFault(plan.Diff(r.desired, r.observed, r.applied)); !left.Empty() {
		return changes, fmt.Errorf("applied, but the system still differs: %v", left.Summary(summaryLimit))
	}
	r.stage("verify")
	return changes, nil
}

// applyChanges puts in force what differs from what was applied last, before it
// is known whether the system is still like that: what follows in the run finds
// out, and mends what is not. That takes longer by far, and so an error here is
// none yet. It returns what was changed.
func (r *Reconciler) applyChanges() []string {
	if r.applied == nil || r.tableInDoubt || r.runError != nil {
		return nil
	}
	p := plan.Changes(r.desired, *r.applied)
	r.stage("diff")
	if p.Empty() {
		return nil
	}
	if err := r.apply(p); err != nil {
		r.Log.Warn("cannot apply the changes alone, comparing everything", "error", err)
		return nil
	}
	r.stage("apply")
	return p.Summary(summaryLimit)
}

// apply carries out a plan that leads to what is desired.
func (r *Reconciler) apply(p plan.Plan) error {
	r.tableInDoubt = true // until all is done
	if err := r.Firewall.Apply(p.Firewall); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	err := r.Device.Apply(p)
	// The plan is of what was known when it was made, and the device was read after that:
	// a peer may have come to this replica meanwhile.
	if forgotten := p.Renewed(); r.Fleet != nil && len(forgotten) > 0 {
		r.Fleet.Forgot(forgotten)
	}
	if err := r.spare(err); err != nil {
		return fmt.Errorf("device: %w", err)
	}
	r.keepApplied()
	r.tableInDoubt = false
	return nil
}

// fingerprint tells two readings of the files apart.
type fingerprint [sha256.Size]byte

// String is short enough for a log and long enough to be unique.
func (f fingerprint) String() string { return hex.EncodeToString(f[:6]) }

func fingerprintOf(files spec.Files) fingerprint {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		// Lengths first, so that no two sets of files can run together.
		writeSized(h, []byte(name))
		writeSized(h, files[name])
	}
	return fingerprint(h.Sum(nil))
}

func writeSized(h hash.Hash, b []byte) {
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(b)))
	_, _ = h.Write(size[:])
	_, _ = h.Write(b)
}
