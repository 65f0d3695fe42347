package podrun

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// initConfig is what the container's first process is told.
type initConfig struct {
	// Join, where not 0, is the container's process to run beside; everything
	// but Args, Env, WorkDir and Identity is then left alone.
	Join     int
	Hostname string
	// Root is an empty directory that becomes the root file system.
	Root string
	// Files of the image: path in it → path here.
	Files map[string]string
	// Mounts in the order of their depth.
	Mounts   []bindMount
	Args     []string
	Env      []string
	WorkDir  string
	Identity identity
}

// bindMount shows a file, directory or device of the Pod in a container.
type bindMount struct {
	Source, Target string
	ReadOnly       bool
}

const (
	containersDir = "containers"
	nodeFilesDir  = "node"
)

// containerConfig works out what a container's process gets. attempt numbers
// the container's starts.
func (p *Pod) containerConfig(c corev1.Container, attempt int) (*initConfig, error) {
	id, err := identityOf(p.options.Spec.SecurityContext, c.SecurityContext)
	if err != nil {
		return nil, err
	}
	env, err := p.environment(c)
	if err != nil {
		return nil, err
	}
	mounts, err := p.mounts(c, id)
	if err != nil {
		return nil, err
	}
	config := &initConfig{
		Hostname: p.options.Name,
		Root:     filepath.Join(p.sandbox.dir, containersDir, fmt.Sprintf("%s-%d", c.Name, attempt)),
		Files:    p.options.Image.Files,
		Mounts:   mounts,
		Args:     commandLine(p.options.Image.Entrypoint, c, env),
		Env:      env,
		WorkDir:  c.WorkingDir,
		Identity: id,
	}
	if len(config.Args) == 0 || !path.IsAbs(config.Args[0]) {
		return nil, fmt.Errorf("command %q: not an absolute path", config.Args)
	}
	return config, p.sandbox.do(func() error { return os.MkdirAll(config.Root, 0o755) })
}

// commandLine follows Kubernetes' rules: command stands in for the entrypoint, and
// $(NAME) for a variable of the environment.
func commandLine(entrypoint []string, c corev1.Container, env []string) []string {
	if len(c.Command) > 0 {
		entrypoint = c.Command
	}
	line := slices.Concat(entrypoint, c.Args)
	for i := range line {
		for _, variable := range env {
			name, value, _ := strings.Cut(variable, "=")
			line[i] = strings.ReplaceAll(line[i], "$("+name+")", value)
		}
	}
	return line
}

// environment is PATH and HOSTNAME, which the runtime gives, and the
// specification's variables.
func (p *Pod) environment(c corev1.Container) ([]string, error) {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOSTNAME=" + p.options.Name,
	}
	for _, v := range c.Env {
		value, err := p.value(v)
		if err != nil {
			return nil, fmt.Errorf("env %s: %w", v.Name, err)
		}
		env = append(env, v.Name+"="+value)
	}
	return env, nil
}

func (p *Pod) value(v corev1.EnvVar) (string, error) {
	from := v.ValueFrom
	switch {
	case from == nil && strings.Contains(v.Value, "$("):
		return "", fmt.Errorf("podrun cannot expand %q", v.Value)
	case from == nil:
		return v.Value, nil
	case from.FieldRef != nil:
		return p.field(from.FieldRef)
	case from.ConfigMapKeyRef != nil:
		return p.keyOf("ConfigMap", from.ConfigMapKeyRef.Name, from.ConfigMapKeyRef.Key)
	case from.SecretKeyRef != nil:
		return p.keyOf("Secret", from.SecretKeyRef.Name, from.SecretKeyRef.Key)
	}
	return "", fmt.Errorf("this source is not known here")
}

func (p *Pod) keyOf(kind, name, key string) (string, error) {
	data, _ := p.objects.data(kind, name)
	value, ok := data[key]
	if !ok {
		return "", fmt.Errorf("no key %q in %s %q", key, kind, name)
	}
	return string(value), nil
}

// mounts lists everything to be shown in the container: its volumes, devices of
// the node's plugins, and the files that the kubelet keeps for each Pod.
func (p *Pod) mounts(c corev1.Container, id identity) ([]bindMount, error) {
	var out []bindMount
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(p.options.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			return nil, fmt.Errorf("volumeMount %s: no volume of that name", m.Name)
		}
		v := p.options.Spec.Volumes[i]
		source := filepath.Join(p.sandbox.dir, volumesDir, v.Name)
		if v.HostPath != nil {
			source = v.HostPath.Path
		}
		out = append(out, bindMount{
			Source: source, Target: m.MountPath,
			// The kubelet mounts what it writes itself read-only in any case.
			ReadOnly: m.ReadOnly || isWritten(v),
		})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Resources.Limits)) {
		if device := p.options.Devices[name]; device != "" {
			out = append(out, bindMount{Source: device, Target: device})
		}
	}
	for target := range p.nodeFiles() {
		if !slices.ContainsFunc(out, func(m bindMount) bool { return m.Target == target }) {
			out = append(out, bindMount{Source: p.nodeFile(target), Target: target, ReadOnly: id.ReadOnlyRootFS})
		}
	}
	log := "/dev/termination-log"
	if c.TerminationMessagePath != "" {
		log = c.TerminationMessagePath
	}
	out = append(out, bindMount{Source: p.nodeFile(path.Base(log)), Target: log})
	slices.SortStableFunc(out, func(a, b bindMount) int {
		return strings.Count(path.Clean(a.Target), "/") - strings.Count(path.Clean(b.Target), "/")
	})
	return out, nil
}

// nodeFiles are the files of a Pod that the kubelet keeps: path → content.
func (p *Pod) nodeFiles() map[string]string {
	o := p.options
	var resolv strings.Builder
	fmt.Fprintf(&resolv, "search %s.svc.cluster.local svc.cluster.local cluster.local\n", o.Namespace)
	for _, n := range o.Nameservers {
		fmt.Fprintf(&resolv, "nameserver %s\n", n)
	}
	resolv.WriteString("options ndots:5\n")
	return map[string]string{
		"/etc/hostname":    o.Name + "\n",
		"/etc/hosts":       fmt.Sprintf("127.0.0.1\tlocalhost\n::1\tlocalhost\n%s\t%s\n", o.IP, o.Name),
		"/etc/resolv.conf": resolv.String(),
	}
}

func (p *Pod) nodeFile(target string) string {
	return filepath.Join(p.sandbox.dir, nodeFilesDir, path.Base(target))
}

func (p *Pod) writeNodeFiles() error {
	return p.sandbox.do(func() error {
		if err := os.MkdirAll(filepath.Join(p.sandbox.dir, nodeFilesDir), 0o755); err != nil {
			return err
		}
		for target, content := range p.nodeFiles() {
			if err := os.WriteFile(p.nodeFile(target), []byte(content), 0o644); err != nil {
				return err
			}
		}
		for _, c := range slices.Concat(p.options.Spec.InitContainers, p.options.Spec.Containers) {
			name := "termination-log"
			if c.TerminationMessagePath != "" {
				name = c.TerminationMessagePath
			}
			if err := os.WriteFile(p.nodeFile(name), nil, 0o666); err != nil {
				return err
			}
		}
		return nil
	})
}

// setSysctls writes the Pod's kernel parameters, as the runtime does.
func (p *Pod) setSysctls() error {
	if p.options.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range p.options.Spec.SecurityContext.Sysctls {
		if err := p.options.Network.SetSysctl(s.Name, s.Value); err != nil {
			return err
		}
	}
	return nil
}
