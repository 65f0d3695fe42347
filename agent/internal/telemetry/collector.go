package telemetry

import (
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// NewRegistry returns a registry with the Go runtime's and the process's own
// metrics. They cost no more than 0.1 MiB of memory.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Instruments are what the reconcile loop feeds by itself; everything else
// follows from [Status].
type Instruments struct {
	// ReloadDuration takes the seconds from reading changed files to having
	// them in force.
	ReloadDuration prometheus.Histogram
	// RunDuration takes the seconds of every run.
	RunDuration prometheus.Histogram
	events      *prometheus.CounterVec
}

// NewInstruments registers the instruments, once for each registry.
func NewInstruments(reg prometheus.Registerer) *Instruments {
	table := catalogue()
	newHistogram := func(id int, first float64, buckets int) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: table[id].name, Help: table[id].help,
			Buckets: prometheus.ExponentialBuckets(first, 2, buckets),
		})
	}
	i := &Instruments{
		ReloadDuration: newHistogram(reloadDuration, 0.001, 14), // to 8 s
		RunDuration:    newHistogram(runDuration, 0.0005, 14),   // to 4 s
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: table[peerEvents].name, Help: table[peerEvents].help,
		}, table[peerEvents].labels),
	}
	for _, kind := range []state.EventKind{state.PeerConnected, state.PeerDisconnected, state.PeerRoamed} {
		i.events.WithLabelValues(eventLabel(kind)) // shows zeros from the start
	}
	reg.MustRegister(i.ReloadDuration, i.RunDuration, i.events)
	return i
}

// CountEvents counts what happened to peers.
func (i *Instruments) CountEvents(events []state.Event) {
	for _, e := range events {
		i.events.WithLabelValues(eventLabel(e.Kind)).Inc()
	}
}

func eventLabel(k state.EventKind) string { return strings.TrimPrefix(string(k), "peer ") }

// statusCollector turns a status into metrics when it is asked for them.
type statusCollector struct {
	status func() Status
	table  []metric
	descs  []*prometheus.Desc // by place in the catalogue
}

func newStatusCollector(status func() Status) *statusCollector {
	c := &statusCollector{status: status, table: catalogue()}
	for _, m := range c.table {
		c.descs = append(c.descs, m.desc())
	}
	return c
}

// Describe implements [prometheus.Collector].
func (c *statusCollector) Describe(out chan<- *prometheus.Desc) {
	for id, d := range c.descs {
		switch {
		case id == reloadDuration, id == runDuration, id == peerEvents: // of Instruments
		case id == stoppedPackets: // of stoppedCollector
		case id == externalSecrets: // of externalCollector
		case id >= fleetMembers && id <= fleetRefusedMessages: // of fleetCollector
		case id == readinessMarked, id == readinessRefused: // of ReadinessCounters
		case id >= dumpOK: // of exposition
		default:
			out <- d
		}
	}
}

// Collect implements [prometheus.Collector].
func (c *statusCollector) Collect(out chan<- prometheus.Metric) {
	put := func(id int, value float64, labels ...string) {
		kind := prometheus.GaugeValue
		if c.table[id].kind == counter {
			kind = prometheus.CounterValue
		}
		for i := range labels {
			labels[i] = strings.ToValidUTF8(labels[i], "\uFFFD")
		}
		out <- prometheus.MustNewConstMetric(c.descs[id], kind, value, labels...)
	}
	s := c.status()
	put(ready, number(s.Ready()))
	for _, cond := range s.Conditions {
		put(condition, number(cond.OK), cond.Name)
	}
	put(configGeneration, float64(s.Generation))
	if s.Hash != "" {
		put(configInfo, 1, s.Hash)
	}
	put(reloadOK, number(s.Reloads.LastOK))
	put(reloadTime, seconds(s.Reloads.LastSuccess))
	put(reloads, float64(s.Reloads.Succeeded), "success")
	put(reloads, float64(s.Reloads.Failed), "failure")
	if s.DataPlane != "" {
		put(dataPlaneInfo, 1, s.DataPlane, s.DataPlaneReason)
	}
	for _, activity := range state.Activities() {
		put(peers, float64(s.Sessions[activity]), string(activity))
	}
	put(configuredPeers, float64(len(s.PeerNames)))
	put(buildInfo, 1, s.Version, runtime.Version())
	c.keys(s, put)
	for _, id := range s.Identities {
		put(deviceInfo, 1, id.Interface, id.PublicKey.String())
	}
}

func (c *statusCollector) keys(s Status, put func(id int, value float64, labels ...string)) {
	put(keySince, seconds(s.Keys.Server.Since), "server")
	put(keySince, seconds(s.Keys.Preshared.Since), "preshared")
	put(keyNext, seconds(s.Keys.Server.Next), "server")
	put(keyNext, seconds(s.Keys.Preshared.Next), "preshared")
	put(keyRetires, seconds(s.Keys.Retires))
	put(movedPeers, float64(s.Moved))
	for kind, r := range s.Rotations {
		put(rotationOK, number(r.Result != spec.RotationFailed), kind)
		put(rotationTime, seconds(r.Time), kind)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds is a UNIX timestamp with milliseconds, 0 for the zero time.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
