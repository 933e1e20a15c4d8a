package migrate_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/migrate"
)

var update = flag.Bool("update", false, "write the golden files anew; then look at what has changed in them")

func options() migrate.Options {
	return migrate.Options{ConfigID: "blue", Include: true}
}

type importer func(string, []byte, migrate.Options) (*migrate.Import, error)

// checkImport fails unless the director accepts the result, and every note is one printable line of a real place and is
// in the file, too.
func checkImport(t *testing.T, i *migrate.Import) *config.Director {
	t.Helper()
	for _, n := range i.Notes {
		unfit := func(r rune) bool { return r < ' ' || r == unicode.ReplacementChar || r == 0x7f }
		if n.Line < 1 || strings.ContainsFunc(n.Text, unfit) || !strings.Contains(n.Text, ": ") {
			t.Errorf("note %q", n)
		}
		if !strings.Contains(string(i.TOML), ": "+n.Text+"\n") && i.Services > 0 {
			t.Errorf("note %q is not in the file:\n%s", n, i.TOML)
		}
	}
	if i.Services == 0 {
		return nil
	}
	d, err := config.ParseDirector("x.toml", i.TOML)
	if err != nil {
		t.Fatalf("%v in\n%s", err, i.TOML)
	}
	if len(d.Services) != i.Services {
		t.Errorf("%d services, want %d", len(d.Services), i.Services)
	}
	return d
}

// TestGolden imports every file of testdata and compares the configuration and the notes with the files beside it.
func TestGolden(t *testing.T) {
	for pattern, read := range map[string]importer{"keepalived/*.conf": migrate.Keepalived,
		"ipvsadm/*.rules": migrate.IPVSAdm} {
		files, err := filepath.Glob("testdata/" + pattern)
		if err != nil || len(files) < 2 {
			t.Fatalf("only %d files %s, %v", len(files), pattern, err)
		}
		for _, file := range files {
			t.Run(filepath.Base(file), func(t *testing.T) {
				text, err := migrate.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				i, err := read(file, text, options())
				if err != nil {
					t.Fatal(err)
				}
				checkImport(t, i)
				var notes strings.Builder
				for _, n := range i.Notes {
					notes.WriteString(strings.TrimPrefix(n.String(), filepath.Dir(file)+"/") + "\n")
				}
				golden(t, strings.TrimSuffix(file, filepath.Ext(file))+".toml", string(i.TOML))
				golden(t, strings.TrimSuffix(file, filepath.Ext(file))+".notes", strings.ReplaceAll(notes.String(),
					filepath.Dir(file)+"/", ""))
			})
		}
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (go test -update writes it anew):\n%s", file, diff)
	}
}

// mustImport imports a text that has services, and returns their configuration.
func mustImport(t *testing.T, read importer, text string) (*config.Director, *migrate.Import) {
	t.Helper()
	i, err := read("x.conf", []byte(text), options())
	if err != nil {
		t.Fatal(err)
	}
	d := checkImport(t, i)
	if d == nil {
		t.Fatalf("nothing was taken of %s: %v", text, i.Notes)
	}
	return d, i
}

// TestMailService looks at the values that keepalived's words become.
func TestMailService(t *testing.T) {
	text, err := os.ReadFile("testdata/keepalived/mail.conf")
	if err != nil {
		t.Fatal(err)
	}
	d, i := mustImport(t, migrate.Keepalived, string(text))
	s := d.Services[0]
	if len(d.Services) != 1 || s.VIPs[0] != netip.MustParseAddr("9.9.9.9") || s.Protocol != "tcp" ||
		s.Ports[0].String() != "205" || s.Scheduler != "wrr" || len(s.Realservers) != 2 {
		t.Errorf("services %+v", d.Services)
	}
	for n, r := range s.Realservers {
		if want := netip.AddrFrom4([4]byte{10, 0, byte(11 + n), 2}); r.Address != want || r.Weight != 10 ||
			r.Encap != "ipip" {
			t.Errorf("realserver %+v, want %s with weight 10", r, want)
		}
		// keepalived: the realserver's own port 25 every 6 s, and once more after a failure; up without alpha, and
		// again with the first success.
		want := config.Check{Type: "tcp", Direct: true, Port: 25, Interval: 6 * time.Second, Timeout: 3 * time.Second,
			Rise: 1, Fall: 2, Up: true}
		if diff := cmp.Diff(want, *r.Check); diff != "" {
			t.Error(diff)
		}
	}
	if len(i.Notes) != 1 || !strings.Contains(i.Notes[0].Text, "router_id") {
		t.Errorf("notes %v, want one about router_id", i.Notes)
	}
}

// TestScripts runs the command that keepalived's scripts become, as the director does at changes of state: each change
// has its own script, with its own arguments, and others have none.
func TestScripts(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	out := filepath.Join(dir, "out")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nfor a; do printf '<%s>' \"$a\" >>"+out+"; done\n"),
		0o755); err != nil {
		t.Fatal(err)
	}
	d, _ := mustImport(t, migrate.Keepalived, `
virtual_server 2001:db8:100::80 80 {
    protocol TCP
    lb_kind TUN
    quorum_up "`+script+` 'all is well' $HOME *"
    quorum_down `+script+`
    real_server 10.0.11.2 80 {
        notify_up "`+script+` up 'it''s'"
        notify_down "`+script+` \"down\\\\ \" `+"`id`"+` ; true"
    }
}`)
	for _, c := range []struct{ kind, realserver, state, want string }{
		{"service", "-", "up", "<all is well><$HOME><*>"},
		{"service", "-", "down", ""},
		{"realserver", "10.0.11.2", "up", "<up><its>"},
		{"realserver", "10.0.11.2", "down", "<down\\ ><`id`><;><true>"},
		{"realserver", "10.0.12.2", "down", ""},
		{"service", "-", "unchecked", ""},
	} {
		if err := os.WriteFile(out, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		args := append(slices.Clone(d.Notify.Command[1:]), c.kind, d.Services[0].Name, c.realserver, "unchecked",
			c.state, "why \"not\"")
		if text, err := exec.Command(d.Notify.Command[0], args...).CombinedOutput(); err != nil || len(text) > 0 {
			t.Errorf("%v: %v, %s", c, err, text)
		}
		if got, err := os.ReadFile(out); string(got) != c.want || err != nil {
			t.Errorf("%s %s %s: %s, %v, want %s", c.kind, c.realserver, c.state, got, err, c.want)
		}
	}
}

// TestManyScripts has more scripts than an argument can hold: they are left out and named, and what stays is a
// configuration.
func TestManyScripts(t *testing.T) {
	var text strings.Builder
	for n := range 2000 {
		fmt.Fprintf(&text, "virtual_server 198.18.%d.%d 80 {\n protocol TCP\n lb_kind TUN\n quorum_down "+
			"\"/usr/local/sbin/down %d\"\n}\n", n/250, n%250+1, n)
	}
	d, i := mustImport(t, migrate.Keepalived, text.String())
	if len(d.Services) != 2000 || d.Notify.Command != nil || len(i.Notes) != 1 || !strings.Contains(i.Notes[0].Text,
		"1999 others") {
		t.Errorf("%d services, a command of %d words, notes %v", len(d.Services), len(d.Notify.Command), i.Notes)
	}
}

// TestBrokenSyntax: broken syntax gives one line that names the place, and no configuration.
func TestBrokenSyntax(t *testing.T) {
	for name, c := range map[string]struct {
		read importer
		text string
		want string
	}{
		"quote":          {migrate.Keepalived, "# don't \" mind\nrouter_id \"x\n", `^x.conf:2: a quote`},
		"deep":           {migrate.Keepalived, strings.Repeat("a {\n", 100), `more than 32 blocks`},
		"definition":     {migrate.Keepalived, "$A=${A}${A}x\nb $A\n", `^x.conf:2: grows beyond`},
		"lines of lines": {migrate.Keepalived, "$A= \\\n$A \\\n$A\n\n$A\n", `grows beyond`},
		"sequence":       {migrate.Keepalived, "~SEQ(A, 1, 2000000000) b ${A}\n", `^x.conf:1: grows beyond`},
		"no number":      {migrate.Keepalived, "~SEQ(A, x) b\n", `^x.conf:1: .*is not a number`},
		"wrong way":      {migrate.Keepalived, "~SEQ(A, 1, -1, 5) b\n", `^x.conf:1: .*does not count`},
		"no option": {migrate.IPVSAdm, "-A -t 192.0.2.1:80\n-A -t 192.0.2.2:80 --frobnicate\n",
			`^x.conf:2: "--frobnicate" is no option`},
		"no value":     {migrate.IPVSAdm, "-A -t\n", `^x.conf:1: "-t" needs a value`},
		"two commands": {migrate.IPVSAdm, "-A -a -t 192.0.2.1:80\n", `^x.conf:1: .*holds 2 commands`},
		"no command": {migrate.IPVSAdm, "IP Virtual Server version 1.2.1 (size=4096)\n",
			`^x.conf:1: .*holds 0 commands`},
		"a value more": {migrate.IPVSAdm, "-A --ops=yes -u 192.0.2.1:80\n", `^x.conf:1: "--ops=yes" has no value`},
		"twice":        {migrate.IPVSAdm, "-A -t 192.0.2.1:80 -s rr -s wrr\n", `^x.conf:1: "-s" is there twice`},
	} {
		i, err := c.read("x.conf", []byte(c.text), options())
		if err == nil || i != nil || !regexp.MustCompile(c.want).MatchString(err.Error()) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// TestNothingTaken has configurations without anything that could become a service.
func TestNothingTaken(t *testing.T) {
	for name, c := range map[string]struct {
		read importer
		text string
	}{
		"empty":   {migrate.Keepalived, ""},
		"vrrp":    {migrate.Keepalived, "vrrp_instance A {\n  virtual_ipaddress {\n 192.0.2.1\n}\n}\n"},
		"a mark":  {migrate.Keepalived, "virtual_server fwmark 1 {\n}\n"},
		"no rule": {migrate.IPVSAdm, "# nothing\n\n-C\n"},
		"mark":    {migrate.IPVSAdm, "-A -f 1 -s rr\n"},
	} {
		i, err := c.read("x.conf", []byte(c.text), options())
		if err != nil || i.Services != 0 {
			t.Errorf("%s: %+v, %v", name, i, err)
			continue
		}
		checkImport(t, i)
	}
}

// TestInclude reads files that include others, a directory, a FIFO and a device, without coming to grief, and those
// that include themselves never.
func TestInclude(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{os.Mkdir(filepath.Join(dir, "sub"), 0o755), syscall.Mkfifo(filepath.Join(dir, "fifo"),
		0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"sub/service.conf": "virtual_server 192.0.2.1 80 {\n protocol TCP\n lb_kind TUN\n" +
			" include realserver.inc\n}\n",
		"sub/realserver.inc": "real_server 10.0.0.1 80 {\n}\n",
		"sub/itself.inc":     "include *.inc\n",
		"all.conf":           "includer sub\ninclude fifo\ninclude /dev/zero\nincludea sub/*.conf\n",
		"endless.conf":       "include sub/itself.inc\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) (*migrate.Import, error) {
		text, err := migrate.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return migrate.Keepalived(filepath.Join(dir, name), text, options())
	}
	i, err := read("all.conf")
	if err != nil {
		t.Fatal(err)
	}
	if d := checkImport(t, i); len(d.Services) != 1 || len(d.Services[0].Realservers) != 1 || len(i.Notes) != 2 {
		t.Errorf("%d services, notes %v, want one with a realserver, and notes of the FIFO and the device", i.Services,
			i.Notes)
	}
	if i, err := read("endless.conf"); err == nil || !strings.Contains(err.Error(), "grows beyond") {
		t.Errorf("%+v, %v", i, err)
	}
}

// TestKeepalivedTakesTheFixtures runs keepalived on the fixtures that should be valid.
func TestKeepalivedTakesTheFixtures(t *testing.T) {
	program, err := exec.LookPath("keepalived")
	if err != nil {
		t.Skip("SKIPPED: needs keepalived: apt-get install keepalived (or make deps)")
	}
	faults := regexp.MustCompile(`(?i)unknown|unexpected|unmatched|unterminated|invalid|extra|missing '[{}]|not ` +
		`found|ports don't match`)
	for _, file := range []string{"mail.conf", "site.conf", "corners.conf", "pair.conf"} {
		cmd := exec.Command(program, "--config-test", "--use-file="+file, "--config-id=blue")
		cmd.Dir = "testdata/keepalived"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it ends by a signal to its process group
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			if faults.MatchString(line) {
				t.Errorf("%s: %s", file, line)
			}
		}
	}
}
