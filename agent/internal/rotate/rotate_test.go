package rotate

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// mine is deterministic, and of no use to anybody.
const mine = "CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA="

func public(t *testing.T, private string) key.Public {
	t.Helper()
	k, err := key.ParsePrivate(private)
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

func TestInit(t *testing.T) {
	data := func(text string) map[string]string { return map[string]string{"privateKey": text} }
	other := map[string]string{"other": "x"}
	tests := []struct {
		name   string
		data   map[string]string
		others []map[string]string // what somebody else writes, before each of our patches
		refuse func(http.ResponseWriter, *http.Request) bool
		secret string // default: gateway
		// made says that a new key is expected; else public, or an error with
		// all of these parts.
		made   bool
		public key.Public
		errors []string
	}{
		{name: "no data at all", made: true},
		{name: "other data stays", data: other, made: true},
		{name: "an empty key", data: data(""), made: true},
		{name: "a key", data: data(mine), public: public(t, mine)},
		{name: "a key with a newline", data: data(mine + "\n"), public: public(t, mine)},
		{name: "no key", data: data("verysecret"), errors: []string{"secret gateway, key privateKey: not the base64 of 32 bytes", "not touched", "wg genkey"}},
		{name: "white space", data: data("\n"), errors: []string{"not the base64 of 32 bytes"}},
		{name: "zero bytes", data: data(strings.Repeat("A", 43) + "="), errors: []string{"32 zero bytes"}},
		{name: "another one was first", others: []map[string]string{data(mine)}, public: public(t, mine)},
		{name: "another change at the same time", others: []map[string]string{other}, made: true},
		{name: "never at rest", others: []map[string]string{other, other, other, other, other, other}, errors: []string{"changed in the meantime, 5 times"}},
		{name: "no such Secret", secret: "gone", errors: []string{"read secret ns/gone", "not found", "create it without data"}},
		{
			name: "may not read", refuse: refuse(http.StatusForbidden, "Forbidden", http.MethodGet),
			errors: []string{"read secret ns/gateway", "let the service account get and patch this Secret"},
		},
		{
			name: "may not write", refuse: refuse(http.StatusForbidden, "Forbidden", http.MethodPatch),
			errors: []string{"write secret ns/gateway", "let the service account get and patch this Secret"},
		},
		{
			name:   "an answer that is no Secret",
			refuse: answer(`{"metadata":{"resourceVersion":"1"},"data":{"privateKey":"verysecret!"}}`),
			errors: []string{"not a Secret in JSON"},
		},
		{name: "an answer without a version", refuse: answer(`{"data":{}}`), errors: []string{"not a Secret in JSON"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newFakeServer()
			server.put("secrets/gateway", tt.data)
			server.refuse = tt.refuse
			for _, o := range tt.others {
				server.beforePatch = append(server.beforePatch, func(f *fakeServer) { f.change("secrets/gateway", o) })
			}
			name := tt.secret
			if name == "" {
				name = "gateway"
			}
			got, err := Init(t.Context(), server.api(t).Secrets(), name, "privateKey")
			after := server.get("secrets/gateway")
			switch {
			case len(tt.errors) > 0:
				wantError(t, err, tt.errors...)
				if err != nil && strings.Contains(err.Error(), "verysecret") {
					t.Errorf("error quotes the Secret: %v", err)
				}
				if before := tt.data["privateKey"]; after["privateKey"] != before {
					t.Errorf("after the error the key changed from %d to %d bytes", len(before), len(after["privateKey"]))
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			want := Initialized{Public: tt.public}
			wantPatches := 0
			if tt.made {
				want, wantPatches = Initialized{Public: public(t, after["privateKey"]), Made: true}, 1
			}
			if n := len(server.patches); n != wantPatches {
				t.Errorf("%d patches, want %d", n, wantPatches)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
			if tt.data["other"] != after["other"] && len(tt.others) == 0 {
				t.Error("other data was changed")
			}
		})
	}
}

// Jobs of two releases of the chart may run at once: all end with one key.
func TestInitAtOnce(t *testing.T) {
	server := newFakeServer()
	server.put("secrets/gateway", nil)
	api := server.api(t)
	const jobs = 4
	outcomes := make([]Initialized, jobs)
	var group sync.WaitGroup
	for i := range jobs {
		group.Go(func() {
			got, err := Init(context.WithoutCancel(t.Context()), api.Secrets(), "gateway", "privateKey")
			if err != nil {
				t.Error(err)
			}
			outcomes[i] = got
		})
	}
	group.Wait()
	made := 0
	for _, o := range outcomes {
		if o.Made {
			made++
		}
		if want := public(t, server.get("secrets/gateway")["privateKey"]); o.Public != want {
			t.Errorf("a job saw the key %s, the Secret has %s", o.Public, want)
		}
	}
	if made != 1 || len(server.patches) != 1 {
		t.Errorf("%d jobs made a key by %d patches, want 1 and 1", made, len(server.patches))
	}
}

func TestNewAPI(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const cluster = "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\ncontexts: [{name: x, context: {cluster: c}}]\ncurrent-context: x\n"
	good := write("good", cluster)
	tests := []struct {
		name          string
		options       APIOptions
		wantNamespace string
		wantError     string
	}{
		{"namespace of none", APIOptions{Kubeconfig: good}, "default", ""},
		{"namespace given", APIOptions{Kubeconfig: good, Namespace: "vpn"}, "vpn", ""},
		{"outside of a cluster", APIOptions{}, "", "not in a Pod with a service account token; run it as a Job, or give --kubeconfig"},
		{"no such file", APIOptions{Kubeconfig: filepath.Join(dir, "gone")}, "", "no such file"},
		{"not a kubeconfig", APIOptions{Kubeconfig: write("bad", "clusters: 1")}, "", "--kubeconfig"},
		{"without context", APIOptions{Kubeconfig: write("empty", "")}, "", "no configuration has been provided"},
		{"bad address", APIOptions{Kubeconfig: write("address", strings.Replace(cluster, "http://127.0.0.1:1", "http://[", 1))}, "", "client of the API server"},
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("POD_NAMESPACE", "")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			api, err := NewAPI(tt.options)
			switch {
			case tt.wantError != "":
				if err == nil || !strings.Contains(err.Error(), tt.wantError) {
					t.Errorf("got error %v, want one with %q", err, tt.wantError)
				}
			case err != nil:
				t.Error(err)
			case api.Namespace() != tt.wantNamespace:
				t.Errorf("namespace: got %q, want %q", api.Namespace(), tt.wantNamespace)
			}
		})
	}
}
