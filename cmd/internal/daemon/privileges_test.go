package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestKeepOnly drops all capabilities in a child process, with and without root: no thread keeps a capability, or can
// get one back.
func TestKeepOnly(t *testing.T) {
	const child = "VSTUN_KEEP_ONLY"
	if os.Getenv(child) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKeepOnly$")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	for range 4 {
		go unix.Nanosleep(&unix.Timespec{Sec: 60}, nil) // threads, that are in a system call
	}
	threads := func() []string {
		all, err := filepath.Glob("/proc/self/task/*/status")
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	testkit.Eventually(t, "there are five threads", func() bool { return len(threads()) >= 5 })
	for range 2 { // dropping a dropped capability is no error
		if err := KeepOnly(); err != nil {
			t.Fatal(err)
		}
	}
	for _, thread := range threads() {
		status, err := os.ReadFile(thread)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"NoNewPrivs:\t1\n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n",
			"CapInh:\t0000000000000000\n", "CapAmb:\t0000000000000000\n"} {
			if !strings.Contains(string(status), line) {
				t.Errorf("%s has no %q:\n%s", thread, line, status)
			}
		}
	}
	if err := CheckPrivileges(); err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("CheckPrivileges: %v", err)
	}
}
