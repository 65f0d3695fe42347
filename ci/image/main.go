// Command image builds vpn-gateway's container image from files alone, with no
// Docker daemon, and pushes it to a registry.
//
//	image build -name REF -output ARCHIVE [flags]
//	image push -archive ARCHIVE -registry REGISTRY
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/cloud-native-vpn/vpn-gateway/ci/image/oci"
)

const usage = `usage:
  image build -name REF -output ARCHIVE -file SOURCE:PATH:MODE … [flags]
  image push -archive ARCHIVE -registry REGISTRY`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// run executes one verb; what it made is reported on out, one line.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch args[0] {
	case "build":
		return build(args[1:], out)
	case "push":
		return push(ctx, args[1:], out)
	default:
		return fmt.Errorf("unknown verb %q\n%s", args[0], usage)
	}
}

func build(args []string, out io.Writer) error {
	var img oci.Image
	flags := flag.NewFlagSet("image build", flag.ContinueOnError)
	ref := flags.String("name", "", "`reference` of the image, registry/name:tag")
	output := flags.String("output", "", "`file` to write the OCI archive to")
	caPath := flags.String("ca-certificates", "", "`path` in the image for the CA certificates; none when empty")
	created := flags.Int64("created", 0, "build time that the image claims, in `seconds` since 1970; give the commit's")
	flags.Func("file", "`SOURCE:PATH:MODE` of a file, {os} and {arch} in SOURCE are the platform's (repeatable)", func(s string) error {
		f, err := oci.ParseFile(s)
		img.Files = append(img.Files, f)
		return err
	})
	flags.Func("platform", "`os/arch` (repeatable)", func(s string) error {
		p, err := v1.ParsePlatform(s)
		if err == nil {
			img.Platforms = append(img.Platforms, *p)
		}
		return err
	})
	flags.Func("entrypoint", "one `word` of the entrypoint (repeatable)", func(s string) error {
		img.Entrypoint = append(img.Entrypoint, s)
		return nil
	})
	flags.Func("label", "`key=value` label and annotation (repeatable)", func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return errors.New("want key=value")
		}
		if img.Labels == nil {
			img.Labels = map[string]string{}
		}
		img.Labels[key] = value
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	tag, err := name.NewTag(*ref, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("-name %q: %w", *ref, err)
	}
	if *output == "" {
		return errors.New("-output is empty; give the file to write")
	}
	img.Created = time.Unix(*created, 0)
	if *caPath != "" {
		certs, err := oci.CACertificates()
		if err != nil {
			return err
		}
		img.Files = append(img.Files, oci.File{Path: *caPath, Mode: 0o644, Content: certs})
	}
	index, err := oci.Build(img)
	if err != nil {
		return err
	}
	if err := writeFile(*output, func(w io.Writer) error { return oci.WriteArchive(w, index, tag) }); err != nil {
		return err
	}
	return report(out, *output+" "+tag.Name(), index)
}

// writeFile writes the file whole or not at all: a reader never sees half of it.
func writeFile(file string, write func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func push(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("image push", flag.ContinueOnError)
	archive := flags.String("archive", "", "OCI archive `file` that image build wrote")
	registry := flags.String("registry", "", "`registry`, with an optional path: the image keeps the last part of its name and its tag")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *registry == "" {
		return errors.New("-registry is empty; give a registry, for example registry.example.com/team")
	}
	f, err := os.Open(*archive)
	if err != nil {
		return fmt.Errorf("-archive: %w", err)
	}
	defer f.Close()
	dir, err := os.MkdirTemp("", "vpn-gateway-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	index, built, err := oci.ReadArchive(f, dir)
	if err != nil {
		return err
	}
	target := strings.TrimSuffix(*registry, "/") + "/" + path.Base(built.RepositoryStr()) + ":" + built.TagStr()
	tag, err := name.NewTag(target, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("-registry %q: %w", *registry, err)
	}
	if err := remote.WriteIndex(tag, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return fmt.Errorf("pushing %s: %w", tag, err)
	}
	return report(out, tag.Name(), index)
}

// report prints what was made and its digest.
func report(out io.Writer, what string, index v1.ImageIndex) error {
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s %s\n", what, digest)
	return err
}
