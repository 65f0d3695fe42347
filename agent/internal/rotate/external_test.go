package rotate

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExternalSecretReady(t *testing.T) {
	condition := func(kind, status string) string {
		return `{"status": {"conditions": [{"type": "Deleted", "status": "True"}, {"type": "` + kind + `", "status": "` + status + `", "reason": "SecretSynced", "message": "synced"}]}}`
	}
	status := func(code, reason string) string {
		return `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "` + reason + `", "code": ` + code + `, "message": "no"}`
	}
	tests := []struct {
		name, body string
		code       int
		want       ExternalReady
		err        string
	}{
		{"refreshed", condition("Ready", "True"), 200, ExternalReady{OK: true, Reason: "SecretSynced", Message: "synced"}, ""},
		{"not refreshed", condition("Ready", "False"), 200, ExternalReady{Reason: "SecretSynced", Message: "synced"}, ""},
		{"unknown", condition("Ready", "Unknown"), 200, ExternalReady{Reason: "SecretSynced", Message: "synced"}, ""},
		{"new", `{}`, 200, ExternalReady{Reason: "Unknown", Message: "the External Secrets controller has not looked at it yet"}, ""},
		{"garbled", `[`, 200, ExternalReady{}, "read externalsecret vpn/keys: the answer is not an ExternalSecret in JSON"},
		{"gone", status("404", "NotFound"), 404, ExternalReady{}, "; check --external-secrets, and that External Secrets is installed"},
		{"forbidden", status("403", "Forbidden"), 403, ExternalReady{}, "; let the service account get this ExternalSecret, as the chart's Role does"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/apis/external-secrets.io/v1/namespaces/vpn/externalsecrets/keys" {
					t.Errorf("asked for %s", r.URL.Path)
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(tt.code)
				_, _ = w.Write([]byte(tt.body))
			}))
			defer server.Close()
			kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
			text := "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u}], clusters: [{name: c, cluster: {server: '" + server.URL + "'}}]}"
			if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			api, err := NewAPI(APIOptions{Kubeconfig: kubeconfig, Namespace: "vpn"})
			if err != nil {
				t.Fatal(err)
			}
			got, err := api.ExternalSecretReady(t.Context(), "keys")
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.HasSuffix(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("condition (-want +got):\n%s", diff)
			}
		})
	}
}
