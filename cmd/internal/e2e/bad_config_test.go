package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBadConfiguration: run and check report all faults of a configuration at once, and change nothing.
func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	const badDirector = `
[director]
queues = 1000
colour = "red"
source = "198.51.100.80"
[[service]]
name = "web"
vip = ["198.51.100.80", "224.0.0.1"]
protocol = "icmp"
port = 70000
scheduler = "lottery"
  [[service.realserver]]
  address = "10.0.11.2"
  weight = -1
  [[service.realserver]]
  address = "10.0.11.2"
  [[service.realserver]]
  address = "198.51.100.80"
[[service]]
name = "web"
vip = "198.51.100.81"
protocol = "tcp"
port = "90-80"
`
	const badRealserver = `
[realserver]
tun = "a name that is too long"
vips = ["198.51.100.80", "198.51.100.80"]
directors = ["0.0.0.0/0"]
mss = 10
control = "relative.sock"
colour = "red"
`
	for _, c := range []struct {
		program, config string
		faults          []string // a part of each line
	}{
		{"director", badDirector, []string{"queues: 1000", "colour", "source", "224.0.0.1", "icmp", "70000", "lottery",
			"weight: -1",
			`"10.0.11.2" is there twice`, "also a VIP", "also the name", "90-80"}},
		{"director", "[director]\nqueues = \n", []string{".toml:2:10: director.queues: the value is missing"}},
		{"director", "", []string{"service"}},
		{"realserver", badRealserver, []string{"tun", "198.51.100.80", "0.0.0.0/0", "mss: 10", "relative.sock",
			"colour"}},
		{"realserver", "", []string{"[realserver]"}},
	} {
		host := s.Webs[0]
		if c.program == "director" {
			host = s.Director
		}
		path := filepath.Join(t.TempDir(), "bad.toml")
		if err := os.WriteFile(path, []byte(c.config), 0o644); err != nil {
			t.Fatal(err)
		}
		before := observe(t, host)
		for _, command := range []string{"run", "check"} {
			got := run(t, host, exec.Command(programPath(c.program), command, "-c", path))
			lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
			if got.code != 2 || got.stdout != "" || len(lines) != len(c.faults) {
				t.Errorf("%s %s: exit status %d, %d lines; want 2 and %d lines:\n%s%s", c.program, command, got.code,
					len(lines), len(c.faults), got.stdout, got.stderr)
			}
			for _, l := range lines {
				if !strings.HasPrefix(l, c.program+": "+path+":") {
					t.Errorf("%s %s: a line does not begin with program and file: %s", c.program, command, l)
				}
			}
			for _, fault := range c.faults {
				if !strings.Contains(got.stderr, fault) {
					t.Errorf("%s %s: %q is missing in:\n%s", c.program, command, fault, got.stderr)
				}
			}
		}
		mustBe(t, "a bad configuration", map[string]hostState{host.Name: before},
			map[string]hostState{host.Name: observe(t, host)})
	}
}

// TestBadUsage: a wrong command line gives one line and exit status 2.
func TestBadUsage(t *testing.T) {
	t.Parallel()
	s := newSite(t, 0, nil)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"walk"}, "walk"},
		{[]string{"run", "--colour"}, "--colour"},
		{[]string{"run", "now"}, "now"},
		{[]string{"run", "-c", "/does/not/exist.toml"}, "/does/not/exist.toml"},
		{[]string{"check", "-c", "/does/not/exist.toml"}, "/does/not/exist.toml"},
	} {
		for _, program := range []string{"director", "realserver"} {
			got := run(t, s.Director, exec.Command(programPath(program), c.args...))
			if got.code != 2 || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 ||
				!strings.HasPrefix(got.stderr, program+": ") || !strings.Contains(got.stderr, c.says) {
				t.Errorf("%s %v: exit status %d, want 2 and one line with %q:\n%s%s", program, c.args, got.code,
					c.says, got.stdout, got.stderr)
			}
		}
	}
}
