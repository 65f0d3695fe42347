// Package image packs programs into container images, without an engine or a
// registry, and the same way each time: equal programs make equal digests.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Spec describes an image of one static program and nothing else.
type Spec struct {
	// Ref is the image's name with a tag.
	Ref string
	// Program is its file on this machine; in the image it lies at Path.
	Program, Path string
	// Cmd are the default arguments.
	Cmd []string
}

// Write builds the image and writes it as a tar archive that containerd (and
// docker load) imports.
func Write(file string, spec Spec) error {
	tag, err := name.NewTag(spec.Ref, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("image %s: %w", spec.Ref, err)
	}
	img, err := build(spec)
	if err != nil {
		return fmt.Errorf("image %s: %w", spec.Ref, err)
	}
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		return fmt.Errorf("image %s: %w", spec.Ref, err)
	}
	return nil
}

func build(spec Spec) (v1.Image, error) {
	program, err := os.ReadFile(spec.Program)
	if err != nil {
		return nil, err
	}
	epoch := time.Unix(0, 0).UTC()
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	if err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: spec.Path[1:], Size: int64(len(program)), Mode: 0o755, ModTime: epoch,
	}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	})
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Created = v1.Time{Time: epoch}
	config.Config = v1.Config{Entrypoint: []string{spec.Path}, Cmd: spec.Cmd, WorkingDir: "/"}
	return mutate.ConfigFile(img, config)
}
