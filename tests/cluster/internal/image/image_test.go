package image

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("text of the program"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Ref: "vpn-gateway.test/x:1", Program: program, Path: "/x", Cmd: []string{"serve"}}
	var archives [][]byte
	for _, out := range []string{"a.tar", "b.tar"} {
		file := filepath.Join(dir, out)
		if err := Write(file, spec); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, text)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same image written twice differs")
	}

	tag, err := name.NewTag(spec.Ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(filepath.Join(dir, "a.tar"), &tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"/x"}, {"serve"}}, [][]string{config.Config.Entrypoint, config.Config.Cmd}); diff != "" {
		t.Errorf("command (-want +got):\n%s", diff)
	}
	files := tar.NewReader(mutate.Extract(img))
	header, err := files.Next()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(files)
	if err != nil {
		t.Fatal(err)
	}
	if header.Name != "x" || header.Mode != 0o755 || string(text) != "text of the program" {
		t.Errorf("file %q, mode %o, text %q", header.Name, header.Mode, text)
	}
	if _, err := files.Next(); err != io.EOF {
		t.Errorf("a second file, or %v", err)
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, spec := range []Spec{
		{Ref: "no tag", Program: "/dev/null", Path: "/x"},
		{Ref: "vpn-gateway.test/x:1", Program: "/nonexistent", Path: "/x"},
	} {
		if err := Write(filepath.Join(t.TempDir(), "x.tar"), spec); err == nil {
			t.Errorf("Write(%+v): no error", spec)
		}
	}
}
