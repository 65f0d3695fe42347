package podrun

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const volumesDir = "volumes"

// store holds the cluster's ConfigMaps and Secrets by name.
type store struct {
	mu         sync.Mutex
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
}

func newStore(objects []runtime.Object) *store {
	s := &store{configMaps: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{}}
	s.put(objects)
	return s
}

func (s *store) put(objects []runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, object := range objects {
		switch o := object.(type) {
		case *corev1.ConfigMap:
			s.configMaps[o.Name] = o.DeepCopy()
		case *corev1.Secret:
			s.secrets[o.Name] = o.DeepCopy()
		}
	}
}

// data returns the contents of the named ConfigMap or Secret, and whether there
// is one.
func (s *store) data(kind, name string) (map[string][]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string][]byte{}
	if kind == "Secret" {
		o, ok := s.secrets[name]
		if ok {
			maps.Copy(out, o.Data)
			for k, v := range o.StringData {
				out[k] = []byte(v)
			}
		}
		return out, ok
	}
	o, ok := s.configMaps[name]
	if ok {
		maps.Copy(out, o.BinaryData)
		for k, v := range o.Data {
			out[k] = []byte(v)
		}
	}
	return out, ok
}

// Update puts new versions of ConfigMaps and Secrets in place and renews the
// volumes that show them, one after the other, as the kubelet does some time
// after the API server's copy has changed. It returns the moment just before the
// first volume's ..data link was swapped; zero where no volume's files differ.
// A volume that can no longer be made, for a required key is gone, keeps its
// files, and the error says so.
func (p *Pod) Update(objects ...runtime.Object) (time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.objects.put(objects)
	var swapped time.Time
	var errs []error
	for _, v := range p.options.Spec.Volumes {
		if !isWritten(v) {
			continue
		}
		at, err := p.writeVolume(v)
		if swapped.IsZero() {
			swapped = at
		}
		errs = append(errs, err)
	}
	return swapped, errors.Join(errs...)
}

// VolumePath is a directory by which this process (and any other of root's) can
// look into the named volume, and harm it: the files that the containers see.
func (p *Pod) VolumePath(volume string) string {
	return p.sandbox.path(volumesDir, volume)
}

func isWritten(v corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil
}

func (p *Pod) makeVolumes() error {
	var errs []error
	for _, v := range p.options.Spec.Volumes {
		var err error
		switch {
		case isWritten(v):
			_, err = p.writeVolume(v)
		case v.EmptyDir != nil:
			err = p.sandbox.do(func() error { return p.makeEmptyDir(v) })
		case v.HostPath != nil:
			err = checkHostPath(v)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// writeVolume brings the files of a volume up to date.
func (p *Pod) writeVolume(v corev1.Volume) (swapped time.Time, err error) {
	files, err := p.payloadOf(v)
	if err == nil {
		err = p.sandbox.do(func() error {
			dir := filepath.Join(p.sandbox.dir, volumesDir, v.Name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			swapped, err = writeAtomic(dir, files, p.fsGroup())
			return err
		})
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("setting up volume %q: %w", v.Name, err)
	}
	return swapped, nil
}

func (p *Pod) fsGroup() int {
	if c := p.options.Spec.SecurityContext; c != nil && c.FSGroup != nil {
		return int(*c.FSGroup)
	}
	return -1
}

// payloadOf gathers the files of a volume. Of a projected volume's sources the
// later ones win, as with the kubelet.
func (p *Pod) payloadOf(v corev1.Volume) (payload, error) {
	switch {
	case v.ConfigMap != nil:
		return p.fromObject("ConfigMap", v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, v.ConfigMap.DefaultMode)
	case v.Secret != nil:
		return p.fromObject("Secret", v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, v.Secret.DefaultMode)
	case v.DownwardAPI != nil:
		return p.fromPod(v.DownwardAPI.Items, v.DownwardAPI.DefaultMode)
	}
	all := payload{}
	mode := v.Projected.DefaultMode
	for _, source := range v.Projected.Sources {
		var files payload
		var err error
		switch {
		case source.Secret != nil:
			files, err = p.fromObject("Secret", source.Secret.Name, source.Secret.Items, source.Secret.Optional, mode)
		case source.ConfigMap != nil:
			files, err = p.fromObject("ConfigMap", source.ConfigMap.Name, source.ConfigMap.Items, source.ConfigMap.Optional, mode)
		case source.DownwardAPI != nil:
			files, err = p.fromPod(source.DownwardAPI.Items, mode)
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(all, files)
	}
	return all, nil
}

// fromObject makes the files of a ConfigMap or Secret: all keys, or the items.
func (p *Pod) fromObject(kind, name string, items []corev1.KeyToPath, optional *bool, mode *int32) (payload, error) {
	isOptional := optional != nil && *optional
	data, ok := p.objects.data(kind, name)
	switch {
	case !ok && isOptional:
		return payload{}, nil
	case !ok:
		return nil, fmt.Errorf("%s %q not found", kind, name)
	}
	files := payload{}
	if len(items) == 0 {
		for k, content := range data {
			files[k] = projectedFile{content, fileMode(mode, nil)}
		}
		return files, nil
	}
	for _, item := range items {
		content, ok := data[item.Key]
		switch {
		case ok:
			files[filepath.Clean(item.Path)] = projectedFile{content, fileMode(mode, item.Mode)}
		case !isOptional:
			return nil, fmt.Errorf("references non-existent key %q of %s %q", item.Key, kind, name)
		}
	}
	return files, nil
}

// fromPod makes the files of the downward API.
func (p *Pod) fromPod(items []corev1.DownwardAPIVolumeFile, mode *int32) (payload, error) {
	files := payload{}
	for _, item := range items {
		text, err := p.field(item.FieldRef)
		if err != nil {
			return nil, err
		}
		files[filepath.Clean(item.Path)] = projectedFile{[]byte(text), fileMode(mode, item.Mode)}
	}
	return files, nil
}

// field is a field of the Pod, as the downward API gives it.
func (p *Pod) field(ref *corev1.ObjectFieldSelector) (string, error) {
	o := p.options
	list := func(m map[string]string) string {
		var lines []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			lines = append(lines, fmt.Sprintf("%s=%q", k, m[k]))
		}
		return strings.Join(lines, "\n")
	}
	if ref == nil {
		return "", errors.New("downward API: only fieldRef is known here")
	}
	switch ref.FieldPath {
	case "metadata.name":
		return o.Name, nil
	case "metadata.namespace":
		return o.Namespace, nil
	case "metadata.labels":
		return list(o.Labels), nil
	case "metadata.annotations":
		return list(o.Annotations), nil
	case "status.podIP", "status.podIPs":
		return o.IP.String(), nil
	case "spec.nodeName":
		return "node", nil
	case "spec.serviceAccountName":
		return o.Spec.ServiceAccountName, nil
	}
	return "", fmt.Errorf("downward API: field %q is not known here", ref.FieldPath)
}

// fileMode is the item's mode, the volume's, or the kubelet's default.
func fileMode(volume, item *int32) os.FileMode {
	switch {
	case item != nil:
		return os.FileMode(*item)
	case volume != nil:
		return os.FileMode(*volume)
	}
	return 0o644
}

// makeEmptyDir runs on the sandbox's thread.
func (p *Pod) makeEmptyDir(v corev1.Volume) error {
	dir := filepath.Join(p.sandbox.dir, volumesDir, v.Name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if v.EmptyDir.Medium == corev1.StorageMediumMemory {
		options := "mode=0777"
		if v.EmptyDir.SizeLimit != nil {
			options += fmt.Sprintf(",size=%d", v.EmptyDir.SizeLimit.Value())
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
			return fmt.Errorf("setting up volume %q: tmpfs: %w", v.Name, err)
		}
	}
	if gid := p.fsGroup(); gid >= 0 {
		if err := os.Chown(dir, -1, gid); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o777)
}

// checkHostPath checks the type of a hostPath volume, as the kubelet does.
func checkHostPath(v corev1.Volume) error {
	kind := corev1.HostPathUnset
	if v.HostPath.Type != nil {
		kind = *v.HostPath.Type
	}
	info, err := os.Stat(v.HostPath.Path)
	if err != nil {
		return fmt.Errorf("setting up volume %q: hostPath type check failed: %w", v.Name, err)
	}
	mode := info.Mode()
	ok := map[corev1.HostPathType]bool{
		corev1.HostPathUnset:             true,
		corev1.HostPathDirectory:         mode.IsDir(),
		corev1.HostPathFile:              mode.IsRegular(),
		corev1.HostPathSocket:            mode&os.ModeSocket != 0,
		corev1.HostPathCharDev:           mode&os.ModeCharDevice != 0,
		corev1.HostPathBlockDev:          mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0,
		corev1.HostPathDirectoryOrCreate: mode.IsDir(),
		corev1.HostPathFileOrCreate:      mode.IsRegular(),
	}[kind]
	if !ok {
		return fmt.Errorf("setting up volume %q: hostPath type check failed: %s is not a %s", v.Name, v.HostPath.Path, kind)
	}
	return nil
}
