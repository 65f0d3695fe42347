package oci

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one regular file of an image, owned by root.
type File struct {
	// Path is absolute within the image, for example /vpn-agent.
	Path string
	// Mode holds the permission bits only.
	Mode os.FileMode
	// Source is the file on this machine that has the content; {os} and {arch}
	// in it stand for the platform's. Unused where Content is set.
	Source string
	// Content is the file's content, the same for every platform.
	Content []byte
}

// ParseFile reads the form SOURCE:PATH:MODE, for example
// bin/{os}-{arch}/vpn-agent:/vpn-agent:0755. SOURCE may itself hold colons.
func ParseFile(s string) (File, error) {
	fields := strings.Split(s, ":")
	if len(fields) < 3 {
		return File{}, fmt.Errorf("file %q: want SOURCE:PATH:MODE, for example bin/agent:/agent:0755", s)
	}
	n := len(fields)
	mode, err := strconv.ParseUint(fields[n-1], 8, 32)
	if err != nil || mode > 0o777 {
		return File{}, fmt.Errorf("file %q: mode %q: want octal permission bits, for example 0755", s, fields[n-1])
	}
	f := File{Source: strings.Join(fields[:n-2], ":"), Path: fields[n-2], Mode: os.FileMode(mode)}
	if f.Source == "" {
		return File{}, fmt.Errorf("file %q: the source is empty; give a file of this machine", s)
	}
	return f, nil
}

// content returns what the file holds on platform p.
func (f File) content(p v1.Platform) ([]byte, error) {
	if f.Content != nil {
		return f.Content, nil
	}
	source := strings.NewReplacer("{os}", p.OS, "{arch}", p.Architecture).Replace(f.Source)
	content, err := os.ReadFile(source)
	if err != nil {
		return nil, fmt.Errorf("image file %s: %w", f.Path, err)
	}
	return content, nil
}

// newLayer returns the gzipped layer that holds files and their directories. Its
// bytes depend on paths, modes and contents alone: entries are sorted, times are
// zero and everything belongs to root.
func newLayer(files []File, p v1.Platform) (v1.Layer, error) {
	entries := map[string]tar.Header{}
	contents := map[string][]byte{}
	for _, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
			return nil, fmt.Errorf("image file %q: the path must be absolute and clean, for example /etc/app.conf", f.Path)
		}
		name := f.Path[1:]
		if _, dup := entries[name]; dup {
			return nil, fmt.Errorf("image file %s: given twice; keep one", f.Path)
		}
		content, err := f.content(p)
		if err != nil {
			return nil, err
		}
		contents[name] = content
		entries[name] = tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(f.Mode.Perm()), Size: int64(len(content))}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			entries[dir+"/"] = tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}
		}
	}

	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range sortedKeys(entries) {
		header := entries[name]
		header.ModTime = time.Unix(0, 0).UTC()
		header.Format = tar.FormatUSTAR
		if err := w.WriteHeader(&header); err != nil {
			return nil, fmt.Errorf("image file /%s: %w", name, err)
		}
		if _, err := w.Write(contents[name]); err != nil {
			return nil, fmt.Errorf("image file /%s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("image layer: %w", err)
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	return tarball.LayerFromOpener(opener, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// sortedKeys returns the keys of m in byte order, which puts a directory (its
// name ends in a slash) before what it holds.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
