package chart

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chartutil"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// knob says where a value ends.
type knob struct {
	value  string // its path
	values string // the values that turn it, in YAML
	object string // kind/name of the object that shows it; "gateway.yaml" is the ConfigMap's content
	path   string // JSONPath in it
	want   string // what stands there then
}

const (
	deployment = "Deployment/vpn-gateway"
	pod        = ".spec.template.spec"
	gateway    = pod + ".containers[0]"
	service    = "Service/vpn-gateway"
	headless   = "Service/vpn-gateway-headless"
	budget     = "PodDisruptionBudget/vpn-gateway"
	scaler     = "HorizontalPodAutoscaler/vpn-gateway"
	policy     = "NetworkPolicy/vpn-gateway"
	agentFile  = "gateway.yaml"
)

// Every value of values.yaml has at least one line here; TestEveryValueIsAKnob
// holds that. An empty want means that nothing is there.
var knobs = []knob{
	{"global.imageRegistry", "global: {imageRegistry: mirror.example.com}", deployment, gateway + ".image", "mirror.example.com/cloud-native-vpn/vpn-gateway:0.1.0"},
	{"nameOverride", "nameOverride: vpn", deployment, ".metadata.labels.app\\.kubernetes\\.io/name", "vpn"},
	{"nameOverride", "nameOverride: edge", "Deployment/vpn-gateway-edge", ".metadata.name", "vpn-gateway-edge"},
	{"fullnameOverride", "fullnameOverride: edge", "ConfigMap/edge", ".metadata.name", "edge"},
	{"fullnameOverride", "fullnameOverride: edge", "Pod/edge-test-ready", ".spec.containers[0].args[1]", "http://edge-headless:8080/readyz"},
	{"namespaceOverride", "namespaceOverride: vpn", deployment, ".metadata.namespace", "vpn"},
	{"namespaceOverride", "namespaceOverride: vpn", "RoleBinding/vpn-gateway-key", ".subjects[0].namespace", "vpn"},
	{"commonLabels", "commonLabels: {team: net}", service, ".metadata.labels.team", "net"},
	{"commonLabels", "commonLabels: {team: net}", deployment, ".spec.template.metadata.labels.team", "net"},
	{"commonAnnotations", "commonAnnotations: {team: net}", "ConfigMap/vpn-gateway", ".metadata.annotations.team", "net"},

	{"server.publicEndpoint", "server: {publicEndpoint: 'vpn.example.com:443'}", agentFile, ".server.publicEndpoint", "vpn.example.com:443"},
	{"server.publicEndpoint", "server: {publicEndpoint: 'vpn.example.com:443'}", service, ".spec.ports[0].port", "443"},
	{"server.publicEndpoint", "server: {publicEndpoint: '[2001:db8::1]:4500'}", service, ".spec.ports[0].port", "4500"},
	{"server.privateKey.existingSecret", "server: {privateKey: {existingSecret: mine}}", deployment, pod + ".volumes[1].projected.sources[1].secret.name", "mine"},
	{"server.privateKey.key", "server: {privateKey: {existingSecret: mine, key: wg.key}}", deployment, pod + ".volumes[1].projected.sources[1].secret.items[0].key", "wg.key"},
	{"server.privateKey.keep", "server: {privateKey: {keep: true}}", "Secret/vpn-gateway-key", ".metadata.annotations.helm\\.sh/resource-policy", "keep"},
	{"server.interface", "server: {interface: vpn0}", agentFile, ".server.interface", "vpn0"},
	{"server.listenPort", "server: {listenPort: 4500}", agentFile, ".server.listenPort", "4500"},
	{"server.listenPort", "server: {listenPort: 4500}", deployment, gateway + ".ports[0].containerPort", "4500"},
	{"server.listenPort", "{server: {listenPort: 4500}, networkPolicy: {enabled: true}}", policy, ".spec.ingress[0].ports[0].port", "4500"},
	{"server.addresses", "server: {addresses: [10.9.0.1/16]}", agentFile, ".server.addresses", `["10.9.0.1/16"]`},
	{"server.mtu", "server: {mtu: 1380}", agentFile, ".server.mtu", "1380"},
	{"server.dataPlane", "server: {dataPlane: kernel}", agentFile, ".server.dataPlane", "kernel"},
	{"server.drain", "server: {drain: 1h2m3s}", agentFile, ".server.drain", "1h2m3s"},
	{"server.drain", "server: {drain: 1h2m3s}", deployment, pod + ".terminationGracePeriodSeconds", "3733"},
	{"server.drain", "server: {drain: 0s}", deployment, pod + ".terminationGracePeriodSeconds", "10"},

	{"routing.masquerade", "routing: {masquerade: false}", agentFile, ".routing.masquerade", "false"},
	{"routing.peerToPeer", "routing: {peerToPeer: true}", agentFile, ".routing.peerToPeer", "true"},
	{"routing.allowedDestinations", "routing: {allowedDestinations: [{cidr: 10.0.0.0/8, protocol: tcp, ports: [443, 8000-8080]}]}", agentFile, ".routing.allowedDestinations", `[{"cidr":"10.0.0.0/8","ports":[443,"8000-8080"],"protocol":"tcp"}]`},
	{"routing.allowedDestinations", "routing: {allowedDestinations: []}", agentFile, ".routing.allowedDestinations", "[]"},
	{"routing.routes", "routing: {routes: [10.0.0.0/8]}", agentFile, ".routing.routes", `["10.0.0.0/8"]`},
	{"routing.dns", "routing: {dns: [10.96.0.10]}", agentFile, ".routing.dns", `["10.96.0.10"]`},
	{"ipv6.enabled", "ipv6: {enabled: true}", agentFile, ".ipv6.enabled", "true"},
	{"ipv6.enabled", "ipv6: {enabled: true}", agentFile, ".routing.allowedDestinations", `[{"cidr":"0.0.0.0/0"},{"cidr":"::/0"}]`},
	{"ipv6.enabled", "ipv6: {enabled: true}", deployment, pod + ".securityContext.sysctls", `[{"name":"net.ipv6.conf.all.forwarding","value":"1"}]`},
	{"peers", "peers: [{name: a, publicKey: QvKKn80wnjCsBY/V1Rhi/AxziLFqKOAVoKZYWJM2Zxc=, addresses: [10.8.0.2], allowedIPs: [192.168.1.0/24], endpoint: 'a.example.com:1', persistentKeepalive: 25, allowedDestinations: []}]", agentFile, ".peers", `[{"addresses":["10.8.0.2"],"allowedDestinations":[],"allowedIPs":["192.168.1.0/24"],"endpoint":"a.example.com:1","name":"a","persistentKeepalive":25,"publicKey":"QvKKn80wnjCsBY/V1Rhi/AxziLFqKOAVoKZYWJM2Zxc="}]`},
	{"peersFrom.existingSecrets", "peersFrom: {existingSecrets: [more, others]}", agentFile, ".peersFrom.existingSecrets", `["more","others"]`},
	{"presharedKeys.existingSecrets", "presharedKeys: {existingSecrets: [psk]}", agentFile, ".presharedKeys.existingSecrets", `["psk"]`},
	{"peersFrom.existingSecrets", "peersFrom: {existingSecrets: [more]}", deployment, gateway + ".volumeMounts[2].mountPath", "/etc/vpn-gateway/peers.d/more"},
	{"presharedKeys.existingSecrets", "presharedKeys: {existingSecrets: [psk]}", deployment, gateway + ".volumeMounts[2].mountPath", "/etc/vpn-gateway/psk/psk"},

	{"image.registry", "image: {registry: example.com}", deployment, gateway + ".image", "example.com/cloud-native-vpn/vpn-gateway:0.1.0"},
	{"image.registry", "image: {registry: ''}", deployment, gateway + ".image", "cloud-native-vpn/vpn-gateway:0.1.0"},
	{"image.repository", "image: {repository: mirror/vpn}", "Pod/vpn-gateway-test-ready", ".spec.containers[0].image", "ghcr.io/mirror/vpn:0.1.0"},
	{"image.tag", "image: {tag: next}", deployment, gateway + ".image", "ghcr.io/cloud-native-vpn/vpn-gateway:next"},
	{"image.digest", "image: {digest: " + digest + "}", deployment, gateway + ".image", "ghcr.io/cloud-native-vpn/vpn-gateway@" + digest},
	{"image.digest", "image: {tag: next, digest: " + digest + "}", deployment, gateway + ".image", "ghcr.io/cloud-native-vpn/vpn-gateway:next@" + digest},
	{"image.pullPolicy", "image: {pullPolicy: Always}", deployment, gateway + ".imagePullPolicy", "Always"},
	{"imagePullSecrets", "imagePullSecrets: [{name: pull}]", deployment, pod + ".imagePullSecrets", `[{"name":"pull"}]`},

	{"replicaCount", "replicaCount: 2", deployment, ".spec.replicas", "2"},
	{"replicaCount", "replicaCount: 0", deployment, ".spec.replicas", "0"},
	{"strategy", "strategy: {rollingUpdate: {maxSurge: 25%}}", deployment, ".spec.strategy.rollingUpdate.maxSurge", "25%"},
	{"strategy", "strategy: {type: Recreate, rollingUpdate: null}", deployment, ".spec.strategy", `{"type":"Recreate"}`},
	{"minReadySeconds", "minReadySeconds: 5", deployment, ".spec.minReadySeconds", "5"},
	{"revisionHistoryLimit", "revisionHistoryLimit: 3", deployment, ".spec.revisionHistoryLimit", "3"},
	{"terminationGracePeriodSeconds", "terminationGracePeriodSeconds: 90", deployment, pod + ".terminationGracePeriodSeconds", "90"},
	{"logLevel", "logLevel: debug", deployment, gateway + ".args[4]", "--log-level=debug"},
	{"extraArgs", "extraArgs: [--resync=10s]", deployment, gateway + ".args[10]", "--resync=10s"},
	{"extraEnv", "extraEnv: [{name: A, value: b}]", deployment, gateway + ".env[2]", `{"name":"A","value":"b"}`},
	{"extraEnvFrom", "extraEnvFrom: [{secretRef: {name: e}}]", deployment, gateway + ".envFrom", `[{"secretRef":{"name":"e"}}]`},
	{"ports.http", "ports: {http: 9090}", deployment, gateway + ".args[2]", "--http-address=:9090"},
	{"ports.http", "ports: {http: 9090}", headless, ".spec.ports[0].port", "9090"},
	{"ports.health", "ports: {health: 9091}", deployment, gateway + ".ports[2].containerPort", "9091"},
	{"tun.deviceResource", "tun: {deviceResource: devic.es/tun}", deployment, gateway + ".resources.limits", `{"devic.es/tun":1}`},
	{"resources", "resources: {requests: {cpu: 2}, limits: {memory: 1Gi}}", deployment, gateway + ".resources", `{"limits":{"memory":"1Gi"},"requests":{"cpu":2,"memory":"64Mi"}}`},
	{"securityContext", "securityContext: {runAsGroup: 7}", deployment, gateway + ".securityContext.runAsGroup", "7"},
	{"podSecurityContext", "podSecurityContext: {fsGroup: 7}", deployment, pod + ".securityContext", `{"fsGroup":7}`},
	{"podAnnotations", "podAnnotations: {kubectl.kubernetes.io/default-container: sidecar}", deployment, ".spec.template.metadata.annotations.kubectl\\.kubernetes\\.io/default-container", "sidecar"},
	{"podAnnotations", "podAnnotations: {a: b}", deployment, ".spec.template.metadata.annotations.a", "b"},
	{"podLabels", "podLabels: {a: b}", deployment, ".spec.template.metadata.labels.a", "b"},
	{"startupProbe", "startupProbe: {failureThreshold: 9}", deployment, gateway + ".startupProbe", `{"failureThreshold":9,"httpGet":{"path":"/healthz","port":"http"},"periodSeconds":1,"timeoutSeconds":2}`},
	{"readinessProbe", "readinessProbe: {periodSeconds: 9}", deployment, gateway + ".readinessProbe", `{"failureThreshold":2,"httpGet":{"path":"/readyz","port":"http"},"periodSeconds":9,"timeoutSeconds":2}`},
	{"livenessProbe", "livenessProbe: {timeoutSeconds: 9}", deployment, gateway + ".livenessProbe", `{"failureThreshold":6,"httpGet":{"path":"/healthz","port":"http"},"periodSeconds":10,"timeoutSeconds":9}`},
	{"livenessProbe", "livenessProbe: null", deployment, gateway + ".livenessProbe", ""},
	{"lifecycle", "lifecycle: {preStop: {sleep: {seconds: 5}}}", deployment, gateway + ".lifecycle.preStop.sleep.seconds", "5"},
	{"nodeSelector", "nodeSelector: {disk: ssd}", deployment, pod + ".nodeSelector.disk", "ssd"},
	{"tolerations", "tolerations: [{operator: Exists}]", deployment, pod + ".tolerations", `[{"operator":"Exists"}]`},
	{"affinity", "affinity: {podAntiAffinity: {}}", deployment, pod + ".affinity", `{"podAntiAffinity":{}}`},
	{"topologySpreadConstraints", "topologySpreadConstraints: []", deployment, pod + ".topologySpreadConstraints", ""},
	{"topologySpreadConstraints", "topologySpreadConstraints: [{maxSkew: 2, topologyKey: rack, whenUnsatisfiable: DoNotSchedule}]", deployment, pod + ".topologySpreadConstraints", `[{"labelSelector":{"matchLabels":{"app.kubernetes.io/instance":"vpn-gateway","app.kubernetes.io/name":"vpn-gateway"}},"maxSkew":2,"topologyKey":"rack","whenUnsatisfiable":"DoNotSchedule"}]`},
	{"topologySpreadConstraints", "topologySpreadConstraints: [{topologyKey: rack, labelSelector: {matchLabels: {a: b}}}]", deployment, pod + ".topologySpreadConstraints[0].labelSelector.matchLabels", `{"a":"b"}`},
	{"scheduling.networks", "scheduling: {networks: wan}", deployment, ".spec.template.metadata.annotations.k8s\\.v1\\.cni\\.cncf\\.io/networks", "wan"},
	{"scheduling.deviceResource", "scheduling: {deviceResource: intel.com/vf}", deployment, gateway + ".resources", `{"limits":{"intel.com/vf":1},"requests":{"cpu":"100m","intel.com/vf":1,"memory":"64Mi"}}`},
	{"scheduling.deviceCount", "scheduling: {deviceResource: intel.com/vf, deviceCount: 2}", deployment, gateway + ".resources.limits", `{"intel.com/vf":2}`},
	{"priorityClassName", "priorityClassName: high", deployment, pod + ".priorityClassName", "high"},
	{"runtimeClassName", "runtimeClassName: kata", deployment, pod + ".runtimeClassName", "kata"},
	{"schedulerName", "schedulerName: mine", deployment, pod + ".schedulerName", "mine"},
	{"hostAliases", "hostAliases: [{ip: 192.0.2.1, hostnames: [a]}]", deployment, pod + ".hostAliases", `[{"hostnames":["a"],"ip":"192.0.2.1"}]`},
	{"dnsPolicy", "dnsPolicy: Default", deployment, pod + ".dnsPolicy", "Default"},
	{"dnsConfig", "dnsConfig: {nameservers: [1.1.1.1]}", deployment, pod + ".dnsConfig.nameservers", `["1.1.1.1"]`},
	{"extraVolumes", "extraVolumes: [{name: more, emptyDir: {}}]", deployment, pod + ".volumes[5].name", "more"},
	{"extraVolumeMounts", "extraVolumeMounts: [{name: more, mountPath: /more}]", deployment, gateway + ".volumeMounts[5].mountPath", "/more"},
	{"extraContainers", "extraContainers: [{name: more}]", deployment, pod + ".containers[1].name", "more"},
	{"extraInitContainers", "extraInitContainers: [{name: more}]", deployment, pod + ".initContainers[0].name", "more"},

	{"serviceAccount.create", "{serviceAccount: {create: false, name: mine}, fleet: {readinessGate: {enabled: false}}}", "Job", pod + ".serviceAccountName", "mine"},
	{"serviceAccount.create", "{serviceAccount: {create: false}, rbac: {create: false}}", deployment, pod + ".serviceAccountName", "default"},
	{"serviceAccount.name", "serviceAccount: {name: mine}", "ServiceAccount/mine", ".metadata.name", "mine"},
	{"serviceAccount.name", "serviceAccount: {name: mine}", deployment, pod + ".serviceAccountName", "mine"},
	{"serviceAccount.annotations", "serviceAccount: {annotations: {a: b}}", "ServiceAccount/vpn-gateway", ".metadata.annotations.a", "b"},
	{"rbac.create", "rbac: {create: false}", "Role/vpn-gateway-key", ".metadata.name", ""},
	{"rbac.create", "rbac: {create: false}", "RoleBinding/vpn-gateway-key", ".metadata.name", ""},
	{"keyJob.resources", "keyJob: {resources: {limits: {memory: 64Mi}}}", "Job", gateway + ".resources.limits.memory", "64Mi"},
	{"keyJob.podAnnotations", "keyJob: {podAnnotations: {a: b}}", "Job", ".spec.template.metadata.annotations.a", "b"},
	{"keyJob.podLabels", "keyJob: {podLabels: {a: b}}", "Job", ".spec.template.metadata.labels.a", "b"},

	{"service.type", "service: {type: NodePort}", service, ".spec.type", "NodePort"},
	{"service.type", "service: {type: ClusterIP}", service, ".spec.externalTrafficPolicy", ""},
	{"service.annotations", "service: {annotations: {a: b}}", service, ".metadata.annotations.a", "b"},
	{"service.labels", "service: {labels: {a: b}}", service, ".metadata.labels.a", "b"},
	{"service.nodePort", "service: {nodePort: 31820}", service, ".spec.ports[0].nodePort", "31820"},
	{"service.externalTrafficPolicy", "service: {externalTrafficPolicy: Cluster}", service, ".spec.externalTrafficPolicy", "Cluster"},
	{"service.externalTrafficPolicy", "service: {type: ClusterIP, externalIPs: [203.0.113.2], externalTrafficPolicy: Cluster}", service, ".spec.externalTrafficPolicy", "Cluster"},
	{"service.allocateLoadBalancerNodePorts", "service: {allocateLoadBalancerNodePorts: false}", service, ".spec.allocateLoadBalancerNodePorts", "false"},
	{"service.healthCheckNodePort", "service: {healthCheckNodePort: 31822}", service, ".spec.healthCheckNodePort", "31822"},
	{"service.sessionAffinity", "service: {sessionAffinity: None}", service, ".spec.sessionAffinity", "None"},
	{"service.sessionAffinityConfig", "service: {sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}}", service, ".spec.sessionAffinityConfig.clientIP.timeoutSeconds", "60"},
	{"service.loadBalancerClass", "service: {loadBalancerClass: example.com/lb}", service, ".spec.loadBalancerClass", "example.com/lb"},
	{"service.loadBalancerIP", "service: {loadBalancerIP: 203.0.113.1}", service, ".spec.loadBalancerIP", "203.0.113.1"},
	{"service.loadBalancerSourceRanges", "service: {loadBalancerSourceRanges: [198.51.100.0/24]}", service, ".spec.loadBalancerSourceRanges", `["198.51.100.0/24"]`},
	{"service.externalIPs", "service: {externalIPs: [203.0.113.2]}", service, ".spec.externalIPs", `["203.0.113.2"]`},
	{"service.ipFamilyPolicy", "service: {ipFamilyPolicy: PreferDualStack}", service, ".spec.ipFamilyPolicy", "PreferDualStack"},
	{"service.ipFamilies", "service: {ipFamilies: [IPv6, IPv4]}", service, ".spec.ipFamilies", `["IPv6","IPv4"]`},
	{"service.health.enabled", "service: {health: {enabled: true}}", service, ".spec.ports[1]", `{"name":"health","port":8081,"protocol":"TCP","targetPort":"health"}`},
	{"service.health.enabled", "{networkPolicy: {enabled: true}, service: {health: {enabled: true}}}", policy, ".spec.ingress[0].ports[1]", `{"port":8081,"protocol":"TCP"}`},
	{"service.health.port", "service: {health: {enabled: true, port: 80}}", service, ".spec.ports[1].port", "80"},
	{"service.health.nodePort", "service: {health: {enabled: true, nodePort: 31821}}", service, ".spec.ports[1].nodePort", "31821"},

	{"podDisruptionBudget.enabled", "podDisruptionBudget: {enabled: false}", budget, ".metadata.name", ""},
	{"podDisruptionBudget.minAvailable", "{replicaCount: 3, podDisruptionBudget: {minAvailable: 2}}", budget, ".spec.minAvailable", "2"},
	{"podDisruptionBudget.minAvailable", "{replicaCount: 2, podDisruptionBudget: {minAvailable: 50%}}", budget, ".spec.maxUnavailable", ""},
	{"podDisruptionBudget.maxUnavailable", "podDisruptionBudget: {maxUnavailable: 25%}", budget, ".spec.maxUnavailable", "25%"},
	{"podDisruptionBudget.unhealthyPodEvictionPolicy", "podDisruptionBudget: {unhealthyPodEvictionPolicy: IfHealthyBudget}", budget, ".spec.unhealthyPodEvictionPolicy", "IfHealthyBudget"},
	{"autoscaling.enabled", "autoscaling: {enabled: true}", deployment, ".spec.replicas", ""},
	{"autoscaling.enabled", "autoscaling: {enabled: true}", scaler, ".spec.scaleTargetRef.name", "vpn-gateway"},
	{"autoscaling.minReplicas", "autoscaling: {enabled: true, minReplicas: 2}", scaler, ".spec.minReplicas", "2"},
	{"autoscaling.maxReplicas", "autoscaling: {enabled: true, maxReplicas: 9}", scaler, ".spec.maxReplicas", "9"},
	{"autoscaling.targetCPUUtilizationPercentage", "autoscaling: {enabled: true, targetCPUUtilizationPercentage: 50}", scaler, ".spec.metrics[0].resource.target.averageUtilization", "50"},
	{"autoscaling.metrics", "autoscaling: {enabled: true, metrics: [{type: Pods}]}", scaler, ".spec.metrics", `[{"type":"Pods"}]`},
	{"autoscaling.behavior", "autoscaling: {enabled: true, behavior: {scaleUp: {selectPolicy: Max}}}", scaler, ".spec.behavior.scaleUp.selectPolicy", "Max"},
	{"networkPolicy.enabled", "networkPolicy: {enabled: true}", policy, ".spec.policyTypes", `["Ingress","Egress"]`},
	{"networkPolicy.enabled", "networkPolicy: {enabled: true}", policy, ".spec.ingress[0]", `{"ports":[{"port":51820,"protocol":"UDP"}]}`},
	{"networkPolicy.httpFrom", "networkPolicy: {enabled: true, httpFrom: [{podSelector: {}}]}", policy, ".spec.ingress[1].from", `[{"podSelector":{}}]`},
	{"networkPolicy.httpFrom", "networkPolicy: {enabled: true, httpFrom: [], extraIngress: [{from: [{podSelector: {}}]}]}", policy, ".spec.ingress[1]", `{"from":[{"podSelector":{}}]}`},
	{"networkPolicy.extraIngress", "networkPolicy: {enabled: true, extraIngress: [{ports: [{port: 1}]}]}", policy, ".spec.ingress[2].ports[0].port", "1"},
	{"networkPolicy.egress", "networkPolicy: {enabled: true, egress: [{ports: [{port: 53}]}]}", policy, ".spec.egress[0]", `{"ports":[{"port":53}]}`},
	{"networkPolicy.egress", "{networkPolicy: {enabled: true, egress: []}, fleet: {enabled: false}}", policy, ".spec.egress", "[]"},
	{"extraObjects", "extraObjects: [{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-more'}}]", "ConfigMap/vpn-gateway-more", ".metadata.name", "vpn-gateway-more"},
	{"extraObjects", "extraObjects: ['{apiVersion: v1, kind: ConfigMap, metadata: {name: {{ .Release.Name }}-more}}']", "ConfigMap/vpn-gateway-more", ".metadata.name", "vpn-gateway-more"},
}

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// monitorKnobs are those that ServiceMonitor and PodMonitor share.
func monitorKnobs() []knob {
	var out []knob
	for name, m := range map[string]struct{ kind, endpoints string }{
		"serviceMonitor": {"ServiceMonitor", ".spec.endpoints"},
		"podMonitor":     {"PodMonitor", ".spec.podMetricsEndpoints"},
	} {
		object := m.kind + "/vpn-gateway"
		add := func(field, value, path, want string) {
			values := "metrics: {" + name + ": {enabled: true, " + field + ": " + value + "}}"
			if field == "enabled" {
				values = "metrics: {" + name + ": {enabled: true}}"
			}
			out = append(out, knob{"metrics." + name + "." + field, values, object, path, want})
		}
		add("enabled", "true", m.endpoints, `[{"path":"/metrics","port":"http"}]`)
		add("namespace", "monitoring", ".metadata.namespace", "monitoring")
		add("labels", "{a: b}", ".metadata.labels.a", "b")
		add("annotations", "{a: b}", ".metadata.annotations.a", "b")
		add("interval", "15s", m.endpoints+"[0].interval", "15s")
		add("scrapeTimeout", "5s", m.endpoints+"[0].scrapeTimeout", "5s")
		add("relabelings", "[{action: drop}]", m.endpoints+"[0].relabelings", `[{"action":"drop"}]`)
		add("metricRelabelings", "[{action: drop}]", m.endpoints+"[0].metricRelabelings", `[{"action":"drop"}]`)
	}
	return out
}

func allKnobs() []knob {
	return slices.Concat(knobs, sriovKnobs, rotationKnobs, externalKnobs, fleetKnobs, replicaKnobs, scalingKnobs, monitorKnobs(), alertKnobs())
}

// Every knob turns what it is said to turn, and that was not so before.
func TestKnobs(t *testing.T) {
	testKnobs(t, "", slices.DeleteFunc(allKnobs(), func(k knob) bool { return slices.Contains(replicaKnobs, k) }))
	testKnobs(t, replicated, replicaKnobs)
}

// testKnobs turns knobs of a chart that has some values already.
func testKnobs(t *testing.T, base string, list []knob) {
	t.Helper()
	plain := render(t, base)
	for _, k := range list {
		t.Run(k.value, func(t *testing.T) {
			r, err := chart.Render(chart.Options{ChartDir: chartDir, Values: chartutil.MergeTables(withEndpoint(t, k.values), values(t, base))})
			if err != nil {
				t.Fatalf("%s\n%v", k.values, err)
			}
			got := lookUp(t, r, k.object, k.path)
			if got != k.want {
				t.Errorf("%s\n%s %s\ngot  %s\nwant %s", k.values, k.object, k.path, got, k.want)
			}
			if before := lookUp(t, plain, k.object, k.path); before == k.want {
				t.Errorf("%s %s is %q without %s too: the line shows nothing", k.object, k.path, before, k.values)
			}
		})
	}
}

// No value of values.yaml is without a line above.
func TestEveryValueIsAKnob(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	turned := map[string]bool{}
	for _, k := range allKnobs() {
		turned[k.value] = true
	}
	known := map[string]bool{}
	for _, leaf := range leaves("", values(t, string(text))) {
		covered := false
		for path := leaf; path != ""; path = parent(path) {
			known[path] = true
			covered = covered || turned[path]
		}
		if !covered {
			t.Errorf("no line of the table turns %s", leaf)
		}
	}
	for value := range turned {
		if !known[value] {
			t.Errorf("the table has %s, values.yaml has not", value)
		}
	}
}

// The README, made by helm-docs, has a line for every value.
func TestReadmeHasEveryValue(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(chartDir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, leaf := range leaves("", values(t, string(text))) {
		covered := false
		for path := leaf; path != ""; path = parent(path) {
			covered = covered || strings.Contains(string(readme), "\n| "+path+" |")
		}
		if !covered {
			t.Errorf("README.md has no line for %s; run helm-docs", leaf)
		}
	}
}

// leaves lists the paths below which there is no map, or an empty one.
func leaves(path string, value any) []string {
	m, ok := value.(map[string]any)
	if !ok || len(m) == 0 {
		return []string{path}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, leaves(strings.TrimPrefix(path+"."+name, "."), m[name])...)
	}
	return out
}

func parent(path string) string {
	return path[:max(0, strings.LastIndex(path, "."))]
}

// withEndpoint adds the value that is required, unless it is there.
func withEndpoint(t *testing.T, text string) map[string]any {
	t.Helper()
	out := values(t, text)
	server, _ := out["server"].(map[string]any)
	if server == nil {
		server = map[string]any{}
		out["server"] = server
	}
	if _, has := server["publicEndpoint"]; !has {
		server["publicEndpoint"] = "203.0.113.1:51820"
	}
	return out
}

// lookUp returns what stands at a JSONPath of an object, maps and lists as JSON;
// "" where there is no such object or field.
func lookUp(t *testing.T, r *chart.Rendered, object, path string) string {
	t.Helper()
	kind, name, _ := strings.Cut(object, "/")
	if object == agentFile {
		kind, name = "ConfigMap", "vpn-gateway"
	}
	for _, o := range r.Objects {
		if o.Kind != kind || name != "" && o.Name != name {
			continue
		}
		content := generic(t, o).Object
		if object == agentFile {
			text := content["data"].(map[string]any)["gateway.yaml"].(string)
			content = nil
			if err := yaml.UnmarshalStrict([]byte(text), &content); err != nil {
				t.Fatalf("gateway.yaml: %v", err)
			}
		}
		query := jsonpath.New(path).AllowMissingKeys(true)
		if err := query.Parse("{" + path + "}"); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		var b bytes.Buffer
		if err := query.Execute(&b, content); err != nil {
			return "" // an index beyond the end
		}
		return b.String()
	}
	return ""
}
