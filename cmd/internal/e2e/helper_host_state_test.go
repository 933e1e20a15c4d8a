package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// hostState is everything that our programs could change on a host, as sorted lines: links, addresses, routes of all
// tables, rules, and the sysctls of IPv4 and of IPv6's devices.
type hostState []string

// observe returns the state of a host.
func observe(t *testing.T, h *lab.Host) hostState {
	t.Helper()
	var m hostState
	err := h.Do(func() error {
		for _, look := range []func() ([]string, error){links, addresses, routes, rules, sysctls} {
			lines, err := look()
			for try := 1; errors.Is(err, netlink.ErrDumpInterrupted) && try < 10; try++ { // the state has changed
				lines, err = look()
			}
			if err != nil {
				return err
			}
			m = append(m, lines...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(m)
	if len(m) < 100 {
		t.Fatalf("only %d facts about %s: %v", len(m), h.Name, m)
	}
	return m
}

// observeAll returns the state of all hosts, once duplicate address detection of IPv6 has ended.
func (s *site) observeAll() map[string]hostState {
	s.t.Helper()
	all := map[string]hostState{}
	for _, h := range append([]*lab.Host{s.Client, s.Router, s.Director}, s.Webs...) {
		testkit.Within(s.t, "the IPv6 addresses of "+h.Name+" are settled", soon, func() bool {
			return settled(s.t, h)
		})
		all[h.Name] = observe(s.t, h)
	}
	return all
}

// mustBe fails the test if the state of a host has changed.
func mustBe(t *testing.T, when string, before, now map[string]hostState) {
	t.Helper()
	for name := range before {
		if diff := cmp.Diff(before[name], now[name]); diff != "" {
			t.Errorf("%s: %s is not as it was (-before +now):\n%s", when, name, diff)
		}
	}
}

// mustBecome waits until the network state of h is as before.
func mustBecome(t *testing.T, when string, before hostState, h *lab.Host) {
	t.Helper()
	now := observe(t, h)
	for end := time.Now().Add(soon); !cmp.Equal(before, now) && time.Now().Before(end); time.Sleep(tick) {
		now = observe(t, h)
	}
	mustBe(t, when, map[string]hostState{h.Name: before}, map[string]hostState{h.Name: now})
}

// settled reports whether no IPv6 address of a host is tentative, and each link that is up has one, unless IPv6 or its
// addresses are off.
func settled(t *testing.T, h *lab.Host) (done bool) {
	t.Helper()
	err := h.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(nil, unix.AF_INET6)
		if err != nil {
			return err
		}
		have := map[int]bool{}
		for _, a := range addrs {
			if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				return nil
			}
			have[a.LinkIndex] = true
		}
		for _, l := range links {
			is := func(key, value string) bool {
				b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + l.Attrs().Name + "/" + key)
				return err == nil && strings.TrimSpace(string(b)) == value
			}
			const none = "1" // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
			if up := l.Attrs().Flags&net.FlagUp != 0; up && is("disable_ipv6", "0") && !is("addr_gen_mode", none) &&
				!have[l.Attrs().Index] {
				return nil
			}
		}
		done = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func links() (lines []string, err error) {
	all, err := netlink.LinkList()
	for _, l := range all {
		a := l.Attrs()
		lines = append(lines, fmt.Sprintf("link %d %s %s %s flags %#x mtu %d txqueuelen %d master %d %s",
			a.Index, a.Name, l.Type(), a.HardwareAddr, a.RawFlags, a.MTU, a.TxQLen, a.MasterIndex, a.OperState))
	}
	return lines, err
}

func addresses() (lines []string, err error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	for _, a := range all {
		lines = append(lines, fmt.Sprintf("address %s of link %d, label %q, scope %d, flags %#x, peer %v", a.IPNet,
			a.LinkIndex, a.Label, a.Scope, a.Flags, a.Peer))
	}
	return lines, err
}

func routes() (lines []string, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC},
			netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			lines = append(lines, fmt.Sprintf("route table %d type %d proto %d %s", r.Table, r.Type, r.Protocol, r))
		}
	}
	return lines, nil
}

func rules() (lines []string, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := netlink.RuleList(family)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			lines = append(lines, fmt.Sprintf("rule family %d proto %d table %d goto %d iif %s ipproto %d sport %v %s",
				family, r.Protocol, r.Table, r.Goto, r.IifName, r.IPProto, r.Sport, r))
		}
	}
	return lines, nil
}

func sysctls() (lines []string, err error) {
	for _, dir := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6/conf"} {
		below, err := sysctlsBelow(dir)
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		lines = append(lines, below...)
	}
	return lines, nil
}

// sysctlsBelow returns the sysctls of a directory and of those below. A host has a thousand of them: os.ReadFile with
// whole paths takes three times as long.
func sysctlsBelow(dir string) (lines []string, err error) {
	at, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	all, err := at.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 4096)
	for _, e := range all {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			below, err := sysctlsBelow(path)
			if err != nil && !os.IsNotExist(err) { // it was of a device that has just gone
				return nil, err
			}
			lines = append(lines, below...)
			continue
		}
		n := 0
		fd, err := unix.Openat(int(at.Fd()), e.Name(), unix.O_RDONLY|unix.O_CLOEXEC, 0) // some can only be written
		if err == nil {
			n, err = unix.Read(fd, b)
			err = errors.Join(err, unix.Close(fd))
		}
		lines = append(lines, fmt.Sprintf("sysctl %s = %q %v", path, b[:max(n, 0)], err))
	}
	return lines, nil
}

// mustBeEmpty fails the test if a directory has files.
func mustBeEmpty(t *testing.T, when, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		t.Errorf("%s: %s is left", when, filepath.Join(dir, f.Name()))
	}
}
