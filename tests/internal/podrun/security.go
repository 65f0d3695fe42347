package podrun

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// capabilityNames in the order of their numbers (linux/capability.h).
func capabilityNames() []string {
	return []string{
		"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
		"SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
		"IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
		"SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
		"LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
		"WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
	}
}

// defaultCapabilities are those of containerd where a Pod says nothing
// (containerd, oci/spec.go).
func defaultCapabilities() []string {
	return []string{
		"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID",
		"SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
	}
}

// identity is who a container's process is and what it may do.
type identity struct {
	UID, GID int
	Groups   []int
	// Capabilities as a bit mask by number: the bounding, permitted and
	// effective sets that the runtime asks for. The inheritable and ambient
	// sets are empty: Kubernetes sets none, so that after exec a user other
	// than root is left without.
	Capabilities   uint64
	NoNewPrivs     bool
	ReadOnlyRootFS bool
}

// identityOf works out the identity as kubelet and containerd do: the
// container's security context, else the Pod's, else root, as the image says.
func identityOf(pod *corev1.PodSecurityContext, container *corev1.SecurityContext) (identity, error) {
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	if container == nil {
		container = &corev1.SecurityContext{}
	}
	id := identity{
		UID:            int(first(container.RunAsUser, pod.RunAsUser)),
		GID:            int(first(container.RunAsGroup, pod.RunAsGroup)),
		NoNewPrivs:     container.AllowPrivilegeEscalation != nil && !*container.AllowPrivilegeEscalation,
		ReadOnlyRootFS: container.ReadOnlyRootFilesystem != nil && *container.ReadOnlyRootFilesystem,
	}
	for _, g := range pod.SupplementalGroups {
		id.Groups = append(id.Groups, int(g))
	}
	if pod.FSGroup != nil {
		id.Groups = append(id.Groups, int(*pod.FSGroup))
	}
	nonRoot := pod.RunAsNonRoot
	if container.RunAsNonRoot != nil {
		nonRoot = container.RunAsNonRoot
	}
	if nonRoot != nil && *nonRoot && id.UID == 0 {
		return identity{}, fmt.Errorf("container has runAsNonRoot and would run as root")
	}
	var err error
	id.Capabilities, err = capabilitiesOf(container.Capabilities)
	return id, err
}

// capabilitiesOf applies add and drop to the runtime's defaults, ALL first
// (containerd, WithCapabilities in the CRI plugin).
func capabilitiesOf(c *corev1.Capabilities) (uint64, error) {
	names := defaultCapabilities()
	if c == nil {
		c = &corev1.Capabilities{}
	}
	if slices.Contains(c.Add, "ALL") {
		names = capabilityNames()
	}
	if slices.Contains(c.Drop, "ALL") {
		names = nil
	}
	var mask uint64
	set := func(name string, on bool) error {
		number := slices.Index(capabilityNames(), strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
		if number < 0 {
			return fmt.Errorf("unknown capability %q", name)
		}
		mask &^= 1 << number
		if on {
			mask |= 1 << number
		}
		return nil
	}
	for _, n := range names {
		if err := set(n, true); err != nil {
			return 0, err
		}
	}
	for _, n := range c.Add {
		if n != "ALL" {
			if err := set(string(n), true); err != nil {
				return 0, err
			}
		}
	}
	for _, n := range c.Drop {
		if n != "ALL" {
			if err := set(string(n), false); err != nil {
				return 0, err
			}
		}
	}
	return mask, nil
}

// first is the first pointer's value that is set, or 0.
func first(values ...*int64) int64 {
	for _, v := range values {
		if v != nil {
			return *v
		}
	}
	return 0
}

// refuseUnsupported returns an error that names every field which the package
// would otherwise have to pass over.
func refuseUnsupported(o Options) error {
	var fields []string
	note := func(is bool, field string, args ...any) {
		if is {
			fields = append(fields, fmt.Sprintf(field, args...))
		}
	}
	s := o.Spec
	note(s.HostNetwork, "hostNetwork")
	note(s.HostPID, "hostPID")
	note(s.HostIPC, "hostIPC")
	note(s.ShareProcessNamespace != nil && *s.ShareProcessNamespace, "shareProcessNamespace")
	note(s.HostUsers != nil && !*s.HostUsers, "hostUsers: false")
	note(len(s.HostAliases) > 0, "hostAliases")
	note(len(s.EphemeralContainers) > 0, "ephemeralContainers")
	if s.SecurityContext != nil {
		for i, sysctl := range s.SecurityContext.Sysctls {
			note(!strings.HasPrefix(sysctl.Name, "net."), "securityContext.sysctls[%d]: %s", i, sysctl.Name)
		}
	}
	for i, v := range s.Volumes {
		note(!isWritten(v) && v.EmptyDir == nil && v.HostPath == nil, "volumes[%d]: type of %s", i, v.Name)
		if v.Projected != nil {
			for j, source := range v.Projected.Sources {
				note(source.ServiceAccountToken != nil || source.ClusterTrustBundle != nil || source.PodCertificate != nil,
					"volumes[%d].projected.sources[%d]: type", i, j)
			}
		}
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for _, c := range list {
			noteContainer(note, c, o.Devices)
		}
	}
	if len(fields) > 0 {
		return fmt.Errorf("podrun cannot do: %s", strings.Join(fields, "; "))
	}
	return nil
}

func noteContainer(note func(bool, string, ...any), c corev1.Container, devices map[corev1.ResourceName]string) {
	at := "container " + c.Name + ": "
	note(c.Lifecycle != nil, at+"lifecycle")
	note(c.TTY || c.Stdin, at+"stdin, tty")
	note(c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged, at+"privileged")
	note(c.SecurityContext != nil && c.SecurityContext.ProcMount != nil, at+"procMount")
	note(len(c.VolumeDevices) > 0, at+"volumeDevices")
	note(len(c.EnvFrom) > 0, at+"envFrom")
	for _, m := range c.VolumeMounts {
		note(m.SubPath != "" || m.SubPathExpr != "", at+"subPath of "+m.Name)
		note(m.MountPropagation != nil, at+"mountPropagation of "+m.Name)
	}
	for _, text := range slices.Concat(c.Command, c.Args) {
		for _, v := range c.Env {
			text = strings.ReplaceAll(text, "$("+v.Name+")", "")
		}
		note(strings.Contains(text, "$("), at+"expansion of %s", text)
	}
	for name := range c.Resources.Limits {
		standard := name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage
		note(!standard && devices[name] == "", at+"resource %s (give it in Devices)", name)
	}
	for kind, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
		note(probe != nil && probe.HTTPGet == nil && probe.TCPSocket == nil, at+"type of the %s probe", kind)
	}
}
