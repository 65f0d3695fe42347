package podrun

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestCapabilitiesOf(t *testing.T) {
	defaults := "CHOWN,DAC_OVERRIDE,FOWNER,FSETID,KILL,SETGID,SETUID,SETPCAP,NET_BIND_SERVICE,NET_RAW,SYS_CHROOT,MKNOD,AUDIT_WRITE,SETFCAP"
	tests := []struct {
		name string
		in   *corev1.Capabilities
		want string
	}{
		{"nothing said", nil, defaults},
		{"drop all", &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, ""},
		{"the gateway's", &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}}, "NET_ADMIN"},
		{"one less", &corev1.Capabilities{Drop: []corev1.Capability{"MKNOD", "CAP_NET_RAW"}}, strings.ReplaceAll(defaults, "NET_RAW,SYS_CHROOT,MKNOD", "SYS_CHROOT")},
		{"one more", &corev1.Capabilities{Add: []corev1.Capability{"SYS_TIME"}}, strings.ReplaceAll(defaults, "MKNOD", "SYS_TIME,MKNOD")},
		{"all but one", &corev1.Capabilities{Add: []corev1.Capability{"ALL"}, Drop: []corev1.Capability{"BPF"}}, strings.ReplaceAll(strings.Join(capabilityNames(), ","), "BPF,", "")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mask, err := capabilitiesOf(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, strings.Join(namesOf(mask), ",")); diff != "" {
				t.Errorf("capabilities (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := capabilitiesOf(&corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIM"}}); err == nil {
		t.Error("a misspelt capability was accepted")
	}
}

func TestRefuseUnsupported(t *testing.T) {
	yes := true
	o := Options{Spec: corev1.PodSpec{
		HostNetwork:     true,
		SecurityContext: &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "net.ipv4.ip_forward"}, {Name: "kernel.shm_rmid_forced"}}},
		Volumes:         []corev1.Volume{{Name: "nfs", VolumeSource: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}}},
		Containers: []corev1.Container{{
			Name:            "gateway",
			Args:            []string{"--node=$(NODE)"},
			SecurityContext: &corev1.SecurityContext{Privileged: &yes},
			VolumeMounts:    []corev1.VolumeMount{{Name: "config", SubPath: "gateway.yaml"}},
			Resources:       corev1.ResourceRequirements{Limits: corev1.ResourceList{"devic.es/tun": resource.MustParse("1"), "memory": resource.MustParse("1Gi")}},
			ReadinessProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{}}},
		}},
	}}
	want := "podrun cannot do: hostNetwork; securityContext.sysctls[1]: kernel.shm_rmid_forced; volumes[0]: type of nfs; " +
		"container gateway: privileged; container gateway: subPath of config; container gateway: expansion of --node=$(NODE); " +
		"container gateway: resource devic.es/tun (give it in Devices); container gateway: type of the readiness probe"
	err := refuseUnsupported(o)
	if err == nil {
		t.Fatal("accepted")
	}
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if err := refuseUnsupported(Options{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "plain"}}}}); err != nil {
		t.Errorf("a plain Pod is refused: %v", err)
	}
}
