package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// handbook runs the commands of cmd/director/pairs.md as they are written. The folders in /etc of each host are of its
// own, and systemctl starts and stops the programs on it.
type handbook struct {
	*pair
	hosts map[string]*bookHost
}

// bookHost is a host of the page.
type bookHost struct {
	*lab.Host
	director   *program
	running    bool
	etc        string // for /etc/vstun and /etc/keepalived
	bin        string // has commands that differ from the machine's
	keepalived *lab.Process
}

// newHandbook builds the network of the page, with realservers of dr. Nothing runs on the directors.
func newHandbook(t *testing.T) *handbook {
	t.Helper()
	b := &handbook{pair: &pair{site: newLANFor(t, dr)}, hosts: map[string]*bookHost{}}
	b.startAgents("")
	for _, web := range b.Webs {
		b.namedEchoAt(web, ":80")
	}
	for name, h := range map[string]*lab.Host{"lb1": b.Director, "lb2": b.Backup} {
		x := &bookHost{Host: h, etc: filepath.Join(b.dir, name, "etc"), bin: filepath.Join(b.dir, name, "bin")}
		for _, dir := range []string{x.etc, x.bin} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		x.director = newProgram(t, h, "director", filepath.Join(x.etc, "running.toml"),
			filepath.Join(b.dir, name, "c.sock"))
		b.hosts[name] = x
		b.write(x, "director", fmt.Sprintf("case $1 in\ncheck|import) exec %[1]s \"$@\" ;;\n"+
			"doctor) exec %[1]s \"$@\" -c %[2]s ;;\n*) exec %[1]s \"$@\" --socket %[3]s ;;\nesac",
			programPath("director"), x.director.config, x.director.socket))
		b.write(x, "scp", fmt.Sprintf("cp -p \"%s/$(echo $1 | sed 's|^lb1:.*/|lb1/etc/|')\" $2", b.dir))
		for _, name := range []string{"useradd", "chgrp"} { // which would change this machine
			b.write(x, name, "exit 0")
		}
	}
	b.first, b.second = b.hosts["lb1"].director, b.hosts["lb2"].director
	b.director = b.first
	return b
}

// write makes a command of a host.
func (b *handbook) write(h *bookHost, name, script string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(h.bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		b.t.Fatal(err)
	}
}

var (
	shellBlock = regexp.MustCompile("(?ms)^( *)```sh\n *# on ([a-z0-9 ]+)\n(.*?)^ *```$")
	unitOf     = regexp.MustCompile(`^systemctl (start|stop|restart|(?:en|dis)able --now) (vstun-director|keepalived)$`)
)

// block is commands of the page.
type block struct {
	hosts []string
	text  string
}

// blocks returns the commands in the section with a heading, without its subsections.
func (b *handbook) blocks(heading string) (all []block) {
	b.t.Helper()
	page, err := os.ReadFile(filepath.Join(testkit.Root(b.t), "cmd/director/pairs.md"))
	if err != nil {
		b.t.Fatal(err)
	}
	_, text, found := strings.Cut(string(page), "\n"+heading+"\n")
	if !found {
		b.t.Fatalf("pairs.md has no section %q", heading)
	}
	if at := regexp.MustCompile(`(?m)^##+ `).FindStringIndex(text); at != nil {
		text = text[:at[0]]
	}
	for _, m := range shellBlock.FindAllStringSubmatch(text, -1) {
		lines := strings.Split(m[3], "\n")
		for i := range lines {
			lines[i] = strings.TrimPrefix(lines[i], m[1])
		}
		all = append(all, block{strings.Split(m[2], " and "), strings.Join(lines, "\n")})
	}
	if len(all) == 0 {
		b.t.Fatalf("%s has no commands", heading)
	}
	return all
}

// follow runs the commands of a block on its hosts.
func (b *handbook) follow(c block) {
	b.t.Helper()
	for _, name := range c.hosts {
		h, script := b.hosts[name], ""
		if h == nil {
			b.t.Fatalf("pairs.md has commands for %q", name)
		}
		flush := func() {
			b.t.Helper()
			if strings.TrimSpace(script) != "" {
				b.shellOn(h, script)
			}
			script = ""
		}
		for line := range strings.Lines(c.text) {
			if !strings.HasPrefix(line, "systemctl ") {
				script += line
				continue
			}
			flush()
			m := unitOf.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				b.t.Fatalf("pairs.md has %q", line)
			}
			b.systemctl(h, m[1], m[2])
		}
		flush()
	}
}

// shellOn runs a script on a host. It must succeed.
func (b *handbook) shellOn(h *bookHost, script string) {
	b.t.Helper()
	script = strings.NewReplacer("/etc/vstun", h.etc, "/etc/keepalived", h.etc).Replace(script)
	cmd := exec.Command("bash", "-e", "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+h.bin+":"+os.Getenv("PATH"))
	if r := run(b.t, h.Host, cmd); r.code != 0 {
		b.t.Fatalf("on %s: exit status %d: %s%s\nof:\n%s", h.Name, r.code, r.stdout, r.stderr, script)
	}
}

// systemctl starts and stops a program, and returns when it is ready.
func (b *handbook) systemctl(h *bookHost, do, unit string) {
	b.t.Helper()
	stops, starts := do != "start" && do != "enable --now", do != "stop" && do != "disable --now"
	if unit == "keepalived" {
		if stops && h.keepalived != nil {
			if err := h.keepalived.Stop(); err != nil {
				b.t.Error(err)
			}
			h.keepalived = nil
		}
		if starts {
			b.startKeepalived(h)
		}
		return
	}
	if stops && h.running {
		h.director.stop()
		h.running = false
	}
	if !starts {
		return
	}
	text, err := os.ReadFile(filepath.Join(h.etc, "director.toml"))
	if err != nil {
		b.t.Fatal(err)
	}
	control := fmt.Sprintf("[director]\ncontrol = %q\n", h.director.socket)
	if !strings.Contains(string(text), "[director]\n") {
		text = append([]byte("[director]\n"), text...)
	}
	h.director.configure(strings.Replace(string(text), "[director]\n", control, 1))
	h.director.start()
	h.running = true
	testkit.Within(b.t, h.director.String()+" is ready", 4*soon, func() bool { return h.director.peers().Ready })
}

// mustHold checks that no connection is broken and no request has failed since the last call.
func (b *handbook) mustHold(when string, open *idle, load *requests) {
	b.t.Helper()
	if n, why := open.broken(); n > 0 {
		b.t.Errorf("%s: %d connections are broken: %v", when, n, why)
	}
	load.await(b.t, 20)
	if _, _, failed := load.take(b.t); len(failed) > 0 {
		b.t.Errorf("%s: %d requests have failed, such as %v", when, len(failed), failed[0])
	}
}

// TestPairOfTheManual sets up a pair as pairs.md says, and does the planned work of that page: nothing breaks.
func TestPairOfTheManual(t *testing.T) {
	slowWithRace(t)
	t.Parallel()
	b := newHandbook(t)
	for _, c := range b.blocks("## Set up") {
		b.follow(c)
	}
	b.role(b.first, "master")
	b.role(b.second, "backup")
	b.exchanges()
	for _, d := range []*program{b.first, b.second} {
		testkit.Eventually(t, "the realservers of "+d.String()+" are up", func() bool {
			return d.balance().Services[0].WeightUp == len(b.Webs)
		})
	}
	open, load := b.openIdle(20), b.startRequests(20)
	b.shares(20)
	for _, c := range b.blocks("## Look") {
		b.follow(c) // the doctor finds nothing
	}
	for i, c := range b.blocks("### Standby") {
		b.follow(c)
		b.role(b.first, []string{"backup", "master"}[i])
		b.mustHold("standby", open, load)
	}
	for _, c := range b.blocks("### Restart and upgrade") {
		b.follow(c)
		b.role(b.first, "master")
		b.role(b.second, "backup")
		b.exchanges()
		b.mustHold("restart", open, load)
	}
	for _, c := range b.blocks("### Another key") {
		b.follow(c)
	}
	b.role(b.first, "master")
	b.role(b.second, "backup")
	b.exchanges()
}

// keepalivedConf is the configuration of keepalived on both hosts: the state, the priority, the VIP, and two
// realservers.
const keepalivedConf = `global_defs {
    router_id lb
}

vrrp_instance VI_1 {
    state %s
    interface eth0
    virtual_router_id 51
    priority %d
    advert_int 1
    authentication {
        auth_type PASS
        auth_pass secret
    }
    virtual_ipaddress {
        %[3]v
    }
}

virtual_server %[3]v 80 {
    delay_loop 2
    lb_algo wlc
    lb_kind DR
    protocol TCP
    real_server %[4]v 80 {
        TCP_CHECK {
            connect_timeout 2
        }
    }
    real_server %[5]v 80 {
        TCP_CHECK {
            connect_timeout 2
        }
    }
}
`

// startKeepalived starts keepalived on a host, with the kernel's IPVS.
func (b *handbook) startKeepalived(h *bookHost) {
	b.t.Helper()
	file := filepath.Join(h.etc, "keepalived.conf")
	process, err := h.Start(exec.Command("keepalived", "-n", "-l", "-f", file, "-p", filepath.Join(h.etc, "k.pid"),
		"-r", filepath.Join(h.etc, "kv.pid"), "-c", filepath.Join(h.etc, "kc.pid")))
	if err != nil {
		b.t.Fatal(err)
	}
	h.keepalived = process
	b.t.Cleanup(func() {
		if h.keepalived == process {
			_ = process.Stop()
		}
		if b.t.Failed() {
			b.t.Logf("the end of what keepalived on %s wrote:\n%s", h.Name, process.Output())
		}
	})
}

// TestInteropManualMove moves a pair of keepalived to a pair of directors, as pairs.md says: connections go on at each
// switch.
func TestInteropManualMove(t *testing.T) {
	t.Parallel()
	needKernel(t)
	needTool(t, "keepalived", "keepalived")
	b := newHandbook(t)
	for i, name := range []string{"lb1", "lb2"} {
		h := b.hosts[name]
		text := fmt.Sprintf(keepalivedConf, []string{"MASTER", "BACKUP"}[i], 150-50*i, b.VIP, b.Webs[0].Addr,
			b.Webs[1].Addr)
		if err := os.WriteFile(filepath.Join(h.etc, "keepalived.conf"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		b.systemctl(h, "start", "keepalived")
	}
	serves := func(when string) {
		t.Helper()
		testkit.Within(t, when+" clients are served", 3*soon, func() bool {
			c, err := b.Client.Dial("tcp", b.at(80))
			if err != nil {
				return false
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, err = askName(c, "hello")
			return err == nil
		})
	}
	serves("by keepalived")
	steps := b.blocks("## From a pair of keepalived")
	if len(steps) != 4 {
		t.Fatalf("%d blocks of commands, want those of steps 1 to 4", len(steps))
	}
	daemons, leave, enter, change := steps[0], steps[1], steps[2], steps[3]
	b.follow(daemons)
	b.follow(leave)
	b.follow(enter)
	b.role(b.second, "backup")
	serves("with a director as backup")
	open := b.openIdle(20)
	b.shares(20)
	b.follow(change)
	b.role(b.second, "master")
	serves("by the director")
	if n, why := open.broken(); n > 0 {
		t.Errorf("%d connections are broken: %v", n, why)
	}
	b.hosts["lb1"].keepalived = nil

	leave.hosts, enter.hosts = []string{"lb1"}, []string{"lb1"}
	b.follow(leave)
	b.follow(enter)
	b.role(b.first, "master")
	b.role(b.second, "backup")
	serves("by the pair")
	if n, why := open.broken(); n > 0 {
		t.Errorf("%d connections are broken: %v", n, why)
	}
}
