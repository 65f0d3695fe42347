package telemetry

import "github.com/prometheus/client_golang/prometheus"

// RegisterExternalSecrets shows which ExternalSecrets are refreshed, by name. The
// function is called at every scrape, by several goroutines at once.
func RegisterExternalSecrets(reg prometheus.Registerer, ready func() map[string]bool) {
	reg.MustRegister(externalCollector{ready, catalogue()[externalSecrets].desc()})
}

type externalCollector struct {
	ready func() map[string]bool
	desc  *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (c externalCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements [prometheus.Collector].
func (c externalCollector) Collect(out chan<- prometheus.Metric) {
	for name, ok := range c.ready() {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, number(ok), name)
	}
}
