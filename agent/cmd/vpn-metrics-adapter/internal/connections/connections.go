// Package connections answers the API custom.metrics.k8s.io with how many peers are
// connected to a gateway: to each of its Pods, and by the name of its Deployment
// or its Service to all of them.
package connections

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/cloud-native-vpn/vpn-gateway/agent/cmd/vpn-metrics-adapter/internal/replicas"
)

// Metric is the name of the one metric. Connected means a handshake within 180 s.
const Metric = "vpn_gateway_connected_peers"

// refreshTimeout bounds one look at all Pods. The API server gives up after a
// minute and the autoscaler would rather have no figure than wait.
const refreshTimeout = 5 * time.Second

// PodLister lists the gateway's Pods.
type PodLister interface {
	ListPods(ctx context.Context) ([]corev1.Pod, error)
}

// Asker asks replicas.
type Asker interface {
	Ask(ctx context.Context, all []replicas.Replica) replicas.Answer
}

// Options are what a Provider needs; all are required.
type Options struct {
	// Namespace of the gateway.
	Namespace string
	// Name of its Deployment and of its Service.
	Name string
	// Port of the replicas' HTTP server.
	Port uint16
	// Fresh is how long an answer serves further questions: several autoscalers and
	// users may ask at once.
	Fresh time.Duration
	Pods  PodLister
	Asker Asker
	Now   func() time.Time
	Log   *slog.Logger
}

// Provider answers for one gateway. It implements [provider.CustomMetricsProvider].
type Provider struct {
	options Options
	// turn is held by the one who looks or reads what was seen last.
	turn chan struct{}
	last *view
}

var _ provider.CustomMetricsProvider = (*Provider)(nil)

// view is the gateway at a time.
type view struct {
	at   time.Time
	pods []corev1.Pod
	replicas.Answer
}

// New makes a Provider.
func New(o Options) *Provider { return &Provider{options: o, turn: make(chan struct{}, 1)} }

// resources are what the metric is served for.
func resources() []schema.GroupResource {
	return []schema.GroupResource{{Resource: "pods"}, {Resource: "services"}, {Group: "apps", Resource: "deployments"}}
}

// ListAllMetrics is the discovery's list.
func (p *Provider) ListAllMetrics() []provider.CustomMetricInfo {
	var all []provider.CustomMetricInfo
	for _, r := range resources() {
		all = append(all, provider.CustomMetricInfo{GroupResource: r, Namespaced: true, Metric: Metric})
	}
	return all
}

// GetMetricByName answers for one Pod, or with the sum of all for the gateway's
// Deployment or Service. The sum is that of every Pod or an error: one that lacks
// a Pod would have the autoscaler take away another.
func (p *Provider) GetMetricByName(ctx context.Context, name types.NamespacedName, info provider.CustomMetricInfo, metric labels.Selector) (*custom_metrics.MetricValue, error) {
	notFound := provider.NewMetricNotFoundForError(info.GroupResource, info.Metric, name.Name)
	isPod := info.GroupResource == schema.GroupResource{Resource: "pods"}
	if !p.serves(name.Namespace, info, metric) || !isPod && name.Name != p.options.Name {
		return nil, notFound
	}
	v, err := p.view(ctx)
	if err != nil {
		return nil, err
	}
	if !isPod {
		if missing := v.missing(v.pods); len(missing) > 0 {
			return nil, unavailable(missing)
		}
		total := int64(0)
		for _, n := range v.Connected {
			total += n
		}
		return p.value(v, reference(info.GroupResource, name), total), nil
	}
	i := slices.IndexFunc(v.pods, func(pod corev1.Pod) bool { return pod.Name == name.Name })
	if i < 0 {
		return nil, notFound
	}
	n, known := v.Connected[name.Name]
	if !known {
		return nil, unavailable(v.missing(v.pods[i : i+1]))
	}
	return p.value(v, reference(info.GroupResource, name), n), nil
}

// GetMetricBySelector answers for the Pods that a selector takes. A Pod that nobody
// knows anything about is left out, and what that means is the autoscaler's to
// judge; where none is left, the error says why.
func (p *Provider) GetMetricBySelector(ctx context.Context, namespace string, selector labels.Selector, info provider.CustomMetricInfo, metric labels.Selector) (*custom_metrics.MetricValueList, error) {
	if (info.GroupResource != schema.GroupResource{Resource: "pods"}) || !p.serves(namespace, info, metric) {
		return nil, provider.NewMetricNotFoundForSelectorError(info.GroupResource, info.Metric, "*", selector)
	}
	v, err := p.view(ctx)
	if err != nil {
		return nil, err
	}
	list := &custom_metrics.MetricValueList{}
	var chosen []corev1.Pod
	for _, pod := range v.pods {
		if !selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		chosen = append(chosen, pod)
		if n, known := v.Connected[pod.Name]; known {
			about := reference(info.GroupResource, types.NamespacedName{Namespace: namespace, Name: pod.Name})
			list.Items = append(list.Items, *p.value(v, about, n))
		}
	}
	if len(chosen) > 0 && len(list.Items) == 0 {
		return nil, unavailable(v.missing(chosen))
	}
	return list, nil
}

// serves reports whether a question is about the metric, which has no labels of
// its own, in the gateway's namespace.
func (p *Provider) serves(namespace string, info provider.CustomMetricInfo, metric labels.Selector) bool {
	return namespace == p.options.Namespace && info.Metric == Metric &&
		slices.Contains(resources(), info.GroupResource) && (metric == nil || metric.Matches(labels.Set{}))
}

// view returns the gateway as it is, or was no longer ago than Options.Fresh.
func (p *Provider) view(ctx context.Context) (*view, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	now := p.options.Now()
	if p.last != nil && now.Sub(p.last.at) < p.options.Fresh {
		return p.last, nil
	}
	// Those who wait for their turn get it too, whether or not this one stays.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refreshTimeout)
	defer cancel()
	pods, err := p.options.Pods.ListPods(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the gateway's Pods: %w", err)
	}
	// A Pod that has ended has no connections and never will.
	pods = slices.DeleteFunc(slices.Clone(pods), func(pod corev1.Pod) bool {
		return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	})
	var all []replicas.Replica
	for _, pod := range pods {
		r := replicas.Replica{Name: pod.Name}
		if address, err := netip.ParseAddr(pod.Status.PodIP); err == nil {
			r.Address = netip.AddrPortFrom(address, p.options.Port)
		}
		all = append(all, r)
	}
	v := &view{at: now, pods: pods, Answer: p.options.Asker.Ask(ctx, all)}
	for _, pod := range v.pods {
		if err := v.Failed[pod.Name]; err != nil && pod.Status.PodIP != "" {
			p.options.Log.Warn("a replica does not answer", "pod", pod.Name, "error", err)
		}
	}
	p.last = v
	return v, nil
}

// missing says why there is no figure for which of the Pods.
func (v *view) missing(pods []corev1.Pod) []string {
	var why []string
	for _, pod := range pods {
		if _, known := v.Connected[pod.Name]; !known {
			why = append(why, fmt.Sprintf("%s: %v", pod.Name, v.Failed[pod.Name]))
		}
	}
	return why
}

func unavailable(why []string) error {
	return apierrors.NewServiceUnavailable(fmt.Sprintf("no %s of %d Pods: %s", Metric, len(why), strings.Join(why, "; ")))
}

func (p *Provider) value(v *view, about custom_metrics.ObjectReference, n int64) *custom_metrics.MetricValue {
	return &custom_metrics.MetricValue{
		DescribedObject: about,
		Metric:          custom_metrics.MetricIdentifier{Name: Metric},
		Timestamp:       metav1.NewTime(v.at),
		Value:           *resource.NewQuantity(n, resource.DecimalSI),
	}
}

// reference is to an object of one of resources().
func reference(r schema.GroupResource, name types.NamespacedName) custom_metrics.ObjectReference {
	about := custom_metrics.ObjectReference{APIVersion: "v1", Namespace: name.Namespace, Name: name.Name}
	switch r.Resource {
	case "pods":
		about.Kind = "Pod"
	case "services":
		about.Kind = "Service"
	case "deployments":
		about.Kind, about.APIVersion = "Deployment", "apps/v1"
	}
	return about
}
