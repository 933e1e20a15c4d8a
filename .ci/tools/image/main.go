// Command image makes an OCI image of the programs, for several architectures, as a tar file (OCI image layout, which
// podman, skopeo, docker and containerd read). It needs no daemon. The image has the programs, Mozilla's CA
// certificates, and nothing else. The same programs and time give the same bytes.
//
// usage: image -o FILE [-name NAME:TAG] [-revision COMMIT] [-time SECONDS] ARCHITECTURE=DIRECTORY…
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// recipe says what the image is, apart from its files.
type recipe struct {
	name     string // "vstun:0.1.0"
	revision string // a commit, or ""
	created  time.Time
}

func main() {
	var r recipe
	out := flag.String("o", "", "the tar `FILE` to write")
	flag.StringVar(&r.name, "name", "vstun:latest", "the image's `NAME:TAG`")
	flag.StringVar(&r.revision, "revision", "", "the `COMMIT` of the programs")
	seconds := flag.Int64("time", 0, "the time of all files, in `SECONDS` since 1970")
	flag.Parse()
	r.created = time.Unix(*seconds, 0).UTC()
	if err := r.write(*out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// write writes the image into a tar file. Each element of programs is ARCHITECTURE=DIRECTORY.
func (r recipe) write(file string, programs []string) error {
	if file == "" || len(programs) == 0 {
		return fmt.Errorf("want -o FILE and at least one ARCHITECTURE=DIRECTORY")
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range programs {
		arch, dir, ok := strings.Cut(p, "=")
		if !ok {
			return fmt.Errorf("%q: want ARCHITECTURE=DIRECTORY", p)
		}
		img, err := r.build(arch, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	dir, err := os.MkdirTemp("", "vstun-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	// The layout has one entry, the index of all architectures: podman load refuses several entries, and takes the
	// entry's annotation as the image's name.
	name := map[string]string{"org.opencontainers.image.ref.name": r.name}
	if err := to.AppendIndex(index, layout.WithAnnotations(name)); err != nil {
		return err
	}
	return r.archive(file, dir)
}

// build returns the image of one architecture, with the programs in the directory dir.
func (r recipe) build(arch, dir string) (v1.Image, error) {
	files, err := r.files(dir)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{
		Created: v1.Time{Time: r.created}, CreatedBy: "make image"}}); err != nil {
		return nil, err
	}
	was, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg := was.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Created = "linux", arch, v1.Time{Time: r.created}
	_, tag, _ := strings.Cut(r.name, ":")
	cfg.Config = v1.Config{Env: []string{"PATH=/usr/bin"}, Labels: map[string]string{
		"org.opencontainers.image.title":       "vstun",
		"org.opencontainers.image.description": "LVS in user space: director and realserver",
		"org.opencontainers.image.version":     tag,
	}}
	if r.revision != "" {
		cfg.Config.Labels["org.opencontainers.image.revision"] = r.revision
	}
	return mutate.ConfigFile(img, cfg)
}

// files returns the image's files as a tar archive.
func (r recipe) files(dir string) ([]byte, error) {
	var b bytes.Buffer
	a := newArchive(&b, r.created)
	a.folder("etc", "etc/ssl", "etc/ssl/certs")
	a.file("etc/ssl/certs/ca-certificates.crt", 0o644, certificates())
	// Mount points: of the configuration, and of what must outlive the container. A read-only root has them, too.
	a.folder("etc/vstun", "run", "usr", "usr/bin")
	a.shared("run/vstun")
	for _, program := range []string{"director", "realserver"} {
		text, err := os.ReadFile(filepath.Join(dir, program))
		if err != nil {
			return nil, err
		}
		a.file("usr/bin/"+program, 0o755, text)
	}
	err := a.close()
	return b.Bytes(), err
}

// archive writes the files of the layout in dir into a tar file, in the order of their names.
func (r recipe) archive(file, dir string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	a := newArchive(f, r.created)
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		name, err2 := filepath.Rel(dir, path)
		switch {
		case err != nil || err2 != nil || name == ".":
			return err
		case d.IsDir():
			a.folder(name)
			return nil
		}
		text, err := os.ReadFile(path)
		a.file(name, 0o644, text)
		return err
	}); err != nil {
		return err
	}
	if err := a.close(); err != nil {
		return err
	}
	return f.Close()
}
