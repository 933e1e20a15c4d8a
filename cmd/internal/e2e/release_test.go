package e2e

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"vstun/cmd/internal/daemon"
	"vstun/testdata/testkit"
)

// clone clones the commit that is checked out, without uncommitted changes, into a new folder.
func clone(t *testing.T, dir string) {
	t.Helper()
	needTool(t, "git", "git")
	if out, err := exec.Command("git", "clone", "--quiet", "../../..", dir).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: the source is in no repository: %v\n%s", err, out)
	}
}

// sh runs a shell command in a folder, with more variables.
func sh(t *testing.T, dir, command string, env ...string) string {
	t.Helper()
	cmd := exec.Command("sh", "-ec", command)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestVersions has one version for packages, image and manual: the programs' own. A package has the commit, too, unless
// the commit has the release's tag.
func TestVersions(t *testing.T) {
	t.Parallel()
	release, _, _ := strings.Cut(daemon.Version(), "+")
	dir := filepath.Join(t.TempDir(), "source")
	clone(t, dir)
	const print = `. .ci/version; echo "$release $version $commit"`
	commit := sh(t, dir, "git rev-parse HEAD")[:12]
	untagged := regexp.MustCompile(`^` + regexp.QuoteMeta(release) + ` ` + regexp.QuoteMeta(release) +
		`\+git[0-9]{8}\.[0-9]{6}\.` + commit + ` ` + commit + `$`)
	sh(t, dir, "git tag -d v"+release+" 2>/dev/null || true")
	if got := sh(t, dir, print); !untagged.MatchString(got) {
		t.Errorf("without a tag: %q", got)
	}
	sh(t, dir, "git tag v"+release)
	if got, want := sh(t, dir, print), release+" "+release+" "+commit; got != want {
		t.Errorf("with its tag: %q, want %q", got, want)
	}
	sh(t, dir, "rm -rf .git")
	if got, want := sh(t, dir, print, "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir)), release+" "+release; got != want {
		t.Errorf("outside a repository: %q, want %q", got, want)
	}
	named := regexp.MustCompile(`(?:vstun:|version=)([0-9]+\.[0-9]+\.[0-9]+)`)
	found := 0
	for _, page := range testkit.Manual(t) {
		for _, m := range named.FindAllStringSubmatch(page.Text, -1) {
			if found++; m[1] != release {
				t.Errorf("%s: %s, want version %s", page.Name, m[0], release)
			}
		}
	}
	if found < 3 {
		t.Errorf("the manual names the version %d times, want at least 3", found)
	}
}

// TestRelease makes a release twice: in different folders, time zones, languages and masks of modes. All files are the
// same. It compares them with what they have to contain. With VSTUN_RELEASE_COLD=1 the second release begins without
// anything that has been compiled, which takes some minutes more.
func TestRelease(t *testing.T) {
	needFull(t, "takes minutes")
	temp := t.TempDir()
	first, second := filepath.Join(temp, "1"), filepath.Join(temp, "another", "second")
	clone(t, first)
	clone(t, second)
	begin := []string{"DEBFULLNAME=", "DEBEMAIL="}
	sh(t, first, ".ci/release", begin...)
	elsewhere := append(begin, "TZ=Asia/Tokyo", "LANG=de_DE.UTF-8", "SOURCE_DATE_EPOCH=1")
	if os.Getenv("VSTUN_RELEASE_COLD") != "" {
		elsewhere = append(elsewhere, "GOCACHE="+filepath.Join(temp, "cache"))
	}
	sh(t, second, "umask 077; .ci/release", elsewhere...)
	files := readRelease(t, filepath.Join(first, "bin/release"))
	again := readRelease(t, filepath.Join(second, "bin/release"))
	for name, text := range files {
		if !bytes.Equal(text, again[name]) {
			t.Errorf("%s differs: %d and %d bytes", name, len(text), len(again[name]))
		}
	}
	if len(files) != len(again) {
		t.Errorf("%d and %d files", len(files), len(again))
	}
	checkRelease(t, first, files)

	// What is not in the commit is in no release.
	if err := os.WriteFile(filepath.Join(first, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(".ci/release")
	cmd.Dir = first
	if out, err := cmd.CombinedOutput(); err == nil || strings.Count(string(out), "\n") != 1 ||
		!strings.HasPrefix(string(out), "release: not made: ?? new is not in the commit: ") {
		t.Errorf("a release with a file that is not in the commit: %v: %s", err, out)
	}
}

// readRelease returns the files of a folder.
func readRelease(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// checkRelease checks the files of a release that has been made in the folder source.
func checkRelease(t *testing.T, source string, files map[string][]byte) {
	t.Helper()
	version := sh(t, source, `. .ci/version; echo "$version"`)
	sums, n := string(files["SHA256SUMS"]), 0
	for line := range strings.Lines(sums) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if n++; fmt.Sprintf("%x", sha256.Sum256(files[name])) != sum {
			t.Errorf("SHA256SUMS: %s", line)
		}
	}
	if n != len(files)-1 {
		t.Errorf("SHA256SUMS has %d files, the release %d", n, len(files)-1)
	}
	names := slices.Sorted(maps.Keys(files))
	for _, suffix := range []string{"_amd64.deb", "_arm64.deb", ".x86_64.rpm", ".aarch64.rpm", "_x86_64.apk",
		"_aarch64.apk"} {
		for _, program := range []string{"director", "realserver"} {
			if !slices.ContainsFunc(names, func(name string) bool {
				return strings.HasPrefix(name, "vstun-"+program) && strings.HasSuffix(name, suffix)
			}) {
				t.Errorf("no package %s of %s among %q", suffix, program, names)
			}
		}
	}
	if files["vstun-"+version+"-image.tar"] == nil {
		t.Errorf("no image among %q", names)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		name := "vstun-" + version + "-linux-" + arch
		dir := t.TempDir()
		sh(t, dir, "tar -xzf '"+filepath.Join(source, "bin/release", name+".tar.gz")+"'")
		for _, file := range []string{"README.md", "LICENSE", "lib/systemd/system/vstun-director.service",
			"share/man/man8/realserver.8.gz", "share/bash-completion/completions/director"} {
			if info, err := os.Stat(filepath.Join(dir, name, file)); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("%s: %v %v", arch, info, err)
			}
		}
		for _, program := range []string{"director", "realserver"} {
			path := filepath.Join(dir, name, "bin", program)
			checkProgram(t, path, program, arch)
			checkSBOM(t, path, files[name+"-"+program+".cdx.json"])
		}
	}
}

// checkProgram runs a program of a release: one for arm64 by qemu-user, where it is installed.
func checkProgram(t *testing.T, path, program, arch string) {
	t.Helper()
	release, _, _ := strings.Cut(daemon.Version(), "+")
	command := []string{path, "version"}
	if arch != runtime.GOARCH {
		qemu, err := exec.LookPath(map[string]string{"arm64": "qemu-aarch64", "amd64": "qemu-x86_64"}[arch])
		if err != nil {
			t.Logf("%s for %s is not run: needs qemu-user: apt-get install qemu-user (or make deps)", program, arch)
			return
		}
		command = append([]string{qemu}, command...)
	}
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if want := regexp.MustCompile(`^` + program + ` ` + regexp.QuoteMeta(release) + `\+[0-9a-f]{12}\n$`); err != nil ||
		!want.Match(out) {
		t.Errorf("%s for %s: version: %v: %s", program, arch, err, out)
	}
}

// checkSBOM checks that a CycloneDX file is about the program, and has every module that is in it, with a licence.
func checkSBOM(t *testing.T, path string, text []byte) {
	t.Helper()
	var bom struct {
		BOMFormat string
		Metadata  struct {
			Properties []struct{ Name, Value string }
		}
		Components []struct {
			Name, Version string
			Evidence      struct{ Licenses []any }
		}
	}
	if err := json.Unmarshal(text, &bom); err != nil || bom.BOMFormat != "CycloneDX" {
		t.Fatalf("the SBOM of %s: %v: %.100s", path, err, text)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(program)); !slices.ContainsFunc(bom.Metadata.Properties,
		func(p struct{ Name, Value string }) bool { return p.Value == sum }) {
		t.Errorf("the SBOM of %s does not have its checksum %s", path, sum)
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, c := range bom.Components {
		has[c.Name+"@"+c.Version] = len(c.Evidence.Licenses) > 0
	}
	if _, ok := has["std@"+info.GoVersion]; !ok {
		t.Errorf("the SBOM of %s lacks Go's library %s", path, info.GoVersion)
	}
	for _, m := range info.Deps {
		if licensed, ok := has[m.Path+"@"+m.Version]; !ok || !licensed {
			t.Errorf("the SBOM of %s: %s %s: is there: %v, has a licence: %v", path, m.Path, m.Version, ok, licensed)
		}
	}
	if len(info.Deps) < 10 {
		t.Errorf("%s has %d modules", path, len(info.Deps))
	}
}
