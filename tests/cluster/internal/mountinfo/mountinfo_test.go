package mountinfo

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

const text = `22 28 0:21 / /proc rw,nosuid - proc proc rw
31 28 0:27 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=1g
40 31 0:4 net:[4026532260] /run/netns/a\040b rw shared:9 master:2 - nsfs nsfs rw
41 31 0:4 net:[4026532261] /run/netns/c rw - nsfs nsfs rw
45 28 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
not a line of it
`

func TestParse(t *testing.T) {
	want := []Mount{
		{Point: "/proc", Type: "proc", Options: []string{"rw"}},
		{Point: "/run", Type: "tmpfs", Options: []string{"rw", "size=1g"}},
		{Point: "/run/netns/a b", Type: "nsfs", Options: []string{"rw"}},
		{Point: "/run/netns/c", Type: "nsfs", Options: []string{"rw"}},
		{Point: "/sys/fs/cgroup/cpu", Type: "cgroup", Options: []string{"rw", "cpu", "cpuacct"}},
	}
	if diff := cmp.Diff(want, Parse(text)); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}

func TestBelow(t *testing.T) {
	want := []string{"/run/netns/c", "/run/netns/a b"}
	if diff := cmp.Diff(want, Below(Parse(text), "/run")); diff != "" {
		t.Errorf("below /run (-want +got):\n%s", diff)
	}
}
