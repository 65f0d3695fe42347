package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const apiPath = "/apis/custom.metrics.k8s.io/"

// cluster is an API server as the adapter sees it: Pods to list, nobody's
// certificates to trust, and an answer to who may do what.
type cluster struct {
	pods corev1.PodList

	mu      sync.Mutex
	denies  bool
	queries []string // of Pods
	reviews []string // path and user
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	const authentication = "/api/v1/namespaces/kube-system/configmaps"
	switch {
	case r.URL.Query().Get("watch") != "":
		c.mu.Unlock()
		<-r.Context().Done()
		c.mu.Lock()
	case r.URL.Path == authentication:
		answer(corev1.ConfigMapList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMapList"}})
	case strings.HasPrefix(r.URL.Path, authentication+"/"):
		answer(corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}})
	case r.URL.Path == "/apis/authorization.k8s.io/v1/subjectaccessreviews":
		var review authorizationv1.SubjectAccessReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if a := review.Spec.ResourceAttributes; a != nil {
			c.reviews = append(c.reviews, fmt.Sprintf("%s %s %s %s/%s in %s", review.Spec.User, a.Verb, a.Group, a.Resource, a.Subresource, a.Namespace))
		}
		review.Status = authorizationv1.SubjectAccessReviewStatus{Allowed: !c.denies, Denied: c.denies}
		answer(review)
	case r.URL.Path == "/api/v1/namespaces/vpn/pods":
		c.queries = append(c.queries, r.URL.Query().Get("labelSelector"))
		answer(c.pods)
	default:
		http.NotFound(w, r)
	}
}

// The program as it runs: an API server that it asks and that asks it, replicas,
// TLS with a certificate of its own making that is nowhere on disk.
func TestRun(t *testing.T) {
	replica := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"replica":"a","members":[{"name":"a","state":"alive","connectedPeers":40}]}`)
	}))
	defer replica.Close()
	port := netip.MustParseAddrPort(replica.Listener.Addr().String()).Port()
	c := &cluster{}
	c.pods.APIVersion, c.pods.Kind = "v1", "PodList"
	c.pods.Items = []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "vpn"}, Status: corev1.PodStatus{PodIP: "127.0.0.1"}}}

	// Nothing is written: neither here nor anywhere below.
	dir := t.TempDir()
	t.Chdir(dir)
	address := start(t, c, "--namespace=vpn", "--name=edge", "--selector=app=vpn", fmt.Sprintf("--port=%d", port))

	for _, version := range []string{"v1beta1", "v1beta2"} {
		_, body := ask(t, address, apiPath+version)
		for _, name := range []string{"pods", "services", "deployments.apps"} {
			if want := `"name":"` + name + `/vpn_gateway_connected_peers"`; !strings.Contains(body, want) {
				t.Errorf("%s has no %s: %s", version, want, body)
			}
		}
	}
	for path, want := range map[string]string{
		"pods/*":                "Pod a 40",
		"pods/a":                "Pod a 40",
		"deployments.apps/edge": "Deployment edge 40",
		"services/edge":         "Service edge 40",
	} {
		status, body := ask(t, address, apiPath+"v1beta2/namespaces/vpn/"+path+"/vpn_gateway_connected_peers")
		var list struct {
			Kind  string
			Items []struct {
				DescribedObject struct{ Kind, Name string }
				Value           string
			}
		}
		if err := json.Unmarshal([]byte(body), &list); err != nil || status != http.StatusOK || len(list.Items) != 1 {
			t.Errorf("%s: %d %s", path, status, body)
			continue
		}
		item := list.Items[0]
		if got := fmt.Sprintf("%s %s %s", item.DescribedObject.Kind, item.DescribedObject.Name, item.Value); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if status, body := ask(t, address, apiPath+"v1beta2/namespaces/other/pods/*/vpn_gateway_connected_peers"); status != http.StatusNotFound {
		t.Errorf("another namespace: %d %s", status, body)
	}

	c.mu.Lock()
	c.denies = true
	if len(c.queries) == 0 || c.queries[0] != "app=vpn" {
		t.Errorf("Pods asked for by %q", c.queries)
	}
	if want := "system:anonymous get custom.metrics.k8s.io pods/vpn_gateway_connected_peers in vpn"; !strings.Contains(strings.Join(c.reviews, "\n"), want) {
		t.Errorf("the API server was not asked whether %s:\n%s", want, strings.Join(c.reviews, "\n"))
	}
	c.mu.Unlock()
	// A path that was not asked for: the API server's word is kept for some seconds.
	if status, body := ask(t, address, apiPath+"v1beta1/namespaces/vpn/pods/*/vpn_gateway_connected_peers"); status != http.StatusForbidden {
		t.Errorf("who may not: %d %s", status, body)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("files written: %v, %v", left, err)
	}
}

// start runs the program until t ends, and returns where it is ready.
func start(t *testing.T, c *cluster, args ...string) string {
	t.Helper()
	api := httptest.NewTLSServer(c)
	t.Cleanup(func() { api.CloseClientConnections(); api.Close() })
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: api.URL, CertificateAuthorityData: authority}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: "t"}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	_, port, _ := net.SplitHostPort(address)
	args = append(args, "--bind-address=127.0.0.1", "--secure-port="+port,
		"--lister-kubeconfig="+kubeconfig, "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig)

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, args) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	for {
		if response, err := client().Get("https://" + address + "/readyz"); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return address
			}
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("run: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// client verifies no certificate, like the API server by default.
func client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
}

func ask(t *testing.T, address, path string) (int, string) {
	t.Helper()
	response, err := client().Get("https://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// Everything that is missing is named at once.
func TestFlags(t *testing.T) {
	err := run(t.Context(), []string{"--port=0", "surplus"})
	if err == nil {
		t.Fatal("no error")
	}
	want := `--namespace is empty; give the gateway's namespace
--name is empty; give the name of its Deployment
--selector is empty; give the labels of its Pods, such as app.kubernetes.io/instance=vpn-gateway
--port is 0; give a port from 1 to 65535
unexpected arguments ["surplus"]; everything is a flag`
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}
