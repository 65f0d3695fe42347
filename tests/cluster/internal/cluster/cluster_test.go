package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

func TestChoose(t *testing.T) {
	plan, err := topology.New(3)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		ready map[string]bool
		runs  string
		want  string // empty: none
	}{
		{"the first by name", map[string]bool{"n3": true, "n2": true}, "n1 n2 n3", "n2"},
		{"not one that has crashed", map[string]bool{"n3": true, "n2": true}, "n1 n3", "n3"},
		{"not one without a ready endpoint", map[string]bool{"n1": false, "n3": true}, "n1 n2 n3", "n3"},
		{"none ready", nil, "n1 n2 n3", ""},
		{"none running", map[string]bool{"n1": true}, "n2", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := choose(plan, tt.ready, func(name string) bool { return strings.Contains(tt.runs, name) })
			if (err != nil) != (tt.want == "") {
				t.Fatalf("error %v, want node %q", err, tt.want)
			}
			if got.Name != tt.want {
				t.Errorf("got %q, want %q", got.Name, tt.want)
			}
		})
	}
}

func TestLastComplaint(t *testing.T) {
	const log = `level=INFO msg=started process=etcd
level=ERROR msg=ended process=etcd how="exit status 1"
level=INFO msg=started process=etcd
`
	if got, want := lastComplaint(log), `level=ERROR msg=ended process=etcd how="exit status 1"`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := lastComplaint("level=INFO msg=started\n"); got != "" {
		t.Errorf("a complaint where there is none: %q", got)
	}
}

// The authority is made once: nodes that are added later are signed by the same.
func TestCredentialsAreKept(t *testing.T) {
	plan, err := topology.New(2)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var authorities []string
	for range 2 {
		c, err := newCredentials(dir, plan)
		if err != nil {
			t.Fatal(err)
		}
		authorities = append(authorities, string(c.ca.Cert))
		etc := t.TempDir()
		if err := c.node(etc, plan.Nodes[1]); err != nil {
			t.Fatal(err)
		}
		if err := c.controlPlane(etc); err != nil {
			t.Fatal(err)
		}
		keys, err := filepath.Glob(filepath.Join(etc, "*.key"))
		if err != nil || len(keys) == 0 {
			t.Fatalf("no keys: %v", err)
		}
		for _, key := range keys {
			info, err := os.Stat(key)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %o, want 600", key, info.Mode().Perm())
			}
		}
	}
	if authorities[0] != authorities[1] {
		t.Error("the second call made another authority")
	}
	if _, err := client(dir, plan); err != nil {
		t.Errorf("the administrator's client: %v", err)
	}
}

func TestInstall(t *testing.T) {
	cache, bin := t.TempDir(), filepath.Join(t.TempDir(), "bin")
	program, link := filepath.Join(cache, "kubernetes"), filepath.Join(cache, "kubelet")
	if err := os.WriteFile(program, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("kubernetes", link); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time everything is there
		if err := install(bin, map[string]string{"kubernetes": program, "kubelet": link}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(cache); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kubernetes", "kubelet"} {
		text, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil || string(text) != "program" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
}

func TestCoreDNS(t *testing.T) {
	plan, err := topology.New(1)
	if err != nil {
		t.Fatal(err)
	}
	got := coreDNS(plan)
	if strings.Contains(got, "${") || !strings.Contains(got, "clusterIP: 10.96.0.10\n") {
		t.Errorf("placeholders are not filled in:\n%s", got)
	}
}
