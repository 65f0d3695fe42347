package reconcile

import (
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// The clients of the key that is in force have a tunnel whether or not there is one for
// the next key, and one to other replicas. A fault of these is told, and tried to mend,
// and is none of the run.

// spare keeps errors that are of the second tunnel or the interlink alone, and returns
// any other. The port or the name may be somebody else's, or memory short.
func (r *Reconciler) spare(err error) error {
	second, two := r.second()
	spared := []key.Slot{state.Interlink}
	if two {
		spared = append(spared, second)
	}
	if err == nil || !state.OnlyOf(err, spared...) {
		return err
	}
	if of := state.Of(err, second); two && of != nil {
		if r.toldOfSecond != of.Error() {
			r.toldOfSecond = of.Error()
			r.Log.Warn("cannot answer to the next server key, trying again", "error", of)
		}
		r.secondError = of
	}
	if of := state.Of(err, state.Interlink); of != nil {
		if r.toldOfInterlink != of.Error() {
			r.toldOfInterlink = of.Error()
			r.Log.Warn("cannot pass packets on to other replicas, trying again", "error", of)
		}
		r.interlinkError = of
	}
	return nil
}

// keepApplied notes what is in force: all that is desired, but what has a fault.
func (r *Reconciler) keepApplied() {
	desired := r.desired // a copy: a later run builds r.desired anew
	if r.secondError != nil {
		desired.Tunnels = desired.Tunnels[:1]
	}
	if r.interlinkError != nil {
		desired.Interlink = nil
	}
	r.applied = &desired
}

// withoutFault is a plan without what has a fault: the next run tries again.
func (r *Reconciler) withoutFault(p plan.Plan) plan.Plan {
	if slot, ok := r.second(); ok && r.secondError != nil {
		p = p.Without(slot)
	}
	if r.interlinkError != nil {
		p = p.Without(state.Interlink)
	}
	return p
}
