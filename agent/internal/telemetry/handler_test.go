package telemetry

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

func TestReady(t *testing.T) {
	good, bad := Condition{Name: "device", OK: true}, Condition{Name: "port"}
	told, warned := Condition{Name: "config", OK: true, Informational: true}, Condition{Name: "config", Informational: true}
	tests := []struct {
		name       string
		conditions []Condition
		want       bool
	}{
		{"nothing looked at", nil, false},
		{"informational alone", []Condition{told}, false},
		{"one holds", []Condition{good}, true},
		{"an informational one fails", []Condition{warned, good}, true},
		{"one of two fails", []Condition{good, bad}, false},
		{"one of two fails, the other way round", []Condition{bad, good}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := (Status{Conditions: tt.conditions}).Ready(); got != tt.want {
				t.Errorf("ready: got %t, want %t", got, tt.want)
			}
		})
	}
}

const readyJSON = `{
  "ready": true,
  "conditions": [
    {
      "name": "config",
      "ok": false,
      "detail": "3 faults",
      "informational": true
    },
    {
      "name": "device",
      "ok": true,
      "detail": "wg0 is up",
      "informational": false
    }
  ],
  "hash": "0123456789ab",
  "generation": 7,
  "dataPlane": "userspace",
  "reason": "no module",
  "publicKey": "CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
  "interface": "wg0",
  "listenPort": 51820,
  "identities": [
    {
      "publicKey": "CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
      "slot": "blue",
      "interface": "wg0",
      "listenPort": 51820,
      "inForce": true,
      "retires": "2026-12-01T03:00:00Z"
    },
    {
      "publicKey": "CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
      "slot": "green",
      "interface": "wg0g",
      "listenPort": 51821,
      "inForce": false,
      "from": "2026-11-24T03:00:00Z"
    }
  ],
  "version": "0.1.0"
}
`

const emptyJSON = `{
  "ready": false,
  "conditions": [],
  "hash": "",
  "generation": 0,
  "dataPlane": "",
  "reason": "",
  "publicKey": "",
  "interface": "",
  "listenPort": 0,
  "identities": [],
  "version": ""
}
`

func TestPaths(t *testing.T) {
	status, onDevice := running()
	status.DataPlaneReason = "no module"
	up, starting := handlerOf(t, status, onDevice, nil), handlerOf(t, Status{}, nil, nil)
	alone := NewHandler(Options{Status: func() Status { return status }, Registry: NewRegistry(), Log: quiet()})
	// Autoscalers read it by the names of its fields, see tests/chart.
	fleetJSON, err := os.ReadFile(filepath.Join("testdata", "fleet.json"))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, method, path string
		handler            http.Handler
		wantCode           int
		wantType, wantBody string
	}{
		{"alive", "GET", "/healthz", up, 200, "text/plain; charset=utf-8", "ok\n"},
		{"alive while starting", "GET", "/healthz", starting, 200, "text/plain; charset=utf-8", "ok\n"},
		{"ready", "GET", "/readyz", up, 200, "application/json", readyJSON},
		{"ready, head", "HEAD", "/readyz", up, 200, "application/json", ""},
		{"starting", "GET", "/readyz", starting, 503, "application/json", emptyJSON},
		{"starting, head", "HEAD", "/readyz", starting, 503, "application/json", ""},
		{"metrics, head", "HEAD", "/metrics", up, 200, contentType, ""},
		{"fleet", "GET", "/fleet", up, 200, "application/json", string(fleetJSON)},
		{"fleet, head", "HEAD", "/fleet", up, 200, "application/json", ""},
		{"fleet, post", "POST", "/fleet", up, 405, "text/plain; charset=utf-8", "Method Not Allowed\n"},
		{"no fleet", "GET", "/fleet", alone, 404, "text/plain; charset=utf-8", "404 page not found\n"},
		{"post", "POST", "/readyz", up, 405, "text/plain; charset=utf-8", "Method Not Allowed\n"},
		{"delete", "DELETE", "/metrics", up, 405, "text/plain; charset=utf-8", "Method Not Allowed\n"},
		{"elsewhere", "GET", "/", up, 404, "text/plain; charset=utf-8", "404 page not found\n"},
		{"below", "GET", "/readyz/x", up, 404, "text/plain; charset=utf-8", "404 page not found\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(tt.handler)
			defer server.Close()
			request, err := http.NewRequest(tt.method, server.URL+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := server.Client().Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			var body strings.Builder
			if err := answer.Write(&body); err != nil {
				t.Fatal(err)
			}
			_, text, _ := strings.Cut(body.String(), "\r\n\r\n")
			if answer.StatusCode != tt.wantCode || answer.Header.Get("Content-Type") != tt.wantType {
				t.Errorf("got %d %q, want %d %q", answer.StatusCode, answer.Header.Get("Content-Type"), tt.wantCode, tt.wantType)
			}
			if diff := cmp.Diff(tt.wantBody, text); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
		})
	}
}

// What /readyz writes, a program can read back.
func TestReadinessRoundTrip(t *testing.T) {
	var got Readiness
	if err := json.Unmarshal([]byte(readyJSON), &got); err != nil {
		t.Fatal(err)
	}
	status, _ := running()
	want := Readiness{
		Ready: true, Conditions: status.Conditions, Hash: status.Hash, Generation: status.Generation,
		DataPlane: "userspace", Reason: "no module", PublicKey: key.Public{9}.String(), Identities: status.Identities,
		Interface: "wg0", ListenPort: 51820, Version: "0.1.0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("readiness (-want +got):\n%s", diff)
	}
}

// A HEAD must not cost a dump of the device.
func TestHeadDoesNotReadTheDevice(t *testing.T) {
	h := NewHandler(Options{
		Status: func() Status { return Status{} },
		EachPeer: func(key.Slot, func(*state.ObservedPeer)) error {
			t.Error("the device was read")
			return nil
		},
		Registry: NewRegistry(), Log: quiet(),
	})
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodHead, "/metrics", nil))
}

func TestServerIsBounded(t *testing.T) {
	s := NewServer("127.0.0.1:0", http.NotFoundHandler(), quiet())
	for name, timeout := range map[string]time.Duration{
		"ReadHeaderTimeout": s.ReadHeaderTimeout, "ReadTimeout": s.ReadTimeout,
		"WriteTimeout": s.WriteTimeout, "IdleTimeout": s.IdleTimeout,
	} {
		if timeout <= 0 {
			t.Errorf("%s is not set", name)
		}
	}
	server := httptest.NewUnstartedServer(s.Handler)
	server.Config = s
	server.Start()
	defer server.Close()
	request, err := http.NewRequest(http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Large", strings.Repeat("x", 64<<10))
	answer, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("headers of 64 KiB: got status %d, want 431", answer.StatusCode)
	}
}
