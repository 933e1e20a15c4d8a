package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// refusal is a state of the machine in which a program can't run.
type refusal struct {
	name    string
	program string                  // "director", "realserver", or "" for both
	more    string                  // TOML in the program's own table
	machine func(h *lab.Host) error // brings the machine into this state, in the host's namespace
	restore func(h *lab.Host) error // undoes machine
	wrap    wrapper                 // changes the command; nil: not
	says    []string                // parts of the only line
	many    bool                    // several faults, one line each
	doctor  string                  // the doctor's check that finds the same; "": not looked at
	checked bool                    // the director's command check refuses it, too, with the same line
}

// wrapper returns a command that runs c in another way. It may skip the test.
type wrapper func(t *testing.T, c *exec.Cmd) *exec.Cmd

// TestBadMachine: where a program can't run, it prints one line for each fault, ends with status 1 and changes nothing.
func TestBadMachine(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	for _, r := range s.refusals() {
		programs := []string{r.program}
		if r.program == "" {
			programs = []string{"director", "realserver"}
		}
		for _, program := range programs {
			t.Run(r.name+"/"+program, func(t *testing.T) { s.mustRefuse(t, program, r) })
		}
	}
}

func (s *site) mustRefuse(t *testing.T, program string, r refusal) {
	host := s.Director
	if program == "realserver" {
		host = s.Webs[0]
	}
	if r.machine != nil {
		err := host.Do(func() error { return r.machine(host) })
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("SKIPPED: needs a kernel with IPIP tunnels: modprobe ipip")
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := host.Do(func() error { return r.restore(host) }); err != nil {
				t.Error(err)
			}
		})
	}
	// The file is in the programs' own directory, where all users may read it. The directory must not have more files
	// afterwards.
	dir, err := os.MkdirTemp(os.Getenv(binEnv), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config, socket := filepath.Join(dir, "c.toml"), filepath.Join(dir, "control", "c.sock")
	text := s.agentTOML(socket, r.more)
	if program == "director" {
		text = s.directorTOML(socket, r.more, service{"tcp", "80", "wrr", []int{1}})
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(config, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	command := func(subcommand string) *exec.Cmd {
		c := exec.Command(programPath(program), subcommand, "-c", config)
		if r.wrap == nil {
			return c
		}
		return r.wrap(t, c)
	}
	testkit.Within(t, "the IPv6 addresses are settled", soon, func() bool { return settled(t, host) })
	before := observe(t, host)

	got := run(t, host, command("run"))
	lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
	if got.code != 1 || got.stdout != "" || (len(lines) > 1) != r.many {
		t.Errorf("exit status %d and %d lines, want 1 and more than one line: %v:\n%s%s", got.code, len(lines), r.many,
			got.stdout, got.stderr)
	}
	for _, l := range lines {
		for _, part := range append([]string{program + ": "}, r.says...) {
			if !strings.Contains(l, part) {
				t.Errorf("%q is not in: %s", part, l)
			}
		}
	}
	t.Log(strings.TrimSpace(got.stderr))
	mustBe(t, r.name, map[string]hostState{host.Name: before}, map[string]hostState{host.Name: observe(t, host)})
	if left, err := filepath.Glob(filepath.Join(dir, "control", "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	if r.doctor != "" {
		found := run(t, host, command("doctor"))
		text := strings.Join(strings.Fields(found.stdout), " ") // its lines are broken
		for _, part := range append(r.says, "error: "+r.doctor) {
			if !strings.Contains(text, part) {
				t.Errorf("%q is not in what the doctor says:\n%s", part, found.stdout)
			}
		}
	}

	check := run(t, host, command("check"))
	if r.checked && program == "director" {
		if check.code == 0 || check.stdout != "" || check.stderr != got.stderr {
			t.Errorf("check: exit status %d: %s%s; want the line of run", check.code, check.stdout, check.stderr)
		}
		mustBe(t, r.name, map[string]hostState{host.Name: before}, map[string]hostState{host.Name: observe(t, host)})
	} else if check.code != 0 { // the configuration itself is fine, wherever it is checked
		t.Errorf("check: exit status %d: %s", check.code, check.stderr)
	}
}

func (s *site) refusals() []refusal {
	device := func(name string) func(*lab.Host) error {
		return func(*lab.Host) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		}
	}
	remove := func(name string) func(*lab.Host) error {
		return func(*lab.Host) error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}
	}
	vip := &net.IPNet{IP: s.VIP.AsSlice(), Mask: net.CIDRMask(32, 32)}
	address := func(change func(netlink.Link, *netlink.Addr) error, link string) func(*lab.Host) error {
		return func(*lab.Host) error {
			l, err := netlink.LinkByName(link)
			if err != nil {
				return err
			}
			return change(l, &netlink.Addr{IPNet: vip})
		}
	}
	route := func(change func(*netlink.Route) error, table int) func(*lab.Host) error {
		return func(h *lab.Host) error {
			return change(&netlink.Route{Dst: vip, Gw: h.Addr.Prev().AsSlice(), Table: table})
		}
	}
	tunnel := func(h *lab.Host) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "kernel0"
		l := &netlink.Iptun{LinkAttrs: attrs, Local: h.Addr.AsSlice(),
			Remote: netip.MustParseAddr("10.0.2.2").AsSlice()}
		if err := netlink.LinkAdd(l); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	}
	unprivileged := func(_ *testing.T, c *exec.Cmd) *exec.Cmd {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return c
	}
	helped := func(role string) wrapper {
		return func(_ *testing.T, c *exec.Cmd) *exec.Cmd { return private(role, c) }
	}
	inCgroup := func(t *testing.T, c *exec.Cmd) *exec.Cmd {
		c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: withoutTUNCgroup(t)}
		return c
	}
	rootless := func(_ *testing.T, c *exec.Cmd) *exec.Cmd {
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}}}
		return c
	}
	const table = 30323      // where the agent puts the routes of its replies
	const localTable = 30325 // where the director puts the routes of its host's own packets
	vs0 := []string{"vs0", "ip link del vs0"}
	return []refusal{
		{name: "device", machine: device("vs0"), restore: remove("vs0"), says: vs0},
		{name: "local-device", program: "director", machine: device("vs0-local"), restore: remove("vs0-local"),
			says: []string{"vs0-local", "set another tun", "ip link del vs0-local"}},
		{name: "vip-on-lo", program: "director", machine: address(netlink.AddrAdd, "lo"),
			restore: address(netlink.AddrDel, "lo"),
			says:    []string{s.VIP.String(), "lo", "ip addr del"}, checked: true},
		{name: "vip-on-eth0", machine: address(netlink.AddrAdd, "eth0"), restore: address(netlink.AddrDel, "eth0"),
			says: []string{s.VIP.String(), "eth0", "ip addr del"}, checked: true},
		{name: "source", program: "director", more: `source = ["10.0.2.9", "2001:db8:2::9"]`, says: []string{"source ",
			"no address of this host"}, many: true},
		{name: "route-to-vip", program: "director", machine: route(netlink.RouteAdd, unix.RT_TABLE_MAIN),
			restore: route(netlink.RouteDel, unix.RT_TABLE_MAIN),
			says:    []string{s.VIP.String(), "route"}},
		{name: "table", program: "realserver", machine: route(netlink.RouteAdd, table), restore: route(netlink.RouteDel,
			table),
			says: []string{"table 30323", "in use", "set another table in [realserver]"}},
		{name: "local-table", program: "director", machine: route(netlink.RouteAdd, localTable),
			restore: route(netlink.RouteDel, localTable),
			says:    []string{"30325", "set another table in [director]"}, many: true},
		{name: "kernel-tunnel", program: "realserver", machine: tunnel, restore: remove("kernel0"),
			says: []string{"kernel0", "ip link set kernel0 down"}},
		{name: "unprivileged", wrap: unprivileged, says: []string{"CAP_NET_ADMIN", "root"}},
		// What a container's runtime can withhold.
		{name: "no-tun", wrap: helped(withoutTUN), doctor: "privileges", says: []string{
			"/dev/net/tun: no such file", "--device /dev/net/tun", "modprobe tun"}},
		{name: "closed-tun", wrap: helped(withClosedTUN), doctor: "privileges", says: []string{
			"/dev/net/tun: permission denied", "its mode", "chmod 666 /dev/net/tun"}},
		{name: "device-cgroup", wrap: inCgroup, doctor: "privileges", says: []string{
			"/dev/net/tun: operation not permitted", "the device cgroup refuses it", "10:200"}},
		{name: "user-namespace", wrap: rootless, doctor: "privileges", says: []string{
			"CAP_NET_ADMIN does not hold for this network", "another user namespace", "network of its own"}},
		{name: "sysctls", program: "director", wrap: helped(readOnlySysctls), doctor: "start", says: []string{
			"sysctl net.ipv4.ip_forward is 0, want 1, and can't be written",
			"read-only file system", "check --sysctls"}},
		{name: "sysctls", program: "realserver", wrap: helped(readOnlySysctls), doctor: "start", says: []string{
			"sysctl net.ipv4.conf.", "can't be written", "read-only file system", "check --sysctls"}, many: true},
	}
}

// TestSecondInstance starts each program a second time on the same control socket: the second instance ends, the first
// goes on.
func TestSecondInstance(t *testing.T) {
	t.Parallel()
	s := newRunningSite(t, 1, service{"tcp", "80", "wrr", []int{1}})
	s.namedEcho(s.Webs[0], 80)
	other := strings.NewReplacer(s.VIP.String(), "198.51.100.81")
	before := s.observeAll()
	for _, c := range []struct {
		first  *program
		config string
	}{
		{s.director, other.Replace(s.directorTOML(s.director.socket, "tun = \"vs1\"", service{"tcp", "80", "wrr",
			[]int{1}}))},
		{s.agents[0], other.Replace(s.agentTOML(s.agents[0].socket, "tun = \"vs1\"\ntable = 30325"))},
	} {
		path := filepath.Join(t.TempDir(), "second.toml")
		if err := os.WriteFile(path, []byte(c.config), 0o644); err != nil {
			t.Fatal(err)
		}
		got := run(t, c.first.host, exec.Command(programPath(c.first.name), "run", "-c", path))
		// The error names the path, the key that changes it, and the other program.
		role := map[string]string{"director": "a director", "realserver": "an agent"}[c.first.name]
		want := fmt.Sprintf("%s: %s runs already (process %d, control socket %s)", c.first.name, role, c.first.Pid(),
			c.first.socket)
		if got.code != 1 || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 || !strings.HasPrefix(got.stderr,
			want) {
			t.Errorf("exit status %d, want 1 and one line that begins with %q:\n%s%s", got.code, want, got.stdout,
				got.stderr)
		}
		s.mustBeServedBy(80, "web1") // both answer status requests, and work
		s.director.balance()
		s.agents[0].intake()
	}
	mustBe(t, "a second instance", before, s.observeAll())
}
