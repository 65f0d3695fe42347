// Package readiness takes dead replicas out of the Service. Kubernetes does that
// after 40 s and more, when it has not heard of a node for that long; the other
// replicas know after a second.
//
// Every replica's Pod has a readiness gate, which the replica itself opens. Where
// siblings die, a survivor closes the gate of the dead Pod, and sets its condition
// Ready to False too: it is the kubelet that derives Ready from the gate, and it is
// dead where the node is, while EndpointSlices follow Ready alone. That is what the
// node lifecycle controller does too (MarkPodsNotReady in
// k8s.io/kubernetes/pkg/controller/util/node). A kubelet that lives keeps Ready
// False for as long as the gate is closed, and puts it right once it is open.
//
// Who cannot see its siblings cannot tell whether they are dead or it is cut off
// itself. So a replica marks others only while it sees more than half of the
// members alive, itself included. With exactly half of them it has to hold a Lease,
// which the API server gives to one side. Before it marks it asks those that it takes
// for alive: who is cut off notices that one sibling at a time, and would begin as one
// of a majority.
//
// With fewer than half the API server is the witness. Whoever sees a sibling dead that is
// in service gives proofs of life there (see nextBeat); where none of the dead does for
// one and a half seconds, this replica has not been marked by them, and it holds the Lease, it
// marks them all. One that was marked so, and lives, comes back by itself.
package readiness

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// GateType is the type of the condition that the Pods have as a readiness gate.
const GateType = "cloud-native-vpn.github.io/serving"

// What Kubernetes calls them.
const (
	typeReady   = "Ready"
	statusTrue  = "True"
	statusFalse = "False"
)

// The reasons of the conditions that are set.
const (
	reasonAlive  = "ReplicaAlive"
	reasonMarked = "MarkedDeadBySibling"
	reasonSilent = "MarkedSilentBySibling" // by a minority
)

const (
	// resync is how often a replica looks at its own Pod and at the Lease, without
	// a reason. It is no shorter than a Lease lasts, so that one look before an
	// incident is enough to know a Lease that nobody renews.
	resync = leaseDuration
	// afterChange is when it looks after the fleet changed: who was cut off may
	// have been marked.
	afterChange = time.Second
	// again is when to look again at what must not be marked.
	again = 2 * time.Second
	// requestTimeout bounds every request. The API server's address may be that of
	// the machine that has just died.
	requestTimeout = time.Second
)

// Errors of an [API].
var (
	// ErrGone says that there is no such object.
	ErrGone = errors.New("not found")
	// ErrConflict says that the object is not the one, or not as, it was read.
	ErrConflict = errors.New("changed by somebody else")
)

// API is what this package needs of one namespace of a cluster.
type API interface {
	// Pod reads one; [ErrGone] where there is none.
	Pod(ctx context.Context, name string) (Pod, error)
	// SetConditions sets conditions of a Pod, and leaves the others alone;
	// [ErrGone] where there is no such Pod, [ErrConflict] where it has another UID.
	SetConditions(ctx context.Context, name, uid string, conditions []Condition) error
	// Beat writes when the gate of a Pod was last looked after, which changes nothing
	// else, and returns the Pod; [ErrGone] and [ErrConflict] as above.
	Beat(ctx context.Context, name, uid string, at time.Time) (Pod, error)
	// Lease reads the Lease of the fleet.
	Lease(ctx context.Context) (Lease, error)
	// SetLease writes holder and times of what was read; [ErrConflict] where somebody
	// else has written since. It returns what is there then.
	SetLease(ctx context.Context, l Lease) (Lease, error)
}

// Pod is a Pod as far as this package reads it.
type Pod struct {
	UID string
	// Gate and Ready are the statuses of these conditions; empty where there is none.
	Gate, Ready string
	// Reason and Beat are the gate's reason, and when it was last looked after, by
	// its replica's clock: good to be compared with itself alone.
	Reason, Beat string
	// Leaving says that it has been deleted, and is not gone yet.
	Leaving bool
}

// Condition is one of a Pod's.
type Condition struct {
	Type    string    `json:"type"`
	Status  string    `json:"status"`
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	Since   time.Time `json:"lastTransitionTime"`
}

// Options of a [Controller]; all are required.
type Options struct {
	API API
	// Self is the name of this replica's Pod.
	Self string
	// Members are all replicas that were heard of, with or without this one.
	Members func() []Member
	// Answering asks siblings, and returns those that answer at once.
	Answering func(names []string) []string
	// Changes says that Members may give another answer.
	Changes <-chan struct{}
	Now     func() time.Time
	Log     *slog.Logger
	Metrics *telemetry.ReadinessCounters
}
