package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vstun/testdata/testkit"
)

// TestPackages makes the Debian packages of both programs and installs them in a root of their own. If systemd runs in
// namespaces, it runs the programs as an operator does, from installation to removal. It does so with the packages of
// every format. lintian checks the Debian ones.
func TestPackages(t *testing.T) {
	t.Parallel()
	needMachine(t)
	needFull(t, "packages take a while to make")
	made := makePackages(t)
	debs := made["deb"]
	t.Run("Install", func(t *testing.T) { installPackages(t, debs) })
	t.Run("Systemd", func(t *testing.T) { runPackages(t, debs) })
	t.Run("RPM", func(t *testing.T) { installRPMs(t, made["rpm"]) })
	t.Run("APK", func(t *testing.T) { unpackAPKs(t, made["apk"]) })
	t.Run("APKTools", func(t *testing.T) { installAPKs(t, made["apk"]) })
	t.Run("Lintian", func(t *testing.T) {
		needTool(t, "lintian", "lintian")
		for _, deb := range debs {
			if out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning",
				deb).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", filepath.Base(deb), err, out)
			}
		}
	})
	t.Run("SystemdRPM", func(t *testing.T) { runRPMs(t, made["rpm"]) })
}

// makePackages runs make package, and returns the files by format and program.
func makePackages(t *testing.T) map[string]map[string]string {
	t.Helper()
	needTool(t, "dpkg-deb", "dpkg")
	dir := t.TempDir()
	if out, err := exec.Command("go", "-C", "../../../.ci/tools", "tool", "-n", "nfpm").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: nfpm can't be built here: %v\n%s", err, out)
	}
	cmd := exec.Command("../../../.ci/package", dir)
	formats := []string{"deb", "rpm", "apk"}
	cmd.Env = append(os.Environ(), "FORMATS="+strings.Join(formats, " "),
		"DEBFULLNAME=", "DEBEMAIL=") // as without a configured maintainer
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	made := map[string]map[string]string{}
	for _, format := range formats {
		made[format] = map[string]string{}
		for _, program := range []string{"director", "realserver"} {
			files, err := filepath.Glob(filepath.Join(dir, "vstun-"+program+"*."+format))
			if err != nil || len(files) != 1 {
				t.Fatalf("%s packages of %s: %q %v", format, program, files, err)
			}
			made[format][program] = files[0]
		}
	}
	return made
}

// installPackages checks the files of an installation, runs the programs, and checks that removal leaves nothing.
func installPackages(t *testing.T, debs map[string]string) {
	root := t.TempDir()
	dpkg := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("dpkg", append([]string{"--root=" + root, "--force-script-chrootless",
			"--no-triggers"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("dpkg %v: %v\n%s", args, err, out)
		}
	}
	for _, dir := range []string{"info", "updates"} {
		if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dpkg("-i", debs["director"], debs["realserver"])
	for program := range debs {
		mustBeInstalled(t, root, program)
		unit := "vstun-" + program + ".service"
		if _, err := os.Lstat(filepath.Join(root, "etc/systemd/system/multi-user.target.wants", unit)); err != nil {
			t.Errorf("%s is not enabled: %v", unit, err)
		}
	}
	dpkg("-P", "vstun-director", "vstun-realserver")
	for _, dir := range []string{"usr", "etc/vstun", "etc/systemd/system/multi-user.target.wants"} {
		if _, err := os.Stat(filepath.Join(root, dir)); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

// mustBeInstalled checks what a package has put into a root: the unit, the manual, the example and the completion. The
// program runs.
func mustBeInstalled(t *testing.T, root, program string) {
	t.Helper()
	unit := "vstun-" + program + ".service"
	text, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system", unit))
	if err != nil {
		t.Fatal(err)
	}
	if want := installedUnit(t, program); string(text) != want {
		t.Errorf("the unit of the package:\n%s\nis not that of make install:\n%s", text, want)
	}
	about, _, _ := strings.Cut(string(text), "[Service]")
	documentation := "\nDocumentation=man:" + program + "(8) file:/usr/share/doc/vstun-" + program + "/README.md\n"
	if !strings.Contains(about, documentation) {
		t.Errorf("%s has no documentation:\n%s", unit, about)
	}
	if !strings.Contains(string(text), "\nExecStart=/usr/bin/"+program+" run -c /etc/vstun/"+program+".toml\n") ||
		strings.Contains(string(text), "/usr/local") ||
		!strings.Contains(about, "\nConditionPathExists=/etc/vstun/"+program+".toml\n") {
		t.Errorf("%s:\n%s", unit, text)
	}
	for _, page := range testkit.Manual(t) {
		got, err := os.ReadFile(filepath.Join(root, "usr/share/doc/vstun-"+program, page.Name))
		if err != nil || string(got) != page.Text {
			t.Errorf("%s: page %s of the manual: %d bytes, %v", program, page.Name, len(got), err)
		}
	}
	example := filepath.Join(root, "usr/share/doc/vstun-"+program, "examples", program+".toml")
	if out, err := exec.Command(filepath.Join(root, "usr/bin", program), "check", "-c",
		example).CombinedOutput(); err != nil {
		t.Errorf("the example of %s: %v\n%s", program, err, out)
	}
	for _, file := range []string{"share/man/man8/" + program + ".8.gz", "share/man/man8/" + program + "-run.8.gz",
		"share/man/man5/" + program + ".toml.5.gz", "share/doc/vstun-" + program + "/cmd/director/overview.svg",
		"share/bash-completion/completions/" + program} {
		if info, err := os.Stat(filepath.Join(root, "usr", file)); err != nil || info.Size() == 0 ||
			info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v %v", file, info, err)
		}
	}
}

// installedUnit returns a program's unit that make install puts below /usr.
func installedUnit(t *testing.T, program string) string {
	t.Helper()
	root := t.TempDir()
	cmd := exec.Command("../../../.ci/install", os.Getenv(binEnv), program)
	cmd.Env = append(os.Environ(), "DESTDIR="+root, "PREFIX=/usr")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/vstun-"+program+".service"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// runPackages lets systemd run both programs.
func runPackages(t *testing.T, debs map[string]string) {
	needTool(t, "curl", "curl")
	b := boot(t)
	defer func() {
		if t.Failed() {
			t.Log(b.try("journalctl", "--no-pager", "-n", "40"))
		}
	}()
	const director, agent = "vstun-director.service", "vstun-realserver.service"
	install := func(program string) {
		t.Helper()
		file := "/root/" + program + ".deb"
		text, err := os.ReadFile(debs[program])
		if err != nil {
			t.Fatal(err)
		}
		b.write(file, string(text))
		b.run("dpkg", "--no-triggers", "-i", file)
	}
	install("director")
	install("realserver")
	for _, unit := range []string{director, agent} {
		if state := b.property(unit, "ActiveState") + " " + b.property(unit,
			"UnitFileState"); state != "inactive enabled" {
			t.Errorf("%s without a configuration is %s", unit, state)
		}
	}

	const good = "[director]\n" + metricsKey + "\n[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nprotocol = " +
		"\"tcp\"\nport = 80\nrealserver = [ { address = \"10.0.11.2\" } ]\n"
	b.write("/etc/vstun/director.toml", good)
	b.run("systemctl", "start", director)
	pid := b.property(director, "MainPID")
	if out := b.run("director", "status"); !strings.Contains(out, "198.51.100.80:80") {
		t.Errorf("the director's status:\n%s", out)
	}
	if out := b.run("curl", "-sS", "http://"+metricsAddress+"/metrics"); !strings.Contains(out,
		"\nvstun_director_queues ") || !strings.Contains(out, "\nprocess_open_fds ") {
		t.Errorf("metrics from within the sandbox:\n%s", out)
	}
	if uid := strings.Fields(b.run("stat", "-c", "%u", "/proc/"+pid)); uid[0] == "0" {
		t.Error("the director runs as root")
	}
	b.write("/etc/vstun/director.toml", strings.Replace(good, "= 80\n", "= 81\n", 1))
	b.run("systemctl", "reload", director)
	if out := b.run("director", "status"); !strings.Contains(out, "198.51.100.80:81") {
		t.Errorf("after a reload:\n%s", out)
	}
	b.write("/etc/vstun/director.toml", strings.Replace(good, "= 80\n", "= \"x\"\n", 1))
	if out, err := b.try("systemctl", "reload", director); err == nil {
		t.Errorf("systemctl reload of a faulty file: %s", out)
	}
	b.write("/etc/vstun/director.toml", good)
	install("director") // an upgrade, for dpkg
	if now := b.property(director, "MainPID"); now != pid {
		t.Errorf("an upgrade restarts the director: its pid was %s and is %s", pid, now)
	}

	// A stopped program sends no sign of life.
	b.write("/run/systemd/system/"+director+".d/test.conf", "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n")
	b.run("systemctl", "daemon-reload")
	b.run("systemctl", "restart", director)
	begin := b.property(director, "WatchdogTimestampMonotonic")
	testkit.Within(t, "the director gives signs of life", soon,
		func() bool { return b.property(director, "WatchdogTimestampMonotonic") != begin })
	b.run("kill", "-STOP", b.property(director, "MainPID"))
	testkit.Within(t, "the director is started anew", 6*soon, func() bool {
		now := b.properties(director, "NRestarts", "ActiveState")
		return now["NRestarts"] != "0" && now["ActiveState"] == "active"
	})
	b.run("director", "status")

	// On the same host, the agent would take the VIP.
	b.run("systemctl", "stop", director)
	b.write("/etc/vstun/realserver.toml", "[realserver]\nvips = [\"198.51.100.80\"]\ndirectors = [\"10.0.2.2\"]\n")
	b.run("systemctl", "start", agent)
	if out := b.run("realserver", "status"); !strings.Contains(out, "VIPs 198.51.100.80") {
		t.Errorf("the agent's status:\n%s", out)
	}
	b.write("/etc/vstun/realserver.toml", `[realserver]
vips = ["198.51.100.80", "198.51.100.81"]
directors = ["10.0.2.2"]
encap = ["gre", "gue"]
`)
	b.run("systemctl", "reload", agent)
	if out := b.run("realserver", "status"); !strings.Contains(out, "VIPs 198.51.100.80, 198.51.100.81") {
		t.Errorf("after a reload the agent's status is\n%s", out)
	}
	b.write("/etc/vstun/realserver.toml", "[realserver]\nvips = [\"x\"]\n")
	if out, err := b.try("systemctl", "reload", agent); err == nil {
		t.Errorf("systemctl reload of the agent's faulty file: %s", out)
	}
	b.run("dpkg", "--no-triggers", "-P", "vstun-director", "vstun-realserver")
	for _, unit := range []string{director, agent} {
		if state := b.property(unit, "ActiveState"); state != "inactive" && state != "failed" {
			t.Errorf("removed, %s is %s", unit, state)
		}
	}
	for _, gone := range []string{"/usr/bin/director", "/usr/bin/realserver", "/sys/class/net/vs0"} {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", b.pid, gone)); err == nil {
			t.Errorf("%s is left", gone)
		}
	}
}
