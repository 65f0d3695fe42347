package chart

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

const sriovLabel = "feature.node.kubernetes.io/network-sriov.capable"

var sriovKnobs = []knob{
	{"scheduling.sriov", "scheduling: {sriov: preferred}", deployment, pod + ".affinity", `{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"preference":{"matchExpressions":[{"key":"feature.node.kubernetes.io/network-sriov.capable","operator":"In","values":["true"]}]},"weight":100}]}}`},
	{"scheduling.sriov", "scheduling: {sriov: required}", deployment, pod + ".affinity", `{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"feature.node.kubernetes.io/network-sriov.capable","operator":"In","values":["true"]}]}]}}}`},
}

// off comes quoted, and as YAML reads it without quotes.
func TestSRIOVOff(t *testing.T) {
	for _, values := range []string{`scheduling: {sriov: "off"}`, `scheduling: {sriov: off}`, `scheduling: {sriov: false}`} {
		if a := get[*appsv1.Deployment](t, render(t, values), "").Spec.Template.Spec.Affinity; a != nil {
			t.Errorf("%s: affinity %v, want none", values, a)
		}
	}
}

// The SR-IOV label joins the user's affinity: alternatives stay alternatives,
// each with the label, and preferences stay beside it.
func TestSRIOVMerges(t *testing.T) {
	const affinity = `
affinity:
  podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: rack}]}
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - {weight: 7, preference: {matchExpressions: [{key: fast, operator: Exists}]}}
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
      - matchExpressions: [{key: zone, operator: In, values: [a]}]
      - matchFields: [{key: metadata.name, operator: In, values: [n1]}]
`
	capable := corev1.NodeSelectorRequirement{Key: sriovLabel, Operator: corev1.NodeSelectorOpIn, Values: []string{"true"}}
	zone := corev1.NodeSelectorRequirement{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"a"}}
	name := corev1.NodeSelectorRequirement{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"n1"}}
	fast := corev1.PreferredSchedulingTerm{Weight: 7, Preference: corev1.NodeSelectorTerm{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "fast", Operator: corev1.NodeSelectorOpExists}},
	}}
	anti := &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: "rack"}}}

	for mode, want := range map[string]*corev1.NodeAffinity{
		"required": {
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{fast},
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				{MatchExpressions: []corev1.NodeSelectorRequirement{zone, capable}},
				{MatchFields: []corev1.NodeSelectorRequirement{name}, MatchExpressions: []corev1.NodeSelectorRequirement{capable}},
			}},
		},
		"preferred": {
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{fast, {
				Weight: 100, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{capable}},
			}},
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				{MatchExpressions: []corev1.NodeSelectorRequirement{zone}},
				{MatchFields: []corev1.NodeSelectorRequirement{name}},
			}},
		},
	} {
		got := get[*appsv1.Deployment](t, render(t, affinity+"scheduling: {sriov: "+mode+"}"), "").Spec.Template.Spec.Affinity
		if diff := cmp.Diff(&corev1.Affinity{NodeAffinity: want, PodAntiAffinity: anti}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", mode, diff)
		}
	}
}
