package topology

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNew(t *testing.T) {
	got, err := New(2)
	if err != nil {
		t.Fatal(err)
	}
	want := []Node{
		{Name: "n1", IP: netip.MustParseAddr("192.0.2.11"), Pods: netip.MustParsePrefix("10.244.1.0/24")},
		{Name: "n2", IP: netip.MustParseAddr("192.0.2.12"), Pods: netip.MustParsePrefix("10.244.2.0/24")},
	}
	if diff := cmp.Diff(want, got.Nodes, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	addresses := map[string]string{
		"control plane": got.ControlPlaneIP().String(),
		"api server":    got.APIServer(),
		"client":        got.ClientIP().String(),
		"kubernetes":    got.KubernetesIP().String(),
		"dns":           got.DNSIP().String(),
	}
	if diff := cmp.Diff(map[string]string{
		"control plane": "192.0.2.1",
		"api server":    "192.0.2.1:6443",
		"client":        "192.0.2.200",
		"kubernetes":    "10.96.0.1",
		"dns":           "10.96.0.10",
	}, addresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

// Whoever is a member is never masqueraded, whoever is not always is.
func TestMembers(t *testing.T) {
	plan, err := New(MaxNodes)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range plan.Nodes {
		if !plan.Members.Contains(n.IP) {
			t.Errorf("node %s: %s is not in %s", n.Name, n.IP, plan.Members)
		}
	}
	if !plan.Members.Contains(plan.ControlPlaneIP()) {
		t.Errorf("control plane: %s is not in %s", plan.ControlPlaneIP(), plan.Members)
	}
	if plan.Members.Contains(plan.ClientIP()) || !plan.Link.Contains(plan.ClientIP()) {
		t.Errorf("client: %s must be in %s and not in %s", plan.ClientIP(), plan.Link, plan.Members)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, nodes := range []int{-1, 0, MaxNodes + 1} {
		if _, err := New(nodes); err == nil {
			t.Errorf("New(%d): no error", nodes)
		}
	}
}

func TestNodeUnknown(t *testing.T) {
	plan, err := New(2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Node("n3"); err == nil {
		t.Error("Node(n3) of a cluster of two: no error")
	}
}
