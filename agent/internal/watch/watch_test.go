package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// volume keeps a directory as the kubelet keeps a mounted one.
type volume struct {
	t   testing.TB
	dir string
	n   int
}

func newVolume(t testing.TB, dir string) *volume {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	return &volume{t: t, dir: dir}
}

// swap is what pkg/volume/util/atomic_writer.go does, step by step.
func (v *volume) swap(files map[string]string) {
	v.t.Helper()
	v.n++
	name := filepath.Join(v.dir, "..2026_01_02_03_04_05."+strconv.Itoa(v.n))
	must(v.t, os.Mkdir(name, 0o755))
	for f, content := range files {
		must(v.t, os.WriteFile(filepath.Join(name, f), []byte(content), 0o600))
	}
	old, _ := os.Readlink(filepath.Join(v.dir, dataLink))
	must(v.t, os.Symlink(filepath.Base(name), filepath.Join(v.dir, "..data_tmp")))
	must(v.t, os.Rename(filepath.Join(v.dir, "..data_tmp"), filepath.Join(v.dir, dataLink)))
	for f := range files {
		if _, err := os.Lstat(filepath.Join(v.dir, f)); errors.Is(err, fs.ErrNotExist) {
			must(v.t, os.Symlink(filepath.Join(dataLink, f), filepath.Join(v.dir, f)))
		}
	}
	if old != "" {
		must(v.t, os.RemoveAll(filepath.Join(v.dir, old)))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	config := newVolume(t, filepath.Join(dir, "config"))
	config.swap(map[string]string{"gateway.yaml": "one"})
	config.swap(map[string]string{"gateway.yaml": "two"})
	newVolume(t, filepath.Join(dir, "psk/team")).swap(map[string]string{"alice": "a", "bob": "b"})
	// A tree kept by hand, without the kubelet's links.
	must(t, os.MkdirAll(filepath.Join(dir, "peers.d/hand"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "peers.d/hand/x.yaml"), []byte("peers: []"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "peers.d/hand/.x.yaml.swp"), []byte("editor"), 0o600))

	got, err := Read(dir)
	must(t, err)
	want := spec.Files{
		"config/gateway.yaml": []byte("two"), "psk/team/alice": []byte("a"), "psk/team/bob": []byte("b"),
		"peers.d/hand/x.yaml": []byte("peers: []"),
		"config/":             nil, "psk/": nil, "psk/team/": nil, "peers.d/": nil, "peers.d/hand/": nil,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// A reading that a swap overtakes must be of one version, and of all its files:
// the kubelet removes the old ones right after the swap.
func TestReadWhileSwapped(t *testing.T) {
	dir := t.TempDir()
	config := newVolume(t, filepath.Join(dir, "psk/team"))
	version := func(n int) map[string]string {
		files := map[string]string{}
		for i := range 50 {
			files[fmt.Sprintf("peer-%03d", i)] = strconv.Itoa(n)
		}
		return files
	}
	config.swap(version(0))
	ended := make(chan struct{})
	result := make(chan error)
	go func() {
		for {
			files, err := Read(dir)
			maps.DeleteFunc(files, func(name string, _ []byte) bool { return strings.HasSuffix(name, "/") })
			seen := map[string]int{}
			for _, content := range files {
				seen[string(content)]++
			}
			if err == nil && (len(files) != 50 || len(seen) != 1) {
				err = fmt.Errorf("files by version: %v, want 50 of one", seen)
			}
			select {
			case <-ended:
				result <- err
				return
			default:
			}
			if err != nil {
				result <- err
				return
			}
		}
	}()
	for n := range 6 {
		config.swap(version(n + 1))
	}
	close(ended)
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestReadErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: got %v", err)
	}
	for _, link := range []string{"nowhere", dataLink} {
		sub := filepath.Join(t.TempDir(), "psk")
		must(t, os.Mkdir(sub, 0o755))
		must(t, os.Symlink("gone", filepath.Join(sub, link)))
		if files, err := Read(filepath.Dir(sub)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("link %s that leads nowhere: got %v and error %v; its keys would be taken for removed", link, files, err)
		}
	}
	big := filepath.Join(dir, "big")
	must(t, os.WriteFile(big, nil, 0o600))
	must(t, os.Truncate(big, maxFile+1))
	if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), big) {
		t.Errorf("huge file: got %v", err)
	}
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	config := newVolume(t, filepath.Join(dir, "config"))
	config.swap(map[string]string{"gateway.yaml": "one"})
	hand := filepath.Join(dir, "peers.d")
	must(t, os.MkdirAll(hand, 0o755))
	file := filepath.Join(hand, "x.yaml")

	w, err := New(Options{Dir: dir, Quiet: 5 * time.Millisecond, Longest: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()

	steps := []struct {
		name string
		do   func()
	}{
		{"kubelet swap", func() { config.swap(map[string]string{"gateway.yaml": "two"}) }},
		{"second kubelet swap", func() { config.swap(map[string]string{"gateway.yaml": "three"}) }},
		{"file made", func() { must(t, os.WriteFile(file, []byte("a"), 0o600)) }},
		{"file written", func() { must(t, os.WriteFile(file, []byte("b"), 0o600)) }},
		{"permission lost", func() { must(t, os.Chmod(file, 0)) }},
		{"file removed", func() { must(t, os.Remove(file)) }},
		{"directory made", func() { must(t, os.Mkdir(filepath.Join(hand, "team"), 0o755)) }},
		{"file in the new directory", func() { must(t, os.WriteFile(filepath.Join(hand, "team/y.yaml"), []byte("c"), 0o600)) }},
		{"directory renamed", func() { must(t, os.Rename(filepath.Join(hand, "team"), filepath.Join(hand, "crew"))) }},
		{"file in the renamed directory", func() { must(t, os.WriteFile(filepath.Join(hand, "crew/y.yaml"), []byte("d"), 0o600)) }},
	}
	for _, s := range steps {
		s.do()
		select {
		case <-w.Changed():
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: no report", s.name)
		}
	}
}

func TestVisible(t *testing.T) {
	got := map[string]bool{}
	want := map[string]bool{
		"/d/..data": true, "/d/alice": true, "/d/.hidden": true, "/d": true,
		"/d/..data_tmp": false, "/d/..2026_01_02_03_04_05.1234": false,
	}
	for path := range want {
		got[path] = visible(path)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("visible (-want +got):\n%s", diff)
	}
}

// A directory that never comes to rest must not put a report off for ever.
func TestWatchLongest(t *testing.T) {
	dir := t.TempDir()
	w, err := New(Options{Dir: dir, Quiet: time.Hour, Longest: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	for i := 0; ; i++ {
		must(t, os.WriteFile(filepath.Join(dir, "x"), []byte{byte(i)}, 0o600))
		select {
		case <-w.Changed():
			return
		case <-time.After(time.Millisecond):
		}
		if i > 10_000 {
			t.Fatal("no report while the directory kept changing")
		}
	}
}
