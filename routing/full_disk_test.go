package routing

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// mountsEnv names the test that runs in a mount namespace of its own.
const mountsEnv = "VSTUN_ROUTING_TEST_MOUNTS"

// inOwnMounts runs the test again, in a process with a mount namespace of its own. It reports whether this is that
// process.
func inOwnMounts(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make namespaces")
	}
	if os.Getenv(mountsEnv) == t.Name() {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mountsEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("%s%v", out, err)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name())):
		t.Skipf("%s", out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name())):
		t.Errorf("it did not run:\n%s", out)
	}
	return false
}

// smallDisk mounts an empty file system of 1 MB.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	return diskOf(t, "1m")
}

// diskOf mounts an empty file system of a size in the form of tmpfs(5).
func diskOf(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	must(t, unix.Mount("small", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all space of the file system of dir.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func hasRule(t *testing.T, want ruleRecord) bool {
	t.Helper()
	rules, err := netlink.RuleList(unix.AF_INET)
	must(t, err)
	for _, r := range rules {
		if rec, plain := recordOfRule(r); plain && rec == want {
			return true
		}
	}
	return false
}

func hasAddr(t *testing.T) bool {
	t.Helper()
	addrs, err := netlink.AddrList(linkOf(t, "vs0"), unix.AF_INET)
	must(t, err)
	return len(addrs) == 1
}

// damage undoes something of each kind that fullState has. The routes of vs0 go with its address.
func damage(t *testing.T) (rule ruleRecord) {
	t.Helper()
	rule = ruleRecord{Priority: 1080, From: fullState().Replies.From[1], Table: 5080}
	must(t, netlink.RuleDel(rule.kernel()))
	must(t, netlink.AddrDel(linkOf(t, "vs0"), fullState().Addrs[0].kernel()))
	must(t, netlink.LinkSetMTU(linkOf(t, "vs0"), 1400))
	setSysctl(t, "net/ipv4/conf/all/arp_ignore", "0")
	return rule
}

func restoredAll(t *testing.T, rule ruleRecord) bool {
	t.Helper()
	return hasRule(t, rule) && hasAddr(t) && routeIn(t, unix.RT_TABLE_MAIN, "203.0.113.0/24") != nil &&
		linkOf(t, "vs0").Attrs().MTU == 1480 && sysctl(t, "net/ipv4/conf/all/arp_ignore") == "1"
}

// TestWatchOnAFullDisk: Watch makes every change on a full file system.
func TestWatchOnAFullDisk(t *testing.T) {
	t.Parallel()
	if !inOwnMounts(t) {
		return
	}
	newHost(t)
	before := machineState(t)
	dir := smallDisk(t)
	log := &testkit.Log{}
	m, err := Open(filepath.Join(dir, "journal"), slog.New(slog.NewTextHandler(log, nil)))
	must(t, err)
	defer m.Close()
	must(t, m.Set(fullState()))
	fill(t, dir)
	stop := watch(t, m)

	must(t, netlink.RouteReplace(&netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.IPv4(10, 1, 0, 99)}))
	testkit.Eventually(t, "a changed default gateway is copied", func() bool {
		r := routeIn(t, 5080, "0.0.0.0/0")
		return r != nil && r.Gw.String() == "10.1.0.99"
	})
	rule := damage(t)
	testkit.Eventually(t, "all is restored", func() bool { return restoredAll(t, rule) })
	// The journal has to list these routes.
	for i := range 20 {
		must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr(fmt.Sprintf("100.64.%d.0/24", i)), Gw: net.IPv4(10, 1, 0,
			7)}))
	}
	testkit.Eventually(t, "new routes are copied", func() bool { return routeIn(t, 5080, "100.64.19.0/24") != nil })
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("log:\n%s", log)
	}
	stop()
	m.lock.release() // as by a kill
	next, err := Open(m.path, nil)
	must(t, err)
	must(t, netlink.RouteReplace(&netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.IPv4(10, 1, 0, 254)}))
	for i := range 20 {
		must(t, netlink.RouteDel(&netlink.Route{Dst: cidr(fmt.Sprintf("100.64.%d.0/24", i))}))
	}
	// The values that damage wrote stay: the MTU and the sysctl belong to another program since.
	must(t, netlink.LinkSetMTU(linkOf(t, "vs0"), 1500))
	sameState(t, before, machineState(t))
	must(t, next.Close())
	if left, err := filepath.Glob(filepath.Join(dir, "journal*")); len(left) > 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestWatchWithoutAJournal: if the journal can't be written, only changes that it lists are made again.
func TestWatchWithoutAJournal(t *testing.T) {
	t.Parallel()
	newHost(t)
	log := &testkit.Log{}
	m, err := Open(filepath.Join(t.TempDir(), "journal"), slog.New(slog.NewTextHandler(log, nil)))
	must(t, err)
	defer m.Close()
	must(t, m.Set(fullState()))
	must(t, os.Remove(tempName(m.path)))
	must(t, os.Mkdir(tempName(m.path), 0o700))
	stop := watch(t, m)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("100.64.0.0/24"), Gw: net.IPv4(10, 1, 0, 7)}))
	testkit.Eventually(t, "the log names the journal", func() bool {
		return strings.Contains(log.String(), "cannot reconcile network state; retrying") &&
			strings.Contains(log.String(), "journal") && strings.Contains(log.String(), "is a directory")
	})
	rule := damage(t)
	testkit.Eventually(t, "what it lists is restored", func() bool { return restoredAll(t, rule) })
	if routeIn(t, 5080, "100.64.0.0/24") != nil {
		t.Error("a route is copied that no journal lists: a kill would leave it")
	}
	must(t, os.Remove(tempName(m.path)))
	testkit.Eventually(t, "the route is copied at last", func() bool {
		return routeIn(t, 5080, "100.64.0.0/24") != nil
	})
	stop()
	must(t, m.Close())
}

// TestRefusedStartLeavesNoJournal: a start without space for its journal leaves no file, and changes nothing.
func TestRefusedStartLeavesNoJournal(t *testing.T) {
	t.Parallel()
	if !inOwnMounts(t) {
		return
	}
	newHost(t)
	before := machineState(t)
	for _, size := range []string{"8k", "132k", "200k"} { // for none of its two files, for less than one, for one
		dir := diskOf(t, size)
		m, err := Open(filepath.Join(dir, "journal"), slog.New(slog.DiscardHandler))
		must(t, err)
		if err := m.Set(fullState()); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v", size, err)
		}
		left, err := filepath.Glob(filepath.Join(dir, "journal*"))
		must(t, err)
		left = slices.DeleteFunc(left, func(p string) bool { return strings.HasSuffix(p, ".lock") })
		if len(left) > 0 {
			t.Errorf("%s: left behind: %v", size, left)
		}
		must(t, m.Close())
	}
	sameState(t, before, machineState(t))
}
