package chart

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/chart"
)

// external switches on every part of externalSecrets; to be put behind everything.
const external = `
externalSecrets:
  enabled: true
  refreshInterval: 30s
  creationPolicy: Orphan
  deletionPolicy: Retain
  secretStore: {create: true, provider: {kubernetes: {remoteNamespace: keys, server: {url: "https://kubernetes.default", caProvider: {type: ConfigMap, name: kube-root-ca.crt, key: ca.crt}}, auth: {serviceAccount: {name: reader}}}}}
  privateKey: {enabled: true, remoteKey: vpn/server}
  presharedKeys:
  - {name: psk-x, remoteKey: vpn/psk}
  peers:
  - {name: peers-x, remoteKey: vpn/peers, rewrite: [{regexp: {source: "(.*)", target: "$1.yaml"}}, {transform: {template: "{{ .value }}"}}]}
  - {name: peers-y, find: {path: vpn, name: {regexp: "^peers-"}, tags: {a: b}}, template: {engineVersion: v2, metadata: {labels: {a: b}}, data: {peers.yaml: "peers: {{ .peers }}"}}}
  - {name: peers-z, dataFrom: [{extract: {key: a}}, {find: {name: {regexp: b}, conversionStrategy: Unicode}}]}
  pushSecret: {enabled: true, makeKey: true, deletionPolicy: Delete, metadata: {apiVersion: kubernetes.external-secrets.io/v1alpha1, kind: PushSecretMetadata, spec: {labels: {a: b}}}}
`

const (
	fetchedKey = "ExternalSecret/vpn-gateway-key-external"
	fetchedPSK = "ExternalSecret/psk-x"
	pushedKey  = "PushSecret/vpn-gateway-key"
)

// fetch is externalSecrets with a store and the server's key, unless these are
// given, and what else is.
func fetch(more string) string {
	text := "enabled: true"
	for name, usual := range map[string]string{"secretStoreRef": "{name: vault}", "privateKey": "{enabled: true, remoteKey: vpn/server}"} {
		if !strings.Contains(more, name+":") {
			text += ", " + name + ": " + usual
		}
	}
	return "externalSecrets: {" + strings.TrimSuffix(text+", "+more, ", ") + "}"
}

var externalKnobs = []knob{
	{"externalSecrets.enabled", fetch(""), fetchedKey, ".spec.target.name", "vpn-gateway-key-external"},
	{"externalSecrets.enabled", fetch(""), deployment, gateway + ".args[5]", "--external-secrets=vpn-gateway-key-external"},
	{"externalSecrets.refreshInterval", fetch("refreshInterval: 10s"), fetchedKey, ".spec.refreshInterval", "10s"},
	{"externalSecrets.refreshPolicy", fetch("refreshPolicy: OnChange"), fetchedKey, ".spec.refreshPolicy", "OnChange"},
	{"externalSecrets.creationPolicy", fetch("creationPolicy: Orphan"), fetchedKey, ".spec.target.creationPolicy", "Orphan"},
	{"externalSecrets.deletionPolicy", fetch("deletionPolicy: Delete"), fetchedKey, ".spec.target.deletionPolicy", "Delete"},
	{"externalSecrets.secretStoreRef.name", fetch(""), fetchedKey, ".spec.secretStoreRef.name", "vault"},
	{"externalSecrets.secretStoreRef.kind", fetch("secretStoreRef: {name: vault, kind: ClusterSecretStore}"), fetchedKey, ".spec.secretStoreRef.kind", "ClusterSecretStore"},
	{"externalSecrets.secretStore.create", fetch("secretStoreRef: {}, secretStore: {create: true, provider: {vault: {server: a}}}"), fetchedKey, ".spec.secretStoreRef", `{"kind":"SecretStore","name":"vpn-gateway"}`},
	{"externalSecrets.secretStore.provider", fetch("secretStoreRef: {}, secretStore: {create: true, provider: {vault: {server: a}}}"), "SecretStore/vpn-gateway", ".spec.provider", `{"vault":{"server":"a"}}`},
	{"externalSecrets.privateKey.enabled", fetch(""), deployment, pod + ".volumes[1].projected.sources[0].secret.name", "vpn-gateway-key-external"},
	{"externalSecrets.privateKey.enabled", fetch(""), "Secret/vpn-gateway-key", ".metadata.name", ""},
	{"externalSecrets.privateKey.remoteKey", fetch(""), fetchedKey, ".spec.dataFrom", `[{"extract":{"conversionStrategy":"Default","decodingStrategy":"None","key":"vpn/server","metadataPolicy":"None"}}]`},
	{"externalSecrets.privateKey.property", fetch("privateKey: {enabled: true, remoteKey: vpn, property: wg}"), fetchedKey, ".spec.data", `[{"remoteRef":{"conversionStrategy":"Default","decodingStrategy":"None","key":"vpn","metadataPolicy":"None","property":"wg"},"secretKey":"privateKey"}]`},
	{"externalSecrets.privateKey.dataFrom", fetch("privateKey: {enabled: true, remoteKey: '', dataFrom: [{extract: {key: a}}]}"), fetchedKey, ".spec.dataFrom", `[{"extract":{"key":"a"}}]`},
	{"externalSecrets.privateKey.template", fetch("privateKey: {enabled: true, remoteKey: vpn, template: {data: {key: '{{ .a }}'}}}"), fetchedKey, ".spec.target.template", `{"data":{"key":"{{ .a }}"}}`},
	{"externalSecrets.presharedKeys", fetch("presharedKeys: [{name: psk-x, remoteKey: vpn/psk}]"), fetchedPSK, ".spec.dataFrom[0].extract.key", "vpn/psk"},
	{"externalSecrets.presharedKeys", fetch("presharedKeys: [{name: psk-x, remoteKey: vpn/psk}]"), deployment, gateway + ".volumeMounts[2].mountPath", "/etc/vpn-gateway/psk/psk-x"},
	{"externalSecrets.presharedKeys", "{presharedKeys: {existingSecrets: [psk-a]}, " + fetch("presharedKeys: [{name: psk-x, remoteKey: vpn/psk}]") + "}", agentFile, ".presharedKeys.existingSecrets", `["psk-a","psk-x"]`},
	{"externalSecrets.presharedKeys", fetch("presharedKeys: [{name: psk-x, find: {name: {regexp: ^psk-}}, rewrite: [{regexp: {source: psk-, target: ''}}]}]"), fetchedPSK, ".spec.dataFrom", `[{"find":{"conversionStrategy":"Default","decodingStrategy":"None","name":{"regexp":"^psk-"}},"rewrite":[{"regexp":{"source":"psk-","target":""}}]}]`},
	{"externalSecrets.peers", fetch("peers: [{name: peers-x, remoteKey: vpn/peers}]"), agentFile, ".peersFrom.existingSecrets", `["peers-x"]`},
	{"externalSecrets.peers", fetch("peers: [{name: peers-x, remoteKey: vpn/peers}]"), deployment, gateway + ".volumeMounts[2].mountPath", "/etc/vpn-gateway/peers.d/peers-x"},
	{"externalSecrets.peers", fetch("peers: [{name: peers-x, remoteKey: vpn/peers, template: {data: {a.yaml: '{{ .a }}'}}}]"), "ExternalSecret/peers-x", ".spec.target.template", `{"data":{"a.yaml":"{{ .a }}"}}`},
	{"externalSecrets.pushSecret.enabled", fetch("pushSecret: {enabled: true}"), pushedKey, ".spec.data", `[{"conversionStrategy":"None","match":{"remoteRef":{"property":"vpn-gateway-keys","remoteKey":"vpn/server"}}}]`},
	{"externalSecrets.pushSecret.enabled", fetch("pushSecret: {enabled: true}"), "Job", gateway + ".args[4]", "--source=vpn-gateway-key"},
	{"externalSecrets.pushSecret.makeKey", fetch("pushSecret: {enabled: true, makeKey: true}"), "Job", gateway + ".args[5]", "--make-after=2m"},
	{"externalSecrets.pushSecret.refreshInterval", fetch("pushSecret: {enabled: true, refreshInterval: 10s}"), pushedKey, ".spec.refreshInterval", "10s"},
	{"externalSecrets.pushSecret.deletionPolicy", fetch("pushSecret: {enabled: true, deletionPolicy: Delete}"), pushedKey, ".spec.deletionPolicy", "Delete"},
	{"externalSecrets.pushSecret.property", fetch("pushSecret: {enabled: true, property: ''}"), pushedKey, ".spec.data[0].match", `{"remoteRef":{"remoteKey":"vpn/server"}}`},
	{"externalSecrets.pushSecret.property", fetch("pushSecret: {enabled: true, property: ''}"), fetchedKey, ".spec.target", `{"creationPolicy":"Owner","deletionPolicy":"Retain","name":"vpn-gateway-key-external"}`},
	{"externalSecrets.pushSecret.metadata", fetch("pushSecret: {enabled: true, metadata: {a: b}}"), pushedKey, ".spec.data[0].metadata", `{"a":"b"}`},
}

// foreign returns the objects of External Secrets as one text, each as it is
// applied, without the labels that all objects have.
func foreign(t *testing.T, r *chart.Rendered) string {
	t.Helper()
	var b strings.Builder
	for _, o := range r.Objects {
		if u, ok := o.Object.(*unstructured.Unstructured); ok && strings.HasPrefix(u.GetAPIVersion(), "external-secrets.io/") {
			b.WriteString("---\n")
			b.Write(o.YAML)
		}
	}
	return b.String()
}

// What is rendered for External Secrets, in every way that a knob can turn it, is
// kept where tests/externalsecrets decodes it with the controller's own types:
// they do not compile beside the Kubernetes libraries of this module.
func TestExternalGolden(t *testing.T) {
	var b strings.Builder
	seen := map[string]bool{}
	add := func(values string) {
		r, err := chart.Render(chart.Options{ChartDir: chartDir, Values: withEndpoint(t, values)})
		if err != nil {
			t.Fatalf("%s\n%v", values, err)
		}
		for object := range strings.SplitSeq(foreign(t, r), "---\n") {
			if object != "" && !seen[object] {
				seen[object] = true
				b.WriteString("---\n" + object)
			}
		}
	}
	add(everything + external)
	for _, k := range slices.Concat(externalKnobs, rotationKnobs) {
		add(k.values)
	}
	if len(seen) < 20 {
		t.Errorf("%d objects of External Secrets, want at least 20", len(seen))
	}
	golden(t, "external-secrets-objects.yaml", b.String())
}

// What External Secrets makes is mounted like what was there before.
func TestExternalMounts(t *testing.T) {
	got := map[string]string{}
	for path, volume := range mounts(t, render(t, everything+external)) {
		if name, ours := strings.CutPrefix(path, "/etc/vpn-gateway/"); ours {
			got[name] = volume
		}
	}
	want := map[string]string{
		"config":          "configMap vpn-gateway",
		"key":             "projected mode=0400: secret vpn-gateway-key-external, secret vpn-gateway-key-external privateKey→privateKey",
		"psk/psk-a":       "secret psk-a mode=0400",
		"psk/psk.b":       "secret psk.b mode=0400",
		"psk/psk-x":       "secret psk-x mode=0400",
		"peers.d/peers-a": "secret peers-a mode=0400",
		"peers.d/peers-b": "secret peers-b mode=0400",
		"peers.d/peers-x": "secret peers-x mode=0400",
		"peers.d/peers-y": "secret peers-y mode=0400",
		"peers.d/peers-z": "secret peers-z mode=0400",
		"rotation":        "configMap vpn-gateway-keys optional",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}

// The gateway may look at its ExternalSecrets, by name, and has a token for that
// where it has none anyway.
func TestExternalRights(t *testing.T) {
	r := render(t, everything+external+"fleet: {enabled: false}")
	names := []string{"vpn-gateway-key-external", "psk-x", "peers-x", "peers-y", "peers-z"}
	want := []rbacv1.PolicyRule{{APIGroups: []string{"external-secrets.io"}, Resources: []string{"externalsecrets"}, ResourceNames: names, Verbs: []string{"get"}}}
	if diff := cmp.Diff(want, get[*rbacv1.Role](t, r, "vpn-gateway").Rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	template := get[*appsv1.Deployment](t, r, "").Spec.Template.Spec
	if !*template.AutomountServiceAccountToken {
		t.Error("the token is not mounted")
	}
	binding := get[*rbacv1.RoleBinding](t, r, "vpn-gateway")
	if diff := cmp.Diff([]rbacv1.Subject{{Kind: "ServiceAccount", Name: template.ServiceAccountName, Namespace: "default"}}, binding.Subjects); diff != "" {
		t.Errorf("subjects (-want +got):\n%s", diff)
	}
	if binding.RoleRef.Name != "vpn-gateway" {
		t.Errorf("binding refers to %s", binding.RoleRef.Name)
	}
	if !slices.Contains(template.Containers[0].Args, "--external-secrets="+strings.Join(names, ",")) {
		t.Errorf("arguments %q do not name the ExternalSecrets", template.Containers[0].Args)
	}
	var made []string
	for _, o := range r.Objects {
		if o.Kind == "ExternalSecret" {
			made = append(made, o.Name)
		}
	}
	if diff := cmp.Diff(names, made); diff != "" {
		t.Errorf("ExternalSecrets (-named +made):\n%s", diff)
	}
}

// Who makes the server's first key, and in which Secret: nobody where it comes from
// a backend, unless keys also go there. Then the Job fills the Secret that is pushed,
// with the key of the one that is fetched, or where that is wanted with one of its own.
func TestExternalBootstrap(t *testing.T) {
	for values, want := range map[string]struct {
		args    []string // of the Job, the first ones
		secrets []string
		pushed  []string // names of the PushSecrets
	}{
		"": {
			args:    []string{"keys", "init", "--namespace=default", "--secret=vpn-gateway-key", "--key=privateKey"},
			secrets: []string{"vpn-gateway-key"},
		},
		fetch(""): {},
		"externalSecrets: {enabled: true, secretStoreRef: {name: vault}, peers: [{name: p, remoteKey: a}]}": {
			args:    []string{"keys", "init", "--namespace=default", "--secret=vpn-gateway-key", "--key=privateKey"},
			secrets: []string{"vpn-gateway-key"},
		},
		fetch("pushSecret: {enabled: true}"): {
			args:    []string{"keys", "init", "--namespace=default", "--secret=vpn-gateway-key-external", "--source=vpn-gateway-key", "--key=privateKey"},
			secrets: []string{"vpn-gateway-key"},
			pushed:  []string{"vpn-gateway-key"},
		},
		"{keyRotation: {enabled: true, presharedKeys: {schedule: '@monthly'}}, " + fetch("presharedKeys: [{name: psk-x, remoteKey: a}, {name: psk-y, remoteKey: b}], pushSecret: {enabled: true, makeKey: true}") + "}": {
			args:    []string{"keys", "init", "--namespace=default", "--secret=vpn-gateway-key-external", "--source=vpn-gateway-key", "--make-after=2m", "--key=privateKey"},
			secrets: []string{"vpn-gateway-key", "psk-x-source", "psk-y-source"},
			pushed:  []string{"vpn-gateway-key", "psk-x-source", "psk-y-source"},
		},
	} {
		r := render(t, values)
		var secrets, pushed []string
		var args []string
		for _, o := range r.Objects {
			switch typed := o.Object.(type) {
			case *corev1.Secret:
				secrets = append(secrets, o.Name)
				if len(typed.Data)+len(typed.StringData) > 0 {
					t.Errorf("%s\nSecret %s has data", values, o.Name)
				}
			case *batchv1.Job:
				args = typed.Spec.Template.Spec.Containers[0].Args
			}
			if o.Kind == "PushSecret" {
				pushed = append(pushed, o.Name)
			}
		}
		if diff := cmp.Diff(want.args, args[:min(len(args), len(want.args))]); diff != "" || len(want.args) == 0 && len(args) > 0 {
			t.Errorf("%s\narguments of the Job (-want +got):\n%s", values, diff)
		}
		if diff := cmp.Diff(want.secrets, secrets); diff != "" {
			t.Errorf("%s\nSecrets (-want +got):\n%s", values, diff)
		}
		if diff := cmp.Diff(want.pushed, pushed); diff != "" {
			t.Errorf("%s\nPushSecrets (-want +got):\n%s", values, diff)
		}
	}
}

// The Secret that is pushed belongs to its entry, whatever the order of the list:
// one entry's keys must not reach another's place in the backend.
func TestPushedByName(t *testing.T) {
	targets := func(list string) map[string]string {
		r := render(t, "{keyRotation: {enabled: true, presharedKeys: {schedule: '@monthly'}}, "+fetch("presharedKeys: ["+list+"], pushSecret: {enabled: true}")+"}")
		out := map[string]string{}
		for _, o := range r.Objects {
			if o.Kind != "PushSecret" {
				continue
			}
			var p struct {
				Spec struct {
					Selector struct{ Secret struct{ Name string } }
					Data     []struct {
						Match struct{ RemoteRef struct{ RemoteKey string } }
					}
				}
			}
			if err := yaml.Unmarshal(o.YAML, &p); err != nil {
				t.Fatal(err)
			}
			out[p.Spec.Selector.Secret.Name] = p.Spec.Data[0].Match.RemoteRef.RemoteKey
		}
		return out
	}
	const x, y = "{name: psk-x, remoteKey: a}", "{name: psk-y, remoteKey: b}"
	want := map[string]string{"vpn-gateway-key": "vpn/server", "psk-x-source": "a", "psk-y-source": "b"}
	for _, list := range []string{x + "," + y, y + "," + x} {
		if diff := cmp.Diff(want, targets(list)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", list, diff)
		}
	}
}

// Names that look like something else to YAML stay text here too.
func TestExternalTextStaysText(t *testing.T) {
	text := "externalSecrets: {enabled: true, secretStoreRef: {name: '1'}, privateKey: {enabled: true, remoteKey: '2'}, presharedKeys: [{name: '3', remoteKey: '4'}], peers: [{name: '0x5', remoteKey: 'true'}], pushSecret: {enabled: true, property: '6'}}\nkeyRotation: {enabled: true, timeZone: '7', presharedKeys: {schedule: '@monthly'}}"
	r := render(t, text)
	got := map[string]bool{}
	var walk func(value any)
	walk = func(value any) {
		switch v := value.(type) {
		case map[string]any:
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		case string:
			got[v] = true
		}
	}
	for object := range strings.SplitSeq(foreign(t, r), "---\n") {
		var content map[string]any
		if err := yaml.Unmarshal([]byte(object), &content); err != nil {
			t.Fatal(err)
		}
		walk(content)
	}
	for _, word := range []string{"1", "2", "3", "4", "0x5", "true", "6"} {
		if !got[word] {
			t.Errorf("%q is no text in\n%v", word, slices.Sorted(maps.Keys(got)))
		}
	}
}
