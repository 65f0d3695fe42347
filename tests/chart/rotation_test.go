package chart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

const (
	rotateServer = "CronJob/vpn-gateway-rotate-server"
	rotatePSK    = "CronJob/vpn-gateway-rotate-psk-0"
	rotatePod    = ".spec.jobTemplate.spec.template"
)

var rotationKnobs = []knob{
	{"keyRotation.enabled", "keyRotation: {enabled: true}", rotateServer, ".spec.concurrencyPolicy", "Forbid"},
	{"keyRotation.enabled", "keyRotation: {enabled: true}", service, ".spec.ports[1]", `{"name":"wireguard-green","port":51821,"protocol":"UDP","targetPort":"wg-green"}`},
	{"keyRotation.enabled", "{keyRotation: {enabled: true}, networkPolicy: {enabled: true}}", policy, ".spec.ingress[0].ports[1]", `{"port":51821,"protocol":"UDP"}`},
	{"keyRotation.lead", "keyRotation: {enabled: true, lead: 1h}", rotateServer, rotatePod + ".spec.containers[0].args[6]", "--lead=1h"},
	{"keyRotation.annotatePods", "keyRotation: {enabled: true, annotatePods: true}", rotateServer, rotatePod + ".spec.containers[0].args[12]", "--annotate-pods=app.kubernetes.io/instance=vpn-gateway,app.kubernetes.io/name=vpn-gateway"},
	{"keyRotation.annotatePods", "keyRotation: {enabled: true, annotatePods: true}", "Role/vpn-gateway-rotate", ".rules[2]", `{"apiGroups":[""],"resources":["pods"],"verbs":["list","patch"]}`},
	{"keyRotation.server.schedule", "keyRotation: {enabled: true, server: {schedule: '@weekly'}}", rotateServer, ".spec.schedule", "@weekly"},
	{"keyRotation.server.overlap", "keyRotation: {enabled: true, server: {overlap: 24h}}", rotateServer, rotatePod + ".spec.containers[0].args[10]", "--overlap=24h"},
	{"keyRotation.server.overlap", "keyRotation: {server: {overlap: 24h}}", agentFile, ".keyRotation.server.overlap", "24h"},
	{"keyRotation.server.listenPort", "keyRotation: {server: {listenPort: 4500}}", agentFile, ".keyRotation.server.listenPort", "4500"},
	{"keyRotation.server.listenPort", "keyRotation: {server: {listenPort: 4500}}", deployment, gateway + ".ports[3]", `{"containerPort":4500,"name":"wg-green","protocol":"UDP"}`},
	{"keyRotation.server.listenPort", "{keyRotation: {enabled: true, server: {listenPort: 4500}}, networkPolicy: {enabled: true}}", policy, ".spec.ingress[0].ports[1].port", "4500"},
	{"keyRotation.server.publicPort", "keyRotation: {server: {publicPort: 443}}", agentFile, ".keyRotation.server.publicPort", "443"},
	{"keyRotation.server.publicPort", "keyRotation: {enabled: true, server: {publicPort: 443}}", service, ".spec.ports[1].port", "443"},
	{"keyRotation.server.publicPort", "{server: {publicEndpoint: '[2001:db8::1]:51820'}, keyRotation: {enabled: true, server: {publicPort: 443}}}", rotateServer, rotatePod + ".spec.containers[0].args[9]", "--green-endpoint=[2001:db8::1]:443"},
	{"keyRotation.server.nodePort", "keyRotation: {enabled: true, server: {nodePort: 31821}}", service, ".spec.ports[1].nodePort", "31821"},
	{"keyRotation.presharedKeys.schedule", "{presharedKeys: {existingSecrets: [psk]}, keyRotation: {enabled: true, presharedKeys: {schedule: 0 4 * * 1-5}}}", rotatePSK, ".spec.schedule", "0 4 * * 1-5"},
	{"keyRotation.timeZone", "keyRotation: {enabled: true, timeZone: Europe/Berlin}", rotateServer, ".spec.timeZone", "Europe/Berlin"},
	{"keyRotation.suspend", "keyRotation: {enabled: true, suspend: true}", rotateServer, ".spec.suspend", "true"},
	{"keyRotation.successfulJobsHistoryLimit", "keyRotation: {enabled: true, successfulJobsHistoryLimit: 0}", rotateServer, ".spec.successfulJobsHistoryLimit", "0"},
	{"keyRotation.failedJobsHistoryLimit", "keyRotation: {enabled: true, failedJobsHistoryLimit: 7}", rotateServer, ".spec.failedJobsHistoryLimit", "7"},
	{"keyRotation.resources", "keyRotation: {enabled: true, resources: {limits: {memory: 64Mi}}}", rotateServer, rotatePod + ".spec.containers[0].resources.limits.memory", "64Mi"},
	{"keyRotation.podAnnotations", "keyRotation: {enabled: true, podAnnotations: {a: b}}", rotateServer, rotatePod + ".metadata.annotations.a", "b"},
	{"keyRotation.podLabels", "keyRotation: {enabled: true, podLabels: {a: b}}", rotateServer, rotatePod + ".metadata.labels.a", "b"},
	{"server.publicEndpoint", "{server: {publicEndpoint: 'vpn.example.com:65535', listenPort: 65535}, keyRotation: {enabled: true}}", agentFile, ".keyRotation.server", `{"listenPort":65534,"overlap":"168h","publicPort":65534}`},
}

// cronJobs are the names of the CronJobs, in order, each with the arguments of its
// container.
func cronJobs(r *chart.Rendered) map[string][]string {
	out := map[string][]string{}
	for _, o := range r.Objects {
		if c, ok := o.Object.(*batchv1.CronJob); ok {
			out[c.Name] = c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Args
		}
	}
	return out
}

// There is a CronJob for the server's key and one for each Secret of pre-shared
// keys, and it writes where that key is.
func TestRotations(t *testing.T) {
	// all are the Secrets of pre-shared keys that are rotated, of which every job is told.
	server := func(secret, all string, more ...string) []string {
		args := []string{
			"keys", "rotate", "--namespace=default", "--kind=server", "--secret=" + secret, "--key=privateKey", "--lead=10m",
			"--publish=vpn-gateway-keys", "--endpoint=203.0.113.1:51820", "--green-endpoint=203.0.113.1:51821", "--overlap=168h",
			"--preshared-secrets=" + all,
		}
		return slices.Insert(args, 5, more...)
	}
	psk := func(secret, all string, more ...string) []string {
		args := []string{"keys", "rotate", "--namespace=default", "--kind=preshared", "--secret=" + secret, "--lead=10m", "--publish=vpn-gateway-keys", "--preshared-secrets=" + all}
		return slices.Insert(args, 5, more...)
	}
	const both = "keyRotation: {enabled: true, presharedKeys: {schedule: '@monthly'}}\n"
	for values, want := range map[string]map[string][]string{
		"": {},
		"keyRotation: {enabled: true, server: {schedule: ''}}":                                 {},
		"keyRotation: {enabled: true}":                                                         {"vpn-gateway-rotate-server": server("vpn-gateway-key", "")},
		"{keyRotation: {enabled: true}, server: {privateKey: {existingSecret: mine}}}":         {"vpn-gateway-rotate-server": server("mine", "")},
		"{keyRotation: {enabled: true}, presharedKeys: {existingSecrets: [psk-a]}}":            {"vpn-gateway-rotate-server": server("vpn-gateway-key", "")},
		both + "presharedKeys: {existingSecrets: [psk-a, psk.b]}":                              {"vpn-gateway-rotate-server": server("vpn-gateway-key", "psk-a,psk.b"), "vpn-gateway-rotate-psk-0": psk("psk-a", "psk-a,psk.b"), "vpn-gateway-rotate-psk-1": psk("psk.b", "psk-a,psk.b")},
		both + "presharedKeys: {existingSecrets: [psk-a]}\nexternalSecrets: " + fetched:        {"vpn-gateway-rotate-server": server("vpn-gateway-key-external", "psk-a,psk-x", "--source=vpn-gateway-key"), "vpn-gateway-rotate-psk-0": psk("psk-a", "psk-a,psk-x"), "vpn-gateway-rotate-psk-1": psk("psk-x", "psk-a,psk-x", "--source=psk-x-source")},
		"{keyRotation: {enabled: true, annotatePods: true}, externalSecrets: " + fetched + "}": {"vpn-gateway-rotate-server": server("vpn-gateway-key-external", "", "--source=vpn-gateway-key")},
	} {
		if diff := cmp.Diff(want, cronJobs(render(t, values))); diff != "" {
			t.Errorf("%s\n(-want +got):\n%s", values, diff)
		}
	}
}

// fetched is externalSecrets with the keys from a backend, and a way back.
const fetched = "{enabled: true, secretStoreRef: {name: vault}, privateKey: {enabled: true, remoteKey: vpn/server}, presharedKeys: [{name: psk-x, remoteKey: vpn/psk}], pushSecret: {enabled: true}}"

// Whoever rotates may do so to what is rotated, and to nothing else.
func TestRotationRights(t *testing.T) {
	rule := func(resource string, verbs []string, names ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{resource}, ResourceNames: names, Verbs: verbs}
	}
	get1, patch := []string{"get"}, []string{"get", "patch"}
	published := rule("configmaps", patch, "vpn-gateway-keys")
	pods := rule("pods", []string{"list", "patch"})
	for values, want := range map[string][]rbacv1.PolicyRule{
		"keyRotation: {enabled: true}":                     {rule("secrets", patch, "vpn-gateway-key"), published},
		"keyRotation: {enabled: true, annotatePods: true}": {rule("secrets", patch, "vpn-gateway-key"), published, pods},
		"{keyRotation: {enabled: true, presharedKeys: {schedule: '@monthly'}}, presharedKeys: {existingSecrets: [psk-a]}, server: {privateKey: {existingSecret: mine}}}":         {rule("secrets", patch, "mine", "psk-a"), published},
		"{keyRotation: {enabled: true, annotatePods: true}, externalSecrets: " + fetched + "}":                                                                                   {rule("secrets", patch, "vpn-gateway-key"), rule("secrets", get1, "vpn-gateway-key-external"), published},
		"{keyRotation: {enabled: true, annotatePods: true, presharedKeys: {schedule: '@monthly'}}, presharedKeys: {existingSecrets: [psk-a]}, externalSecrets: " + fetched + "}": {rule("secrets", patch, "vpn-gateway-key", "psk-a", "psk-x-source"), rule("secrets", get1, "vpn-gateway-key-external", "psk-x"), published, pods},
	} {
		r := render(t, values)
		if diff := cmp.Diff(want, get[*rbacv1.Role](t, r, "vpn-gateway-rotate").Rules); diff != "" {
			t.Errorf("%s\nrules (-want +got):\n%s", values, diff)
		}
		binding := get[*rbacv1.RoleBinding](t, r, "vpn-gateway-rotate")
		account := get[*corev1.ServiceAccount](t, r, "vpn-gateway-rotate")
		if diff := cmp.Diff([]rbacv1.Subject{{Kind: "ServiceAccount", Name: account.Name, Namespace: account.Namespace}}, binding.Subjects); diff != "" {
			t.Errorf("%s\nsubjects (-want +got):\n%s", values, diff)
		}
		if binding.RoleRef.Name != "vpn-gateway-rotate" {
			t.Errorf("%s\nbinding refers to %s", values, binding.RoleRef.Name)
		}
		job := get[*batchv1.CronJob](t, r, "vpn-gateway-rotate-server").Spec.JobTemplate.Spec.Template.Spec
		if job.ServiceAccountName != account.Name || !*job.AutomountServiceAccountToken {
			t.Errorf("%s\nthe CronJob runs as %s, its token mounted: %v", values, job.ServiceAccountName, *job.AutomountServiceAccountToken)
		}
	}
}

// What is not in force without rotation is not there: no Job, no right, no open port.
func TestNoRotation(t *testing.T) {
	for _, o := range render(t, "networkPolicy: {enabled: true}").Objects {
		if strings.Contains(o.Template, "rotate") {
			t.Errorf("%s is rendered", o.Template)
		}
		if o.Kind == "Service" || o.Kind == "NetworkPolicy" {
			if strings.Contains(string(o.YAML), "51821") {
				t.Errorf("%s opens the second port:\n%s", o.Template, o.YAML)
			}
		}
	}
}

// Who stops rotating keeps the second port: the key in force may be the one there.
func TestSecondPortStays(t *testing.T) {
	for name, rotation := range map[string]string{
		"suspended":              "{enabled: true, suspend: true}",
		"no schedule":            "{enabled: true, server: {schedule: ''}}",
		"nothing has a schedule": "{enabled: true, server: {schedule: ''}, presharedKeys: {schedule: ''}}",
	} {
		r := render(t, "{networkPolicy: {enabled: true}, keyRotation: "+rotation+"}")
		open := func(p corev1.ServicePort) bool {
			return p.Port == 51821 && p.Protocol == corev1.ProtocolUDP && p.TargetPort.StrVal == "wg-green"
		}
		if ports := get[*corev1.Service](t, r, "vpn-gateway").Spec.Ports; !slices.ContainsFunc(ports, open) {
			t.Errorf("%s: the Service has not the second port: %v", name, ports)
		}
		let := func(p networkingv1.NetworkPolicyPort) bool { return p.Port.IntVal == 51821 }
		if rules := get[*networkingv1.NetworkPolicy](t, r, "vpn-gateway").Spec.Ingress; !slices.ContainsFunc(rules[0].Ports, let) {
			t.Errorf("%s: the NetworkPolicy does not let the second port through: %v", name, rules)
		}
		for job := range cronJobs(r) {
			if !*get[*batchv1.CronJob](t, r, job).Spec.Suspend {
				t.Errorf("%s: CronJob %s goes on", name, job)
			}
		}
	}
}

// The ConfigMap is the Jobs' to fill, and the gateway starts without it.
func TestPublishedIsEmpty(t *testing.T) {
	for _, values := range []string{"", "{server: {privateKey: {existingSecret: mine}}, keyRotation: {enabled: true}}"} {
		r := render(t, values)
		m := get[*corev1.ConfigMap](t, r, "vpn-gateway-keys")
		if m.Data != nil || m.BinaryData != nil {
			t.Errorf("%s: the ConfigMap has data, which every upgrade would bring back", values)
		}
		for _, v := range get[*appsv1.Deployment](t, r, "").Spec.Template.Spec.Volumes {
			if v.ConfigMap != nil && v.ConfigMap.Name == m.Name && (v.ConfigMap.Optional == nil || !*v.ConfigMap.Optional) {
				t.Errorf("%s: the gateway waits for it", values)
			}
		}
	}
}

// Kubernetes adds the time to a CronJob's name, for which 52 characters leave
// room. What is cut short stays apart.
func TestCronJobNames(t *testing.T) {
	long := strings.Repeat("a", 45)
	names := map[string]bool{}
	for _, name := range []string{"edge", long + "-north", long + "-south", strings.Repeat("a", 38), strings.Repeat("a", 39)} {
		r, err := chart.Render(chart.Options{
			ChartDir: chartDir, Set: []string{endpoint, "fullnameOverride=" + name},
			Values: values(t, "{keyRotation: {enabled: true, presharedKeys: {schedule: '@monthly'}}, presharedKeys: {existingSecrets: [a, b, c, d, e, f, g, h, i, j, k]}}"),
		})
		if err != nil {
			t.Fatal(err)
		}
		jobs := cronJobs(r)
		if len(jobs) != 12 {
			t.Errorf("%s: %d CronJobs, want 12", name, len(jobs))
		}
		for job := range jobs {
			if len(job) > 52 || names[job] {
				t.Errorf("%s: CronJob %s has %d characters, or the name of another", name, job, len(job))
			}
			names[job] = true
		}
	}
	if !names["edge-rotate-server"] || !names[strings.Repeat("a", 38)+"-rotate-server"] {
		t.Errorf("names that need not be cut are: %v", names)
	}
}

// Schedules that Kubernetes takes are taken, too.
func TestSchedules(t *testing.T) {
	for _, schedule := range []string{"0 3 1 * *", "*/5 * * * *", "0,30 8-18/2 * JAN-mar mon-FRI", "5 4 ? * 0", "@monthly", "@every 1h30m", "0  3 1 * *"} {
		if _, err := chart.Render(chart.Options{ChartDir: chartDir, Set: []string{endpoint}, Values: map[string]any{
			"keyRotation": map[string]any{"enabled": true, "server": map[string]any{"schedule": schedule}},
		}}); err != nil {
			t.Errorf("%q is refused: %v", schedule, err)
		}
	}
}

// Every Role names the objects that it is about, except of Pods, which have no
// names beforehand; and it has no verb that could not be held to a name. The
// metrics adapter's rights are in TestAdapterRights.
func TestRolesNameObjects(t *testing.T) {
	ofPods := []rbacv1.PolicyRule{ // of the gateway; TestAdmissionPolicy
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"pods/status"}, Verbs: []string{"patch"}},
	}
	pods := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list", "patch"}}
	var seen int
	check := func(source string, annotates bool, r *chart.Rendered) {
		for _, o := range r.Objects {
			if strings.HasPrefix(o.Template, "templates/metrics-") {
				continue
			}
			if o.Kind == "ClusterRole" || o.Kind == "ClusterRoleBinding" {
				t.Errorf("%s: %s %s is for all namespaces", source, o.Kind, o.Name)
			}
			role, ok := o.Object.(*rbacv1.Role)
			if !ok {
				continue
			}
			for i, rule := range role.Rules {
				seen++
				where := fmt.Sprintf("%s: Role %s, rules[%d] %v", source, role.Name, i, rule)
				if annotates && cmp.Equal(rule, pods) || role.Name == "vpn-gateway-fleet" && i < 2 && cmp.Equal(rule, ofPods[i]) {
					continue
				}
				if len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, "") {
					t.Errorf("%s: names no objects", where)
				}
				for _, verb := range rule.Verbs {
					if verb != "get" && verb != "patch" {
						t.Errorf("%s: verb %s", where, verb)
					}
				}
				if slices.Contains(rule.Resources, "*") || slices.Contains(rule.APIGroups, "*") {
					t.Errorf("%s: is about everything", where)
				}
			}
		}
	}
	for name, file := range scenarios(t) {
		check(name, false, renderFile(t, file))
	}
	check("everything", true, render(t, everything+external))
	if seen < 10 {
		t.Errorf("%d rules seen, want at least 10", seen)
	}
}
