package migrate_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/migrate"
	"vstun/testdata/testkit"
)

// numbered repeats a text n times, with the numbers from 0 on in place of "#", and addresses in place of "@".
func numbered(n int, text string) string {
	var b strings.Builder
	for i := range n {
		address := fmt.Sprintf("2001:db8::%x:%x", i>>16, i&0xffff)
		b.WriteString(strings.NewReplacer("#", strconv.Itoa(i), "@", address).Replace(text))
	}
	return b.String()
}

// TestHostileFiles: an import of any file of at most 16 MiB ends, with a bounded number of notes.
func TestHostileFiles(t *testing.T) {
	const (
		service  = "virtual_server 192.0.2.1 80 {\n protocol TCP\n lb_kind TUN\n"
		maxNotes = 10_001
		more     = "more notes, not shown"
	)
	testkit.NeedFull(t, "takes some 20 s of a CPU, and minutes with the race detector")
	lots := "virtual_server_group a {\n" + numbered(3000, "192.0.2.1 #\n198.18.0.0/20 #\n") + "}\n"
	for _, c := range []struct {
		name string
		read importer
		text string
		want string // in the error, or in a note
	}{
		{"names of a list", migrate.Keepalived, "~LST({" + strings.TrimSuffix(numbered(100_000, "A#,"), ",") + "}" +
			strings.Repeat(",{a}", 99_991) + ") b\n", "grows beyond"},
		{"closing braces", migrate.Keepalived, strings.Repeat("}\n", 200_000), more},
		{"opening braces on a line", migrate.Keepalived, strings.Repeat("{", 2<<20), more},
		{"unknown keywords", migrate.Keepalived, service + strings.Repeat("foo bar\n", 300_000) + "}\n", more},
		{"same service", migrate.IPVSAdm, strings.Repeat("-A -t 192.0.2.1:80\n", 100_000), more},
		{"long notes", migrate.Keepalived, service +
			strings.Repeat(strings.Repeat("x", 4000)+" y\n", 3900) + "}\n", more},
		{"keywords of global_defs", migrate.Keepalived, "global_defs {\n" +
			numbered(300_000, "k#\n") + "}\n", "no counterpart"},
		{"same mark", migrate.Keepalived, strings.Repeat("virtual_server fwmark 1 {\n}\n", 60_000), more},
		{"scripts", migrate.Keepalived, service + numbered(200_000,
			"real_server @ {\n notify_up /x\n}\n") + "}\n", "too much for one command"},
		{"large groups", migrate.Keepalived, lots + "virtual_server group a {\n}\n", "too many services"},
		{"ports of groups", migrate.Keepalived, lots + "virtual_server group a {\nreal_server 10.0.0.1 1 {\n}\n}\n",
			"too many services"},
		{"groups again and again", migrate.Keepalived, lots + strings.Repeat("virtual_server group a {\n}\n", 20_000),
			"too many services"},
		{"blocks again and again", migrate.Keepalived, "virtual_server_group a {\n" + numbered(60_000,
			"@ #\n") + "}\nvirtual_server group a {\nprotocol TCP\n" +
			strings.Repeat("foo bar\n", 100_000) + "}\n", "too many services"},
		{"instances", migrate.Keepalived, numbered(100_000, "vrrp_instance a# {\n interface eth0\n "+
			"virtual_router_id 1\n "+
			"virtual_ipaddress {\n @\n }\n}\n"), more},
		{"addresses of an instance", migrate.Keepalived, "vrrp_instance a {\n interface eth0\n virtual_router_id 1\n " +
			"virtual_ipaddress {\n" + numbered(300_000, "@\n") + "}\n}\n", "virtual_ipaddress: there are 300000"},
		{"groups of instances", migrate.Keepalived, numbered(20_000, "vrrp_instance a# {\n}\n") +
			"vrrp_sync_group g {\n track_interface {\n" + numbered(20_000, "e#\n") + "}\n group {\n" +
			numbered(20_000, "a#\n") + "}\n}\n", "too many services or tracks"},
		{"scripts of roles", migrate.Keepalived, service + "}\nvrrp_instance a {\n interface eth0\n " +
			"virtual_router_id " +
			"1\n virtual_ipaddress {\n 10.0.0.1\n }\n" + strings.Repeat("notify /x\n", 200_000) + "}\n",
			"too much for one command"},
		{"definitions in lines", migrate.Keepalived, "$A=" + strings.Repeat("x", 60<<10) + "\n$B= \\\n" +
			strings.Repeat("x", 60<<10) + "\\\ny\n\n" +
			strings.Repeat(strings.Repeat("$B ", 1<<20)+"x\n", 5), "grows beyond"},
	} {
		t.Run(c.name, func(t *testing.T) {
			type result struct {
				*migrate.Import
				err error
			}
			done := make(chan result, 1)
			go func() {
				i, err := c.read("x.conf", []byte(c.text), options())
				done <- result{i, err}
			}()
			select {
			case r := <-done:
				said := c.want == ""
				if r.err != nil {
					said = said || strings.Contains(r.err.Error(), c.want)
				} else {
					if len(r.Notes) > maxNotes || len(r.TOML) > 16<<20 {
						t.Errorf("%d notes, a file of %d bytes", len(r.Notes), len(r.TOML))
					}
					for _, n := range r.Notes {
						said = said || strings.Contains(n.Text, c.want)
					}
				}
				if !said {
					t.Errorf("%v, and no note has %q", r.err, c.want)
				}
			case <-time.After(2 * time.Minute):
				t.Fatal("no end")
			}
		})
	}
}

// TestLargePayload: a payload that fits no datagram is left out, and a file that the director would not read is none.
func TestLargePayload(t *testing.T) {
	const (
		server = "virtual_server 192.0.2.1 53 {\n protocol UDP\n lb_kind TUN\n"
	)
	config := func(check string, digits int) string {
		return server + strings.NewReplacer("CHECK", check, "PAYLOAD", strings.Repeat("0", digits)).Replace(
			" real_server 10.0.0.1 53 {\n CHECK {\n payload 00\n payload PAYLOAD\n }\n }\n}\n")
	}
	for digits, kept := range map[int]int{2 * 65507: 65507, 2*65507 + 1: 1, 10_000_001: 1} {
		d, i := mustImport(t, migrate.Keepalived, config("UDP_CHECK", digits))
		send := strings.Fields(d.Services[0].Realservers[0].Check.SendHex)
		left := 0
		for _, n := range i.Notes {
			left += strings.Count(n.Text, "bytes are too long for a UDP datagram: left out")
		}
		if len(send) != kept || left != min(digits-2*65507, 1) || len(i.TOML) > 1<<20 {
			t.Errorf("%d digits: %d bytes, a file of %d, notes %v", digits, len(send), len(i.TOML), i.Notes)
		}
	}
	if i, err := migrate.Keepalived("x.conf", []byte(config("TCP_CHECK", 14_000_000)), options()); err == nil ||
		i != nil || err.Error() != "x.conf:1: becomes a configuration larger than the 16 MiB that the director "+
		"reads: import less, and shorten the payloads of checks" {
		t.Errorf("%.300v", err)
	}
}

// TestTooLargeFile: the error of a file says once what to do, as what reads it does.
func TestTooLargeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 16<<20+1); err != nil {
		t.Fatal(err)
	}
	_, err := migrate.ReadFile(path)
	if _, ok := errors.AsType[migrate.TooLargeError](err); !ok || err.Error() != path+": is larger than 16 MiB" {
		t.Errorf("%v", err)
	}
	_, i := mustImport(t, migrate.Keepalived, "include "+path+"\nvirtual_server 192.0.2.1 80 {\n protocol TCP\n}\n")
	want := "include: " + path + ": is larger than 16 MiB: left out: include a configuration file"
	if len(i.Notes) == 0 || i.Notes[0].Text != want {
		t.Errorf("notes %v, want %s", i.Notes, want)
	}
}

// TestKeywordTwice: of a keyword that a check has twice, the last one stays.
func TestKeywordTwice(t *testing.T) {
	d, _ := mustImport(t, migrate.Keepalived, "virtual_server 192.0.2.1 25 {\n protocol TCP\n lb_kind TUN\n "+
		"real_server "+
		"10.0.0.1 25 {\n SMTP_CHECK {\n helo_name a.example\n helo_name b.example\n }\n }\n}\n")
	if helo := d.Services[0].Realservers[0].Check.Helo; helo != "b.example" {
		t.Errorf("helo %q, want that of the last line", helo)
	}
}

// TestThresholdOutOfRange: a threshold that IPVS cannot have is left out, as its note states.
func TestThresholdOutOfRange(t *testing.T) {
	const text = "-A -t 192.0.2.1:80 -s wlc\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i -w 1 -x 4294967296\n"
	got, err := migrate.IPVSAdm("x.rules", []byte(text), options())
	if err != nil {
		t.Fatal(err)
	}
	d, err := config.ParseDirector("x.toml", got.TOML)
	if err != nil {
		t.Fatalf("%v in\n%s", err, got.TOML)
	}
	if upper := d.Services[0].Realservers[0].Upper; upper != 0 || !strings.Contains(string(got.TOML), "left out") {
		t.Errorf("upper = %d in\n%s", upper, got.TOML)
	}
}
