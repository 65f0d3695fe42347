package podrun

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

// testSpec is a Pod like the gateway's.
func testSpec(args ...string) corev1.PodSpec {
	root, no, yes, mode, charDevice := int64(0), false, true, int32(0o400), corev1.HostPathCharDev
	return corev1.PodSpec{
		Containers: []corev1.Container{{
			Name:           "app",
			Args:           append([]string{"serve"}, args...),
			Env:            []corev1.EnvVar{{Name: "GREETING", Value: "hello"}, {Name: "MY_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}},
			Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			StartupProbe:   &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("http")}}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromString("http")}}},
			SecurityContext: &corev1.SecurityContext{
				RunAsUser: &root, RunAsGroup: &root, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}},
			},
			VolumeMounts: []corev1.VolumeMount{
				{Name: "config", MountPath: "/etc/app/config"},
				{Name: "key", MountPath: "/etc/app/key", ReadOnly: true},
				{Name: "run", MountPath: "/var/run/app"},
				{Name: "null", MountPath: "/dev/net/null"},
			},
		}},
		Volumes: []corev1.Volume{
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "config"}}}},
			{Name: "key", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: &mode, Sources: []corev1.VolumeProjection{
				{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "key"}}},
				{Secret: &corev1.SecretProjection{
					LocalObjectReference: corev1.LocalObjectReference{Name: "key"},
					Items:                []corev1.KeyToPath{{Key: "made", Path: "renamed"}},
				}},
			}}}},
			{Name: "run", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
			{Name: "null", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/dev/null", Type: &charDevice}}},
		},
	}
}

func configMap(data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "config"}, Data: data}
}

func secret(data map[string]string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "key"}, StringData: data}
}

func startPod(t *testing.T, spec corev1.PodSpec, objects ...runtime.Object) *Pod {
	t.Helper()
	return startPodIn(t, "", spec, objects...)
}

// startPodIn has the logs in a directory; "": in t's artifacts.
func startPodIn(t *testing.T, logs string, spec corev1.PodSpec, objects ...runtime.Object) *Pod {
	t.Helper()
	testenv.Need(t, testenv.Root(), testenv.NetNS())
	return ForTest(t, Options{
		Name: "app-0", Spec: spec, Objects: objects, Image: selfImage(t),
		Network: netns.ForTest(t), IP: netip.MustParseAddr("127.0.0.1"), LogDir: logs,
	})
}

// ask asks the program in the container; it returns the answer or, as an error,
// what went wrong in there.
func ask(t *testing.T, p *Pod, path string, into any) error {
	t.Helper()
	response, err := p.Network().HTTPClient().Get("http://" + p.IP().String() + ":8080" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(body)))
	}
	return json.Unmarshal(body, into)
}

func readInside(t *testing.T, p *Pod, path string) string {
	t.Helper()
	var content string
	if err := ask(t, p, "/read?path="+path, &content); err != nil {
		return err.Error()
	}
	return content
}

func waitReady(t *testing.T, p *Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestProcessIsAsSpecified(t *testing.T) {
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	p := startPod(t, testSpec("--flag"), configMap(map[string]string{"ready": "1"}), secret(map[string]string{"made": "k"}))
	waitReady(t, p)
	status, err := p.Container("app").Status()
	if err != nil {
		t.Fatal(err)
	}
	mounts := status.Mounts
	status.Mounts = nil
	admin := []string{"NET_ADMIN"}
	want := Status{Permitted: admin, Effective: admin, Bounding: admin, NoNewPrivs: true}
	if diff := cmp.Diff(want, status); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	status.Mounts = mounts
	for path, want := range map[string]bool{
		"/": true, "/app": true, "/proc": false, "/proc/sys": true, "/proc/sys/net/ipv4/ip_forward": true, "/sys": true,
		"/etc/app/config": true, "/etc/app/key": true, "/var/run/app": false, "/etc/hosts": true,
	} {
		if got := status.ReadOnly(path); got != want {
			t.Errorf("read-only(%s) = %t, want %t", path, got, want)
		}
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.Path, os.TempDir()) || strings.HasPrefix(m.Path, "/home") {
			t.Errorf("the container sees the machine's mount %s", m.Path)
		}
	}
	for path, want := range map[string]string{
		"/new":                          "open /new: read-only file system",
		"/proc/sys/net/ipv4/ip_forward": "open /proc/sys/net/ipv4/ip_forward: read-only file system",
		"/etc/app/config/ready":         "open /etc/app/config/ready: read-only file system",
	} {
		err := ask(t, p, "/write?path="+path, new(string))
		if err == nil || err.Error() != want {
			t.Errorf("writing %s: %v, want %s", path, err, want)
		}
	}
	for _, path := range []string{"/var/run/app/socket", "/dev/net/null"} {
		if err := ask(t, p, "/write?path="+path, new(string)); err != nil {
			t.Errorf("writing %s: %v", path, err)
		}
	}
	var me self
	if err := ask(t, p, "/self", &me); err != nil {
		t.Fatal(err)
	}
	wantSelf := self{
		Args: []string{"serve", "--flag"}, Host: "app-0", PID: 1,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=app-0", "GREETING=hello", "MY_IP=127.0.0.1"},
	}
	if diff := cmp.Diff(wantSelf, me); diff != "" {
		t.Errorf("process (-want +got):\n%s", diff)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(before), string(after)); diff != "" {
		t.Errorf("mounts of this process changed (-before +after):\n%s", diff)
	}
}

// Kubernetes sets no ambient capabilities, and so a user other than root has none.
func TestOtherUserHasNoCapability(t *testing.T) {
	spec := testSpec()
	user, group := int64(65534), int64(65533)
	spec.Containers[0].SecurityContext.RunAsUser = &user
	spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
	p := startPod(t, spec, configMap(map[string]string{"ready": "1"}), secret(map[string]string{"made": "k"}))
	waitReady(t, p)
	status, err := p.Container("app").Status()
	if err != nil {
		t.Fatal(err)
	}
	status.Mounts = nil
	want := Status{
		Bounding: []string{"NET_ADMIN"}, NoNewPrivs: true, Groups: []int{65533},
		UIDs: [4]int{65534, 65534, 65534, 65534},
	}
	if diff := cmp.Diff(want, status); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if got := readInside(t, p, "/etc/app/key/renamed"); got != "k" {
		t.Errorf("the Secret with fsGroup reads %q, want k", got)
	}
}

func TestUpdate(t *testing.T) {
	p := startPod(t, testSpec(), configMap(map[string]string{"a": "1"}), secret(map[string]string{"made": "k"}))
	if err := p.Container("app").waitFor(t.Context(), Startup); err != nil {
		t.Fatal(err)
	}
	err := p.Container("app").Probe(t.Context(), Readiness)
	if err == nil || !strings.Contains(err.Error(), "503 Service Unavailable: stat /etc/app/config/ready") {
		t.Errorf("readiness without the file: %v, want what the program answered", err)
	}
	keyBefore := volumeFiles(t, p.VolumePath("key"))
	stamp, err := os.Readlink(p.VolumePath("key") + "/..data")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	swapped, err := p.Update(configMap(map[string]string{"ready": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	if swapped.Before(start) || swapped.After(time.Now()) {
		t.Errorf("swapped at %s, want within the call", swapped)
	}
	waitReady(t, p)
	if got := readInside(t, p, "/etc/app/config/a"); got != "open /etc/app/config/a: no such file or directory" {
		t.Errorf("the key that was taken away reads %q", got)
	}
	if now, _ := os.Readlink(p.VolumePath("key") + "/..data"); now != stamp {
		t.Errorf("another volume was written anew: %s, was %s", now, stamp)
	}

	swapped, err = p.Update(configMap(map[string]string{"ready": "1"}))
	if err != nil || !swapped.IsZero() {
		t.Errorf("the same again: swapped at %s, %v; want nothing done", swapped, err)
	}
	_, err = p.Update(secret(map[string]string{"other": "x"}))
	if err == nil || !strings.Contains(err.Error(), `references non-existent key "made" of Secret "key"`) {
		t.Errorf("a required key gone: %v, want the kubelet's words", err)
	}
	if diff := cmp.Diff(keyBefore, volumeFiles(t, p.VolumePath("key"))); diff != "" {
		t.Errorf("the volume was not kept (-want +got):\n%s", diff)
	}
	if _, err := p.Update(secret(map[string]string{"made": "k2", "next": "n"})); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"made": "k2", "renamed": "k2", "next": "n"} {
		if got := readInside(t, p, "/etc/app/key/"+file); got != want {
			t.Errorf("%s reads %q, want %q", file, got, want)
		}
	}
}

func TestRestart(t *testing.T) {
	logs := t.TempDir()
	if err := os.WriteFile(filepath.Join(logs, "app-0-app.log"), []byte("serving\n"), 0o600); err != nil { // of an earlier run
		t.Fatal(err)
	}
	p := startPodIn(t, logs, testSpec("--stubborn"), configMap(map[string]string{"ready": "1"}), secret(map[string]string{"made": "k"}))
	waitReady(t, p)
	c := p.Container("app")
	if err := ask(t, p, "/write?path=/var/run/app/left", new(string)); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err == nil {
		t.Error("started while it runs")
	}
	usage, err := c.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if usage.FDs < 3 || usage.RSS <= 0 || usage.PeakRSS < usage.RSS || usage.Threads < 1 {
		t.Errorf("usage = %+v, want that of a process", usage)
	}
	first := c.PID()
	exit, err := c.Kill()
	if err != nil {
		t.Fatal(err)
	}
	if exit.Signal != syscall.SIGKILL {
		t.Errorf("exit = %s, want by SIGKILL", exit)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, p)
	if got := readInside(t, p, "/var/run/app/left"); got != "written" {
		t.Errorf("emptyDir after a restart: %q, want what was written", got)
	}
	if c.PID() == first || c.Restarts() != 1 {
		t.Errorf("PID %d (was %d), restarts %d, want another process and 1", c.PID(), first, c.Restarts())
	}
	// It stays on SIGTERM, so that only the end of the grace period ends it.
	exit, err = c.Terminate(t.Context(), 50*time.Millisecond)
	if err != nil || exit.Signal != syscall.SIGKILL {
		t.Errorf("Terminate = %s, %v, want SIGKILL after the grace period", exit, err)
	}
	log, err := c.Log()
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "serving\n"); n != 2 {
		t.Errorf("the log has %d starts, want both of this Pod: %s", n, log)
	}
}

func TestExec(t *testing.T) {
	p := startPod(t, testSpec(), configMap(map[string]string{"ready": "1"}), secret(map[string]string{"made": "k"}))
	waitReady(t, p)
	out, err := p.Container("app").Exec(t.Context(), "/app", "look")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(out), "NSpid:\t")
	if head != "app-0 hello 1 <nil>\n" {
		t.Errorf("seen: %s", head)
	}
	pid, rest, _ := strings.Cut(rest, "\n")
	if pid == "" || pid == "1" {
		t.Errorf("NSpid = %q, want a number beside 1 in the container's process namespace", pid)
	}
	admin := "0000000000001000"
	want := fmt.Sprintf("CapInh:\t%016x\nCapPrm:\t%s\nCapEff:\t%s\nCapBnd:\t%s\nCapAmb:\t%016x\nNoNewPrivs:\t1\n", 0, admin, admin, admin, 0)
	if diff := cmp.Diff(want, rest); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	_, err = p.Container("app").Exec(t.Context(), "/app", "look", "--fail")
	if err == nil || err.Error() != "exec in container app: exit status 3: as asked" {
		t.Errorf("error = %v, want status and standard error", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Container("app").Exec(ctx, "/app", "serve", "--stubborn"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v, want the end of the time", err)
	}
}

func TestTerminate(t *testing.T) {
	p := startPod(t, testSpec(), configMap(map[string]string{"ready": "1"}), secret(map[string]string{"made": "k"}))
	waitReady(t, p)
	if err := p.Terminate(t.Context(), p.Grace()); err != nil {
		t.Fatal(err)
	}
	c := p.Container("app")
	if c.Running() {
		t.Error("it runs after Terminate")
	}
	if exit := exitOf(c.current().Wait()); exit.Code != 7 {
		t.Errorf("exit = %s, want status 7", exit)
	}
}

func TestStartFails(t *testing.T) {
	testenv.Need(t, testenv.Root(), testenv.NetNS())
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	tests := []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"key of a Secret missing", func(o *Options) { o.Objects = []runtime.Object{configMap(nil), secret(nil)} }, `setting up volume "key": references non-existent key "made" of Secret "key"`},
		{"ConfigMap missing", func(o *Options) { o.Objects = []runtime.Object{secret(map[string]string{"made": ""})} }, `setting up volume "config": ConfigMap "config" not found`},
		{"not a device", func(o *Options) { o.Spec.Volumes[3].HostPath.Path = "/etc/passwd" }, `hostPath type check failed: /etc/passwd is not a CharDevice`},
		{"no such program", func(o *Options) { o.Spec.Containers[0].Command = []string{"/bin/sh"} }, "container app: exec /bin/sh: no such file or directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{
				Spec: testSpec(), Image: selfImage(t), Network: netns.ForTest(t), LogDir: t.TempDir(),
				Objects: []runtime.Object{configMap(nil), secret(map[string]string{"made": "k"})},
			}
			tt.change(&o)
			p, err := Start(t.Context(), o)
			if err == nil {
				_ = p.Close()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want %s", err, tt.want)
			}
		})
	}
	left, err := filepath.Glob(filepath.Join(temp, "vpngw-pod-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
