package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// installRPMs installs the packages in a root, checks their files, and checks that removal leaves nothing.
func installRPMs(t *testing.T, rpms map[string]string) {
	needTool(t, "rpm", "rpm")
	root := t.TempDir()
	rpm := func(args ...string) string {
		t.Helper()
		all := append([]string{"--root", root, "--dbpath", "/rpm"}, args...)
		out, err := exec.Command("rpm", all...).CombinedOutput()
		if err != nil {
			t.Fatalf("rpm %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	rpm("--initdb")
	rpm("-i", "--force-debian", "--noscripts", rpms["director"], rpms["realserver"]) // the root has no shell
	rpm("-V", "vstun-director", "vstun-realserver")
	for program := range rpms {
		mustBeInstalled(t, root, program)
		if _, err := os.Stat(filepath.Join(root, "usr/share/zsh/site-functions/_"+program)); err != nil {
			t.Error(err)
		}
		about := rpm("-q", "--qf", "%{LICENSE}, %{BUILDHOST}, %{SUMMARY}", "vstun-"+program)
		if !strings.HasPrefix(about, "MIT, vstun.invalid, ") || !strings.Contains(about, "LVS load balancing") {
			t.Errorf("%s: %s", program, about)
		}
		if needs := rpm("-q", "--requires", "vstun-"+program); strings.Contains(needs, "libc") {
			t.Errorf("%s is static, and requires\n%s", program, needs)
		}
	}
	rpm("-e", "--noscripts", "vstun-director", "vstun-realserver")
	for _, dir := range []string{"usr/bin/director", "usr/share/doc/vstun-director", "usr/share/doc/vstun-realserver",
		"etc/vstun"} {
		if _, err := os.Stat(filepath.Join(root, dir)); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

// runRPMs lets systemd run the director from its package: enabled as the presets say, not restarted by an upgrade, and
// stopped by the removal. The agent's unit is one that the presets disable.
func runRPMs(t *testing.T, rpms map[string]string) {
	needTool(t, "rpm", "rpm")
	b := boot(t)
	const director, agent = "vstun-director.service", "vstun-realserver.service"
	rpm := func(args ...string) { t.Helper(); b.run(append([]string{"rpm", "--dbpath", "/root/rpm"}, args...)...) }
	for program, file := range rpms {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b.write("/root/"+program+".rpm", string(text))
	}
	b.write("/etc/systemd/system-preset/00-test.preset", "enable "+director+"\ndisable "+agent+"\n")
	rpm("--initdb")
	rpm("-i", "--force-debian", "/root/director.rpm", "/root/realserver.rpm")
	for unit, want := range map[string]string{director: "inactive enabled", agent: "inactive disabled"} {
		if state := b.property(unit, "ActiveState") + " " + b.property(unit, "UnitFileState"); state != want {
			t.Errorf("%s is %s, want %s", unit, state, want)
		}
	}
	b.write("/etc/vstun/director.toml", "[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nprotocol = \"tcp\"\n"+
		"port = 80\nrealserver = [ { address = \"10.0.11.2\" } ]\n")
	b.run("systemctl", "start", director)
	pid := b.property(director, "MainPID")
	rpm("-U", "--force-debian", "--force", "/root/director.rpm")
	if now := b.property(director, "MainPID"); now != pid || b.property(director, "UnitFileState") != "enabled" {
		t.Errorf("an upgrade restarts or disables the director: its pid was %s and is %s", pid, now)
	}
	rpm("-e", "vstun-director", "vstun-realserver")
	if state := b.property(director, "ActiveState"); state != "inactive" {
		t.Errorf("removed, the director is %s", state)
	}
	for _, gone := range []string{"/usr/bin/director", "/etc/systemd/system/multi-user.target.wants/" + director,
		"/sys/class/net/vs0"} {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root%s", b.pid, gone)); err == nil {
			t.Errorf("%s is left", gone)
		}
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/etc/vstun/director.toml", b.pid)); err != nil {
		t.Errorf("the removal takes the operator's file: %v", err)
	}
}
