package readiness

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"
)

// request is what a server was asked.
type request struct{ Line, Type, Body string }

// serve answers every request with a status and a document, and returns what it is
// asked.
func serve(t *testing.T, status int, document string) (*Client, *[]request) {
	t.Helper()
	var seen []request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		seen = append(seen, request{r.Method + " " + r.URL.String(), r.Header.Get("Content-Type"), string(body)})
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, document)
	}))
	t.Cleanup(server.Close)
	return newTestClient(t, server.URL), &seen
}

func newTestClient(t *testing.T, url string) *Client {
	t.Helper()
	c, err := NewClient(&rest.Config{Host: url}, ClientOptions{Namespace: "vpn", Lease: "vpn-gateway-fleet"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClientPod(t *testing.T) {
	for name, tt := range map[string]struct {
		document string
		want     Pod
	}{
		"new": {`{"metadata":{"uid":"1"},"status":{"conditions":[{"type":"PodScheduled","status":"True"}]}}`, Pod{UID: "1"}},
		"in service": {`{"metadata":{"uid":"1"},"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"` + GateType + `","status":"True"}]}}`,
			Pod{UID: "1", Gate: "True", Ready: "True"}},
		"marked": {`{"metadata":{"uid":"1"},"status":{"conditions":[` +
			`{"type":"Ready","status":"False","reason":"a","lastProbeTime":"2026-03-01T12:00:00Z"},` +
			`{"type":"` + GateType + `","status":"False","reason":"b","lastProbeTime":"2026-03-01T12:00:01Z"},` +
			`{"type":"PodScheduled","status":"True","reason":"c","lastProbeTime":null}]}}`,
			Pod{UID: "1", Gate: "False", Ready: "False", Reason: "b", Beat: "2026-03-01T12:00:01Z"}},
		"never looked after": {`{"metadata":{"uid":"1"},"status":{"conditions":[{"type":"` + GateType + `","status":"True","lastProbeTime":null}]}}`,
			Pod{UID: "1", Gate: "True"}},
		"leaving": {`{"metadata":{"uid":"1","deletionTimestamp":"2026-03-01T12:00:00Z"},"status":{"conditions":[{"type":"Ready","status":"False"}]}}`,
			Pod{UID: "1", Ready: "False", Leaving: true}},
	} {
		c, seen := serve(t, http.StatusOK, tt.document)
		got, err := c.Pod(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff([]request{{Line: "GET /api/v1/namespaces/vpn/pods/a"}}, *seen); diff != "" {
			t.Errorf("%s: requests (-want +got):\n%s", name, diff)
		}
	}
}

func TestClientSetConditions(t *testing.T) {
	c, seen := serve(t, http.StatusOK, `{}`)
	err := c.SetConditions(t.Context(), "c", "1", []Condition{
		{Type: GateType, Status: "False", Reason: "R", Message: "m", Since: start.Add(time.Millisecond)},
		{Type: "Ready", Status: "False", Reason: "R", Message: "m", Since: start},
	})
	if err != nil {
		t.Fatal(err)
	}
	condition := func(kind string) string {
		return `{"type":"` + kind + `","status":"False","reason":"R","message":"m","lastTransitionTime":"2026-03-01T12:00:00Z"}`
	}
	want := []request{{
		Line: "PATCH /api/v1/namespaces/vpn/pods/c/status?fieldManager=vpn-agent", Type: "application/strategic-merge-patch+json",
		Body: `{"metadata":{"uid":"1"},"status":{"conditions":[` + condition(GateType) + "," + condition("Ready") + `]}}`,
	}}
	if diff := cmp.Diff(want, *seen); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// A proof of life says nothing of the gate but when it was looked after.
func TestClientBeat(t *testing.T) {
	c, seen := serve(t, http.StatusOK, `{"metadata":{"uid":"1"},"status":{"conditions":[{"type":"`+GateType+`","status":"False","lastProbeTime":"2026-03-01T12:00:00Z"}]}}`)
	got, err := c.Beat(t.Context(), "a", "1", start.Add(time.Millisecond).In(time.FixedZone("", 3600)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Pod{UID: "1", Gate: "False", Beat: "2026-03-01T12:00:00Z"}, got); diff != "" {
		t.Errorf("the Pod (-want +got):\n%s", diff)
	}
	want := []request{{
		Line: "PATCH /api/v1/namespaces/vpn/pods/a/status?fieldManager=vpn-agent", Type: "application/strategic-merge-patch+json",
		Body: `{"metadata":{"uid":"1"},"status":{"conditions":[{"lastProbeTime":"2026-03-01T12:00:00Z","type":"` + GateType + `"}]}}`,
	}}
	if diff := cmp.Diff(want, *seen); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	c, _ = serve(t, http.StatusOK, "nonsense")
	if _, err := c.Beat(t.Context(), "a", "1", start); err == nil {
		t.Error("a Pod that is none is accepted")
	}
}

func TestClientLease(t *testing.T) {
	// As the chart makes it.
	c, _ := serve(t, http.StatusOK, `{"metadata":{"resourceVersion":"7","labels":{"a":"b"}},"spec":{}}`)
	fresh, err := c.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Lease{Version: "7"}, fresh); diff != "" {
		t.Errorf("a Lease that nobody has held (-want +got):\n%s", diff)
	}

	const held = `{"holderIdentity":"a","leaseDurationSeconds":15,"acquireTime":"2026-03-01T12:00:00.000000Z","renewTime":"2026-03-01T12:00:05.000000Z","leaseTransitions":3}`
	c, seen := serve(t, http.StatusOK, `{"metadata":{"resourceVersion":"8"},"spec":`+held+`}`)
	given := Lease{Version: "7", Holder: "a", Acquired: start, Renewed: start.Add(5 * time.Second), Transitions: 3}
	got, err := c.SetLease(t.Context(), given)
	if err != nil {
		t.Fatal(err)
	}
	want := given
	want.Version = "8"
	// The answer's times are in the local zone.
	if diff := cmp.Diff(want, got, cmp.Comparer(time.Time.Equal)); diff != "" {
		t.Errorf("written Lease (-want +got):\n%s", diff)
	}
	wantSeen := []request{{
		Line: "PATCH /apis/coordination.k8s.io/v1/namespaces/vpn/leases/vpn-gateway-fleet?fieldManager=vpn-agent",
		Type: "application/merge-patch+json",
		Body: `{"metadata":{"resourceVersion":"7"},"spec":` + held + `}`,
	}}
	if diff := cmp.Diff(wantSeen, *seen); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// The errors that mean something are told apart, and the others say what to do.
func TestClientErrors(t *testing.T) {
	for _, tt := range []struct {
		code         int
		reason, text string
		is           error
	}{
		{http.StatusNotFound, "NotFound", "vpn/a", ErrGone},
		{http.StatusConflict, "Conflict", "vpn/a", ErrConflict},
		{http.StatusUnprocessableEntity, "Invalid", "", ErrConflict},
		{http.StatusForbidden, "Forbidden", "as the chart's Role does", nil},
		{http.StatusInternalServerError, "InternalError", "no such luck", nil},
		{http.StatusTooManyRequests, "TooManyRequests", "no such luck", nil},
	} {
		status, _ := json.Marshal(map[string]any{
			"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": tt.code, "reason": tt.reason, "message": "no such luck",
		})
		c, seen := serve(t, tt.code, string(status))
		err := c.SetConditions(t.Context(), "a", "1", nil)
		if err == nil || !strings.Contains(err.Error(), tt.text) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%d: error %v, want %v with %q", tt.code, err, tt.is, tt.text)
		}
		if len(*seen) != 1 {
			t.Errorf("%d: %d requests, want 1: when to try again is the controller's to say", tt.code, len(*seen))
		}
	}
	c, _ := serve(t, http.StatusOK, "nonsense")
	if _, err := c.Pod(t.Context(), "a"); err == nil {
		t.Error("a Pod that is none is accepted")
	}
	if _, err := c.Lease(t.Context()); err == nil {
		t.Error("a Lease that is none is accepted")
	}
}

// An API server that takes a request and never answers holds up one request, not
// those after it: its connection is given up.
func TestClientGivesUp(t *testing.T) {
	var requests atomic.Int32
	release := make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("%s, want HTTP/1.1", r.Proto)
		}
		if requests.Add(1) == 1 {
			<-release
			return
		}
		_, _ = io.WriteString(w, `{"metadata":{"uid":"1"}}`)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	defer close(release)
	c, err := NewClient(&rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, ClientOptions{Namespace: "vpn", Lease: "l"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pod(t.Context(), "a"); err == nil {
		t.Error("no error although nothing was answered")
	}
	if _, err := c.Pod(t.Context(), "a"); err != nil {
		t.Errorf("the request after it: %v", err)
	}
}
