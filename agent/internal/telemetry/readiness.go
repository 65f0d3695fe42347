package telemetry

import "github.com/prometheus/client_golang/prometheus"

// ReadinessCounters count what this replica did about dead ones.
type ReadinessCounters struct {
	marked  prometheus.Counter
	refused *prometheus.CounterVec
}

// NewReadinessCounters registers the counters, once for each registry. The reasons are
// those that [ReadinessCounters.Refused] may be told.
func NewReadinessCounters(reg prometheus.Registerer, reasons []string) *ReadinessCounters {
	table := catalogue()
	options := func(id int) prometheus.CounterOpts {
		return prometheus.CounterOpts{Name: table[id].name, Help: table[id].help}
	}
	r := &ReadinessCounters{
		marked:  prometheus.NewCounter(options(readinessMarked)),
		refused: prometheus.NewCounterVec(options(readinessRefused), table[readinessRefused].labels),
	}
	for _, reason := range reasons {
		r.refused.WithLabelValues(reason) // shows zeros from the start
	}
	reg.MustRegister(r.marked, r.refused)
	return r
}

// Marked counts a dead replica that was taken out of service.
func (r *ReadinessCounters) Marked() { r.marked.Inc() }

// Refused counts one that was not, and a replica that may not come back.
func (r *ReadinessCounters) Refused(reason string) { r.refused.WithLabelValues(reason).Inc() }
