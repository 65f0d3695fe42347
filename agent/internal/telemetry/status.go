// Package telemetry shows what a gateway does: readiness and metrics over
// HTTP, a TCP port for load balancers that cannot probe UDP, and log lines.
// It only reads; the state comes in as values and functions.
package telemetry

import (
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// Condition is one thing that readiness depends on.
type Condition struct {
	// Name: config (informational), key, device, port, forwarding, firewall,
	// serving (false while draining and before the first run), nextKey, link and
	// externalSecrets (informational, where there are such).
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
	// Identities are the server keys that the gateway answers to, the oldest first.
	Identities []Identity
	// Moved counts the peers that use the second of two identities.
	Moved int
	// Keys says since when keys are in force, and when the next ones will be.
	Keys state.KeyTimes
	// Rotations is how the last rotation of each kind of key went.
	Rotations map[string]spec.RotationResult
	// PeerNames holds the configured peers.
	PeerNames map[key.Public]string
	// Sessions counts the peers by activity, as of the last observation.
	Sessions map[state.Activity]int
	Version  string
}

// Identity is a server key that the gateway answers to, and where.
type Identity struct {
	PublicKey key.Public `json:"publicKey"`
	Slot      key.Slot   `json:"slot"`
	Interface string     `json:"interface"`
	// ListenPort is 0 while the gateway does not answer.
	ListenPort uint16 `json:"listenPort"`
	// InForce says whether it is the one that new clients get.
	InForce bool `json:"inForce"`
	// From is zero for 'since ever', and Retires while no other key follows.
	From    time.Time `json:"from,omitzero"`
	Retires time.Time `json:"retires,omitzero"`
}

// InForce is the identity that new clients get; the zero one before there is one.
func (s Status) InForce() Identity {
	for _, id := range s.Identities {
		if id.InForce {
			return id
		}
	}
	return Identity{}
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
