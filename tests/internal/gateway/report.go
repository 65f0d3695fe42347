package gateway

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgdevice"
)

// Ports of the agent in the Pod, as the chart has them.
const (
	httpPort   = "8080"
	healthPort = "8081"
)

// askEvery is how often [Gateway.Await] asks.
const askEvery = 10 * time.Millisecond

// Readiness is what /readyz answers.
type Readiness struct {
	Ready      bool        `json:"ready"`
	Conditions []Condition `json:"conditions"`
	Hash       string      `json:"hash"`
	Generation uint64      `json:"generation"`
	DataPlane  string      `json:"dataPlane"`
	Reason     string      `json:"reason"`
	PublicKey  string      `json:"publicKey"`
	Identities []Identity  `json:"identities"`
}

// Identity is a server key that the gateway answers to.
type Identity struct {
	PublicKey  string    `json:"publicKey"`
	Slot       string    `json:"slot"`
	ListenPort uint16    `json:"listenPort"`
	InForce    bool      `json:"inForce"`
	Retires    time.Time `json:"retires"`
}

// Condition is one thing that readiness depends on.
type Condition struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Condition returns the condition of that name; the zero one where there is none.
func (r Readiness) Condition(name string) Condition {
	for _, c := range r.Conditions {
		if c.Name == name {
			return c
		}
	}
	return Condition{}
}

// Readiness asks /readyz. Not being ready is no error.
func (g *Gateway) Readiness(ctx context.Context) (Readiness, error) {
	var r Readiness
	status, body, err := g.get(ctx, "/readyz")
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	if err == nil && r.Ready != (status == http.StatusOK) {
		err = fmt.Errorf("ready: %t with status %d", r.Ready, status)
	}
	if err != nil {
		return r, fmt.Errorf("/readyz: %w", err)
	}
	return r, nil
}

// Await asks /readyz until the answer is as wanted, for a minute at most. The
// error says what was waited for and how things stood.
func (g *Gateway) Await(ctx context.Context, what string, wanted func(Readiness) bool) (Readiness, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	var last Readiness
	for {
		r, err := g.Readiness(ctx)
		if err == nil && wanted(r) {
			return r, nil
		}
		if err == nil {
			last = r
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return last, fmt.Errorf("waiting for %s: %w; last answer %+v", what, errors.Join(context.Cause(ctx), err), last)
		}
	}
}

// Metrics asks /metrics.
func (g *Gateway) Metrics(ctx context.Context) (Metrics, error) {
	status, body, err := g.get(ctx, "/metrics")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	if err != nil {
		return nil, fmt.Errorf("/metrics: %w", err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(bytes.NewReader(body))
}

// Metrics are families of time series by name.
type Metrics map[string]*dto.MetricFamily

// Value returns the value of the gauge or counter, or the count of the histogram,
// that has the given labels, written as name, value, name, value, and whether
// there is just one.
func (m Metrics) Value(name string, labels ...string) (float64, bool) {
	var found []float64
	for _, metric := range m[name].GetMetric() {
		have := map[string]string{}
		for _, l := range metric.GetLabel() {
			have[l.GetName()] = l.GetValue()
		}
		matches := true
		for i := 0; i+1 < len(labels); i += 2 {
			matches = matches && have[labels[i]] == labels[i+1]
		}
		if matches {
			found = append(found, metric.GetGauge().GetValue()+metric.GetCounter().GetValue()+float64(metric.GetHistogram().GetSampleCount()))
		}
	}
	if len(found) != 1 {
		return 0, false
	}
	return found[0], true
}

func (g *Gateway) get(ctx context.Context, path string) (status int, body []byte, err error) {
	url := "http://" + net.JoinHostPort(g.Pod.IP().String(), httpPort) + path
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	response, err := g.Pod.Network().HTTPClient().Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

// HealthPortOpen tells whether the TCP port for load balancers takes connections.
func (g *Gateway) HealthPortOpen(ctx context.Context) bool {
	conn, err := g.Pod.Network().DialContext(ctx, "tcp", net.JoinHostPort(g.Pod.IP().String(), healthPort))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// Device reads the gateway's WireGuard device.
func (g *Gateway) Device() (wgdevice.Device, error) {
	socket := filepath.Join(g.Pod.VolumePath("wireguard"), g.Interface+".sock")
	if _, err := os.Stat(socket); err == nil {
		return wgdevice.Userspace(socket)
	}
	return wgdevice.Kernel(g.Pod.Network(), g.Interface)
}

// Log returns the lines that the agent has logged so far, all starts included.
// What is no JSON, such as a last word on standard error, is a line with the
// text as msg.
func (g *Gateway) Log() ([]LogLine, error) {
	text, err := g.Container().Log()
	if err != nil {
		return nil, err
	}
	var out []LogLine
	for line := range bytes.Lines(text) {
		l := LogLine{}
		if json.Unmarshal(line, &l) != nil {
			l = LogLine{"msg": string(bytes.TrimSpace(line))}
		}
		out = append(out, l)
	}
	return out, nil
}

// LogLine is a line of the agent's log.
type LogLine map[string]any

// Text returns a field as text, "" where it has none.
func (l LogLine) Text(field string) string {
	if l[field] == nil {
		return ""
	}
	return fmt.Sprint(l[field])
}

// LookForKeys searches everything that the gateway tells of itself, its log and
// what it answers to HTTP, for every secret key that it was ever given. The error
// says where one was found, and not which.
func (g *Gateway) LookForKeys(ctx context.Context) error {
	told := map[string][]byte{}
	var err error
	if told["log"], err = os.ReadFile(g.Container().LogPath()); err != nil {
		return err
	}
	for _, path := range []string{"/readyz", "/metrics"} {
		if !g.Container().Running() {
			break
		}
		if _, told[path], err = g.get(ctx, path); err != nil {
			return err
		}
	}
	keys, err := g.spellings()
	if err != nil {
		return err
	}
	for where, text := range told {
		if keys.in(text) {
			return fmt.Errorf("%s of the gateway holds a secret key", where)
		}
	}
	return nil
}

// spellings are keys as wg writes them, and as the configuration socket does.
type spellings map[string]bool

func (g *Gateway) spellings() (spellings, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := spellings{}
	for _, k := range g.keys {
		raw, err := wgdevice.ParseKey(k.Reveal())
		if err != nil {
			return nil, err
		}
		out[k.Reveal()], out[hex.EncodeToString(raw[:])] = true, true
	}
	return out, nil
}

// in looks at every place of a text, which is faster than looking for every key
// where there are thousands.
func (s spellings) in(text []byte) bool {
	const base64Size, hexSize = 44, 64
	lower := bytes.ToLower(text)
	for i := range text {
		if i+base64Size <= len(text) && s[string(text[i:i+base64Size])] || i+hexSize <= len(text) && s[string(lower[i:i+hexSize])] {
			return true
		}
	}
	return false
}

// Fleet is what the replica says of all replicas.
func (g *Gateway) Fleet(ctx context.Context) (Fleet, error) {
	var f Fleet
	status, body, err := g.get(ctx, "/fleet")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	if err == nil {
		err = json.Unmarshal(body, &f)
	}
	if err != nil {
		return f, fmt.Errorf("/fleet: %w", err)
	}
	return f, nil
}

// Fleet is the document of /fleet.
type Fleet struct {
	Replica        string        `json:"replica"`
	Replicas       int           `json:"replicas"`
	Draining       int           `json:"draining"`
	ConnectedPeers int           `json:"connectedPeers"`
	PerReplica     float64       `json:"connectedPeersPerReplica"`
	Members        []FleetMember `json:"members"`
}

// Member returns the replica at an address; the zero one where there is none.
func (f Fleet) Member(at netip.Addr) FleetMember {
	for _, m := range f.Members {
		if m.Address == at.String() {
			return m
		}
	}
	return FleetMember{}
}

// FleetMember is one of the replicas.
type FleetMember struct {
	Name           string `json:"name"`
	Address        string `json:"address"`
	State          string `json:"state"`
	ConnectedPeers int    `json:"connectedPeers"`
}
