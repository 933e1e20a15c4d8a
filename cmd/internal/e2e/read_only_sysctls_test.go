package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vstun/testdata/testkit"
)

// TestReadOnlySysctls runs both programs where /proc/sys is read-only and the sysctls of `check --sysctls` are preset.
func TestReadOnlySysctls(t *testing.T) {
	t.Parallel()
	needTool(t, "sysctl", "procps")
	manual := testkit.ManualText(t)
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newSite(t, 1, nil)
		s.speak(ipv6)
		s.director = s.prepare(s.Director, "director")
		// The check's answer arrives by eth0, from the VIP.
		text := s.directorTOML(s.director.socket, "", service{"tcp", "80", "wrr", []int{1}})
		s.director.configure(strings.Replace(text, "scheduler = \"wrr\"\n",
			"scheduler = \"wrr\"\ncheck = { type = \"tcp\", interval = \"1s\", timeout = \"1s\" }\n", 1))
		agent := s.prepare(s.Webs[0], "realserver")
		agent.configure(s.agentTOML(agent.socket, ""))
		s.agents = []*program{agent}
		s.namedEchoAt(s.Webs[0], ":80")
		for _, p := range []*program{s.director, agent} {
			s.shell(p.host, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1")
			got := run(t, p.host, exec.Command(programPath(p.name), "check", "--sysctls", "-c", p.config))
			if got.code != 0 || got.stderr != "" || got.stdout == "" || strings.Contains(got.stdout, "vs0") {
				t.Fatalf("%s check --sysctls: exit status %d\n%s%s", p, got.code, got.stdout, got.stderr)
			}
			for line := range strings.Lines(got.stdout) {
				if s := "\n" + strings.TrimSpace(line); !strings.Contains(manual, s+" ") && !strings.Contains(manual,
					s+"\n") {
					t.Errorf("the manual lacks what %s prints: %s", p, line)
				}
			}
			list := filepath.Join(s.dir, p.name+".conf")
			if err := os.WriteFile(list, []byte(got.stdout), 0o644); err != nil {
				t.Fatal(err)
			}
			s.shell(p.host, "sysctl -qp "+list)
		}
		before := s.observeAll()
		for _, p := range []*program{agent, s.director} {
			p.startAs(private(readOnlySysctls, exec.Command(programPath(p.name), "run", "-c", p.config)))
		}
		testkit.Within(t, "the check finds the realserver", soon, func() bool {
			return s.director.balance().Services[0].Realservers[0].Health == "up"
		})
		s.mustBeServedBy(80, s.Webs[0].Name)
		for _, p := range []*program{agent, s.director} {
			p.stop()
		}
		mustBe(t, "after SIGTERM", before, s.observeAll())
	})
}

// TestLogOfNetworkState: both programs log what they restore, with its old and new value, and their stop.
func TestLogOfNetworkState(t *testing.T) {
	t.Parallel()
	needTool(t, "sysctl", "procps")
	s := newRunningSite(t, 1, service{"tcp", "80", "wrr", []int{1}})
	agent, vip := s.agents[0], s.VIP.String()
	for _, c := range []struct {
		p      *program
		breaks string
		says   string
	}{
		{agent, "sysctl -qw net.ipv4.conf.vs0.rp_filter=1", `name="sysctl net.ipv4.conf.vs0.rp_filter" old=1 new=2`},
		{agent, "ip addr del " + vip + "/32 dev vs0", `name="address ` + vip + `/32 dev vs0" old=none new=present`},
		{agent, "ip route add 192.0.2.0/24 via 10.0.11.1 mtu 1300",
			`name="route 192.0.2.0/24 table 30323" old=none new="by eth0 via 10.0.11.1 mtu 1300 advmss 1260"`},
		{agent, "ip route replace 192.0.2.0/24 via 10.0.11.1 mtu 1200",
			`old="by eth0 via 10.0.11.1 mtu 1300 advmss 1260" new="by eth0 via 10.0.11.1 mtu 1200 advmss 1160"`},
		{agent, "ip route del 192.0.2.0/24", `name="route 192.0.2.0/24 table 30323" old="set by this program" ` +
			`new=undone`},
		{s.director, "sysctl -qw net.ipv4.ip_forward=0", `name="sysctl net.ipv4.ip_forward" old=0 new=1`},
		{s.director, "ip route del " + vip + " dev vs0", `name="route ` + vip +
			`/32 table main" old=none new="by vs0"`},
		{s.director, "ip link set vs0 mtu 1400", `name="device vs0 mtu" old=1400 new=65535`},
	} {
		s.shell(c.p.host, c.breaks)
		testkit.Within(t, c.breaks+" is in the log of "+c.p.String(), soon, func() bool {
			return strings.Contains(c.p.Output(), `level=INFO msg="network state changed" `) &&
				strings.Contains(c.p.Output(), c.says) && strings.Contains(c.p.Output(),
				`level=INFO msg="network state reconciled" changes=`)
		})
	}
	for _, p := range []*program{s.director, agent} {
		p.stop()
		for _, line := range []string{
			"level=INFO msg=stopping signal=SIGTERM", `level=INFO msg="network state is as before the start" undone=`,
		} {
			if !strings.Contains(p.Output(), line) {
				t.Errorf("the log of %s lacks %s:\n%s", p, line, p.Output())
			}
		}
	}
}
