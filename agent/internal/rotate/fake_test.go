package rotate

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// fakeServer is as much of an API server as this package needs: it holds one
// Secret, ns/gateway, and counts its versions.
type fakeServer struct {
	mu      sync.Mutex
	version int
	data    map[string][]byte
	// refuse, where set, may answer a request in the server's place.
	refuse func(w http.ResponseWriter, method string) bool
	// changeBeforePatch has somebody else write before the next patch arrives.
	changeBeforePatch []map[string][]byte
	patches           []string // bodies of those taken
}

const fakePath = "/api/v1/namespaces/ns/secrets/gateway"

// api starts the server and returns a client of it that went through a
// kubeconfig.
func (f *fakeServer) api(t *testing.T) *API {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	content := fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: x, context: {cluster: c, namespace: ns}}]
current-context: x
`, server.URL)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	api, err := NewAPI(APIOptions{Kubeconfig: path})
	if err != nil {
		t.Fatal(err)
	}
	return api
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if f.refuse != nil && f.refuse(w, r.Method) {
		return
	}
	switch {
	case r.URL.Path != fakePath:
		fail(w, http.StatusNotFound, "NotFound", "secrets not found")
	case r.Method == http.MethodGet:
		f.write(w)
	case r.Method == http.MethodPatch:
		f.patch(w, r)
	default:
		fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "only GET and PATCH")
	}
}

func (f *fakeServer) write(w io.Writer) {
	s := secret{Data: f.data}
	s.Metadata.ResourceVersion = strconv.Itoa(f.version)
	_ = json.NewEncoder(w).Encode(s)
}

func (f *fakeServer) patch(w http.ResponseWriter, r *http.Request) {
	if len(f.changeBeforePatch) > 0 {
		f.change(f.changeBeforePatch[0])
		f.changeBeforePatch = f.changeBeforePatch[1:]
	}
	body, _ := io.ReadAll(r.Body)
	var p secret
	err := json.Unmarshal(body, &p)
	switch {
	case err != nil || r.Header.Get("Content-Type") != "application/merge-patch+json" || r.URL.Query().Get("fieldManager") == "":
		fail(w, http.StatusBadRequest, "BadRequest", "not a merge patch with a field manager")
	case p.Metadata.ResourceVersion != strconv.Itoa(f.version):
		fail(w, http.StatusConflict, "Conflict", "the object has been modified")
	default:
		f.patches = append(f.patches, string(body))
		f.change(p.Data)
		f.write(w)
	}
}

func (f *fakeServer) change(data map[string][]byte) {
	f.version++
	f.data = maps.Clone(f.data)
	if f.data == nil {
		f.data = map[string][]byte{}
	}
	maps.Copy(f.data, data)
}

// fail answers like the API server, with a metav1.Status.
func fail(w http.ResponseWriter, code int, reason, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
	})
}
