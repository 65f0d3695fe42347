package rotate

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

// fakeServer is as much of an API server as this package needs: objects of one
// namespace, ns, with versions, merge patches that have to name the version, and
// lists of Pods by label.
type fakeServer struct {
	mu      sync.Mutex
	version int
	objects map[string]*fakeObject // by path, such as secrets/gateway
	// refuse, where set, may answer a request in the server's place.
	refuse func(w http.ResponseWriter, r *http.Request) bool
	// beforePatch is what somebody else does before our next patches arrive.
	beforePatch []func(f *fakeServer)
	patches     []fakePatch // those taken
}

// fakeObject has the data as texts, whatever the wire has.
type fakeObject struct {
	version     int
	data        map[string]string
	labels      map[string]string
	annotations map[string]string
}

type fakePatch struct{ path, body string }

const fakePrefix = "/api/v1/namespaces/ns/"

func newFakeServer() *fakeServer { return &fakeServer{objects: map[string]*fakeObject{}} }

// api starts the server and returns a client of it that went through a
// kubeconfig.
func (f *fakeServer) api(t testing.TB) *API {
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

// put makes an object anew.
func (f *fakeServer) put(path string, data map[string]string) *fakeObject {
	f.version++
	o := &fakeObject{version: f.version, data: maps.Clone(data)}
	f.objects[path] = o
	return o
}

// get returns the data of an object.
func (f *fakeServer) get(path string) map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.objects[path]; o != nil {
		return maps.Clone(o.data)
	}
	return nil
}

// change adds data to an object, as somebody else would.
func (f *fakeServer) change(path string, data map[string]string) {
	o := f.objects[path]
	f.version++
	o.version = f.version
	if o.data == nil {
		o.data = map[string]string{}
	}
	maps.Copy(o.data, data)
}

// patched returns how often an object was patched.
func (f *fakeServer) patched(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, p := range f.patches {
		if p.path == path {
			n++
		}
	}
	return n
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if f.refuse != nil && f.refuse(w, r) {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, fakePrefix)
	o := f.objects[path]
	switch {
	case path == "pods" && r.Method == http.MethodGet:
		f.listPods(w, r)
	case o == nil:
		fail(w, http.StatusNotFound, "NotFound", path+" not found")
	case r.Method == http.MethodGet:
		o.write(w, path)
	case r.Method == http.MethodPatch:
		f.patch(w, r, path)
	default:
		fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "only GET and PATCH")
	}
}

func (f *fakeServer) listPods(w http.ResponseWriter, r *http.Request) {
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	items := []any{}
	for _, path := range slices.Sorted(maps.Keys(f.objects)) {
		if pod, ok := strings.CutPrefix(path, "pods/"); ok && selector.Matches(labels.Set(f.objects[path].labels)) {
			items = append(items, map[string]any{"metadata": map[string]any{"name": pod}, "spec": map[string]any{}})
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "PodList", "apiVersion": "v1", "items": items})
}

func (o *fakeObject) write(w io.Writer, path string) {
	data := map[string]string{}
	for entry, text := range o.data {
		if strings.HasPrefix(path, "secrets/") {
			text = base64.StdEncoding.EncodeToString([]byte(text))
		}
		data[entry] = text
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"apiVersion": "v1", "metadata": map[string]any{"resourceVersion": strconv.Itoa(o.version)}, "data": data,
	})
}

// patch does what RFC 7386 says, to data and annotations.
func (f *fakeServer) patch(w http.ResponseWriter, r *http.Request, path string) {
	if len(f.beforePatch) > 0 {
		before := f.beforePatch[0]
		f.beforePatch = f.beforePatch[1:]
		before(f)
	}
	o := f.objects[path]
	if o == nil {
		fail(w, http.StatusNotFound, "NotFound", path+" not found")
		return
	}
	body, _ := io.ReadAll(r.Body)
	var p struct {
		Metadata struct {
			ResourceVersion string            `json:"resourceVersion"`
			Annotations     map[string]string `json:"annotations"`
		} `json:"metadata"`
		Data map[string]*string `json:"data"`
	}
	err := json.Unmarshal(body, &p)
	versioned := !strings.HasPrefix(path, "pods/")
	switch {
	case err != nil || r.Header.Get("Content-Type") != "application/merge-patch+json" || r.URL.Query().Get("fieldManager") == "":
		fail(w, http.StatusBadRequest, "BadRequest", "not a merge patch with a field manager")
		return
	case versioned && p.Metadata.ResourceVersion != strconv.Itoa(o.version):
		fail(w, http.StatusConflict, "Conflict", "the object has been modified")
		return
	}
	f.patches = append(f.patches, fakePatch{path, string(body)})
	f.change(path, nil)
	for entry, text := range p.Data {
		switch {
		case text == nil:
			delete(o.data, entry)
		case strings.HasPrefix(path, "secrets/"):
			plain, _ := base64.StdEncoding.DecodeString(*text)
			o.data[entry] = string(plain)
		default:
			o.data[entry] = *text
		}
	}
	if o.annotations == nil {
		o.annotations = map[string]string{}
	}
	maps.Copy(o.annotations, p.Metadata.Annotations)
	o.write(w, path)
}

// fail answers like the API server, with a metav1.Status.
func fail(w http.ResponseWriter, code int, reason, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
	})
}

// refuse answers requests of these methods, or METHOD path, with an error.
func refuse(code int, reason string, requests ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if slices.Contains(requests, r.Method) || slices.Contains(requests, r.Method+" "+strings.TrimPrefix(r.URL.Path, fakePrefix)) {
			fail(w, code, reason, "no")
			return true
		}
		return false
	}
}

// answer answers everything with a document.
func answer(document string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		_, _ = io.WriteString(w, document)
		return true
	}
}

// wantError checks for all parts of an error's text.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
}
