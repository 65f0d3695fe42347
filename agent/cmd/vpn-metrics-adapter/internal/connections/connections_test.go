package connections

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/cloud-native-vpn/vpn-gateway/agent/cmd/vpn-metrics-adapter/internal/replicas"
)

// fleet is a gateway with a clock, without a network.
type fleet struct {
	pods   []corev1.Pod
	listed error
	answer replicas.Answer

	mu    sync.Mutex
	now   time.Time
	asked [][]replicas.Replica
}

func (f *fleet) ListPods(context.Context) ([]corev1.Pod, error) { return f.pods, f.listed }

func (f *fleet) Ask(_ context.Context, all []replicas.Replica) replicas.Answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, all)
	return f.answer
}

func (f *fleet) provider(log *bytes.Buffer) *Provider {
	return New(Options{
		Namespace: "vpn", Name: "edge", Port: 8080, Fresh: time.Second,
		Pods: f, Asker: f, Now: func() time.Time { return f.now }, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
}

func pod(name, ip string, change ...func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "vpn", "pod": name}}}
	p.Status.PodIP, p.Status.Phase = ip, corev1.PodRunning
	for _, f := range change {
		f(&p)
	}
	return p
}

func terminating(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }
func ended(p *corev1.Pod)       { p.Status.Phase = corev1.PodFailed }
func pending(p *corev1.Pod)     { p.Status.Phase = corev1.PodPending }

// three is a gateway with a replica that serves, one that drains, one that nobody
// knows anything about, one that starts and one that has ended.
func three() *fleet {
	return &fleet{
		now: time.Unix(1000, 0),
		pods: []corev1.Pod{
			pod("a", "10.0.0.1"), pod("b", "10.0.0.2", terminating), pod("c", "fd00::3"),
			pod("d", "", pending), pod("e", "10.0.0.5", ended),
		},
		answer: replicas.Answer{
			Connected: map[string]int64{"a": 40, "b": 0},
			Failed:    map[string]error{"b": errors.New("no route to host"), "c": errors.New("connection refused"), "d": errors.New("the Pod has no address yet")},
		},
	}
}

func about(resource string) provider.CustomMetricInfo {
	return provider.CustomMetricInfo{GroupResource: schema.ParseGroupResource(resource), Namespaced: true, Metric: Metric}
}

func selector(t *testing.T, text string) labels.Selector {
	t.Helper()
	s, err := labels.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// figures are a list's as KIND/NAME=VALUE.
func figures(list *custom_metrics.MetricValueList) []string {
	var out []string
	for _, v := range list.Items {
		out = append(out, fmt.Sprintf("%s/%s=%s", v.DescribedObject.Kind, v.DescribedObject.Name, v.Value.String()))
	}
	return out
}

func TestBySelector(t *testing.T) {
	tests := map[string]struct {
		namespace, selector, metric string
		info                        provider.CustomMetricInfo
		want                        []string
		err                         string
	}{
		"all but the unknown ones": {"vpn", "app=vpn", "", about("pods"), []string{"Pod/a=40", "Pod/b=0"}, ""},
		"one":                      {"vpn", "pod=a", "", about("pods"), []string{"Pod/a=40"}, ""},
		"none is selected":         {"vpn", "app=other", "", about("pods"), nil, ""},
		"none is known":            {"vpn", "pod in (c, d)", "", about("pods"), nil, "no vpn_gateway_connected_peers of 2 Pods: c: connection refused; d: the Pod has no address yet"},
		"another namespace":        {"default", "app=vpn", "", about("pods"), nil, "could not find the metric"},
		"another metric":           {"vpn", "app=vpn", "", provider.CustomMetricInfo{GroupResource: about("pods").GroupResource, Metric: "cpu"}, nil, "could not find the metric cpu"},
		"labels of the metric":     {"vpn", "app=vpn", "peer=alice", about("pods"), nil, "could not find the metric"},
		"Services":                 {"vpn", "app=vpn", "", about("services"), nil, "could not find the metric"},
		"nodes":                    {"vpn", "app=vpn", "", about("nodes"), nil, "could not find the metric"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			list, err := three().provider(&bytes.Buffer{}).GetMetricBySelector(t.Context(), test.namespace, selector(t, test.selector), test.info, selector(t, test.metric))
			if !says(err, test.err) {
				t.Fatalf("error %v, want %q", err, test.err)
			}
			if err == nil {
				if diff := cmp.Diff(test.want, figures(list)); diff != "" {
					t.Errorf("figures (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestByName(t *testing.T) {
	whole := three()
	whole.pods = whole.pods[:2]
	tests := map[string]struct {
		fleet     *fleet
		namespace string
		name      string
		info      provider.CustomMetricInfo
		want      int64
		err       string
	}{
		"a Pod":                        {three(), "vpn", "a", about("pods"), 40, ""},
		"a draining Pod":               {three(), "vpn", "b", about("pods"), 0, ""},
		"an unknown Pod":               {three(), "vpn", "c", about("pods"), 0, "c: connection refused"},
		"a Pod that has ended":         {three(), "vpn", "e", about("pods"), 0, "could not find the metric"},
		"no Pod of the gateway":        {three(), "vpn", "z", about("pods"), 0, "could not find the metric"},
		"the Deployment":               {whole, "vpn", "edge", about("deployments.apps"), 40, ""},
		"the Service":                  {whole, "vpn", "edge", about("services"), 40, ""},
		"another Service":              {whole, "vpn", "a", about("services"), 0, "could not find the metric"},
		"the Service, a Pod unknown":   {three(), "vpn", "edge", about("services"), 0, "of 2 Pods: c: connection refused; d: the Pod has no address yet"},
		"a Deployment of no API group": {whole, "vpn", "edge", about("deployments"), 0, "could not find the metric"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := test.fleet.provider(&bytes.Buffer{}).GetMetricByName(t.Context(), types.NamespacedName{Namespace: test.namespace, Name: test.name}, test.info, labels.Everything())
			if !says(err, test.err) {
				t.Fatalf("error %v, want %q", err, test.err)
			}
			if err == nil {
				if n := got.Value.Value(); n != test.want || got.Metric.Name != Metric || !got.Timestamp.Equal(&metav1.Time{Time: test.fleet.now}) {
					t.Errorf("%d of %s at %s, want %d", n, got.Metric.Name, got.Timestamp, test.want)
				}
			}
		})
	}
}

// says reports whether an error has the text, or is none where there is no text.
func says(err error, text string) bool {
	if err == nil || text == "" {
		return err == nil && text == ""
	}
	return strings.Contains(err.Error(), text)
}

// An answer serves for a second and no longer; Pods that have ended are not asked.
func TestFresh(t *testing.T) {
	f := three()
	var log bytes.Buffer
	p := f.provider(&log)
	look := func() {
		t.Helper()
		if _, err := p.GetMetricBySelector(t.Context(), "vpn", labels.Everything(), about("pods"), labels.Everything()); err != nil {
			t.Fatal(err)
		}
	}
	look()
	f.now = f.now.Add(999 * time.Millisecond)
	look()
	if n := len(f.asked); n != 1 {
		t.Errorf("asked %d times within a second, want once", n)
	}
	f.now = f.now.Add(time.Millisecond)
	look()
	if n := len(f.asked); n != 2 {
		t.Errorf("asked %d times, want again after a second", n)
	}
	var asked []string
	for _, r := range f.asked[0] {
		asked = append(asked, r.Name+" "+r.Address.String())
	}
	if diff := cmp.Diff([]string{"a 10.0.0.1:8080", "b 10.0.0.2:8080", "c [fd00::3]:8080", "d invalid AddrPort"}, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	// A Pod without an address is no news.
	for name, want := range map[string]int{"pod=b": 2, "pod=c": 2, "pod=d": 0} {
		if n := strings.Count(log.String(), name); n != want {
			t.Errorf("%d lines with %s, want %d:\n%s", n, name, want, log.String())
		}
	}
}

// A look that fails is not kept.
func TestListFails(t *testing.T) {
	f := three()
	f.listed = errors.New("forbidden")
	p := f.provider(&bytes.Buffer{})
	ask := func() error {
		_, err := p.GetMetricBySelector(t.Context(), "vpn", labels.Everything(), about("pods"), labels.Everything())
		return err
	}
	if err := ask(); !says(err, "list the gateway's Pods: forbidden") {
		t.Errorf("error %v", err)
	}
	f.listed = nil
	if err := ask(); err != nil {
		t.Error(err)
	}
}

// Many at once are answered by one look, and who gives up waiting is let go.
func TestConcurrent(t *testing.T) {
	f := three()
	p := f.provider(&bytes.Buffer{})
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := p.GetMetricBySelector(t.Context(), "vpn", labels.Everything(), about("pods"), labels.Everything()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(f.asked) != 1 {
		t.Errorf("asked %d times, want once", len(f.asked))
	}
	p.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.GetMetricBySelector(ctx, "vpn", labels.Everything(), about("pods"), labels.Everything()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

// What has no figure is 503 to the API, so that nobody takes it for none.
func TestUnavailable(t *testing.T) {
	_, err := three().provider(&bytes.Buffer{}).GetMetricByName(t.Context(), types.NamespacedName{Namespace: "vpn", Name: "c"}, about("pods"), labels.Everything())
	if !apierrors.IsServiceUnavailable(err) {
		t.Errorf("error %v, want service unavailable", err)
	}
}

func TestListAllMetrics(t *testing.T) {
	var got []string
	for _, m := range three().provider(&bytes.Buffer{}).ListAllMetrics() {
		got = append(got, m.String())
	}
	want := []string{"pods/" + Metric + "(namespaced)", "services/" + Metric + "(namespaced)", "deployments.apps/" + Metric + "(namespaced)"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// Pods of other labels and namespaces are none of the gateway's.
func TestClusterPods(t *testing.T) {
	other, elsewhere, ours := pod("other", ""), pod("elsewhere", ""), pod("ours", "")
	ours.Namespace, other.Namespace, elsewhere.Namespace = "vpn", "vpn", "default"
	other.Labels = map[string]string{"app": "other"}
	pods, err := NewClusterPods(fake.NewClientset(&ours, &other, &elsewhere), "vpn", "app=vpn").ListPods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range pods {
		names = append(names, p.Name)
	}
	if diff := cmp.Diff([]string{"ours"}, names); diff != "" {
		t.Errorf("Pods (-want +got):\n%s", diff)
	}
}
