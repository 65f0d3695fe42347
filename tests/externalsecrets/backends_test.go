package externalsecrets

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"sync"
	"testing"

	esv1 "github.com/external-secrets/external-secrets/apis/externalsecrets/v1"
	esmeta "github.com/external-secrets/external-secrets/apis/meta/v1"
	"github.com/external-secrets/external-secrets/pkg/provider/kubernetes"
	"github.com/external-secrets/external-secrets/pkg/provider/vault"
	vaultutil "github.com/external-secrets/external-secrets/pkg/provider/vault/util"
	vaultapi "github.com/hashicorp/vault/api"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// namespace is where the Secrets of the Kubernetes backend are.
const namespace = "backend"

// backend is one of the controller's providers over a store in memory.
type backend struct {
	esv1.SecretsClient
	// entry is what an entry of the scenario is called here: Kubernetes's names
	// have no slashes.
	entry func(string) string
	// put writes an entry by hand, as somebody does who knows nothing of the chart
	// but lets External Secrets write to it.
	put func(entry string, data map[string]string)
}

// backends are those by which the form of what is pushed was chosen.
func backends(t *testing.T) map[string]backend {
	return map[string]backend{
		"kubernetes": kubernetesBackend(t),
		"vault-kv-1": vaultBackend(t, esv1.VaultKVStoreV1),
		"vault-kv-2": vaultBackend(t, esv1.VaultKVStoreV2),
	}
}

// kubernetesBackend is the provider for another cluster, over an API server that
// has Secrets and nothing else.
func kubernetesBackend(t *testing.T) backend {
	t.Helper()
	secrets := &secretsAPI{secrets: map[string]*corev1.Secret{}}
	server := httptest.NewServer(secrets)
	t.Cleanup(server.Close)
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"c","context":{"cluster":"c"}}]}`, server.URL)
	useKubeconfig(t, config)
	store := &esv1.SecretStore{Spec: esv1.SecretStoreSpec{Provider: &esv1.SecretStoreProvider{Kubernetes: &esv1.KubernetesProvider{
		RemoteNamespace: namespace,
		AuthRef:         &esmeta.SecretKeySelector{Name: "kubeconfig", Key: "config"},
	}}}}
	kube := oneSecret{data: map[string][]byte{"config": []byte(config)}}
	c, err := (&kubernetes.Provider{}).NewClient(t.Context(), store, kube, "default")
	if err != nil {
		t.Fatal(err)
	}
	return backend{c, path.Base, func(entry string, data map[string]string) {
		name := path.Base(entry)
		secrets.secrets[name] = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Type: corev1.SecretTypeOpaque, Data: toBytes(data)}
	}}
}

// vaultBackend is the provider for Vault, over a key-value store in memory.
func vaultBackend(t *testing.T, version esv1.VaultKVStoreVersion) backend {
	t.Helper()
	useKubeconfig(t, `{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"contexts":[{"name":"c","context":{"cluster":"c"}}]}`)
	memory := vaultMemory{}
	provider := vault.Provider{NewVaultClient: func(*vaultapi.Config) (vaultutil.Client, error) {
		return vaultutil.VaultClient{LogicalField: memory}, nil
	}}
	mount := "secret"
	store := &esv1.SecretStore{Spec: esv1.SecretStoreSpec{Provider: &esv1.SecretStoreProvider{Vault: &esv1.VaultProvider{
		Server: "http://127.0.0.1:1", Path: &mount, Version: version,
	}}}}
	c, err := provider.NewClient(t.Context(), store, oneSecret{}, "default")
	if err != nil {
		t.Fatal(err)
	}
	return backend{c, path.Clean, func(entry string, data map[string]string) {
		managed := map[string]any{"custom_metadata": map[string]any{"managed-by": "external-secrets"}}
		content := map[string]any{}
		for name, value := range data {
			content[name] = value
		}
		if version == esv1.VaultKVStoreV1 {
			maps.Copy(content, managed)
			memory[mount+"/"+entry] = content
			return
		}
		memory[mount+"/data/"+entry] = map[string]any{"data": content}
		memory[mount+"/metadata/"+entry] = managed
	}}
}

// useKubeconfig names the cluster that a provider takes itself to run in.
func useKubeconfig(t *testing.T, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", file)
}

// vaultMemory is Vault by its paths.
type vaultMemory map[string]map[string]any

func (m vaultMemory) ReadWithDataWithContext(_ context.Context, path string, _ map[string][]string) (*vaultapi.Secret, error) {
	data, ok := m[path]
	if !ok {
		return nil, nil
	}
	return &vaultapi.Secret{Data: overTheWire(data)}, nil
}

func (m vaultMemory) WriteWithContext(_ context.Context, path string, data map[string]any) (*vaultapi.Secret, error) {
	m[path] = overTheWire(data)
	return nil, nil
}

func (m vaultMemory) DeleteWithContext(_ context.Context, path string) (*vaultapi.Secret, error) {
	delete(m, path)
	return nil, nil
}

func (m vaultMemory) ListWithContext(context.Context, string) (*vaultapi.Secret, error) {
	return nil, fmt.Errorf("not listed")
}

// overTheWire is what JSON makes of data, and a copy.
func overTheWire(data map[string]any) map[string]any {
	text, err := json.Marshal(data)
	if err != nil {
		return nil
	}
	var out map[string]any
	if json.Unmarshal(text, &out) != nil {
		return nil
	}
	return out
}

// secretsAPI is an API server's Secrets of one namespace.
type secretsAPI struct {
	mu      sync.Mutex
	secrets map[string]*corev1.Secret
}

func (a *secretsAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	answer := func(code int, body any) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(body)
	}
	const collection = "/api/v1/namespaces/" + namespace + "/secrets"
	dir, name := path.Split(r.URL.Path)
	switch {
	case r.Method == http.MethodGet && path.Clean(dir) == collection:
		if s, ok := a.secrets[name]; ok {
			answer(http.StatusOK, s)
			return
		}
		answer(http.StatusNotFound, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name).Status())
	case r.Method == http.MethodPost && r.URL.Path == collection, r.Method == http.MethodPut && path.Clean(dir) == collection:
		var s corev1.Secret
		text, err := io.ReadAll(r.Body)
		if err == nil {
			_, _, err = scheme.Codecs.UniversalDeserializer().Decode(text, nil, &s) // JSON or protobuf
		}
		if err != nil {
			answer(http.StatusBadRequest, apierrors.NewBadRequest(err.Error()).Status())
			return
		}
		a.secrets[s.Name] = &s
		answer(http.StatusOK, &s)
	default:
		answer(http.StatusNotFound, apierrors.NewNotFound(schema.GroupResource{Resource: r.URL.Path}, r.Method).Status())
	}
}

// oneSecret is a client of the controller's own cluster, which has this Secret
// under every name.
type oneSecret struct {
	client.Client
	data map[string][]byte
}

func (c oneSecret) Get(_ context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	s, ok := object.(*corev1.Secret)
	if !ok {
		return fmt.Errorf("no %T here", object)
	}
	s.Data = c.data
	return nil
}

func toBytes(data map[string]string) map[string][]byte {
	out := map[string][]byte{}
	for name, value := range data {
		out[name] = []byte(value)
	}
	return out
}
