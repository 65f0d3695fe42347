package chart

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

const (
	aliceKey = "QvKKn80wnjCsBY/V1Rhi/AxziLFqKOAVoKZYWJM2Zxc="
	bobKey   = "E1nHdk+lh4vnPs9T1HP9DlVIwOWO+uNuyPMAwDL92kE="
)

// refusal is values and what the user reads then: the faults in order, each in
// full. Those that begin with "at '/…'" are the schema's.
type refusal struct {
	name   string
	values string
	want   []string
}

var refusals = []refusal{
	{"nothing given", "server: {publicEndpoint: ''}", []string{
		"server.publicEndpoint is not set, and clients need an address to dial; give the gateway's, like this:\n     helm install vpn-gateway ./charts/vpn-gateway --set server.publicEndpoint=203.0.113.1:51820",
	}},
	{"all faults at once", "{server: {publicEndpoint: nonsense, drain: 1m}, terminationGracePeriodSeconds: 30, ports: {http: 8081}, image: {digest: abc}}", []string{
		`server.publicEndpoint "nonsense" has no port; write it as host:port, such as 203.0.113.1:51820`,
		`terminationGracePeriodSeconds 30 is not longer than server.drain "1m", which it would cut off; set it to 70 or leave it out`,
		`image.digest "abc" is not a digest; write sha256: and 64 hex digits`,
		"ports.http and ports.health are both 8081; give each a port of its own",
	}},

	{"IPv6 without its switch", "server: {addresses: ['fd00:8::1/64']}", []string{
		`server.addresses[0] "fd00:8::1/64" is IPv6, but ipv6.enabled is false; set it to true or remove the network`,
	}},
	{"IPv6 without its switch, everywhere", "{routing: {routes: ['fd00::/8'], dns: ['fd00::53'], allowedDestinations: [{cidr: '::/0'}]}, peers: [{name: a, publicKey: " + aliceKey + ", addresses: ['fd00:8::2'], allowedIPs: ['fd00:9::/64'], allowedDestinations: [{cidr: 'fd00:1::/64'}]}]}", []string{
		`routing.routes[0] "fd00::/8" is IPv6, but ipv6.enabled is false; set it to true or remove the network`,
		`routing.allowedDestinations[0].cidr "::/0" is IPv6, but ipv6.enabled is false; set it to true or remove the network`,
		`peers[0].addresses[0] "fd00:8::2" is IPv6, but ipv6.enabled is false; set it to true or remove the address`,
		`peers[0].allowedIPs[0] "fd00:9::/64" is IPv6, but ipv6.enabled is false; set it to true or remove the network`,
		`peers[0].allowedDestinations[0].cidr "fd00:1::/64" is IPv6, but ipv6.enabled is false; set it to true or remove the network`,
	}},
	{"MTU too small for IPv6", "{ipv6: {enabled: true}, server: {mtu: 1279}}", []string{
		"server.mtu 1279 is less than IPv6 needs; write 1280 or more, or 0 to have it derived",
	}},
	{"addresses that are none", "{server: {addresses: [10.8.0.256/24]}, routing: {routes: [10.0.0.0/33, 10.0.0.0/08], dns: [1.1.1.300, 'fd00:::1']}, peers: [{name: a, publicKey: " + aliceKey + ", addresses: [10.8.0.999]}], service: {loadBalancerSourceRanges: [300.0.0.0/8, '2001:db8::/129'], externalIPs: [1.2.3.400]}}", []string{
		`server.addresses[0] "10.8.0.256/24" is no IPv4 network; write it like 10.0.0.0/8, with a length up to 32`,
		`routing.routes[0] "10.0.0.0/33" is no IPv4 network; write it like 10.0.0.0/8, with a length up to 32`,
		`routing.routes[1] "10.0.0.0/08" is no IPv4 network; write it like 10.0.0.0/8, with a length up to 32`,
		`routing.dns[0] "1.1.1.300" is no IPv4 address; write it like 10.8.0.2`,
		`routing.dns[1] "fd00:::1" is no IPv6 address; write it like fd00:8::2`,
		`service.loadBalancerSourceRanges[0] "300.0.0.0/8" is no IPv4 network; write it like 10.0.0.0/8, with a length up to 32`,
		`service.loadBalancerSourceRanges[1] "2001:db8::/129" is no IPv6 network; write it like fd00:8::/64, with a length up to 128`,
		`service.externalIPs[0] "1.2.3.400" is no IPv4 address; write it like 10.8.0.2`,
		`peers[0].addresses[0] "10.8.0.999" is no IPv4 address; write it like 10.8.0.2`,
	}},
	{"ports", "routing: {allowedDestinations: [{cidr: 10.0.0.0/8, ports: [443]}, {cidr: 10.0.0.0/8, protocol: icmp, ports: [1-2]}, {cidr: 10.0.0.0/8, protocol: tcp, ports: [8080-8000, '0', 1-65536, 53, '53', 1-65535]}]}", []string{
		`routing.allowedDestinations[0].ports [443] cannot go with protocol any; set protocol to tcp or udp (an entry each for both), or remove the ports`,
		`routing.allowedDestinations[1].ports ["1-2"] cannot go with protocol icmp; set protocol to tcp or udp (an entry each for both), or remove the ports`,
		`routing.allowedDestinations[2].ports[0] "8080-8000" is no port and no range; write 443 or "8000-8080", from 1 to 65535`,
		`routing.allowedDestinations[2].ports[1] "0" is no port and no range; write 443 or "8000-8080", from 1 to 65535`,
		`routing.allowedDestinations[2].ports[2] "1-65536" is no port and no range; write 443 or "8000-8080", from 1 to 65535`,
	}},
	{"both monitors", "metrics: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}", []string{
		"metrics.serviceMonitor.enabled and metrics.podMonitor.enabled are both true, and every sample would be counted twice; set one of them to false",
	}},
	{"networks twice", "{scheduling: {networks: a}, podAnnotations: {k8s.v1.cni.cncf.io/networks: b}}", []string{
		"podAnnotations has k8s.v1.cni.cncf.io/networks, which scheduling.networks sets; remove one of them",
	}},

	{"name that no Service can have", "fullnameOverride: 1st.gateway", []string{
		`the name of all objects would be "1st.gateway", which no Service can have; set fullnameOverride to lower-case letters, digits and "-", with a letter first`,
	}},
	{"labels that select", "{commonLabels: {app.kubernetes.io/name: x}, podLabels: {app.kubernetes.io/instance: mine}}", []string{
		"commonLabels has app.kubernetes.io/name, by which the gateway's Pods are selected; remove it (nameOverride changes the name)",
		"podLabels has app.kubernetes.io/instance, by which the gateway's Pods are selected; remove it (nameOverride changes the name)",
	}},

	{"peers that are one", "peers: [{name: a, publicKey: " + aliceKey + ", addresses: [10.8.0.2]}, {name: a, publicKey: " + aliceKey + ", addresses: [10.8.0.3]}]", []string{
		`peers[1].name "a" is that of peers[0] too; give each peer a name of its own`,
		`peers[1].publicKey "` + aliceKey + `" is that of peers[0] too; give each peer a key of its own`,
	}},
	{"peer of no address", "peers: [{name: a, publicKey: " + aliceKey + "}]", []string{
		`peers[0] "a" has neither addresses nor allowedIPs; give it an address out of server.addresses`,
	}},
	{"pre-shared key in values", "peers: [{name: a, publicKey: " + aliceKey + ", addresses: [10.8.0.2], presharedKey: " + bobKey + "}]", []string{
		`peers[0].presharedKey is a secret, and values are none: they end in the release, in Git and in logs; put it into a Secret under the key "a" and name that Secret in presharedKeys.existingSecrets`,
	}},
	{"peer's endpoint", "peers: [{name: a, publicKey: " + aliceKey + ", addresses: [10.8.0.2], endpoint: example.com}]", []string{
		`peers[0].endpoint "example.com" has no port; write it as host:port, such as 203.0.113.1:51820`,
	}},

	{"load balancer's fields", "service: {type: NodePort, allocateLoadBalancerNodePorts: false, healthCheckNodePort: 31822, loadBalancerClass: a, loadBalancerIP: 203.0.113.1, loadBalancerSourceRanges: [198.51.100.0/24]}", []string{
		"service.allocateLoadBalancerNodePorts false is for type LoadBalancer only; set service.type=LoadBalancer or remove it",
		`service.loadBalancerClass "a" is for type LoadBalancer only; set service.type=LoadBalancer or remove it`,
		`service.loadBalancerIP "203.0.113.1" is for type LoadBalancer only; set service.type=LoadBalancer or remove it`,
		`service.loadBalancerSourceRanges ["198.51.100.0/24"] is for type LoadBalancer only; set service.type=LoadBalancer or remove it`,
		"service.healthCheckNodePort 31822 is for type LoadBalancer with externalTrafficPolicy Local only; set these or remove it",
	}},
	{"node ports of a ClusterIP", "service: {type: ClusterIP, nodePort: 31820, health: {nodePort: 31821}}", []string{
		"service.health.nodePort 31821 is not for type ClusterIP; set service.type=NodePort or remove it",
		"service.nodePort 31820 is not for type ClusterIP; set service.type=NodePort or remove it",
	}},

	{"more at least than at most", "autoscaling: {enabled: true, minReplicas: 7}", []string{
		"autoscaling.minReplicas 7 is greater than autoscaling.maxReplicas 5; raise the one or lower the other",
	}},
	{"percentage of nothing", "{autoscaling: {enabled: true}, resources: {requests: null}}", []string{
		"autoscaling.enabled needs resources.requests.cpu, of which it takes a percentage; set that, autoscaling.metric.source or autoscaling.metrics",
	}},
	{"budget with both", "podDisruptionBudget: {minAvailable: 0, maxUnavailable: 1}", []string{
		"podDisruptionBudget has both minAvailable 0 and maxUnavailable 1, and Kubernetes takes one; remove one",
	}},
	{"budget that lets none go", "podDisruptionBudget: {minAvailable: 1}", []string{
		"podDisruptionBudget.minAvailable 1 lets none of 1 Pods go and so blocks every node drain; set podDisruptionBudget.maxUnavailable=1 instead",
	}},
	{"budget of all", "podDisruptionBudget: {minAvailable: 100%}", []string{
		`podDisruptionBudget.minAvailable "100%" lets none of 1 Pods go and so blocks every node drain; set podDisruptionBudget.maxUnavailable=1 instead`,
	}},
	{"budget of most, rounded up to all", "podDisruptionBudget: {minAvailable: 50%}", []string{
		`podDisruptionBudget.minAvailable "50%" lets none of 1 Pods go and so blocks every node drain; set podDisruptionBudget.maxUnavailable=1 instead`,
	}},
	{"budget as large as the autoscaler's least", "{autoscaling: {enabled: true, minReplicas: 2}, podDisruptionBudget: {minAvailable: 2}}", []string{
		"podDisruptionBudget.minAvailable 2 lets none of 2 Pods go and so blocks every node drain; set podDisruptionBudget.maxUnavailable=1 instead",
	}},
	{"budget of nothing", "podDisruptionBudget: {maxUnavailable: 0%}", []string{
		`podDisruptionBudget.maxUnavailable "0%" lets no Pod go and so blocks every node drain; set it to 1`,
	}},

	// The schema's: shapes, and keys that nobody reads.
	{"misspelt", "server: {publicEndpont: 'a:1'}", []string{"at '/server': additional properties 'publicEndpont' not allowed"}},
	{"private key in values", "server: {privateKey: " + aliceKey + "}", []string{"at '/server/privateKey': got string, want object"}},
	{"private key of a peer", "peers: [{name: a, publicKey: " + aliceKey + ", privateKey: " + bobKey + "}]", []string{"at '/peers/0': additional properties 'privateKey' not allowed"}},
	{"misspelt in a destination", "routing: {allowedDestinations: [{cidr: 10.0.0.0/8, port: 443}]}", []string{"at '/routing/allowedDestinations/0': additional properties 'port' not allowed"}},
	{"network without length", "routing: {routes: [10.0.0.0]}", []string{"at '/routing/routes/0': '10.0.0.0' does not match pattern '^([0-9]{1,3}(\\\\.[0-9]{1,3}){3}/[0-9]{1,2}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/[0-9]{1,3})$'"}},
	{"port alone", "server: {publicEndpoint: 51820}", []string{"at '/server/publicEndpoint': got number, want string"}},
	{"drain without unit", "server: {drain: 30}", []string{"at '/server/drain': got number, want string"}},
	{"drain in milliseconds", "server: {drain: 500ms}", []string{`at '/server/drain': '500ms' does not match pattern '^(?:(?:0|[1-9][0-9]*)h)?(?:(?:0|[1-9][0-9]*)m)?(?:(?:0|[1-9][0-9]*)s)?$'`}},
	{"data plane", "server: {dataPlane: fast}", []string{"at '/server/dataPlane': value must be one of 'auto', 'kernel', 'userspace'"}},
	{"SR-IOV", "scheduling: {sriov: on}", []string{"at '/scheduling/sriov': value must be one of 'off', 'preferred', 'required', false"}},
	{"no addresses", "server: {addresses: []}", []string{"at '/server/addresses': minItems: got 0, want 1"}},
	{"port range", "server: {listenPort: 70000}", []string{"at '/server/listenPort': maximum: got 70,000, want 65,535"}},
	{"key of 31 bytes", "peers: [{name: a, publicKey: abc, addresses: [10.8.0.2]}]", []string{"at '/peers/0/publicKey': 'abc' does not match pattern '^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$'"}},
	{"peer without key", "peers: [{name: a}]", []string{"at '/peers/0': missing property 'publicKey'"}},
	{"Secret as object", "peersFrom: {existingSecrets: [{name: a}]}", []string{"at '/peersFrom/existingSecrets/0': got object, want string"}},
	{"annotation that is no string", "service: {annotations: {a: true}}", []string{"at '/service/annotations/a': got boolean, want string"}},
	{"service type", "service: {type: ExternalName}", []string{"at '/service/type': value must be one of 'LoadBalancer', 'NodePort', 'ClusterIP'"}},
}

func TestRefusals(t *testing.T) {
	for _, c := range slices.Concat(refusals, fleetRefusals, keyRefusals, scalingRefusals, alertRefusals) {
		t.Run(c.name, func(t *testing.T) {
			_, err := chart.Render(chart.Options{ChartDir: chartDir, Values: withEndpoint(t, c.values)})
			if err == nil {
				t.Fatalf("%s\nis accepted", c.values)
			}
			if diff := cmp.Diff(c.want, faults(t, err)); diff != "" {
				t.Errorf("%s\n(-want +got):\n%s", c.values, diff)
			}
			if strings.Contains(err.Error(), bobKey) {
				t.Errorf("the error repeats a secret: %v", err)
			}
		})
	}
}

// A host and a port, in all the ways in which one can be right or wrong.
func TestPublicEndpoint(t *testing.T) {
	const (
		noPort   = "has no port; write it as host:port, such as 203.0.113.1:51820"
		brackets = "is an IPv6 address without brackets; write it as [2001:db8::1]:51820"
		notIPv6  = "has no IPv6 address in its brackets; write it as [2001:db8::1]:51820"
	)
	port := func(p string) string { return "has the port " + p + "; write one from 1 to 65535" }
	host := func(h string) string {
		return fmt.Sprintf("has the host %q, which is neither an IPv4 address, an IPv6 address in brackets nor a DNS name; write it as 203.0.113.1:51820, [2001:db8::1]:51820 or vpn.example.com:51820", h)
	}
	for value, want := range map[string]string{
		"203.0.113.1:51820":         "",
		"0.0.0.0:1":                 "",
		"255.255.255.255:65535":     "",
		"[2001:db8::1]:51820":       "",
		"[::1]:51820":               "",
		"[::]:51820":                "",
		"[fd00::]:51820":            "",
		"[1:2:3:4:5:6:7:8]:51820":   "",
		"[1::3:4:5:6:7:8]:51820":    "",
		"[64:ff9b::192.0.2.1]:1":    "",
		"[::ffff:192.0.2.1]:1":      "",
		"vpn.example.com:51820":     "",
		"vpn.example.com.:51820":    "",
		"VPN-1.example.com:443":     "",
		"gateway:51820":             "",
		"1.vpn.example.com:51820":   "",
		"203.0.113.1":               noPort,
		"vpn.example.com":           noPort,
		"vpn.example.com:":          noPort,
		"[2001:db8::1]":             noPort,
		"2001:db8::1:51820":         brackets,
		"2001:db8::1":               brackets,
		"203.0.113.1:0":             port("0"),
		"203.0.113.1:051820":        port("051820"),
		"203.0.113.1:65536":         port("65536"),
		"203.0.113.1:999999":        port("999999"),
		"203.0.113.256:51820":       host("203.0.113.256"),
		"203.0.113:51820":           host("203.0.113"),
		"203.0.113.1.:51820":        host("203.0.113.1."),
		"203.0.113.01:51820":        host("203.0.113.01"),
		":51820":                    host(""),
		"-vpn.example.com:51820":    host("-vpn.example.com"),
		"vpn_1.example.com:51820":   host("vpn_1.example.com"),
		"vpn..example.com:51820":    host("vpn..example.com"),
		"https://example.com:51820": host("https://example.com"),
		"[203.0.113.1]:51820":       notIPv6,
		"[vpn.example.com]:51820":   notIPv6,
		"[2001:db8::1:51820":        notIPv6,
		"[1:2:3:4:5:6:7]:51820":     notIPv6,
		"[1:2:3:4:5:6:7:8:9]:51820": notIPv6,
		"[1::2:3:4:5:6:7:8]:51820":  notIPv6,
		"[1::2::3]:51820":           notIPv6,
		"[:::1]:51820":              notIPv6,
		"[1:2:3:4:5:6:7:]:51820":    notIPv6,
		"[:1:2:3:4:5:6:7]:51820":    notIPv6,
		"[2001:db8::12345]:51820":   notIPv6,
		"[2001:db8::g]:51820":       notIPv6,
		"[::192.0.2.256]:51820":     notIPv6,
		"[fe80::1%eth0]:51820":      notIPv6,
		"[]:51820":                  notIPv6,
	} {
		_, err := chart.Render(chart.Options{ChartDir: chartDir, Values: map[string]any{"server": map[string]any{"publicEndpoint": value}}})
		switch {
		case want == "" && err != nil:
			t.Errorf("%q is refused: %v", value, err)
		case want != "" && err == nil:
			t.Errorf("%q is accepted, want: it %s", value, want)
		case want != "":
			if diff := cmp.Diff([]string{fmt.Sprintf("server.publicEndpoint %q %s", value, want)}, faults(t, err)); diff != "" {
				t.Errorf("%q (-want +got):\n%s", value, diff)
			}
		}
	}
}

// More peers than a ConfigMap holds are refused with the way out.
func TestTooManyPeers(t *testing.T) {
	peers := func(n int) map[string]any {
		list := make([]any, n)
		for i := range list {
			key := fmt.Sprintf("%042dA=", i)
			list[i] = map[string]any{"name": fmt.Sprintf("peer-%05d", i), "publicKey": key, "addresses": []any{fmt.Sprintf("10.8.%d.%d", i/250, i%250+1)}}
		}
		return map[string]any{"peers": list, "server": map[string]any{"publicEndpoint": "203.0.113.1:51820"}}
	}
	if _, err := chart.Render(chart.Options{ChartDir: chartDir, Values: peers(5000)}); err != nil {
		t.Errorf("5,000 peers are refused: %v", err)
	}
	_, err := chart.Render(chart.Options{ChartDir: chartDir, Values: peers(11000)})
	if err == nil {
		t.Fatal("11,000 peers are accepted")
	}
	got := regexp.MustCompile(`[0-9]{7} bytes`).ReplaceAllString(strings.Join(faults(t, err), "\n"), "N bytes")
	want := "the gateway's configuration has N bytes, and a ConfigMap holds 1048576; move peers into Secrets and name these in peersFrom.existingSecrets"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// An upgrade is told the upgrade's line.
func TestUpgradeWithoutEndpoint(t *testing.T) {
	_, err := chart.Render(chart.Options{ChartDir: chartDir, ReleaseName: "edge", Upgrade: true})
	if err == nil {
		t.Fatal("no endpoint is accepted")
	}
	if want := "helm upgrade edge ./charts/vpn-gateway --set server.publicEndpoint=203.0.113.1:51820"; !strings.Contains(err.Error(), want) {
		t.Errorf("error is %v, want in it %s", err, want)
	}
}

// A cluster that is too old is told so.
func TestOldCluster(t *testing.T) {
	for version, old := range map[string]bool{"v1.28.15": true, "v1.29.0": false, "v1.29.0-gke.1": false, "v1.37.2+k3s1": false} {
		_, err := chart.Render(chart.Options{ChartDir: chartDir, Set: []string{endpoint}, KubeVersion: version})
		if (err != nil) != old {
			t.Errorf("Kubernetes %s: error %v, want one: %v", version, err, old)
		}
	}
}

// At every level of the values where the chart knows all keys, another is refused.
func TestMisspeltKeys(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// Shapes of Kubernetes's own, and free maps of strings.
	open := []string{
		"global", "commonLabels", "commonAnnotations", "strategy", "resources.requests", "securityContext", "podSecurityContext",
		"podAnnotations", "podLabels", "lifecycle", "nodeSelector", "affinity", "dnsConfig", "serviceAccount.annotations",
		"keyRotation.resources.requests", "keyRotation.podAnnotations", "keyRotation.podLabels", "externalSecrets.secretStore.provider",
		"externalSecrets.privateKey.template", "externalSecrets.pushSecret.metadata",
		"keyJob.resources.requests", "keyJob.podAnnotations", "keyJob.podLabels", "service.annotations", "service.labels",
		"service.sessionAffinityConfig", "autoscaling.behavior", "autoscaling.metric.custom.selector",
		"autoscaling.metric.keda.fallback", "autoscaling.metric.keda.annotations", "autoscaling.metric.adapter.resources.requests",
		"autoscaling.metric.adapter.podAnnotations", "autoscaling.metric.adapter.podLabels", "autoscaling.metric.adapter.apiServiceAnnotations",
		"metrics.serviceMonitor.labels",
		"metrics.serviceMonitor.annotations", "metrics.podMonitor.labels", "metrics.podMonitor.annotations",
		"metrics.prometheusRule.labels", "metrics.prometheusRule.annotations", "metrics.prometheusRule.alertLabels",
	}
	var closed int
	var walk func(path string, value any)
	walk = func(path string, value any) {
		m, isMap := value.(map[string]any)
		if !isMap || slices.Contains(open, path) {
			return
		}
		closed++
		set := strings.TrimPrefix(path+".misspelt=1", ".")
		_, err := chart.Render(chart.Options{ChartDir: chartDir, Set: []string{endpoint, set}})
		if err == nil || !strings.Contains(err.Error(), "additional properties 'misspelt' not allowed") {
			t.Errorf("--set %s: error %v, want it refused", set, err)
		}
		for _, name := range slices.Sorted(maps.Keys(m)) {
			walk(strings.TrimPrefix(path+"."+name, "."), m[name])
		}
	}
	walk("", values(t, string(text)))
	if closed < 25 {
		t.Errorf("%d levels tried, want at least 25", closed)
	}
}

// As a dependency the chart is handed two keys that are not its own.
func TestAsDependency(t *testing.T) {
	render(t, "{global: {imageRegistry: example.com}, enabled: true}")
}

// faults returns what the user reads, one fault each: the numbered list of the
// chart's own validation, or the schema's.
func faults(t *testing.T, err error) []string {
	t.Helper()
	text := err.Error()
	if list, found := strings.CutPrefix(text, "values don't meet the specifications of the schema(s) in the following chart(s):\nvpn-gateway:\n"); found {
		var out []string
		for line := range strings.Lines(list) {
			if line = strings.TrimSpace(line); line != "" {
				out = append(out, strings.TrimPrefix(line, "- "))
			}
		}
		return out
	}
	head := regexp.MustCompile(`^execution error at \(vpn-gateway/templates/validate\.yaml:\d+:\d+\): \n\n(\d+) of the values need a change:\n`)
	match := head.FindStringSubmatch(text)
	if match == nil {
		t.Fatalf("an error of another form: %s", text)
	}
	out := regexp.MustCompile(`(?m)^  \d+\. `).Split(strings.TrimSuffix(strings.TrimPrefix(text, match[0]), "\n"), -1)[1:]
	for i := range out {
		out[i] = strings.TrimSuffix(out[i], "\n")
	}
	if match[1] != fmt.Sprint(len(out)) {
		t.Errorf("the error counts %s faults and lists %d", match[1], len(out))
	}
	return out
}
