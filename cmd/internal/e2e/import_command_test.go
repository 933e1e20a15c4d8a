package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/cmd/internal/config"
	"vstun/testdata/testkit"
)

const fixtures = "../migrate/testdata/"

// imports runs `director import` with these arguments.
func imports(t *testing.T, stdin []byte, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(programPath("director"), append([]string{"import"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// TestImport imports configurations with the program, which must accept its own output. The realservers are in a subnet
// of the host, as VS/DR needs it.
func TestImport(t *testing.T) {
	t.Parallel()
	needMachine(t)
	dir := t.TempDir()
	for format, pattern := range map[string]string{"keepalived": "keepalived/*.conf", "ipvsadm": "ipvsadm/*.rules"} {
		files, err := filepath.Glob(fixtures + pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("no files %s, %v", pattern, err)
		}
		for _, file := range files {
			out := filepath.Join(dir, filepath.Base(file)+".toml")
			code, stdout, stderr := imports(t, nil, format, file, "-o", out)
			if code != 0 || stdout != "" {
				t.Errorf("%s: exit status %d\n%s%s", file, code, stdout, stderr)
			}
			for line := range strings.Lines(stderr) {
				if !strings.HasPrefix(line, filepath.Dir(file)+"/") {
					t.Errorf("%s: a line does not begin with the file: %s", file, line)
				}
			}
			testkit.InNamespace(t, func() {
				shell := "ip link add lan type veth peer name switch; ip link set switch up; ip link set lan up; " +
					"ip address add 10.0.0.1/8 dev lan; ip address add fd00::1/16 dev lan nodad; exec " +
					programPath("director") + " check -c " + out
				if text, err := exec.Command("sh", "-c", shell).CombinedOutput(); err != nil {
					t.Errorf("%s: director check: %v\n%s", file, err, text)
				}
			})
		}
	}
}

// TestImportUsage checks the command's exit status, output and errors for faults of its files.
func TestImportUsage(t *testing.T) {
	t.Parallel()
	needMachine(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const rules = "-A -t 198.51.100.80:80 -s rr\n-a -t 198.51.100.80:80 -r 10.0.11.2 -i\n"
	const tunnel = "virtual_server 198.51.100.80 80 {\nprotocol TCP\nlb_kind TUN\n"
	good, there := write("good", rules), write("there", "mine\n")
	for name, c := range map[string]struct {
		stdin  string
		args   []string
		code   int
		stdout bool
		says   string // in the only line of standard error; "": there is none
	}{
		"standard input": {rules, []string{"ipvsadm", "-"}, 0, true, ""},
		"its notes":      {rules + "-A -f 1\n", []string{"ipvsadm", "-"}, 0, true, "stdin:3: firewall mark 1"},
		"a file":         {"", []string{"ipvsadm", good, "-o", filepath.Join(dir, "new")}, 0, false, ""},
		"not over it":    {"", []string{"ipvsadm", good, "-o", there}, 2, false, there + ": is there already"},
		"no directory": {"", []string{"ipvsadm", good, "-o", filepath.Join(dir, "no", "file")}, 1, false,
			"no such file"},
		"no such file": {"", []string{"keepalived", filepath.Join(dir, "missing")}, 2, false,
			"missing: no such file"},
		"a directory": {"", []string{"keepalived", dir}, 2, false, "directory"},
		"syntax": {"virtual_server \"a {\n", []string{"keepalived", "-"}, 2, false,
			`stdin:1: a quote (") is not closed`},
		"a brace": {tunnel + "real_server 10.0.11.2 80 {\n}\n", []string{"keepalived", "-"}, 0, true,
			`stdin:1: the block of "virtual_server" is not closed`},
		"only a mark": {strings.Replace(tunnel, "198.51.100.80 80", "fwmark 5",
			1) + "real_server 10.0.11.2 80 {\n}\n}\n", []string{"keepalived", "-"}, 0, true, "stdin:1: " +
			"virtual_server fwmark 5"},
		"no service": {"", []string{"keepalived", "-"}, 2, false, "no service could be taken"},
		"unknown":    {"", []string{"nginx", good}, 2, false, "want keepalived or ipvsadm"},
		"no format":  {"", []string{good}, 2, false, "1 argument, where keepalived|ipvsadm FILE is wanted"},
		"endless": {"", []string{"keepalived", "/dev/zero"}, 2, false,
			"/dev/zero: is larger than 16 MiB: name a configuration file\n"},
	} {
		code, stdout, stderr := imports(t, []byte(c.stdin), c.args...)
		if code != c.code || (stdout != "") != c.stdout || !strings.Contains(stderr, c.says) ||
			strings.Count(stderr, "\n") != min(len(c.says), 1) {
			t.Errorf("%s: exit status %d, want %d, and %q\n%s%s", name, code, c.code, c.says, stdout, stderr)
		}
	}
	if text, err := os.ReadFile(there); string(text) != "mine\n" || err != nil {
		t.Errorf("the file that was there is %q, %v", text, err)
	}
	if code, _, stderr := imports(t, nil, "ipvsadm", good, "-o", there, "--force"); code != 0 {
		t.Errorf("--force: exit status %d\n%s", code, stderr)
	}
	private := filepath.Join(dir, "private")
	if out, err := exec.Command("sh", "-c", `umask 077; exec "$0" import ipvsadm "$1" -o "$2"`, programPath("director"),
		good, private).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if info, err := os.Stat(private); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the director can't read the file that a user with umask 077 has imported: %v, %v", info, err)
	}
	want, err := os.ReadFile(filepath.Join(dir, "new"))
	if got, e := os.ReadFile(there); err != nil || e != nil || !bytes.Equal(got, want) {
		t.Errorf("--force wrote %q, %v, %v, want %q", got, e, err, want)
	}
}

// TestInteropImport moves a site from the kernel's IPVS to the director: the output of ipvsadm-save becomes its
// configuration, and both realservers go on serving through their tunnels.
func TestInteropImport(t *testing.T) {
	needKernel(t)
	s := newSite(t, 2, nil)
	s.startAgent(s.Webs[0], `encap = ["ipip"]`)
	s.startAgent(s.Webs[1], `encap = ["gue"]`)
	s.startIPVS(interopPorts, kernelTunnel{"ipip", ""}, kernelTunnel{"gue", "--tun-csum"})
	for _, web := range s.Webs {
		s.echoUDP(web, 53)
		s.namedEcho(web, 81)
	}
	serves := func() {
		t.Helper()
		seen := map[string]int{}
		for range 4 {
			_, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(81))
			seen[server]++
		}
		if seen["web1"] != 2 || seen["web2"] != 2 {
			t.Errorf("answers are from %v, want 2 from each", seen)
		}
		s.mustEcho(0, 1000, 1400)
	}
	serves()
	saved := run(t, s.Director, exec.Command("ipvsadm", "-Sn"))
	if saved.code != 0 {
		t.Fatalf("ipvsadm -Sn: exit status %d\n%s", saved.code, saved.stderr)
	}
	code, toml, notes := imports(t, []byte(saved.stdout), "ipvsadm", "-")
	if code != 0 || notes != "" {
		t.Fatalf("exit status %d of\n%s\n%s", code, saved.stdout, notes)
	}
	s.command(s.Director, "", "ipvsadm", "-C")
	s.command(s.Director, "", "ip", "addr", "del", s.VIP.String()+"/32", "dev", "lo")
	s.startDirectorWith(toml)
	serves()
}

// imported is the settings of one VIP and port in a director.toml.
type imported struct {
	Scheduler   string
	Flags       config.SchedulerFlags
	Persistence config.Persistence
	OnePacket   bool
	EncapPort   uint16
	Realservers []config.RealserverRef
}

// listeners returns all protocols, VIPs and ports of a director.toml.
func listeners(t *testing.T, toml string) map[string]imported {
	t.Helper()
	d, err := config.ParseDirector("x.toml", []byte(toml))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]imported{}
	for _, s := range d.Services {
		slices.SortFunc(s.Realservers, func(a, b config.RealserverRef) int { return a.Address.Compare(b.Address) })
		for _, vip := range s.VIPs {
			for _, port := range s.Ports {
				i := imported{s.Scheduler, s.Flags, s.Persistence, s.OnePacket, s.EncapPort, s.Realservers}
				if i.Persistence.Netmask6 != 0 && vip.Is4() {
					i.Persistence.Netmask6 = 128 // is not for this VIP
				}
				all[fmt.Sprint(s.Protocol, " ", vip, " ", port)] = i
			}
		}
	}
	return all
}

// TestInteropKeepalived lets keepalived itself load a configuration into the kernel: the import of its file gives the
// same settings of each VIP and port as the import of the kernel's rules.
func TestInteropKeepalived(t *testing.T) {
	needKernel(t)
	needTool(t, "keepalived", "keepalived")
	s := newSite(t, 0, nil)
	file, err := filepath.Abs(fixtures + "keepalived/kernel.conf")
	if err != nil {
		t.Fatal(err)
	}
	code, toml, notes := imports(t, nil, "keepalived", file)
	if code != 0 {
		t.Fatalf("exit status %d\n%s", code, notes)
	}
	want := listeners(t, toml)
	pids := t.TempDir()
	var log bytes.Buffer
	cmd := exec.Command("keepalived", "--check", "--dont-fork", "--log-console", "--use-file="+file,
		"--pid="+pids+"/main", "--checkers_pid="+pids+"/check")
	cmd.Stdout, cmd.Stderr = &log, &log
	p, err := s.Director.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	var rules string
	testkit.Within(t, "keepalived has set all services up", 30*time.Second, func() bool {
		rules = run(t, s.Director, exec.Command("ipvsadm", "-Sn")).stdout
		realservers := 0
		for _, l := range want {
			realservers += len(l.Realservers)
		}
		return strings.Count(rules, "-A ") == len(want) && strings.Count(rules, "-a ") == realservers
	})
	if err := p.Stop(); err != nil {
		t.Logf("keepalived: %v\n%s", err, log.Bytes())
	}
	code, toml, notes = imports(t, []byte(rules), "ipvsadm", "-")
	if code != 0 || notes != "" {
		t.Fatalf("exit status %d\n%s\n%s", code, notes, rules)
	}
	noThresholds := cmpopts.IgnoreFields(config.RealserverRef{}, "Upper", "Lower") // ipvsadm-save has none
	if diff := cmp.Diff(listeners(t, toml), want, cmpopts.EquateComparable(netip.Addr{}), noThresholds); diff != "" {
		t.Errorf("keepalived's own rules (-), and those that the import makes of its file (+):\n%s\nfrom\n%s", diff,
			rules)
	}
}

// TestInteropRecorded restores recorded rules into the kernel, which then prints the same.
func TestInteropRecorded(t *testing.T) {
	needKernel(t)
	s := newSite(t, 0, nil)
	want, err := os.ReadFile(fixtures + "ipvsadm/recorded.rules")
	if err != nil {
		t.Fatal(err)
	}
	s.command(s.Director, string(want), "ipvsadm", "-R")
	if got := run(t, s.Director, exec.Command("ipvsadm", "-Sn")); got.stdout != string(want) {
		t.Errorf("the kernel has these rules (exit status %d, %s):\n%s", got.code, got.stderr, got.stdout)
	}
}
