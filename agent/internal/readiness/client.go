package readiness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// fieldManager is the agent's name in metadata.managedFields.
const fieldManager = "vpn-agent"

// leases is where the API server has them.
const leases = "/apis/coordination.k8s.io/v1/namespaces"

// ClientOptions say what a [Client] works on; all are required.
type ClientOptions struct {
	// Namespace of the Pods and of the Lease.
	Namespace string
	// Lease is its name. The Lease exists: the right to create one cannot be had for
	// a single name.
	Lease string
}

// Client is the [API] of a real cluster. Like that of package rotate it knows no
// API type: those of Kubernetes would add 8 MiB to the memory of the gateway.
type Client struct {
	ClientOptions
	client rest.Interface
}

// InCluster is [NewClient] for the service account of the Pod that this runs in.
func InCluster(o ClientOptions) (*Client, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("%w; run it in a Pod whose service account token is mounted", err)
	}
	return NewClient(config, o)
}

// NewClient prepares for requests and makes none.
func NewClient(config *rest.Config, o ClientOptions) (*Client, error) {
	version := schema.GroupVersion{Version: "v1"}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, version)
	config = rest.CopyConfig(config)
	config.APIPath = "/api"
	config.GroupVersion = &version
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = fieldManager
	config.QPS = -1                           // there are few requests, and none of them can wait
	config.WarningHandler = rest.NoWarnings{} // it would write to standard error by itself
	// By HTTP/1.1 a request that runs out of time takes its connection with it, and
	// the next one finds an API server that lives. By HTTP/2 all of them would wait on
	// the one connection, 45 s, when the dead node was also that of an API server.
	config.NextProtos = []string{"http/1.1"}
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	return &Client{ClientOptions: o, client: client}, nil
}

// Pod implements [API].
func (c *Client) Pod(ctx context.Context, name string) (Pod, error) {
	body, err := c.do(ctx, c.client.Get().Namespace(c.Namespace).Resource("pods").Name(name))
	if err != nil {
		return Pod{}, c.explain("read pod", name, err)
	}
	return c.decodePod(name, body)
}

func (c *Client) decodePod(name string, body []byte) (Pod, error) {
	var o struct {
		Metadata struct {
			UID               string     `json:"uid"`
			DeletionTimestamp *time.Time `json:"deletionTimestamp"`
		} `json:"metadata"`
		Status struct {
			Conditions []struct {
				Type          string `json:"type"`
				Status        string `json:"status"`
				Reason        string `json:"reason"`
				LastProbeTime string `json:"lastProbeTime"`
			} `json:"conditions"`
		} `json:"status"`
	}
	if err := json.Unmarshal(body, &o); err != nil || o.Metadata.UID == "" {
		return Pod{}, c.explain("read pod", name, errors.New("the answer is not a Pod in JSON"))
	}
	out := Pod{UID: o.Metadata.UID, Leaving: o.Metadata.DeletionTimestamp != nil}
	for _, condition := range o.Status.Conditions {
		switch condition.Type {
		case GateType:
			out.Gate, out.Reason, out.Beat = condition.Status, condition.Reason, condition.LastProbeTime
		case typeReady:
			out.Ready = condition.Status
		}
	}
	return out, nil
}

// SetConditions implements [API] by a strategic merge patch, in which conditions
// are told apart by their type. The UID in it is a precondition; the kubelet
// patches in the same way (k8s.io/kubernetes/pkg/util/pod).
func (c *Client) SetConditions(ctx context.Context, name, uid string, conditions []Condition) error {
	rounded := make([]Condition, len(conditions))
	for i, condition := range conditions {
		condition.Since = condition.Since.UTC().Truncate(time.Second) // metav1.Time has no more
		rounded[i] = condition
	}
	_, err := c.patchConditions(ctx, name, uid, rounded)
	return err
}

// Beat implements [API].
func (c *Client) Beat(ctx context.Context, name, uid string, at time.Time) (Pod, error) {
	body, err := c.patchConditions(ctx, name, uid, []map[string]any{
		{"type": GateType, "lastProbeTime": at.UTC().Truncate(time.Second)},
	})
	if err != nil {
		return Pod{}, err
	}
	return c.decodePod(name, body)
}

func (c *Client) patchConditions(ctx context.Context, name, uid string, conditions any) ([]byte, error) {
	patch := map[string]any{
		"metadata": map[string]any{"uid": uid},
		"status":   map[string]any{"conditions": conditions},
	}
	request := c.client.Patch(types.StrategicMergePatchType).Namespace(c.Namespace).Resource("pods").Name(name).SubResource("status")
	body, err := c.patch(ctx, request, patch)
	// A name that another Pod has by now is answered as a change of what cannot be
	// changed where the server does not take it for a conflict.
	if apierrors.IsInvalid(err) {
		return nil, ErrConflict
	}
	return body, c.explain("patch the status of pod", name, err)
}

// leaseObject is a Lease as JSON has it.
type leaseObject struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Spec leaseSpec `json:"spec"`
}

type leaseSpec struct {
	HolderIdentity       string            `json:"holderIdentity"`
	LeaseDurationSeconds int               `json:"leaseDurationSeconds"`
	AcquireTime          *metav1.MicroTime `json:"acquireTime"`
	RenewTime            *metav1.MicroTime `json:"renewTime"`
	LeaseTransitions     int               `json:"leaseTransitions"`
}

// Lease implements [API].
func (c *Client) Lease(ctx context.Context) (Lease, error) {
	body, err := c.do(ctx, c.client.Get().AbsPath(leases, c.Namespace, "leases", c.ClientOptions.Lease))
	if err != nil {
		return Lease{}, c.explain("read lease", c.ClientOptions.Lease, err)
	}
	return c.decodeLease(body)
}

// SetLease implements [API] by a JSON merge patch, which leaves alone what others
// have written. The API server refuses one whose resourceVersion is not the current
// one.
func (c *Client) SetLease(ctx context.Context, l Lease) (Lease, error) {
	var o leaseObject
	o.Metadata.ResourceVersion = l.Version
	o.Spec = leaseSpec{
		HolderIdentity: l.Holder, LeaseDurationSeconds: int(leaseDuration / time.Second), LeaseTransitions: l.Transitions,
		AcquireTime: microTime(l.Acquired), RenewTime: microTime(l.Renewed),
	}
	body, err := c.patch(ctx, c.client.Patch(types.MergePatchType).AbsPath(leases, c.Namespace, "leases", c.ClientOptions.Lease), o)
	if err != nil {
		return Lease{}, c.explain("write lease", c.ClientOptions.Lease, err)
	}
	return c.decodeLease(body)
}

func (c *Client) decodeLease(body []byte) (Lease, error) {
	var o leaseObject
	// Without a version a patch would overwrite what somebody else has written since.
	if err := json.Unmarshal(body, &o); err != nil || o.Metadata.ResourceVersion == "" {
		return Lease{}, c.explain("read lease", c.ClientOptions.Lease, errors.New("the answer is not a Lease in JSON"))
	}
	out := Lease{Version: o.Metadata.ResourceVersion, Holder: o.Spec.HolderIdentity, Transitions: o.Spec.LeaseTransitions}
	if t := o.Spec.AcquireTime; t != nil {
		out.Acquired = t.Time
	}
	if t := o.Spec.RenewTime; t != nil {
		out.Renewed = t.Time
	}
	return out, nil
}

// microTime is null for the zero time.
func microTime(t time.Time) *metav1.MicroTime {
	if t.IsZero() {
		return nil
	}
	return &metav1.MicroTime{Time: t}
}

func (c *Client) patch(ctx context.Context, request *rest.Request, patch any) ([]byte, error) {
	body, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	return c.do(ctx, request.Param("fieldManager", fieldManager).Body(body))
}

// do makes one request, without the repetitions that client-go has of its own, and
// returns the body of the answer or the server's words for what is wrong.
func (c *Client) do(ctx context.Context, request *rest.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	result := request.MaxRetries(0).Do(ctx)
	if err := result.Error(); err != nil {
		return nil, err
	}
	return result.Raw()
}

// explain adds what to do about an error of the API server.
func (c *Client) explain(what, name string, err error) error {
	fix := ""
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s %s/%s: %w", what, c.Namespace, name, ErrGone)
	case apierrors.IsConflict(err):
		return fmt.Errorf("%s %s/%s: %w", what, c.Namespace, name, ErrConflict)
	case apierrors.IsForbidden(err):
		fix = "; let the service account do this, as the chart's Role does, or leave --readiness-gate out"
	}
	return fmt.Errorf("%s %s/%s: %w%s", what, c.Namespace, name, err, fix)
}
