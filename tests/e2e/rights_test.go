//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// ofFleet are the rights that a gateway of several replicas has for the readiness gates.
func ofFleet() []string {
	return []string{"get /pods ", "patch /pods/status ", "get,patch coordination.k8s.io/leases " + release + "-fleet"}
}

// checkRights compares all that the two ServiceAccounts may with what they need:
// the Job one Secret and one ConfigMap by name, the gateway of one replica nothing.
func (g *gateway) checkRights(t *testing.T) {
	g.grants(t, release)
	g.grants(t, keySecret, "get,patch /secrets "+keySecret, "get,patch /configmaps "+publishedKeys)
}

// grants fails t unless a ServiceAccount may do in its namespace what is given, a rule
// a line as VERBS GROUP/RESOURCE NAMES, and nothing else there or in another
// namespace beside what every ServiceAccount may.
func (g *gateway) grants(t *testing.T, account string, want ...string) {
	t.Helper()
	slices.Sort(want)
	// What somebody may in all namespaces is among the rules of each.
	for namespace, want := range map[string][]string{g.namespace: want, "kube-system": nil} {
		everybody := g.rules(t, "nobody-in-particular", namespace)
		var got []string
		for _, rule := range g.rules(t, account, namespace) {
			if !slices.Contains(everybody, rule) {
				got = append(got, rule)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("rights of ServiceAccount %s in %s (-want +got):\n%s", account, namespace, diff)
		}
	}
}

// rules asks the API server what it lets a ServiceAccount of the gateway's
// namespace do in a namespace.
func (g *gateway) rules(t *testing.T, account, namespace string) []string {
	t.Helper()
	config := rest.CopyConfig(g.config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: fmt.Sprintf("system:serviceaccount:%s:%s", g.namespace, account),
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + g.namespace, "system:authenticated"},
	}
	client := must[*kubernetes.Clientset](t)(kubernetes.NewForConfig(config))
	review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), &authv1.SelfSubjectRulesReview{
		Spec: authv1.SelfSubjectRulesReviewSpec{Namespace: namespace},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if review.Status.EvaluationError != "" {
		t.Fatalf("rights of ServiceAccount %s: %s", account, review.Status.EvaluationError)
	}
	var rules []string
	for _, r := range review.Status.ResourceRules {
		rules = append(rules, fmt.Sprintf("%s %s/%s %s", strings.Join(r.Verbs, ","),
			strings.Join(r.APIGroups, ","), strings.Join(r.Resources, ","), strings.Join(r.ResourceNames, ",")))
	}
	return rules
}

// checkProcess looks at the gateway from the node's side: what the kernel lets
// the process do, whatever the manifest says.
func (g *gateway) checkProcess(t *testing.T) {
	pod := g.pod(t)
	for _, c := range pod.Spec.Containers {
		if s := c.SecurityContext; s == nil || s.Privileged != nil && *s.Privileged || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
			t.Errorf("container %s may be privileged: %+v", c.Name, s)
		}
	}
	if len(pod.Spec.InitContainers) != 0 {
		t.Errorf("%d init containers, want none", len(pod.Spec.InitContainers))
	}
	root := processOf(t, pod)
	status := statusOf(t, root)
	const netAdmin = "0000000000001000" // bit 12, linux/capability.h
	want := map[string]string{
		"CapInh": "0000000000000000", "CapPrm": netAdmin, "CapEff": netAdmin, "CapBnd": netAdmin, "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2", // of a filter
	}
	got := map[string]string{}
	for field := range want {
		got[field] = status[field]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("/proc/PID/status of the agent (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(root, "root", "var", "run", "secrets")); !os.IsNotExist(err) {
		t.Errorf("a token is mounted into the gateway (%v)", err)
	}
	mounts := mountsOf(t, root)
	for _, target := range []string{"/", "/proc/sys", "/etc/vpn-gateway/config", "/etc/vpn-gateway/key"} {
		if options := "," + mounts[target] + ","; !strings.Contains(options, ",ro,") {
			t.Errorf("%s is mounted %s, want it read-only", target, options)
		}
	}
}

// processOf is the directory in this machine's /proc of the Pod's agent. The nodes
// have process namespaces of their own, which are all below ours.
func processOf(t *testing.T, pod corev1.Pod) string {
	t.Helper()
	for _, directory := range must[[]string](t)(filepath.Glob("/proc/[0-9]*")) {
		group, err := os.ReadFile(filepath.Join(directory, "cgroup"))
		if err != nil || !strings.Contains(string(group), string(pod.UID)) {
			continue // it has ended, or is somebody else's
		}
		name, err := os.ReadFile(filepath.Join(directory, "comm"))
		if err == nil && strings.TrimSpace(string(name)) == "vpn-agent" {
			return directory
		}
	}
	t.Fatalf("no process vpn-agent of Pod %s", pod.Name)
	return ""
}

// statusOf reads /proc/PID/status.
func statusOf(t *testing.T, process string) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(string(must[[]byte](t)(os.ReadFile(filepath.Join(process, "status"))))) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

// mountsOf are the options of a process's mounts by their targets (proc(5), mounts).
func mountsOf(t *testing.T, process string) map[string]string {
	t.Helper()
	options := map[string]string{}
	for line := range strings.Lines(string(must[[]byte](t)(os.ReadFile(filepath.Join(process, "mounts"))))) {
		if fields := strings.Fields(line); len(fields) > 3 {
			options[fields[1]] = fields[3]
		}
	}
	return options
}
