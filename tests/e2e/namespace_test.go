//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

const (
	echoImage = "vpn-gateway.test/echo:1" // brought by tests/cluster
	echoPort  = 8080
)

// namespace makes a namespace for a scenario, with further labels, and collects
// the logs of its Pods. It ends with t.
func (c *cluster) namespace(t *testing.T, name string, labels map[string]string) string {
	t.Helper()
	all := map[string]string{namespaceLabel: "true"}
	maps.Copy(all, labels)
	made, err := c.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		// Not the bare name: the namespace of an earlier run may still be ending.
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-" + name + "-", Labels: all},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.client.CoreV1().Namespaces().Delete(context.Background(), made.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		// The objects of the cluster that a release has do not go with its namespace.
		policies, name := c.client.AdmissionregistrationV1(), admissionPolicy(made.Name)
		for _, err := range []error{
			policies.ValidatingAdmissionPolicyBindings().Delete(context.Background(), name, metav1.DeleteOptions{}),
			policies.ValidatingAdmissionPolicies().Delete(context.Background(), name, metav1.DeleteOptions{}),
		} {
			if err != nil && !apierrors.IsNotFound(err) {
				t.Error(err)
			}
		}
	})
	c.collectLogs(t, made.Name)
	return made.Name
}

// collectLogs keeps the logs of all containers of a namespace in t's artifacts,
// from their start: Pods come and go while a scenario runs.
func (c *cluster) collectLogs(t *testing.T, namespace string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	pods, err := c.client.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir := testenv.Artifacts(t)
	var reading sync.WaitGroup
	reading.Go(func() {
		started := map[string]bool{}
		for event := range pods.ResultChan() {
			pod, ok := event.Object.(*corev1.Pod)
			if !ok || event.Type == watch.Deleted {
				continue
			}
			for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
				if started[s.ContainerID] || s.ContainerID == "" {
					continue
				}
				started[s.ContainerID] = true
				file := filepath.Join(dir, fmt.Sprintf("%s-%s-%s-%d.log", namespace, pod.Name, s.Name, s.RestartCount))
				reading.Go(func() { c.copyLog(ctx, pod, s.Name, file) })
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		reading.Wait()
	})
}

// copyLog copies a container's log to a file until the container ends. What goes
// wrong stands at the file's end: it is no fault of what is tested.
func (c *cluster) copyLog(ctx context.Context, pod *corev1.Pod, container, path string) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer file.Close()
	log, err := c.client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: container, Follow: true}).Stream(ctx)
	if err == nil {
		defer log.Close()
		_, err = io.Copy(file, log)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(file, "(the log ends here: %v)\n", err)
	}
}

// startEcho runs the service behind the gateways, in a namespace of its own.
func (c *cluster) startEcho(t *testing.T) {
	t.Helper()
	namespace := c.namespace(t, "backend", nil)
	labels := map[string]string{"app": "echo"}
	_, err := c.client.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "echo", Labels: labels},
		Spec: corev1.PodSpec{
			Containers:                    []corev1.Container{{Name: "echo", Image: echoImage}},
			TerminationGracePeriodSeconds: new(int64),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.client.CoreV1().Services(namespace).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "echo"},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: echoPort}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.echo = fmt.Sprintf("echo.%s.svc.cluster.local:%d", namespace, echoPort)
	eventually(t, "the echo service", func(ctx context.Context) (bool, string) {
		pod, err := c.client.CoreV1().Pods(namespace).Get(ctx, "echo", metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		return isReady(pod), string(pod.Status.Phase)
	})
}

// get asks an HTTP server that can be reached from the control plane, by a literal
// address, and returns status and body.
func (c *cluster) get(ctx context.Context, url string) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := c.control.HTTPClient().Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// inventory lists every object of a namespace, or with "" those of the cluster
// itself, as group/resource/name. Events are left out: they outlive all else.
func (c *cluster) inventory(ctx context.Context, namespace string) ([]string, error) {
	lists, err := discovery.ServerPreferredResources(c.client.Discovery())
	// The metrics adapter comes and goes with its scenario; its API has no lists.
	if failed, ok := discovery.GroupDiscoveryFailedErrorGroups(err); ok {
		for group, cause := range failed {
			if group.Group != customMetricsGroup {
				return nil, fmt.Errorf("discover %s: %w", group, cause)
			}
		}
	} else if err != nil {
		return nil, err
	}
	var all []string
	for _, list := range lists {
		group, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			if r.Namespaced != (namespace != "") || !slices.Contains(r.Verbs, "list") || r.Kind == "Event" || r.Kind == "ComponentStatus" {
				continue
			}
			objects, err := c.dynamic.Resource(group.WithResource(r.Name)).Namespace(namespace).List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", r.Name, err)
			}
			for _, o := range objects.Items {
				if !ofScenario(&o) {
					all = append(all, strings.Join([]string{group.Group, r.Name, o.GetName()}, "/"))
				}
			}
		}
	}
	slices.Sort(all)
	return all, nil
}

// ofScenario tells of an object of the cluster itself whether it belongs to a
// scenario, of which several run at a time.
func ofScenario(o *unstructured.Unstructured) bool {
	switch o.GetKind() {
	case "Namespace":
		return o.GetLabels()[namespaceLabel] != ""
	case "IPAddress": // one for each Service
		namespace, _, _ := unstructured.NestedString(o.Object, "spec", "parentRef", "namespace")
		return strings.HasPrefix(namespace, "e2e-")
	case "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding":
		return strings.HasPrefix(o.GetName(), admissionPolicy("e2e-"))
	case "APIService", "ClusterRoleBinding": // of the metrics adapter
		return strings.HasSuffix(o.GetName(), "."+customMetricsGroup) || strings.HasPrefix(o.GetName(), "e2e-")
	}
	return false
}

// isReady reports whether a Pod is ready and not on its way out.
func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil
		}
	}
	return false
}
