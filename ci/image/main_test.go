package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// buildArgs returns the arguments of a build of two platforms, whose agents are
// made in a fresh directory, to a fresh archive.
func buildArgs(t *testing.T, amd64 string) (archive string, args []string) {
	t.Helper()
	dir := t.TempDir()
	for arch, content := range map[string]string{"amd64": amd64, "arm64": "arm64 agent"} {
		// The source's own mode must not matter.
		if err := os.WriteFile(filepath.Join(dir, "agent-"+arch), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	archive = filepath.Join(dir, "dist", "image.tar")
	return archive, []string{
		"build", "-name", "ghcr.io/cloud-native-vpn/vpn-gateway:0.1.0", "-output", archive,
		"-platform", "linux/amd64", "-platform", "linux/arm64",
		"-file", filepath.Join(dir, "agent-{arch}") + ":/vpn-agent:0755",
		"-ca-certificates", "/etc/ssl/certs/ca-certificates.crt",
		"-entrypoint", "/vpn-agent", "-created", "1700000000",
		"-label", "org.opencontainers.image.version=0.1.0",
	}
}

func mustRun(t *testing.T, args []string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatalf("image %s: %v", strings.Join(args, " "), err)
	}
	return out.String()
}

func TestBuildIsReproducible(t *testing.T) {
	archives := map[string][]byte{}
	for _, build := range []struct{ name, agent string }{{"first", "amd64 agent"}, {"second", "amd64 agent"}, {"other", "another agent"}} {
		archive, args := buildArgs(t, build.agent)
		mustRun(t, args)
		content, err := os.ReadFile(archive)
		if err != nil {
			t.Fatal(err)
		}
		archives[build.name] = content
	}
	if !bytes.Equal(archives["first"], archives["second"]) {
		t.Error("two builds of the same inputs gave different archives")
	}
	if bytes.Equal(archives["first"], archives["other"]) {
		t.Error("builds of different inputs gave the same archive")
	}
}

func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	archive, args := buildArgs(t, "amd64 agent")
	built := strings.Fields(mustRun(t, args))
	pushed := strings.Fields(mustRun(t, []string{"push", "-archive", archive, "-registry", host + "/team/"}))
	target := host + "/team/vpn-gateway:0.1.0"
	if diff := cmp.Diff([]string{target, built[len(built)-1]}, pushed); diff != "" {
		t.Fatalf("push reported (-want +got):\n%s", diff)
	}

	tag, err := name.NewTag(target)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(built[len(built)-1], digest.String()); diff != "" {
		t.Errorf("digest in the registry (-want +got):\n%s", diff)
	}
	for arch, agent := range map[string]string{"amd64": "amd64 agent", "arm64": "arm64 agent"} {
		t.Run(arch, func(t *testing.T) {
			image, err := remote.Image(tag, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
			if err != nil {
				t.Fatal(err)
			}
			checkImage(t, image, agent)
		})
	}
}

// checkImage compares configuration, annotations and files of a built image with
// what buildArgs asked for.
func checkImage(t *testing.T, image v1.Image, agent string) {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"org.opencontainers.image.version": "0.1.0"}
	if diff := cmp.Diff(v1.Config{Entrypoint: []string{"/vpn-agent"}, Labels: labels}, config.Config); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(labels, manifest.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 1 {
		t.Fatalf("image has %d layers, want 1", len(layers))
	}
	rc, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	type entry struct {
		Name        string
		Mode        int64
		User, Group int
		Unix        int64
	}
	var entries []entry
	contents := map[string]string{}
	for r := tar.NewReader(rc); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry{h.Name, h.Mode, h.Uid, h.Gid, h.ModTime.Unix()})
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		contents[h.Name] = string(content)
	}
	want := []entry{
		{Name: "etc/", Mode: 0o755},
		{Name: "etc/ssl/", Mode: 0o755},
		{Name: "etc/ssl/certs/", Mode: 0o755},
		{Name: "etc/ssl/certs/ca-certificates.crt", Mode: 0o644},
		{Name: "vpn-agent", Mode: 0o755},
	}
	if diff := cmp.Diff(want, entries); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if contents["vpn-agent"] != agent {
		t.Errorf("agent = %q, want %q", contents["vpn-agent"], agent)
	}
	if n := strings.Count(contents["etc/ssl/certs/ca-certificates.crt"], "-----BEGIN CERTIFICATE-----"); n < 100 {
		t.Errorf("bundle has %d certificates, want at least 100", n)
	}
}

func TestFaults(t *testing.T) {
	archive, args := buildArgs(t, "agent")
	notATar := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(notATar, []byte("not a tar, and long enough to be read as a header of one"), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(extra ...string) []string { return append(append([]string{}, args...), extra...) }
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"no verb", nil, "usage:"},
		{"unknown verb", []string{"sign"}, `unknown verb "sign"`},
		{"no tag", with("-name", "ghcr.io/x/y"), `-name "ghcr.io/x/y"`},
		{"no output", with("-output", ""), "-output is empty"},
		{"no platform", []string{"build", "-name", "ghcr.io/x/y:1", "-output", archive}, "image has no platform"},
		{"source missing", with("-file", "/nonexistent/{os}-{arch}:/x:0644"), "open /nonexistent/linux-amd64: no such file"},
		{"bad mode", with("-file", "a:/b:9"), `mode "9": want octal`},
		{"setuid", with("-file", "a:/b:4755"), `mode "4755": want octal permission bits`},
		{"relative path", with("-file", "/dev/null:b:0644"), `image file "b": the path must be absolute`},
		{"parent path", with("-file", "/dev/null:/a/../b:0644"), "must be absolute and clean"},
		{"same path twice", with("-file", "/dev/null:/vpn-agent:0644"), "image file /vpn-agent: given twice"},
		{"label", with("-label", "x"), "want key=value"},
		{"no registry", []string{"push", "-archive", archive}, "-registry is empty"},
		{"no archive", []string{"push", "-registry", "localhost", "-archive", archive}, "no such file"},
		{"bad archive", []string{"push", "-registry", "localhost", "-archive", notATar}, "image archive: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), tt.args, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one with %q", err, tt.want)
			}
		})
	}
	if _, err := os.Stat(archive); err == nil {
		t.Error("a failed build left an archive")
	}
}
