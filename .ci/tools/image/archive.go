package main

import (
	"archive/tar"
	"bytes"
	"encoding/pem"
	"io"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// archive writes a tar archive whose files are root's and have one time. The first error is that of close.
type archive struct {
	w    *tar.Writer
	time time.Time
	err  error
}

func newArchive(w io.Writer, time time.Time) *archive {
	return &archive{w: tar.NewWriter(w), time: time}
}

// folder adds folders.
func (a *archive) folder(names ...string) {
	for _, name := range names {
		a.add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil)
	}
}

// shared adds a folder in which each user may make files, as in /tmp.
func (a *archive) shared(name string) {
	a.add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o1777}, nil)
}

// file adds a file with a mode.
func (a *archive) file(name string, mode int64, text []byte) {
	a.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(text))}, text)
}

func (a *archive) add(h *tar.Header, text []byte) {
	h.ModTime, h.Format = a.time, tar.FormatUSTAR
	if a.err == nil {
		a.err = a.w.WriteHeader(h)
	}
	if a.err == nil {
		_, a.err = a.w.Write(text)
	}
}

func (a *archive) close() error {
	if a.err != nil {
		return a.err
	}
	return a.w.Close()
}

// certificates returns Mozilla's CA certificates in PEM, as golang.org/x/crypto keeps them. A file of certificates
// cannot express the constraints of some, which are left out.
func certificates() []byte {
	var b bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a Buffer takes all
		}
	}
	return b.Bytes()
}
