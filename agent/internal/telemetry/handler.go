package telemetry

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// maxScrapes at a time: more wait for nothing but memory.
const maxScrapes = 4

// Options for [NewHandler]; all but Fleet are required. The functions are called by
// several goroutines at once.
type Options struct {
	Status func() Status
	// EachPeer reads the peers from a tunnel's device and calls visit for each, in
	// memory that is used again for the next one.
	EachPeer func(tunnel key.Slot, visit func(*state.ObservedPeer)) error
	// Registry holds what /metrics shows beside the peers; see [NewRegistry].
	Registry *prometheus.Registry
	Log      *slog.Logger
	// Fleet, where not nil, tells of all replicas.
	Fleet func() FleetView
}

// Readiness is the JSON document that /readyz answers with.
type Readiness struct {
	Ready      bool        `json:"ready"`
	Conditions []Condition `json:"conditions"`
	// Hash of the files in force, 12 hex digits.
	Hash       string `json:"hash"`
	Generation uint64 `json:"generation"`
	// DataPlane in force, and the Reason why it is that one.
	DataPlane string `json:"dataPlane"`
	Reason    string `json:"reason"`
	// PublicKey of the gateway in base64; empty before there is one.
	PublicKey  string `json:"publicKey"`
	Interface  string `json:"interface"`
	ListenPort uint16 `json:"listenPort"`
	// Identities are the server keys that the gateway answers to, the oldest first;
	// PublicKey, Interface and ListenPort are those of the one in force.
	Identities []Identity `json:"identities"`
	Version    string     `json:"version"`
}

// NewHandler serves, to GET and HEAD,
//
//	/healthz  200 while the process answers
//	/readyz   200 or 503 with a [Readiness]
//	/metrics  the metrics of docs/metrics.md, text format 0.0.4, uncompressed
//	/fleet    a [FleetView]; 404 where there is no fleet
//
// It registers metrics of its own: a registry serves one handler.
func NewHandler(o Options) http.Handler {
	o.Registry.MustRegister(newStatusCollector(o.Status))
	m := &metricsHandler{Options: o, scrapes: make(chan struct{}, maxScrapes)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		header(w, "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		writeReadiness(w, o.Status())
	})
	mux.Handle("GET /metrics", m)
	if o.Fleet != nil {
		mux.HandleFunc("GET /fleet", fleetHandler(o.Fleet))
	}
	return mux
}

// NewServer returns a server for the handler with limits that keep a slow or
// hostile client from holding on to memory. The caller listens, serves and
// shuts down.
func NewServer(address string, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Addr:              address,
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second, // above any scrape_timeout in use
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

func header(w http.ResponseWriter, contentType string) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
}

func writeReadiness(w http.ResponseWriter, s Status) {
	inForce := s.InForce()
	r := Readiness{
		Ready: s.Ready(), Conditions: s.Conditions,
		Hash: s.Hash, Generation: s.Generation,
		DataPlane: s.DataPlane, Reason: s.DataPlaneReason,
		Interface: inForce.Interface, ListenPort: inForce.ListenPort, Identities: s.Identities, Version: s.Version,
	}
	if r.Conditions == nil {
		r.Conditions = []Condition{} // a list in JSON, not null
	}
	if r.Identities == nil {
		r.Identities = []Identity{}
	}
	if !inForce.PublicKey.IsZero() {
		r.PublicKey = inForce.PublicKey.String()
	}
	header(w, "application/json")
	if !r.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	writeJSON(w, r)
}

func writeJSON(w http.ResponseWriter, document any) {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(document) // the client may be gone
}

type metricsHandler struct {
	Options
	scrapes chan struct{} // holds an element for each scrape under way
}

// ServeHTTP answers one scrape. What cannot be had is left out and logged: the
// rest is what one looks at to find out why.
func (m *metricsHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case m.scrapes <- struct{}{}:
		defer func() { <-m.scrapes }()
	default:
		http.Error(w, "too many scrapes at a time", http.StatusServiceUnavailable)
		return
	}
	header(w, contentType)
	if r.Method == http.MethodHead {
		return
	}
	families, err := m.Registry.Gather()
	if err != nil {
		m.Log.Error("some metrics could not be gathered", "error", err)
	}
	encoder := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			return // the client is gone
		}
	}
	status := m.Status()
	d := newDump(status.PeerNames)
	start := time.Now()
	for _, id := range status.Identities {
		d.devices = append(d.devices, id.Interface)
		if d.err = m.EachPeer(id.Slot, d.add); d.err != nil {
			break
		}
	}
	d.took = time.Since(start)
	if d.err != nil {
		m.Log.Error("metrics without peers: the device could not be read", "error", d.err)
	}
	_ = newExposition(w).write(d)
}
