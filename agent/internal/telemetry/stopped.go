package telemetry

import "github.com/prometheus/client_golang/prometheus"

// StoppedFunc returns the packets that the firewall has stopped, by reason.
type StoppedFunc func() (map[string]uint64, error)

// stoppedCollector asks the firewall when it is asked itself.
type stoppedCollector struct {
	desc    *prometheus.Desc
	stopped StoppedFunc
}

// RegisterStopped adds the firewall's counters to the metrics.
func RegisterStopped(reg prometheus.Registerer, stopped StoppedFunc) {
	reg.MustRegister(&stoppedCollector{desc: catalogue()[stoppedPackets].desc(), stopped: stopped})
}

// Describe implements [prometheus.Collector].
func (c *stoppedCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements [prometheus.Collector]. Where the counters cannot be read
// there is no table, which the condition firewall says already.
func (c *stoppedCollector) Collect(out chan<- prometheus.Metric) {
	counts, err := c.stopped()
	if err != nil {
		return
	}
	for reason, n := range counts {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(n), reason)
	}
}
