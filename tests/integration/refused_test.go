package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
)

// testRefused gives the agent files that it cannot use, in every way in which
// files go bad. The last good state stays, says what is wrong, and ends with the
// fault.
func testRefused(t *testing.T, o *office) {
	tests := []struct {
		name string
		harm func(*testing.T, *office)
		want []string // in what the agent says of it: file, field
	}{
		{"YAML broken", editConfig(func(text string) string { return strings.Replace(text, "routing:", "routing: [", 1) }), []string{"config/gateway.yaml"}},
		{"unknown field", editConfig(func(text string) string { return strings.Replace(text, "listenPort:", "listenPrt:", 1) }), []string{"config/gateway.yaml", "listenPrt"}},
		{"value of a wrong type", editConfig(func(text string) string { return strings.Replace(text, "masquerade: true", "masquerade: 7", 1) }), []string{"config/gateway.yaml", "routing.masquerade"}},
		{"address outside the pool", editConfig(func(text string) string { return strings.Replace(text, "- 10.8.0.3", "- 10.9.0.3", 1) }), []string{"config/gateway.yaml", "peers[1].addresses[0]", "10.9.0.3"}},
		{"what takes a new Pod", editConfig(func(text string) string { return strings.Replace(text, "interface: wg0", "interface: wg1", 1) }), []string{"config/gateway.yaml", "server.interface"}},
		{"ConfigMap emptied", editConfigMap(func(m *corev1.ConfigMap) { m.Data = nil }), []string{"config/gateway.yaml", "missing"}},
		{"peers of a Secret broken", editSecret(peersSecret, func(s *corev1.Secret) { s.Data[peersFile] = []byte("peers: {") }), []string{"peers.d/" + peersSecret + "/" + peersFile}},
		{"PSK of a Secret cut short", editSecret(pskSecret, func(s *corev1.Secret) { s.Data["alice"] = s.Data["alice"][:40] }), []string{"psk/" + pskSecret + "/alice"}},
		{"configuration deleted", onFile("config", "gateway.yaml", os.Remove), []string{"config/gateway.yaml", "missing"}},
		{"gateway's key deleted", onFile("key", "privateKey", os.Remove), []string{"key/privateKey", "missing"}},
		{"gateway's key spoilt", onFile("key", "privateKey", func(path string) error { return os.WriteFile(path, []byte("not a key"), 0o400) }), []string{"key/privateKey"}},
		{"configuration emptied", onFile("config", "gateway.yaml", cutTo(0)), []string{"config/gateway.yaml", "empty"}},
		{"configuration half written", onFile("config", "gateway.yaml", cutTo(0.5)), []string{"config/gateway.yaml"}},
		{"configuration written but for the end", onFile("config", "gateway.yaml", cutTo(0.95)), []string{"config/gateway.yaml"}},
		{"peers of a Secret emptied", onFile("peers-0", peersFile, cutTo(0)), []string{"peers.d/" + peersSecret + "/" + peersFile, "empty"}},
		{"peers of a Secret half written", onFile("peers-0", peersFile, cutTo(0.5)), []string{"peers.d/" + peersSecret + "/" + peersFile}},
		{"PSK half written", onFile("psk-0", "alice", cutTo(0.5)), []string{"psk/" + pskSecret + "/alice"}},
		{"configuration not readable", onFile("config", "gateway.yaml", func(path string) error { return os.Chmod(path, 0) }), []string{"config/", "gateway.yaml", "permission denied"}},
		{"gateway's key not readable", onFile("key", "privateKey", func(path string) error { return os.Chmod(path, 0) }), []string{"key/", "privateKey", "permission denied"}},
		{"directory not readable", onFile("psk-0", ".", func(path string) error { return os.Chmod(path, 0) }), []string{"psk/" + pskSecret, "permission denied"}},
		{"directory gone", onFile("config", ".", os.RemoveAll), []string{"/etc/vpn-gateway/config/", "no such file or directory"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			device, system := deviceOf(t, o.Gateway), systemOf(t, o.Pod.Network())
			before, first := o.readiness(t), len(o.log(t))
			failures := o.metric(t, "vpn_gateway_config_reloads_total", "result", "failure")
			o.underStream(t, func() {
				tt.harm(t, o)
				r, err := o.Await(t.Context(), "the fault to be seen", func(r gateway.Readiness) bool { return !r.Condition("config").OK })
				if err != nil {
					t.Fatal(err)
				}
				if !r.Ready || r.Hash != before.Hash || r.Generation != before.Generation {
					t.Errorf("readiness %+v after %+v, want ready and the last good files in force", r, before)
				}
				for _, want := range tt.want {
					if detail := r.Condition("config").Detail; !strings.Contains(detail, want) {
						t.Errorf("detail %q, want %s in it", detail, want)
					}
				}
			})
			o.wantLastGoodState(t, device, system)
			if got := o.metric(t, "vpn_gateway_config_last_reload_successful"); got != 0 {
				t.Errorf("last reload successful: %v, want 0", got)
			}
			if got := o.metric(t, "vpn_gateway_config_reloads_total", "result", "failure"); got != failures+1 {
				t.Errorf("failed reloads: %v, want one more than %v", got, failures)
			}
			lines := o.lines(t, "reload failed, the last good configuration stays in force", first)
			if len(lines) != 1 || !strings.Contains(lines[0].Text("errors"), tt.want[0]) {
				t.Errorf("log lines %v, want one that names %s", lines, tt.want[0])
			}

			o.underStream(t, func() { o.repair(t) })
			o.wantLastGoodState(t, device, system)
			if got := o.metric(t, "vpn_gateway_config_last_reload_successful"); got != 1 {
				t.Errorf("last reload successful after the repair: %v, want 1", got)
			}
		})
	}
}

func (o *office) wantLastGoodState(t *testing.T, device device, system system) {
	t.Helper()
	if diff := cmp.Diff(device, deviceOf(t, o.Gateway)); diff != "" {
		t.Errorf("device (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(system, systemOf(t, o.Pod.Network())); diff != "" {
		t.Errorf("network (-before +after):\n%s", diff)
	}
}

// repair writes the files of the configuration in force. The kubelet would not
// mind a directory's mode, so that is set right by hand.
func (o *office) repair(t *testing.T) {
	t.Helper()
	psk := o.Pod.VolumePath("psk-0")
	for _, dir := range []string{filepath.Join(psk, "..data"), psk} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.Update(o.config); err != nil {
		t.Fatal(err)
	}
	_, err := o.Await(t.Context(), "the repaired files to be in force", func(r gateway.Readiness) bool { return r.Condition("config").OK })
	if err != nil {
		t.Fatal(err)
	}
}

// edit changes an object of the configuration behind the chart's back, and has
// the kubelet refresh the volume.
func edit[T runtime.Object](named func(T) bool, change func(T)) func(*testing.T, *office) {
	return func(t *testing.T, o *office) {
		objects, err := o.Upgrade(o.config)
		if err != nil {
			t.Fatal(err)
		}
		for _, object := range objects {
			typed, ok := object.(T)
			if !ok || !named(typed) {
				continue
			}
			change(typed)
			if _, err := o.Pod.Update(typed); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func editConfigMap(change func(*corev1.ConfigMap)) func(*testing.T, *office) {
	return edit(func(m *corev1.ConfigMap) bool { return m.Data["gateway.yaml"] != "" }, change)
}

func editConfig(change func(string) string) func(*testing.T, *office) {
	return editConfigMap(func(m *corev1.ConfigMap) { m.Data["gateway.yaml"] = change(m.Data["gateway.yaml"]) })
}

func editSecret(name string, change func(*corev1.Secret)) func(*testing.T, *office) {
	return edit(func(s *corev1.Secret) bool { return s.Name == name }, change)
}

// onFile does something to a file of a volume in place, which the kubelet never
// does. The agent watches the directory above, as swaps are seen there; so that
// it looks at once and not at its next round, something happens there too.
func onFile(volume, name string, do func(path string) error) func(*testing.T, *office) {
	return func(t *testing.T, o *office) {
		dir := o.Pod.VolumePath(volume)
		stamp, err := os.Readlink(filepath.Join(dir, "..data"))
		if err != nil {
			t.Fatal(err)
		}
		if err := do(filepath.Join(dir, stamp, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// cutTo keeps that part of a file only: what a reader sees of one that is being
// written in place.
func cutTo(part float64) func(path string) error {
	return func(path string) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, int64(part*float64(info.Size())))
	}
}
