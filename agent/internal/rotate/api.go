package rotate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// fieldManager is the agent's name in metadata.managedFields.
const fieldManager = "vpn-agent"

// APIOptions say which API server, and which of its namespaces.
type APIOptions struct {
	// Kubeconfig is a file; empty means the service account of the Pod that
	// this runs in.
	Kubeconfig string
	// Namespace of the Secrets; empty means the Pod's own, or that of the
	// kubeconfig's current context.
	Namespace string
}

// API is [Secrets] by a Kubernetes API server.
//
// It is a REST client that knows no API type. The typed client registers every
// type of Kubernetes: it doubles the agent's binary and adds 8 MiB to the memory
// of the gateway, which is the same binary.
type API struct {
	client    rest.Interface
	namespace string
}

// NewAPI prepares for requests and makes none.
func NewAPI(o APIOptions) (*API, error) {
	config, namespace, err := clientConfig(o)
	if err != nil {
		return nil, err
	}
	version := schema.GroupVersion{Version: "v1"}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, version)
	config.APIPath = "/api"
	config.GroupVersion = &version
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = fieldManager
	config.WarningHandler = rest.NoWarnings{} // it would write to standard error by itself
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	return &API{client: client, namespace: namespace}, nil
}

func clientConfig(o APIOptions) (*rest.Config, string, error) {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: o.Kubeconfig}
	overrides := &clientcmd.ConfigOverrides{Context: clientcmdapi.Context{Namespace: o.Namespace}}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	config, err := loader.ClientConfig()
	switch {
	case err == nil:
	case o.Kubeconfig == "" && clientcmd.IsEmptyConfig(err):
		return nil, "", errors.New("not in a Pod with a service account token; run it as a Job, or give --kubeconfig")
	default:
		return nil, "", fmt.Errorf("--kubeconfig %q: %w", o.Kubeconfig, err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("namespace: %w; give --namespace", err)
	}
	return config, namespace, nil
}

// Namespace is where the Secrets are.
func (a *API) Namespace() string { return a.namespace }

// secret is a v1 Secret as JSON has it; data is in base64 there.
type secret struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Data map[string][]byte `json:"data,omitempty"`
}

// Get implements [Secrets].
func (a *API) Get(ctx context.Context, name string) (Secret, error) {
	result := a.client.Get().Namespace(a.namespace).Resource("secrets").Name(name).Do(ctx)
	if err := result.Error(); err != nil { // unlike Raw, with the server's own words
		return Secret{}, a.explain("read", name, err)
	}
	body, err := result.Raw()
	if err != nil {
		return Secret{}, a.explain("read", name, err)
	}
	var s secret
	if err := json.Unmarshal(body, &s); err != nil {
		// The error may quote the Secret.
		return Secret{}, a.explain("read", name, errors.New("the answer is not a Secret in JSON"))
	}
	return Secret{Version: s.Metadata.ResourceVersion, Data: s.Data}, nil
}

// Merge implements [Secrets] by a JSON merge patch (RFC 7386), which takes no
// more than the verb patch. The API server refuses one whose resourceVersion is
// not the current one.
func (a *API) Merge(ctx context.Context, name, version string, data map[string][]byte) error {
	patch := secret{Data: data}
	patch.Metadata.ResourceVersion = version
	body, err := json.Marshal(patch)
	if err != nil {
		return a.explain("write", name, err)
	}
	err = a.client.Patch(types.MergePatchType).Namespace(a.namespace).Resource("secrets").Name(name).
		Param("fieldManager", fieldManager).Body(body).Do(ctx).Error()
	if apierrors.IsConflict(err) {
		return ErrConflict
	}
	return a.explain("write", name, err)
}

// explain adds what to do about an error of the API server.
func (a *API) explain(verb, name string, err error) error {
	fix := ""
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		fix = "; create it without data, as the chart does, or check --secret and --namespace"
	case apierrors.IsForbidden(err):
		fix = "; let the service account get and patch this Secret"
	}
	return fmt.Errorf("%s secret %s/%s: %w%s", verb, a.namespace, name, err, fix)
}
