package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDeps runs .ci/deps with an apt-get that lacks chromium. The other packages are installed, no service is started
// or enabled, and the missing package is named.
func TestDeps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy-rc.d")
	for name, text := range map[string]string{
		"id": "echo 0",
		"apt-get": `[ -x "$POLICY_RC_D" ] && ! "$POLICY_RC_D" || echo "services may be started" >>"$LOG"
case " $* " in
*" update "*) exit 100 ;;
*" chromium "*) echo "E: Unable to locate package chromium" >&2; exit 100 ;;
esac
echo "$*" >>"$LOG"`,
		"systemctl": `echo "$*" >>"$LOG"`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tool := range []string{"rm", "chmod"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, tool)); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(dir, "log")
	c := exec.Command("/bin/sh", filepath.Join("..", "..", "..", ".ci", "deps"))
	c.Env = []string{"PATH=" + dir, "POLICY_RC_D=" + policy, "LOG=" + log, "REF_BOOT=/nowhere"}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	done, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"install -y -qq --no-install-recommends nginx-light\n", " keepalived\n",
		" prometheus\n", " tshark\n", "--root=/ disable nginx.service\n",
		"--root=/ disable keepalived.service\n", "--root=/ disable prometheus.service\n",
		"--root=/ disable podman.socket\n"} {
		if !strings.Contains(string(done), want) {
			t.Errorf("%q is not among\n%s", want, done)
		}
	}
	if strings.Contains(string(done), "services may be started") {
		t.Errorf("%s", done)
	}
	if !strings.Contains(string(out), "deps: not installed: chromium: the tests that need them skip\n") {
		t.Errorf("%s", out)
	}
	if _, err := os.Lstat(policy); err == nil {
		t.Error("the policy stays behind")
	}
}
