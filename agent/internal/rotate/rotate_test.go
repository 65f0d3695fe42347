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

func refuse(code int, reason, message string, methods ...string) func(http.ResponseWriter, string) bool {
	return func(w http.ResponseWriter, method string) bool {
		for _, m := range methods {
			if m == method {
				fail(w, code, reason, message)
				return true
			}
		}
		return false
	}
}

func TestInit(t *testing.T) {
	data := func(text string) map[string][]byte { return map[string][]byte{"privateKey": []byte(text)} }
	other := map[string][]byte{"other": []byte("x")}
	tests := []struct {
		name   string
		server fakeServer
		secret string // default: gateway
		// made says that a new key is expected; else public, or an error with
		// all of these parts.
		made   bool
		public key.Public
		errors []string
	}{
		{name: "no data at all", made: true},
		{name: "other data stays", server: fakeServer{data: other}, made: true},
		{name: "an empty key", server: fakeServer{data: data("")}, made: true},
		{name: "a key", server: fakeServer{data: data(mine)}, public: public(t, mine)},
		{name: "a key with a newline", server: fakeServer{data: data(mine + "\n")}, public: public(t, mine)},
		{name: "no key", server: fakeServer{data: data("verysecret")}, errors: []string{"secret gateway, key privateKey: not the base64 of 32 bytes", "not touched", "wg genkey"}},
		{name: "white space", server: fakeServer{data: data("\n")}, errors: []string{"not the base64 of 32 bytes"}},
		{name: "zero bytes", server: fakeServer{data: data(strings.Repeat("A", 43) + "=")}, errors: []string{"32 zero bytes"}},
		{name: "another one was first", server: fakeServer{changeBeforePatch: []map[string][]byte{data(mine)}}, public: public(t, mine)},
		{name: "another change at the same time", server: fakeServer{changeBeforePatch: []map[string][]byte{other}}, made: true},
		{name: "never at rest", server: fakeServer{changeBeforePatch: []map[string][]byte{other, other, other, other, other, other}}, errors: []string{"changed in the meantime, 5 times"}},
		{name: "no such Secret", secret: "gone", errors: []string{"read secret ns/gone", "secrets not found", "create it without data"}},
		{
			name: "may not read", server: fakeServer{refuse: refuse(http.StatusForbidden, "Forbidden", "no", http.MethodGet)},
			errors: []string{"read secret ns/gateway", "let the service account get and patch"},
		},
		{
			name: "may not write", server: fakeServer{refuse: refuse(http.StatusForbidden, "Forbidden", "no", http.MethodPatch)},
			errors: []string{"write secret ns/gateway", "let the service account get and patch"},
		},
		{
			name: "an answer that is no Secret",
			server: fakeServer{refuse: func(w http.ResponseWriter, _ string) bool {
				_, _ = w.Write([]byte(`{"data":{"privateKey":"verysecret!"}}`))
				return true
			}},
			errors: []string{"not a Secret in JSON"},
		},
	}
	for i := range tests {
		tt := &tests[i]
		t.Run(tt.name, func(t *testing.T) {
			before := tt.server.data["privateKey"]
			name := tt.secret
			if name == "" {
				name = "gateway"
			}
			got, err := Init(t.Context(), tt.server.api(t), name, "privateKey")
			after := string(tt.server.data["privateKey"])
			switch {
			case len(tt.errors) > 0:
				if err == nil {
					t.Fatalf("no error, want one with %q", tt.errors)
				}
				for _, part := range tt.errors {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error %q lacks %q", err, part)
					}
				}
				if strings.Contains(err.Error(), "verysecret") {
					t.Errorf("error quotes the Secret: %v", err)
				}
				if after != string(before) {
					t.Errorf("after the error the key changed from %d to %d bytes", len(before), len(after))
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			want := Initialized{Public: tt.public}
			if tt.made {
				want = Initialized{Public: public(t, after), Made: true}
				if n := len(tt.server.patches); n != 1 {
					t.Errorf("%d patches, want 1", n)
				}
			} else if n := len(tt.server.patches); n != 0 {
				t.Errorf("%d patches to a Secret that had its key", n)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
			if tt.server.data["other"] != nil && string(tt.server.data["other"]) != "x" {
				t.Error("other data was changed")
			}
		})
	}
}

// Jobs of two releases of the chart may run at once: all end with one key.
func TestInitAtOnce(t *testing.T) {
	var server fakeServer
	api := server.api(t)
	const jobs = 4
	outcomes := make([]Initialized, jobs)
	var group sync.WaitGroup
	for i := range jobs {
		group.Go(func() {
			got, err := Init(context.WithoutCancel(t.Context()), api, "gateway", "privateKey")
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
		if want := public(t, string(server.data["privateKey"])); o.Public != want {
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
