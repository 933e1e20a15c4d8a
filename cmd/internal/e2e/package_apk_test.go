package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// apkVersion is the grammar of versions, see apk-package(5).
var apkVersion = regexp.MustCompile(`^\d+(\.\d+)*[a-z]?(_(alpha|beta|pre|rc|cvs|svn|git|hg|p)\d*)*(~[0-9a-f]+)?-r\d+$`)

// unpackAPKs checks the parts of the packages, see apk-v2(5): a gzip stream with the description, and one with the
// files, of which the description has the checksum. The files are as those of the other formats.
func unpackAPKs(t *testing.T, apks map[string]string) {
	for program, file := range apks {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(text) // has ReadByte: gzip reads no further than the stream's end
		control := gunzip(t, r)
		data := text[len(text)-r.Len():]
		about := map[string]string{}
		tape := tar.NewReader(bytes.NewReader(control))
		for {
			h, err := tape.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || h.Name != ".PKGINFO" {
				t.Fatalf("%s: the description has %v %v, want only .PKGINFO", program, h, err)
			}
			for lines := bufio.NewScanner(tape); lines.Scan(); {
				key, value, ok := strings.Cut(lines.Text(), " = ")
				if !ok && lines.Text() != "" {
					t.Errorf("%s: .PKGINFO: %q", program, lines.Text())
				}
				about[key] = value
			}
		}
		sum := sha256.Sum256(data)
		if about["datahash"] != hex.EncodeToString(sum[:]) || about["pkgname"] != "vstun-"+program ||
			!apkVersion.MatchString(about["pkgver"]) || about["license"] != "MIT" {
			t.Errorf("%s: %q", program, about)
		}
		root := t.TempDir()
		untar(t, root, gunzip(t, bytes.NewReader(data)))
		mustBeInstalled(t, root, program)
		if _, err := os.Stat(filepath.Join(root, "usr/share/zsh/site-functions/_"+program)); err != nil {
			t.Error(err)
		}
	}
}

// gunzip reads one gzip stream to its end.
func gunzip(t *testing.T, r *bytes.Reader) []byte {
	t.Helper()
	z, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	z.Multistream(false)
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// untar unpacks an archive of folders and files. Its numbers must be octal, as apk(8) wants them.
func untar(t *testing.T, root string, text []byte) {
	t.Helper()
	tape := tar.NewReader(bytes.NewReader(text))
	for {
		h, err := tape.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Format == tar.FormatGNU {
			t.Errorf("the header of %q has binary numbers: mode %o", h.Name, h.Mode)
		}
		path := filepath.Join(root, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var file []byte
			if file, err = io.ReadAll(tape); err == nil {
				err = os.WriteFile(path, file, h.FileInfo().Mode())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// installAPKs lets apk itself install the packages in a root and remove them.
func installAPKs(t *testing.T, apks map[string]string) {
	if _, err := exec.LookPath("apk"); err != nil {
		t.Skip("SKIPPED: needs apk, of Alpine's apk-tools, which Debian 12 does not have")
	}
	root := t.TempDir()
	apk := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("apk", append([]string{"--root", root, "--no-network", "--repositories-file",
			"/dev/null"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("apk %v: %v\n%s", args, err, out)
		}
	}
	apk("--initdb", "--allow-untrusted", "add", apks["director"], apks["realserver"])
	for program := range apks {
		mustBeInstalled(t, root, program)
	}
	apk("del", "vstun-director", "vstun-realserver")
	for _, dir := range []string{"usr", "etc/vstun"} {
		if _, err := os.Stat(filepath.Join(root, dir)); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}
