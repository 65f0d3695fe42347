package rotate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

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
	// Namespace of everything that is read and written; empty means the Pod's
	// own, or that of the kubeconfig's current context.
	Namespace string
}

// API is one namespace of a Kubernetes API server.
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
	config.QPS = -1                           // no limit of the client's own: a job makes a few requests and ends
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

// Namespace is where everything is.
func (a *API) Namespace() string { return a.namespace }

// Secrets are those of the namespace.
func (a *API) Secrets() Store {
	return store[[]byte]{
		api: a, resource: resource{plural: "secrets", kind: "Secret"},
		decode: func(v []byte) []byte { return v },
		encode: func(v []byte) []byte { return v },
	}
}

// ConfigMaps are those of the namespace.
func (a *API) ConfigMaps() Store {
	return store[*string]{
		api: a, resource: resource{plural: "configmaps", kind: "ConfigMap"},
		decode: func(v *string) []byte {
			if v == nil {
				return nil
			}
			return []byte(*v)
		},
		encode: func(v []byte) *string {
			if v == nil {
				return nil
			}
			text := string(v)
			return &text
		},
	}
}

// Pods are those of the namespace.
func (a *API) Pods() Pods { return pods{a} }

// resource is what the API server and people call a type.
type resource struct{ plural, kind string }

// object is one as JSON has it. A value is null in a merge patch that removes it.
type object[V any] struct {
	Metadata metadata     `json:"metadata"`
	Data     map[string]V `json:"data,omitempty"`
}

type metadata struct {
	Name            string            `json:"name,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
}

// store is a [Store] of objects whose data has values of type V: bytes in base64
// in a Secret, texts in a ConfigMap.
type store[V any] struct {
	api      *API
	resource resource
	decode   func(V) []byte
	encode   func([]byte) V
}

// Get implements [Store].
func (s store[V]) Get(ctx context.Context, name string) (Object, error) {
	body, err := s.api.raw(s.api.client.Get().Namespace(s.api.namespace).Resource(s.resource.plural).Name(name).Do(ctx))
	if err != nil {
		return Object{}, s.explain("read", name, err)
	}
	var o object[V]
	if err := json.Unmarshal(body, &o); err != nil || o.Metadata.ResourceVersion == "" {
		// The error may quote a Secret. Without a version a patch would overwrite
		// what somebody else has written since.
		return Object{}, s.explain("read", name, fmt.Errorf("the answer is not a %s in JSON", s.resource.kind))
	}
	out := Object{Version: o.Metadata.ResourceVersion, Data: make(map[string][]byte, len(o.Data))}
	for entry, v := range o.Data {
		out.Data[entry] = s.decode(v)
	}
	return out, nil
}

// Merge implements [Store] by a JSON merge patch (RFC 7386), which takes no
// more than the verb patch. The API server refuses one whose resourceVersion is
// not the current one.
func (s store[V]) Merge(ctx context.Context, name, version string, data map[string][]byte) error {
	patch := object[V]{Metadata: metadata{ResourceVersion: version}, Data: make(map[string]V, len(data))}
	for entry, v := range data {
		patch.Data[entry] = s.encode(v)
	}
	err := s.api.patch(ctx, s.resource, name, patch)
	if apierrors.IsConflict(err) {
		return ErrConflict
	}
	return s.explain("write", name, err)
}

// explain adds what to do about an error of the API server.
func (s store[V]) explain(verb, name string, err error) error {
	fix := ""
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		fix = "; create it without data, as the chart does, or check its name and --namespace"
	case apierrors.IsForbidden(err):
		fix = "; let the service account get and patch this " + s.resource.kind
	}
	return fmt.Errorf("%s %s %s/%s: %w%s", verb, strings.ToLower(s.resource.kind), s.api.namespace, name, err, fix)
}

type pods struct{ api *API }

// List implements [Pods].
func (p pods) List(ctx context.Context, selector string) ([]string, error) {
	body, err := p.api.raw(p.api.client.Get().Namespace(p.api.namespace).Resource("pods").Param("labelSelector", selector).Do(ctx))
	if err != nil {
		return nil, p.explain("list pods "+selector, err)
	}
	var list struct {
		Items []object[any] `json:"items"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, p.explain("list pods "+selector, errors.New("the answer is not a list of Pods in JSON"))
	}
	names := make([]string, len(list.Items))
	for i, pod := range list.Items {
		names[i] = pod.Metadata.Name
	}
	return names, nil
}

// Annotate implements [Pods].
func (p pods) Annotate(ctx context.Context, name string, annotations map[string]string) error {
	patch := object[any]{Metadata: metadata{Annotations: annotations}}
	err := p.api.patch(ctx, resource{plural: "pods"}, name, patch)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return p.explain("annotate pod "+name, err)
}

func (p pods) explain(what string, err error) error {
	fix := ""
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		fix = "; let the service account list and patch Pods, or leave --annotate-pods out"
	}
	return fmt.Errorf("%s in %s: %w%s", what, p.api.namespace, err, fix)
}

// raw returns the body of an answer, or the server's own words for what is wrong,
// which Raw alone would not.
func (a *API) raw(result rest.Result) ([]byte, error) {
	if err := result.Error(); err != nil {
		return nil, err
	}
	return result.Raw()
}

func (a *API) patch(ctx context.Context, r resource, name string, patch any) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return a.client.Patch(types.MergePatchType).Namespace(a.namespace).Resource(r.plural).Name(name).
		Param("fieldManager", fieldManager).Body(body).Do(ctx).Error()
}
