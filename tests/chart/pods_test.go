package chart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// everything switches every optional part on.
const everything = `
commonLabels: {team: network}
commonAnnotations: {example.com/owner: network}
ipv6: {enabled: true}
server: {addresses: [10.8.0.1/24, "fd00:8::1/64"], privateKey: {keep: true}}
peers:
- {name: alice, publicKey: QvKKn80wnjCsBY/V1Rhi/AxziLFqKOAVoKZYWJM2Zxc=, addresses: [10.8.0.2]}
- {name: bob, publicKey: E1nHdk+lh4vnPs9T1HP9DlVIwOWO+uNuyPMAwDL92kE=, addresses: [10.8.0.3], endpoint: "bob.example.com:51820"}
peersFrom: {existingSecrets: [peers-a, peers-b]}
presharedKeys: {existingSecrets: [psk-a, psk.b]}
keyRotation: {enabled: true, annotatePods: true, timeZone: Europe/Berlin, server: {nodePort: 31822}, presharedKeys: {schedule: "@weekly"}, podAnnotations: {q: r}, podLabels: {s: t}}
imagePullSecrets: [{name: pull}]
extraArgs: [--resync=10s]
extraEnv: [{name: A, value: b}]
extraEnvFrom: [{secretRef: {name: env}}]
podSecurityContext: {sysctls: [{name: net.core.somaxconn, value: "1024"}]}
podAnnotations: {a: b}
podLabels: {c: d}
lifecycle: {preStop: {sleep: {seconds: 1}}}
nodeSelector: {disk: ssd}
tolerations: [{key: dedicated, operator: Exists}]
affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: Exists}]}]}}}
scheduling: {sriov: required, networks: wan, deviceResource: intel.com/sriov}
priorityClassName: high
runtimeClassName: fast
dnsConfig: {options: [{name: ndots, value: "1"}]}
extraVolumes: [{name: more, emptyDir: {}}]
extraVolumeMounts: [{name: more, mountPath: /more}]
extraContainers: [{name: sidecar, image: example.com/sidecar}]
extraInitContainers: [{name: init, image: example.com/init}]
serviceAccount: {annotations: {e: f}}
keyJob: {podAnnotations: {g: h}, podLabels: {i: j}}
service:
  annotations: {k: l}
  labels: {exposed: public}
  nodePort: 31820
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  loadBalancerClass: example.com/lb
  loadBalancerIP: 203.0.113.1
  loadBalancerSourceRanges: [198.51.100.0/24]
  externalIPs: [203.0.113.2]
  ipFamilyPolicy: PreferDualStack
  ipFamilies: [IPv4, IPv6]
  health: {enabled: true, nodePort: 31821}
autoscaling: {enabled: true, behavior: {scaleDown: {stabilizationWindowSeconds: 600}}}
networkPolicy: {enabled: true, extraIngress: [{from: [{podSelector: {}}]}]}
metrics:
  serviceMonitor: {enabled: true, labels: {o: p}, interval: 30s, scrapeTimeout: 5s, relabelings: [{action: labeldrop, regex: pod}], metricRelabelings: [{action: labeldrop, regex: x}]}
  prometheusRule: {enabled: true, labels: {o: p}, annotations: {u: v}, alertLabels: {team: network}, rules: [{record: mine, expr: "vector(1)"}]}
extraObjects:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: "{{ .Release.Name }}-map"}}
- |
  apiVersion: v1
  kind: ConfigMap
  metadata:
    name: {{ .Release.Name }}-text
`

func get[T runtime.Object](t *testing.T, r *chart.Rendered, name string) T {
	t.Helper()
	o, err := chart.Get[T](r, name)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// The gateway's container has root's uid, for the capability, and of root's
// power NET_ADMIN alone; nothing in the Pod asks for more.
func TestGatewayIsNotPrivileged(t *testing.T) {
	d := get[*appsv1.Deployment](t, render(t, ""), "vpn-gateway")
	pod := d.Spec.Template.Spec
	want := &corev1.SecurityContext{
		RunAsUser:                ptr.To[int64](0),
		RunAsGroup:               ptr.To[int64](0),
		AllowPrivilegeEscalation: ptr.To(false),
		ReadOnlyRootFilesystem:   ptr.To(true),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if diff := cmp.Diff(want, pod.Containers[0].SecurityContext); diff != "" {
		t.Errorf("security context (-want +got):\n%s", diff)
	}
	if len(pod.InitContainers) != 0 || len(pod.Containers) != 1 {
		t.Errorf("%d init containers and %d containers, want 0 and 1", len(pod.InitContainers), len(pod.Containers))
	}
	if pod.SecurityContext != nil {
		t.Errorf("Pod security context is %v, want none: no sysctl without IPv6", pod.SecurityContext)
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Error("the Pod shares a namespace with its node")
	}
	for _, m := range pod.Containers[0].VolumeMounts {
		if m.SubPath != "" || m.SubPathExpr != "" {
			t.Errorf("mount %s has a subPath: the kubelet would never renew it", m.MountPath)
		}
		if strings.HasPrefix(m.MountPath, "/etc/") && !m.ReadOnly {
			t.Errorf("mount %s can be written", m.MountPath)
		}
	}
}

// What the agent reads is where it looks for it.
func TestMounts(t *testing.T) {
	r := render(t, `{presharedKeys: {existingSecrets: [psk-a, psk.b]}, peersFrom: {existingSecrets: [peers-a]}, server: {privateKey: {existingSecret: mine, key: wg.key}}}`)
	want := map[string]string{
		"/etc/vpn-gateway/config":          "configMap vpn-gateway",
		"/etc/vpn-gateway/key":             "projected mode=0400: secret mine, secret mine wg.key→privateKey",
		"/etc/vpn-gateway/psk/psk-a":       "secret psk-a mode=0400",
		"/etc/vpn-gateway/psk/psk.b":       "secret psk.b mode=0400",
		"/etc/vpn-gateway/peers.d/peers-a": "secret peers-a mode=0400",
		"/etc/vpn-gateway/rotation":        "configMap vpn-gateway-keys optional",
		"/var/run/wireguard":               "emptyDir Memory",
		"/dev/net/tun":                     "hostPath /dev/net/tun CharDevice",
	}
	if diff := cmp.Diff(want, mounts(t, r)); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}

// mounts are the paths of the gateway's mounts, each with what is there.
func mounts(t *testing.T, r *chart.Rendered) map[string]string {
	t.Helper()
	pod := get[*appsv1.Deployment](t, r, "").Spec.Template.Spec
	got := map[string]string{}
	for _, m := range pod.Containers[0].VolumeMounts {
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Errorf("no volume %s", m.Name)
			continue
		}
		got[m.MountPath] = describe(pod.Volumes[i])
	}
	return got
}

func describe(v corev1.Volume) string {
	switch {
	case v.ConfigMap != nil:
		if ptr.Deref(v.ConfigMap.Optional, false) {
			return "configMap " + v.ConfigMap.Name + " optional"
		}
		return "configMap " + v.ConfigMap.Name
	case v.Secret != nil:
		text := fmt.Sprintf("secret %s mode=%04o", v.Secret.SecretName, *v.Secret.DefaultMode)
		if v.Secret.Optional != nil {
			text += " optional"
		}
		return text
	case v.Projected != nil:
		var sources []string
		for _, s := range v.Projected.Sources {
			text := "secret " + s.Secret.Name
			for _, i := range s.Secret.Items {
				text += " " + i.Key + "→" + i.Path
			}
			if s.Secret.Optional != nil {
				text += " optional"
			}
			sources = append(sources, text)
		}
		return fmt.Sprintf("projected mode=%04o: %s", *v.Projected.DefaultMode, strings.Join(sources, ", "))
	case v.EmptyDir != nil:
		return "emptyDir " + string(v.EmptyDir.Medium)
	case v.HostPath != nil:
		return "hostPath " + v.HostPath.Path + " " + string(*v.HostPath.Type)
	}
	return "something else"
}

// The device for userspace comes from the node, from a device plugin, or is not
// asked for.
func TestTun(t *testing.T) {
	for _, c := range []struct {
		values   string
		hostPath bool
		device   string
	}{
		{"{}", true, ""},
		{"{server: {dataPlane: userspace}}", true, ""},
		{"{server: {dataPlane: kernel}}", false, ""},
		{"{tun: {deviceResource: devic.es/tun}}", false, "devic.es/tun"},
		{"{server: {dataPlane: kernel}, tun: {deviceResource: devic.es/tun}}", false, ""},
	} {
		pod := get[*appsv1.Deployment](t, render(t, c.values), "").Spec.Template.Spec
		hasPath := slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil })
		if hasPath != c.hostPath {
			t.Errorf("%s: hostPath %v, want %v", c.values, hasPath, c.hostPath)
		}
		want := corev1.ResourceList{}
		for name, q := range pod.Containers[0].Resources.Limits {
			if q.Value() != 1 {
				t.Errorf("%s: %s of %s, want 1", c.values, q.String(), name)
			}
			want[name] = q
		}
		if _, has := want[corev1.ResourceName(c.device)]; has != (c.device != "") || len(want) > 1 {
			t.Errorf("%s: limits %v, want the device %q alone", c.values, want, c.device)
		}
	}
}

// The Pods of the Jobs and of the test pass Pod Security's level restricted.
func TestHelpersAreRestricted(t *testing.T) {
	r := render(t, "keyRotation: {enabled: true}")
	job := get[*batchv1.Job](t, r, "")
	pods := map[string]corev1.PodSpec{
		"key":    job.Spec.Template.Spec,
		"rotate": get[*batchv1.CronJob](t, r, "").Spec.JobTemplate.Spec.Template.Spec,
		"test":   get[*corev1.Pod](t, r, "vpn-gateway-test-ready").Spec,
	}
	for name, pod := range pods {
		wantPod := &corev1.PodSecurityContext{
			RunAsNonRoot:   ptr.To(true),
			RunAsUser:      ptr.To[int64](65532),
			RunAsGroup:     ptr.To[int64](65532),
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}
		if diff := cmp.Diff(wantPod, pod.SecurityContext); diff != "" {
			t.Errorf("%s: Pod security context (-want +got):\n%s", name, diff)
		}
		want := &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr.To(false),
			ReadOnlyRootFilesystem:   ptr.To(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		}
		if diff := cmp.Diff(want, pod.Containers[0].SecurityContext); diff != "" {
			t.Errorf("%s: security context (-want +got):\n%s", name, diff)
		}
	}
	// a restart every five minutes, in the end: hours without the API server
	if limit := ptr.Deref(job.Spec.BackoffLimit, 6); limit < 50 || job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		t.Errorf("the Job gives up after %d restarts (policy %s)", limit, job.Spec.Template.Spec.RestartPolicy)
	}
	if job.Spec.TTLSecondsAfterFinished != nil || len(job.Annotations) != 0 {
		t.Errorf("the Job is cleaned up or a hook: ttl %v, annotations %v", job.Spec.TTLSecondsAfterFinished, job.Annotations)
	}
}

// The Job may read and patch the one Secret that it fills and the ConfigMap where it
// says so, and no more.
func TestKeyRights(t *testing.T) {
	r := render(t, "")
	job := get[*batchv1.Job](t, r, "")
	role := get[*rbacv1.Role](t, r, "vpn-gateway-key")
	binding := get[*rbacv1.RoleBinding](t, r, "vpn-gateway-key")
	secret := get[*corev1.Secret](t, r, "")
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{secret.Name}, Verbs: []string{"get", "patch"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"vpn-gateway-keys"}, Verbs: []string{"get", "patch"}},
	}
	if diff := cmp.Diff(want, role.Rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	account := job.Spec.Template.Spec.ServiceAccountName
	if diff := cmp.Diff([]rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: "default"}}, binding.Subjects); diff != "" {
		t.Errorf("subjects (-want +got):\n%s", diff)
	}
	if binding.RoleRef.Name != role.Name {
		t.Errorf("binding refers to %s, want %s", binding.RoleRef.Name, role.Name)
	}
	if gateway := get[*appsv1.Deployment](t, r, "").Spec.Template.Spec.ServiceAccountName; gateway == account {
		t.Errorf("the gateway runs as %s, which may read the Secret", gateway)
	}
	wantArgs := []string{
		"keys", "init", "--namespace=default", "--secret=" + secret.Name, "--key=privateKey",
		"--publish=vpn-gateway-keys", "--endpoint=203.0.113.1:51820", "--green-endpoint=203.0.113.1:51821", "--overlap=168h",
	}
	if diff := cmp.Diff(wantArgs, job.Spec.Template.Spec.Containers[0].Args); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
}

// A key of the user's own means no Job, no Secret and no rights.
func TestExistingKey(t *testing.T) {
	for _, o := range render(t, "{server: {privateKey: {existingSecret: mine}}, fleet: {enabled: false}}").Objects {
		switch o.Kind {
		case "Secret", "Job", "Role", "RoleBinding":
			t.Errorf("%s %s is rendered", o.Kind, o.Name)
		case "ConfigMap":
			if o.Name != "vpn-gateway" {
				t.Errorf("ConfigMap %s is rendered, and nobody would fill it", o.Name)
			}
		case "ServiceAccount":
			if o.Name != "vpn-gateway" {
				t.Errorf("ServiceAccount %s is rendered", o.Name)
			}
		}
	}
}

// Jobs cannot be changed: the name follows the spec, and nothing else.
func TestJobNameFollowsItsSpec(t *testing.T) {
	name := func(values string) string { return get[*batchv1.Job](t, render(t, values), "").Name }
	base := name("")
	for values, same := range map[string]bool{
		`{replicaCount: 2, logLevel: debug, commonAnnotations: {a: b}, service: {type: NodePort}}`: true,
		`{image: {tag: next}}`:                                false,
		`{commonLabels: {a: b}}`:                              false,
		`{keyJob: {resources: {limits: {memory: 64Mi}}}}`:     false,
		`{tolerations: [{key: dedicated, operator: Exists}]}`: false,
	} {
		if got := name(values); (got == base) != same {
			t.Errorf("%s: Job is called %s, without it %s; want the same name: %v", values, got, base, same)
		}
	}
}

// Services, budget, autoscaler, policy and spread constraints select the
// gateway's Pods, and never those of the Jobs and of the test.
func TestSelectors(t *testing.T) {
	r := render(t, everything)
	deployment := get[*appsv1.Deployment](t, r, "")
	gateway := labels.Set(deployment.Spec.Template.Labels)
	others := map[string]labels.Set{
		"the key Job's Pod": get[*batchv1.Job](t, r, "").Spec.Template.Labels,
		"the test's Pod":    get[*corev1.Pod](t, r, "").Labels,
		"the CronJob's Pod": get[*batchv1.CronJob](t, r, "vpn-gateway-rotate-server").Spec.JobTemplate.Spec.Template.Labels,
	}
	selectors := map[string]labels.Selector{
		"Deployment":          selector(t, deployment.Spec.Selector),
		"Service":             labels.SelectorFromSet(get[*corev1.Service](t, r, "vpn-gateway").Spec.Selector),
		"headless Service":    labels.SelectorFromSet(get[*corev1.Service](t, r, "vpn-gateway-headless").Spec.Selector),
		"PodDisruptionBudget": selector(t, get[*policyv1.PodDisruptionBudget](t, r, "").Spec.Selector),
		"NetworkPolicy":       selector(t, &get[*networkingv1.NetworkPolicy](t, r, "").Spec.PodSelector),
	}
	for i, c := range deployment.Spec.Template.Spec.TopologySpreadConstraints {
		selectors[fmt.Sprintf("topologySpreadConstraints[%d]", i)] = selector(t, c.LabelSelector)
	}
	for name, s := range selectors {
		if !s.Matches(gateway) {
			t.Errorf("%s: %s does not select the gateway's Pods", name, s)
		}
		for other, set := range others {
			if s.Matches(set) {
				t.Errorf("%s: %s selects %s", name, s, other)
			}
		}
	}
	want := map[string]string{"app.kubernetes.io/name": "vpn-gateway", "app.kubernetes.io/instance": "vpn-gateway"}
	if diff := cmp.Diff(want, deployment.Spec.Selector.MatchLabels); diff != "" {
		t.Errorf("the Deployment's selector can never change (-want +got):\n%s", diff)
	}
	if hpa := get[*autoscalingv2.HorizontalPodAutoscaler](t, r, ""); hpa.Spec.ScaleTargetRef.Name != deployment.Name {
		t.Errorf("autoscaler scales %s, want %s", hpa.Spec.ScaleTargetRef.Name, deployment.Name)
	}
	if deployment.Spec.Replicas != nil {
		t.Errorf("replicas is %d beside an autoscaler", *deployment.Spec.Replicas)
	}
}

func selector(t *testing.T, s *metav1.LabelSelector) labels.Selector {
	t.Helper()
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What the running agent takes up by itself leaves the Pods as they are; what it
// cannot take up replaces them.
func TestReloadsRestartNothing(t *testing.T) {
	template := func(values string) corev1.PodTemplateSpec {
		return get[*appsv1.Deployment](t, render(t, values), "").Spec.Template
	}
	for _, values := range []string{
		"peers: [{name: alice, publicKey: QvKKn80wnjCsBY/V1Rhi/AxziLFqKOAVoKZYWJM2Zxc=, addresses: [10.8.0.2]}]",
		"routing: {peerToPeer: true, masquerade: false, routes: [10.0.0.0/8], dns: [10.96.0.10], allowedDestinations: []}",
		"server: {mtu: 1380, addresses: [10.9.0.1/24]}",
		"service: {type: NodePort, health: {enabled: true}}",
		"keyRotation: {enabled: true, lead: 5m, server: {schedule: '@daily', overlap: 24h, publicPort: 443}}",
	} {
		if diff := cmp.Diff(template(""), template(values)); diff != "" {
			t.Errorf("%s changes the Pods:\n%s", values, diff)
		}
	}
	for _, values := range []string{"server: {interface: vpn0}", "server: {dataPlane: userspace}", "server: {drain: 1m}", "keyRotation: {server: {listenPort: 4500}}"} {
		if cmp.Equal(template(""), template(values)) {
			t.Errorf("%s does not change the Pods, and no running agent can take it up", values)
		}
	}
}
