// Package oci builds small container images from files alone: no base image, no
// Docker daemon, and the same bytes whenever the inputs are the same.
package oci

import (
	"errors"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image says what an image of one layer holds and how it starts.
type Image struct {
	// Platforms, at least one; each becomes one manifest of the index.
	Platforms []v1.Platform
	// Files of the layer, in any order.
	Files []File
	// Entrypoint of the container.
	Entrypoint []string
	// Labels are set as labels of the configuration and as annotations of every
	// manifest and of the index (OCI image-spec, annotations.md).
	Labels map[string]string
	// Created is the build time that the image claims. Give a time that belongs
	// to the source, such as its commit's, not the time of day.
	Created time.Time
}

// Build returns the OCI index over img's platforms. Two calls with equal inputs
// give equal digests, with the same Go toolchain (which brings the compressor).
func Build(img Image) (v1.ImageIndex, error) {
	if len(img.Platforms) == 0 {
		return nil, errors.New("image has no platform; give at least one, for example linux/amd64")
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range img.Platforms {
		manifest, err := buildManifest(img, p)
		if err != nil {
			return nil, fmt.Errorf("image for %s: %w", p, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        manifest,
			Descriptor: v1.Descriptor{Platform: &p},
		})
	}
	return mutate.Annotations(index, img.Labels).(v1.ImageIndex), nil
}

func buildManifest(img Image, p v1.Platform) (v1.Image, error) {
	layer, err := newLayer(img.Files, p)
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: img.Created.UTC()}
	base, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS:           p.OS,
		Architecture: p.Architecture,
		Variant:      p.Variant,
		Created:      created,
		RootFS:       v1.RootFS{Type: "layers"},
		Config:       v1.Config{Entrypoint: img.Entrypoint, Labels: img.Labels},
	})
	if err != nil {
		return nil, err
	}
	base = mutate.ConfigMediaType(mutate.MediaType(base, types.OCIManifestSchema1), types.OCIConfigJSON)
	manifest, err := mutate.Append(base, mutate.Addendum{
		Layer:     layer,
		MediaType: types.OCILayer,
		History:   v1.History{Created: created, CreatedBy: "vpn-gateway ci/image"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Annotations(manifest, img.Labels).(v1.Image), nil
}
