package telemetry

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

func scrape(t *testing.T, h http.Handler) (body string, families map[string]*dto.MetricFamily) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if got := w.Header().Get("Content-Type"); got != contentType {
		t.Errorf("Content-Type: got %q, want %q", got, contentType)
	}
	body = w.Body.String()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("not in the text format: %v\n%s", err, body)
	}
	return body, families
}

// series returns the lines of our own metrics, less those that are different
// in every process.
func series(body string) []string {
	var out []string
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "vpn_gateway_") || strings.HasPrefix(line, "wireguard_") {
			if !strings.Contains(line, "_bucket{") && !strings.HasPrefix(line, "vpn_gateway_device_dump_duration_seconds ") {
				out = append(out, strings.ReplaceAll(line, runtime.Version(), "GO"))
			}
		}
	}
	return out
}

const (
	aliceKey = "+wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="
	bobKey   = "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI="
)

var wantRegistry = []string{
	`vpn_gateway_build_info{goversion="GO",version="0.1.0"} 1`,
	`vpn_gateway_condition{name="config"} 0`,
	`vpn_gateway_condition{name="device"} 1`,
	`vpn_gateway_config_generation 7`,
	`vpn_gateway_config_info{hash="0123456789ab"} 1`,
	`vpn_gateway_config_last_reload_success_timestamp_seconds 1.7000000015e+09`,
	`vpn_gateway_config_last_reload_successful 1`,
	`vpn_gateway_config_reload_duration_seconds_sum 0.25`,
	`vpn_gateway_config_reload_duration_seconds_count 1`,
	`vpn_gateway_config_reloads_total{result="failure"} 2`,
	`vpn_gateway_config_reloads_total{result="success"} 7`,
	`vpn_gateway_configured_peers 2`,
	`vpn_gateway_connected_peers 4`,
	`vpn_gateway_data_plane_info{data_plane="userspace",reason="kernel: \"operation not supported\"\n\\ ` + "\uFFFD" + `"} 1`,
	`vpn_gateway_external_secret_ready{name="keys"} 1`,
	`vpn_gateway_external_secret_ready{name="peers"} 0`,
	`vpn_gateway_fleet_adopted_peers_total 2`,
	`vpn_gateway_fleet_calls_total 0`,
	`vpn_gateway_fleet_members{state="alive"} 1`,
	`vpn_gateway_fleet_members{state="dead"} 1`,
	`vpn_gateway_fleet_members{state="draining"} 1`,
	`vpn_gateway_fleet_members{state="left"} 0`,
	`vpn_gateway_fleet_refused_messages_total{reason="malformed"} 3`,
	`vpn_gateway_fleet_refused_packets_total{reason="late"} 1`,
	`vpn_gateway_fleet_yielded_peers_total 0`,
	`vpn_gateway_key_in_force_since_timestamp_seconds{kind="preshared"} 1.6e+09`,
	`vpn_gateway_key_in_force_since_timestamp_seconds{kind="server"} 0`,
	`vpn_gateway_key_next_activation_timestamp_seconds{kind="preshared"} 0`,
	`vpn_gateway_key_next_activation_timestamp_seconds{kind="server"} 1.7000001e+09`,
	`vpn_gateway_key_rotation_last_run_successful{kind="preshared"} 0`,
	`vpn_gateway_key_rotation_last_run_successful{kind="server"} 1`,
	`vpn_gateway_key_rotation_last_run_timestamp_seconds{kind="preshared"} 1.700000001e+09`,
	`vpn_gateway_key_rotation_last_run_timestamp_seconds{kind="server"} 1.7e+09`,
	`vpn_gateway_moved_peers 3`,
	`vpn_gateway_peer_events_total{event="connected"} 1`,
	`vpn_gateway_peer_events_total{event="disconnected"} 0`,
	`vpn_gateway_peer_events_total{event="roamed"} 2`,
	`vpn_gateway_peers{state="connected"} 1`,
	`vpn_gateway_peers{state="dead"} 0`,
	`vpn_gateway_peers{state="elsewhere"} 0`,
	`vpn_gateway_peers{state="idle"} 0`,
	`vpn_gateway_peers{state="never"} 1`,
	`vpn_gateway_readiness_marked_total 1`,
	`vpn_gateway_readiness_refused_total{reason="lease"} 0`,
	`vpn_gateway_readiness_refused_total{reason="minority"} 1`,
	`vpn_gateway_ready 1`,
	`vpn_gateway_run_duration_seconds_sum 0`,
	`vpn_gateway_run_duration_seconds_count 0`,
	`vpn_gateway_server_key_retirement_timestamp_seconds 1.7000002e+09`,
	`vpn_gateway_stopped_packets_total{reason="isolated"} 0`,
	`vpn_gateway_stopped_packets_total{reason="spoofed"} 3`,
	`wireguard_device_info{device="wg0",public_key="CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="} 1`,
	`wireguard_device_info{device="wg0g",public_key="CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="} 1`,
}

func TestMetrics(t *testing.T) {
	status, onDevice := running()
	tests := []struct {
		name string
		err  error
		want []string
	}{
		{"device read", nil, []string{
			`vpn_gateway_device_dump_successful 1`,
			`vpn_gateway_drifted_peers{drift="missing"} 3`,
			`vpn_gateway_drifted_peers{drift="unexpected"} 1`,
			`wireguard_peer_info{device="wg0",name="",public_key="` + bobKey + `"} 1`,
			`wireguard_peer_info{device="wg0",name="a\"l\\ice",public_key="` + aliceKey + `"} 1`,
			`wireguard_peer_allowed_ips_info{allowed_ips="10.8.0.2/32",device="wg0",public_key="` + aliceKey + `"} 1`,
			`wireguard_peer_allowed_ips_info{allowed_ips="fd00::2/128",device="wg0",public_key="` + aliceKey + `"} 1`,
			`wireguard_peer_receive_bytes_total{device="wg0",public_key="` + bobKey + `"} 0`,
			`wireguard_peer_receive_bytes_total{device="wg0",public_key="` + aliceKey + `"} 9007199254740992`,
			`wireguard_peer_transmit_bytes_total{device="wg0",public_key="` + bobKey + `"} 0`,
			`wireguard_peer_transmit_bytes_total{device="wg0",public_key="` + aliceKey + `"} 7`,
			`wireguard_peer_last_handshake_seconds{device="wg0",public_key="` + bobKey + `"} 0`,
			`wireguard_peer_last_handshake_seconds{device="wg0",public_key="` + aliceKey + `"} 1699999940`,
		}},
		{"device gone", errors.New("no such device"), []string{
			`vpn_gateway_device_dump_successful 0`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := handlerOf(t, status, onDevice, tt.err)
			h.instruments.ReloadDuration.Observe(0.25)
			h.instruments.CountEvents([]state.Event{{Kind: state.PeerConnected}, {Kind: state.PeerRoamed}, {Kind: state.PeerRoamed}})
			body, _ := scrape(t, h)
			if diff := cmp.Diff(slices.Concat(wantRegistry, tt.want), series(body)); diff != "" {
				t.Errorf("metrics (-want +got):\n%s", diff)
			}
		})
	}
}

// Before the first run hardly anything is known, and nothing must be invented.
func TestMetricsBeforeTheFirstRun(t *testing.T) {
	body, families := scrape(t, handlerOf(t, Status{Version: "0.1.0"}, nil, errors.New("not open")))
	for _, name := range []string{"vpn_gateway_config_info", "vpn_gateway_data_plane_info", "wireguard_device_info", "wireguard_peer_info"} {
		if families[name] != nil {
			t.Errorf("%s is there before anything is known", name)
		}
	}
	if !strings.Contains(body, "\nvpn_gateway_ready 0\n") {
		t.Error("vpn_gateway_ready is not 0")
	}
}

// The names are unique, follow the conventions, and are what the catalogue has.
func TestMetricsMatchTheCatalogue(t *testing.T) {
	status, onDevice := running()
	body, families := scrape(t, handlerOf(t, status, onDevice, nil))
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.Metric, "go_") { // those are not ours to name
			t.Errorf("lint: %s: %s", p.Metric, p.Text)
		}
	}
	known := map[string]bool{}
	for _, m := range catalogue() {
		if known[m.name] {
			t.Errorf("%s is in the catalogue twice", m.name)
		}
		known[m.name] = true
		for what, line := range map[string]string{
			"HELP": "# HELP " + m.name + " " + m.help + "\n",
			"TYPE": "# TYPE " + m.name + " " + m.kind + "\n",
		} {
			if n := strings.Count(body, line); n != 1 {
				t.Errorf("%s of %s stands there %d times, want once", what, m.name, n)
			}
		}
		var labels []string
		if f := families[m.name]; f != nil && m.kind != histogram {
			for _, l := range f.Metric[0].Label {
				labels = append(labels, l.GetName())
			}
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(m.labels)), labels); diff != "" {
			t.Errorf("labels of %s (-want +got):\n%s", m.name, diff)
		}
	}
	for name := range families {
		if !known[name] && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			t.Errorf("%s is not in the catalogue", name)
		}
	}
}

// A body that takes many writes is parsed back whole, in the same order every
// time.
func TestMetricsOfManyPeers(t *testing.T) {
	const n = 3000
	status, onDevice := crowd(n)
	h := handlerOf(t, status, onDevice, nil)
	first, families := scrape(t, h)
	second, _ := scrape(t, h)
	if diff := cmp.Diff(series(first), series(second)); diff != "" {
		t.Errorf("two scrapes of the same device differ:\n%s", diff)
	}
	for _, id := range []int{peerInfo, peerAllowedIPs, peerReceived, peerTransmitted, peerHandshake} {
		name := catalogue()[id].name
		if got := len(families[name].GetMetric()); got != n {
			t.Errorf("%s: got %d series, want %d", name, got, n)
		}
	}
	received := map[string]float64{}
	for _, m := range families["wireguard_peer_receive_bytes_total"].Metric {
		received[m.Label[1].GetValue()] = m.Counter.GetValue()
	}
	for k, p := range onDevice {
		if got := received[k.String()]; got != float64(p.ReceiveBytes) {
			t.Fatalf("peer %s received %v bytes, want %d", k, got, p.ReceiveBytes)
		}
	}
}

type brokenWriter struct{ calls int }

func (w *brokenWriter) Write([]byte) (int, error) { w.calls++; return 0, io.ErrClosedPipe }

func TestExpositionStopsWhenTheClientIsGone(t *testing.T) {
	status, onDevice := crowd(3000)
	w := &brokenWriter{}
	d := newDump(status.PeerNames)
	d.devices = []string{"wg0"}
	d.err = state.Each(onDevice)(d.add)
	err := newExposition(w).write(d)
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got error %v, want %v", err, io.ErrClosedPipe)
	}
	if w.calls != 1 {
		t.Errorf("wrote %d times into a closed pipe, want 1", w.calls)
	}
}

func TestScrapesAreBounded(t *testing.T) {
	reached, release := make(chan struct{}), make(chan struct{})
	status, _ := running()
	status.Identities = status.Identities[:1]
	h := NewHandler(Options{
		Status: func() Status { return status },
		EachPeer: func(key.Slot, func(*state.ObservedPeer)) error {
			reached <- struct{}{}
			<-release
			return nil
		},
		Registry: NewRegistry(), Log: quiet(),
	})
	get := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return w.Code
	}
	codes := make(chan int)
	for range maxScrapes {
		go func() { codes <- get() }()
		<-reached
	}
	if got := get(); got != http.StatusServiceUnavailable {
		t.Errorf("one scrape too many: got status %d, want 503", got)
	}
	close(release)
	for range maxScrapes {
		if got := <-codes; got != http.StatusOK {
			t.Errorf("scrape within the bound: got status %d, want 200", got)
		}
	}
	go func() { <-reached }()
	if got := get(); got != http.StatusOK {
		t.Errorf("scrape after the others: got status %d, want 200", got)
	}
}

const manyPeers = 10_000

// BenchmarkMetrics is a whole scrape of 10,000 peers less the reading of the
// device, which hands out a map that is there already.
func BenchmarkMetrics(b *testing.B) {
	status, onDevice := crowd(manyPeers)
	benchmarkScrape(b, handlerOf(b, status, onDevice, nil))
}

// BenchmarkMetricsByClientLibrary is the same by the client library alone. It
// is the reason why exposition exists.
func BenchmarkMetricsByClientLibrary(b *testing.B) {
	status, onDevice := crowd(manyPeers)
	reg := prometheus.NewRegistry()
	reg.MustRegister(newStatusCollector(func() Status { return status }), peerCollector{status, onDevice})
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{DisableCompression: true}))
	benchmarkScrape(b, mux)
}

func benchmarkScrape(b *testing.B, h http.Handler) {
	b.Helper()
	b.ReportAllocs()
	var size countingWriter
	for b.Loop() {
		size = countingWriter{header: http.Header{}}
		h.ServeHTTP(&size, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
	b.ReportMetric(float64(size.n), "body-B")
}

type countingWriter struct {
	header http.Header
	n      int
}

func (w *countingWriter) Header() http.Header         { return w.header }
func (w *countingWriter) WriteHeader(int)             {}
func (w *countingWriter) Write(p []byte) (int, error) { w.n += len(p); return len(p), nil }

// peerCollector writes the peers the client library's way.
type peerCollector struct {
	status   Status
	onDevice map[key.Public]state.ObservedPeer
}

func (peerCollector) Describe(chan<- *prometheus.Desc) {}

func (c peerCollector) Collect(out chan<- prometheus.Metric) {
	table := catalogue()
	descs := map[int]*prometheus.Desc{}
	for _, id := range []int{peerInfo, peerAllowedIPs, peerReceived, peerTransmitted, peerHandshake} {
		descs[id] = table[id].desc()
	}
	put := func(id int, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(descs[id], kind, v, labels...)
	}
	for k, p := range c.onDevice {
		public := k.String()
		put(peerInfo, prometheus.GaugeValue, 1, "wg0", c.status.PeerNames[k], public)
		for _, prefix := range p.AllowedIPs {
			put(peerAllowedIPs, prometheus.GaugeValue, 1, prefix.String(), "wg0", public)
		}
		put(peerReceived, prometheus.CounterValue, float64(p.ReceiveBytes), "wg0", public)
		put(peerTransmitted, prometheus.CounterValue, float64(p.TransmitBytes), "wg0", public)
		put(peerHandshake, prometheus.GaugeValue, float64(p.LastHandshake.Unix()), "wg0", public)
	}
}

// BenchmarkRegistryMemory says what the runtime's and the process's metrics
// hold on to once they were scraped.
func BenchmarkRegistryMemory(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	registries := make([]*prometheus.Registry, 0, b.N)
	for range b.N {
		r := NewRegistry()
		if _, err := r.Gather(); err != nil {
			b.Fatal(err)
		}
		registries = append(registries, r)
	}
	b.ReportMetric(float64(heap()-before)/float64(b.N), "held-B/op")
	runtime.KeepAlive(registries)
}
