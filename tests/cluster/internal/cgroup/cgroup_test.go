package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/mountinfo"
)

func TestPick(t *testing.T) {
	const hybrid = `30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset,clone_children
`
	want := []Hierarchy{
		{Mount: "/sys/fs/cgroup/unified", Unified: true},
		{Mount: "/sys/fs/cgroup/systemd"},
		{Mount: "/sys/fs/cgroup/cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}},
		{Mount: "/sys/fs/cgroup/cpuset", Controllers: []string{"cpuset"}},
	}
	got := pick(mountinfo.Parse(hybrid))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hierarchies (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"memory", "pids"}, Missing(got)); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
}

// The files of a control group are plain ones here: what is written where is
// all that this test can see.
func TestCreate(t *testing.T) {
	v1, v2 := t.TempDir(), t.TempDir()
	write(t, filepath.Join(v1, "cpuset.cpus"), "0-1")
	write(t, filepath.Join(v1, "cpuset.mems"), "0")
	hierarchies := []Hierarchy{
		{Mount: v1, Controllers: []string{"cpuset"}},
		{Mount: v2, Unified: true, Controllers: []string{"memory"}},
	}
	if err := Create(hierarchies, "n1"); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		filepath.Join(v1, "vpngw/cpuset.cpus"):               "0-1",
		filepath.Join(v1, "vpngw/n1/cpuset.cpus"):            "0-1",
		filepath.Join(v1, "vpngw/n1/cpuset.mems"):            "0",
		filepath.Join(v2, "cgroup.subtree_control"):          "+memory",
		filepath.Join(v2, "vpngw/cgroup.subtree_control"):    "+memory",
		filepath.Join(v2, "vpngw/n1/cgroup.subtree_control"): "+memory",
	}
	for file, text := range want {
		got, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		} else if string(got) != text {
			t.Errorf("%s: %q, want %q", file, got, text)
		}
	}
}

func TestRemove(t *testing.T) {
	root := t.TempDir()
	hierarchies := []Hierarchy{{Mount: root}}
	for _, dir := range []string{"vpngw/n1/kubepods/burstable/pod1", "vpngw/n2"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	steps := []struct {
		node string
		left []string
	}{
		{"n1", []string{"vpngw"}},
		{"n1", []string{"vpngw"}}, // once more is no error
		{"n2", nil},
	}
	for _, step := range steps {
		if err := Remove(hierarchies, step.node); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, e := range entries {
			left = append(left, e.Name())
		}
		if diff := cmp.Diff(step.left, left); diff != "" {
			t.Errorf("after removing %s (-want +got):\n%s", step.node, diff)
		}
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
