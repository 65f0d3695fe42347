// Package telemetry shows what a gateway does: readiness and metrics over
// HTTP, a TCP port for load balancers that cannot probe UDP, and log lines.
// It only reads; the state comes in as values and functions.
package telemetry

import (
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Condition is one thing that readiness depends on.
type Condition struct {
	// Name: config (informational), key, device, port, forwarding, firewall,
	// serving (false while draining and before the first run).
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Detail says why in one line; no key material.
	Detail string `json:"detail"`
	// Informational conditions are shown and do not make the gateway unready.
	Informational bool `json:"informational"`
}

// Reloads says how the readings of the configuration went since the start.
type Reloads struct {
	Succeeded, Failed        uint64
	LastSuccess, LastFailure time.Time // zero where there was none
	// LastOK is the outcome of the last one.
	LastOK bool
	// LastError is empty where LastOK is set; no key material.
	LastError string
}

// Status is a gateway at a moment. Its maps are read-only for whoever gets it.
type Status struct {
	Conditions []Condition
	// Generation counts the snapshots applied since the start.
	Generation uint64
	// Hash of the files in force, 12 hex digits.
	Hash    string
	Reloads Reloads
	// DataPlane in force, kernel or userspace, and why; empty before it is known.
	DataPlane, DataPlaneReason string
	Interface                  string
	// PublicKey in force.
	PublicKey  key.Public
	ListenPort uint16
	// PeerNames holds the configured peers.
	PeerNames map[key.Public]string
	// Sessions counts the peers by activity, as of the last observation.
	Sessions map[state.Activity]int
	Version  string
}

// Ready reports whether packets would be forwarded: every condition holds that
// is not informational. Where nothing was looked at yet, the answer is no.
func (s Status) Ready() bool {
	checked := false
	for _, c := range s.Conditions {
		if c.Informational {
			continue
		}
		if !c.OK {
			return false
		}
		checked = true
	}
	return checked
}
