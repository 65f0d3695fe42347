package kube

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// server answers every request with the same text and records what it was asked.
func server(t *testing.T, code int, answer string) (*Client, *[]string) {
	t.Helper()
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		asked = append(asked, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Content-Type")+" "+string(body))
		w.WriteHeader(code)
		if _, err := io.WriteString(w, answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return NewWithHTTP(s.URL, s.Client()), &asked
}

func TestApply(t *testing.T) {
	c, asked := server(t, http.StatusOK, "{}")
	const manifests = `apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: coredns, namespace: kube-system}
`
	if err := c.Apply(t.Context(), manifests); err != nil {
		t.Fatal(err)
	}
	const query, kind = "?force=true&fieldManager=vpn-gateway-cluster application/apply-patch+yaml ", "PATCH "
	want := []string{
		kind + "/api/v1/namespaces/kube-system/serviceaccounts/coredns" + query + "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: coredns, namespace: kube-system}",
		kind + "/apis/rbac.authorization.k8s.io/v1/clusterroles/coredns" + query + "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: coredns}",
		kind + "/apis/apps/v1/namespaces/kube-system/daemonsets/coredns" + query + "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: coredns, namespace: kube-system}\n",
	}
	if diff := cmp.Diff(want, *asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestApplyRefuses(t *testing.T) {
	c, asked := server(t, http.StatusOK, "{}")
	for _, manifest := range []string{"", "kind: Pod\nmetadata: {name: x}", "apiVersion: v1\nkind: Pod", ": :"} {
		if err := c.Apply(t.Context(), manifest); err == nil {
			t.Errorf("Apply(%q): no error", manifest)
		}
	}
	if len(*asked) > 0 {
		t.Errorf("requests were sent: %q", *asked)
	}
}

func TestNodes(t *testing.T) {
	c, _ := server(t, http.StatusOK, `{"items": [
	  {"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True"}]}},
	  {"metadata": {"name": "n2"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}},
	  {"metadata": {"name": "n3"}, "status": {}}]}`)
	got, err := c.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]bool{"n1": true, "n2": false, "n3": false}, got); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}

func TestReadyOn(t *testing.T) {
	c, asked := server(t, http.StatusOK, `{"items": [
	  {"endpoints": [{"nodeName": "n1", "conditions": {"ready": false}}, {"nodeName": "n2", "conditions": {"ready": true}}]},
	  {"endpoints": [{"nodeName": "n3", "conditions": {}}, {"conditions": {"ready": true}}]}]}`)
	got, err := c.ReadyOn(t.Context(), "vpn", "gateway")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]bool{"n2": true, "n3": true}, got); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	want := []string{"GET /apis/discovery.k8s.io/v1/namespaces/vpn/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dgateway  "}
	if diff := cmp.Diff(want, *asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestSetLoadBalancer(t *testing.T) {
	c, asked := server(t, http.StatusOK, "{}")
	if err := c.SetLoadBalancer(t.Context(), "vpn", "gateway", "203.0.113.1"); err != nil {
		t.Fatal(err)
	}
	want := []string{`PATCH /api/v1/namespaces/vpn/services/gateway/status application/merge-patch+json {"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.1","ipMode":"VIP"}]}}}`}
	if diff := cmp.Diff(want, *asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestDaemonSetReady(t *testing.T) {
	tests := []struct {
		name, answer string
		want         bool
	}{
		{"all ready", `{"metadata":{"generation":2},"status":{"observedGeneration":2,"desiredNumberScheduled":2,"numberReady":2}}`, true},
		{"one missing", `{"metadata":{"generation":2},"status":{"observedGeneration":2,"desiredNumberScheduled":2,"numberReady":1}}`, false},
		{"status of an older generation", `{"metadata":{"generation":2},"status":{"observedGeneration":1,"desiredNumberScheduled":2,"numberReady":2}}`, false},
		{"not looked at yet", `{"metadata":{"generation":1},"status":{}}`, false},
		{"no node", `{"metadata":{"generation":1},"status":{"observedGeneration":1}}`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := server(t, http.StatusOK, tt.answer)
			got, err := c.DaemonSetReady(t.Context(), "kube-system", "coredns")
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
		})
	}
}

func TestStatusError(t *testing.T) {
	c, _ := server(t, http.StatusNotFound, "no such service\n")
	err := c.Ready(t.Context())
	var status *StatusError
	if !errors.As(err, &status) {
		t.Fatalf("error %v is no StatusError", err)
	}
	if diff := cmp.Diff(&StatusError{Request: "GET /readyz", Code: 404, Body: "no such service\n"}, status); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}
