package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
)

const (
	// directory of the built programs; if it is not set, TestMain builds them
	binEnv    = "VSTUN_E2E_BIN"
	helperEnv = "VSTUN_E2E_HELPER" // makes the test binary a helper, see helper_process_test.go
	// "must": tests against the kernel's tunnels and IPVS fail instead of skipping
	kernelEnv = "VSTUN_E2E_KERNEL"
)

// TestMain builds the programs once for all tests, unless they are built.
func TestMain(m *testing.M) {
	if role := os.Getenv(helperEnv); role != "" {
		os.Exit(helper(role, os.Args[1:]))
	}
	flag.Parse()
	// A shell starts background jobs with SIGINT ignored, and so would be the programs that the tests start.
	if signal.Ignored(os.Interrupt) {
		signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	}
	if err := errors.Join(checkFastPathEnv(), parallelize()); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	if missing() != "" {
		os.Exit(m.Run()) // every test skips
	}
	if os.Getenv(binEnv) != "" {
		os.Exit(m.Run())
	}
	dir, err := buildPrograms()
	code := 1
	if err == nil {
		err = os.Setenv(binEnv, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
	} else {
		code = m.Run()
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
	}
	os.Exit(code)
}

// parallelize runs more parallel tests at once than there are CPUs, unless -parallel is set: most of them wait for time
// to pass.
func parallelize() error {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(3*runtime.GOMAXPROCS(0)))
}

// buildPrograms builds the programs in a directory that all users may enter, since a test runs them as user nobody.
func buildPrograms() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "vstun-e2e-"); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	// .ci/package has the same flags, and finds the objects in the cache.
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if raceDetector {
		args, env = append(args, "-race"), os.Environ()
	}
	cmd := exec.Command("go", append(args, "vstun/cmd/director", "vstun/cmd/realserver", "vstun/cmd/lab")...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return dir, nil
}

// programPath returns the path of one of our programs.
func programPath(name string) string { return filepath.Join(os.Getenv(binEnv), name) }

// missing returns what all these tests need and the machine lacks; "" if nothing.
func missing() string {
	if os.Geteuid() != 0 {
		return "needs root for network namespaces and TUN devices: run as root (sudo make test)"
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Sprintf("needs TUN devices: %v: load the driver (modprobe tun), or give the container /dev/net/tun",
			err)
	}
	f.Close()
	return ""
}

// needMachine skips a test if this machine can't run the programs.
func needMachine(t *testing.T) {
	t.Helper()
	if what := missing(); what != "" {
		t.Skip("SKIPPED: " + what)
	}
}

// needTool skips a test if this machine lacks a tool.
func needTool(t *testing.T, tool, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("SKIPPED: needs %s: apt-get install %s (or make deps)", tool, debianPackage)
	}
}
