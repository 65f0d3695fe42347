package oci

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// annotationContainerdName is what containerd names an imported image by
	// (containerd, pkg images, AnnotationImageName).
	annotationContainerdName = "io.containerd.image.name"
	// annotationRefName is the tag (OCI image-spec, annotations.md).
	annotationRefName = "org.opencontainers.image.ref.name"
)

// WriteArchive writes index to w as an OCI archive: a tar of an OCI image layout
// whose only image is named ref, so that `ctr images import` needs no name of
// its own. Equal indexes and names give equal archives.
func WriteArchive(w io.Writer, index v1.ImageIndex, ref name.Tag) error {
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	descriptor, err := addIndex(files, index)
	if err != nil {
		return fmt.Errorf("archive of %s: %w", ref, err)
	}
	descriptor.Annotations = map[string]string{
		annotationContainerdName: ref.Name(),
		annotationRefName:        ref.TagStr(),
	}
	files["index.json"], err = json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests:     []v1.Descriptor{descriptor},
	})
	if err != nil {
		return fmt.Errorf("archive of %s: %w", ref, err)
	}

	tw := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return fmt.Errorf("archive of %s: %w", ref, err)
		}
	}
	for _, file := range sortedKeys(files) {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o644, Size: int64(len(files[file])), ModTime: time.Unix(0, 0)}
		if err := tw.WriteHeader(header); err != nil {
			return fmt.Errorf("archive of %s: %w", ref, err)
		}
		if _, err := tw.Write(files[file]); err != nil {
			return fmt.Errorf("archive of %s: %w", ref, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("archive of %s: %w", ref, err)
	}
	return nil
}

// addIndex adds every blob of index to files and returns the index's descriptor.
func addIndex(files map[string][]byte, index v1.ImageIndex) (v1.Descriptor, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	for _, d := range manifest.Manifests {
		image, err := index.Image(d.Digest)
		if err != nil {
			return v1.Descriptor{}, err
		}
		if err := addImage(files, image); err != nil {
			return v1.Descriptor{}, err
		}
	}
	raw, err := index.RawManifest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	digest, err := index.Digest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	files[blobPath(digest)] = raw
	return v1.Descriptor{MediaType: types.OCIImageIndex, Digest: digest, Size: int64(len(raw))}, nil
}

// addImage adds every blob of image to files: layers, configuration, manifest.
func addImage(files map[string][]byte, image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			return err
		}
		rc, err := layer.Compressed()
		if err != nil {
			return err
		}
		blob, err := io.ReadAll(rc)
		if err := errors.Join(err, rc.Close()); err != nil {
			return err
		}
		files[blobPath(digest)] = blob
	}
	for _, part := range []struct {
		digest func() (v1.Hash, error)
		raw    func() ([]byte, error)
	}{{image.ConfigName, image.RawConfigFile}, {image.Digest, image.RawManifest}} {
		digest, err := part.digest()
		if err != nil {
			return err
		}
		if files[blobPath(digest)], err = part.raw(); err != nil {
			return err
		}
	}
	return nil
}

func blobPath(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

// ReadArchive unpacks an archive made by [WriteArchive] into dir, which must be
// empty, and returns its image's index and name. The index reads from dir.
func ReadArchive(r io.Reader, dir string) (v1.ImageIndex, name.Tag, error) {
	if err := unpack(r, dir); err != nil {
		return nil, name.Tag{}, fmt.Errorf("image archive: %w", err)
	}
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, name.Tag{}, fmt.Errorf("image archive: %w", err)
	}
	manifest, err := top.IndexManifest()
	if err != nil {
		return nil, name.Tag{}, fmt.Errorf("image archive: index.json: %w", err)
	}
	if n := len(manifest.Manifests); n != 1 {
		return nil, name.Tag{}, fmt.Errorf("image archive: index.json names %d images, want 1", n)
	}
	descriptor := manifest.Manifests[0]
	ref, err := name.NewTag(descriptor.Annotations[annotationContainerdName], name.StrictValidation)
	if err != nil {
		return nil, name.Tag{}, fmt.Errorf("image archive: index.json: annotation %s: %w", annotationContainerdName, err)
	}
	index, err := top.ImageIndex(descriptor.Digest)
	if err != nil {
		return nil, name.Tag{}, fmt.Errorf("image archive of %s: %w", ref, err)
	}
	return index, ref, nil
}

// unpack writes the regular files of a tar below dir; os.Root keeps them there.
func unpack(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(r)
	for {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := root.MkdirAll(filepath.Dir(header.Name), 0o755); err != nil {
			return err
		}
		f, err := root.Create(header.Name)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}
