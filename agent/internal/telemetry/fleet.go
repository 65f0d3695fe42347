package telemetry

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
)

// FleetView is the JSON document that /fleet answers with: all replicas, as the one
// that is asked sees them.
type FleetView struct {
	// Replica is the one that answers.
	Replica string `json:"replica"`
	// Replicas is how many are alive, Draining how many of them are leaving.
	Replicas int `json:"replicas"`
	Draining int `json:"draining"`
	// ConnectedPeers had a handshake within 180 s; PerReplica is their number for
	// each of Replicas.
	ConnectedPeers int           `json:"connectedPeers"`
	PerReplica     float64       `json:"connectedPeersPerReplica"`
	Members        []FleetMember `json:"members"`
}

// FleetMember is a replica.
type FleetMember struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// State is alive, draining, dead or left; the last two for a minute after.
	State          string `json:"state"`
	ConnectedPeers int    `json:"connectedPeers"`
}

// FleetCounts is what a replica counts from its start.
type FleetCounts struct {
	// Adopted and Yielded are peers that came from a sibling and that went to one.
	Adopted, Yielded uint64
	// Calls are handshakes that this replica began to adopt a peer.
	Calls uint64
	// RefusedPackets of sessions of others, and RefusedMessages of the fleet, by reason.
	RefusedPackets, RefusedMessages map[string]uint64
}

// RegisterFleet shows what is known of the fleet. The functions are called at every
// scrape, by several goroutines at once.
func RegisterFleet(reg prometheus.Registerer, view func() FleetView, counts func() FleetCounts) {
	reg.MustRegister(fleetCollector{view, counts})
}

type fleetCollector struct {
	view   func() FleetView
	counts func() FleetCounts
}

// Describe implements [prometheus.Collector].
func (c fleetCollector) Describe(out chan<- *prometheus.Desc) {
	for i := fleetMembers; i <= fleetRefusedMessages; i++ {
		out <- catalogue()[i].desc()
	}
}

// Collect implements [prometheus.Collector].
func (c fleetCollector) Collect(out chan<- prometheus.Metric) {
	all := catalogue()
	gauge := func(place int, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(all[place].desc(), prometheus.GaugeValue, value, labels...)
	}
	counter := func(place int, value uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(all[place].desc(), prometheus.CounterValue, float64(value), labels...)
	}
	view, counts := c.view(), c.counts()
	states := map[string]int{"alive": 0, "draining": 0, "dead": 0, "left": 0}
	own := 0
	for _, m := range view.Members {
		states[m.State]++
		if m.Name == view.Replica {
			own = m.ConnectedPeers
		}
	}
	for state, n := range states {
		gauge(fleetMembers, float64(n), state)
	}
	gauge(connectedPeers, float64(own))
	counter(fleetAdopted, counts.Adopted)
	counter(fleetYielded, counts.Yielded)
	counter(fleetCalls, counts.Calls)
	for reason, n := range counts.RefusedPackets {
		counter(fleetRefusedPackets, n, reason)
	}
	for reason, n := range counts.RefusedMessages {
		counter(fleetRefusedMessages, n, reason)
	}
}

// fleetHandler answers for all replicas.
func fleetHandler(view func() FleetView) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		header(w, "application/json")
		writeJSON(w, view())
	}
}
