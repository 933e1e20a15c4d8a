package migrate_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/migrate"
)

// tunnelled is a virtual_server with lines of its own, whose checks have times that need no note. "; " stands for the
// end of a line.
func tunnelled(lines string) string {
	return "virtual_server 192.0.2.1 80 {; protocol TCP; lb_kind TUN; delay_loop 6; " + lines + "; }; "
}

// server is tunnelled with one real_server, which has lines of its own.
func server(lines string) string { return tunnelled("real_server 198.51.100.1 80 {; " + lines + "; }") }

// udp is a configuration with UDP in place of TCP.
func udp(text string) string { return strings.Replace(text, "protocol TCP", "protocol UDP", 1) }

// lines puts in the ends of lines.
func lines(text string) []byte { return []byte(strings.ReplaceAll(text, "; ", "\n")) }

// TestAsKeepalivedReads has lines from published configurations, and the result of keepalived 2.2.7's --config-test and
// dump for them.
func TestAsKeepalivedReads(t *testing.T) {
	service := func(d *config.Director) *config.Service { return &d.Services[0] }
	check := func(d *config.Director) config.Check {
		if c := d.Services[0].Realservers[0].Check; c != nil {
			return *c
		}
		return config.Check{}
	}
	weights := func(d *config.Director) (all []int) {
		for _, r := range d.Services[0].Realservers {
			all = append(all, r.Weight)
		}
		return all
	}
	drains := func(d *config.Director) (all []bool) {
		for _, r := range d.Services[0].Realservers {
			all = append(all, r.DrainOnFailure)
		}
		return all
	}
	dir := t.TempDir()
	fall := func(d *config.Director) any { return check(d).Fall }
	weightList := func(d *config.Director) any { return fmt.Sprint(weights(d)) }
	path := func(d *config.Director) any { return check(d).Path }
	kind := func(d *config.Director) any { return check(d).Type }
	persistence := func(d *config.Director) any { return service(d).Persistence.Timeout }
	factor := func(d *config.Director) any { return fmt.Sprint(check(d).Factor, check(d).Reverse) }
	bytes := func(d *config.Director) any { return check(d).SendHex + ": " + check(d).ExpectHex }
	port := func(d *config.Director) any { return check(d).Port }
	netmask := func(d *config.Director) any { return service(d).Persistence.Netmask }
	files := func(d *config.Director) any { return check(d).CertFile + " " + check(d).KeyFile }
	onFailure := func(d *config.Director) any { return fmt.Sprint(service(d).DrainOnFailure, drains(d)) }
	for name, c := range map[string]struct {
		text  string
		got   func(d *config.Director) any
		want  any
		notes []string // each matches one note, in their order
	}{
		"nb_get_retry is HTTP_GET's": {server("TCP_CHECK {; connect_timeout 3; nb_get_retry 3; }"),
			fall, 2, []string{`^x.conf:8: nb_get_retry`}},
		"retry of the real_server beside it": {server("retry 5; TCP_CHECK {; connect_timeout 3; nb_get_retry 3; }"),
			fall, 6, []string{`nb_get_retry.*HTTP_GET and SSL_GET`}},
		"nb_get_retry of HTTP_GET": {server("HTTP_GET {; connect_timeout 3; nb_get_retry 2; url {; path /; }; }"),
			fall, 3, nil},
		"retries that nothing knows": {tunnelled("nb_get_retry 4; real_server 198.51.100.1 80 {; nb_sock_retry 7; " +
			"SMTP_CHECK {; connect_timeout 3; nb_gethost_retry 9; }; }"),
			fall, 2, []string{`^x.conf:5: nb_get_retry`, `^x.conf:7: nb_sock_retry`, `^x.conf:10: nb_gethost_retry`}},
		"settings of other blocks": {server("MISC_CHECK {; misc_path /bin/true; misc_timeout 3; connect_timeout 1; " +
			"inhibit_on_failure; }"),
			func(d *config.Director) any {
				return fmt.Sprint(check(d).Timeout,
					drains(d))
			}, "3s [false]", []string{`connect_timeout`, `inhibit_on_failure`}},
		"retry 0 but of a check": {tunnelled("retry 0; real_server 198.51.100.1 80 {; retry 0; TCP_CHECK {; " +
			"connect_timeout 3; }; }"),
			fall, 2, []string{`^x.conf:5: retry "0"`, `^x.conf:7: retry "0"`}},
		"retry 0 of a check": {tunnelled("retry 5; real_server 198.51.100.1 80 {; TCP_CHECK {; connect_timeout 3; " +
			"retry 0; }; }"),
			fall, 1, nil},

		"port 0": {"virtual_server 192.0.2.1 0 {; protocol TCP; lb_kind TUN; real_server 198.51.100.1 0 {; }; }; ",
			persistence, 6 * time.Minute, []string{`^x.conf:1: .*360`}},
		"port 0 in a group": {"virtual_server_group g {; 192.0.2.1 80; 192.0.2.2; }; virtual_server group g {; " +
			"protocol TCP; lb_kind TUN; real_server 198.51.100.1 80 {; }; }; ",
			func(d *config.Director) any {
				return fmt.Sprint(d.Services[0].Persistence.Timeout, d.Services[1].Persistence.Timeout)
			}, "6m0s 6m0s", []string{`360`}},
		"port 0 with a timeout": {"virtual_server 192.0.2.1 {; protocol TCP; lb_kind TUN; persistence_timeout 60; " +
			"real_server 198.51.100.1 {; }; }; ",
			persistence, time.Minute, nil},
		"persistence_timeout 0": {tunnelled("persistence_timeout 0; real_server 198.51.100.1 80 {; }"),
			func(d *config.Director) any { return service(d).Persistence }, config.Persistence{}, nil},
		"persistence_granularity 24": {tunnelled("persistence_timeout 60; persistence_granularity 24; real_server " +
			"198.51.100.1 80 {; }"),
			netmask, 24, []string{`^x.conf:6: .*0\.0\.0\.24`}},
		"persistence_granularity as a netmask": {tunnelled("persistence_timeout 60; persistence_granularity " +
			"255.255.255.0; real_server 198.51.100.1 80 {; }"),
			netmask, 24, nil},

		"SMTP_CHECK without hosts": {server("SMTP_CHECK {; connect_timeout 3; helo_name a; }"),
			port, uint16(80), nil},
		"SMTP_CHECK with hosts": {server("SMTP_CHECK {; helo_name a; host {; connect_port 25; }; host {; " +
			"connect_port 587; }; }"),
			port, uint16(25), []string{`^x.conf:11: host`}},
		"SMTP_CHECK with a port and a host": {server("SMTP_CHECK {; connect_port 465; host {; connect_port 25; }; }"),
			port, uint16(465), []string{`^x.conf:8: host`}},

		"~SEQ with definitions": {"$A=1; $B=3; " + tunnelled("~SEQ(N,${A},${B}) real_server 198.51.100.${N} 80 { "+
			"weight 1 }"),
			func(d *config.Director) any { return len(service(d).Realservers) }, 3, nil},
		"~SEQ with steps and definitions": {"$B=0x1f; $S=-10; " + tunnelled("~SEQ(N,${B},${S},1) real_server "+
			"198.51.100.${N} 80 { weight 1 }"),
			func(d *config.Director) any {
				return service(d).Realservers[len(service(d).Realservers)-1].Address.String()
			}, "198.51.100.1", nil},
		"~LST": {tunnelled("~LST({A, W}, {1, 10}, {2,20},{3}) real_server 198.51.100.${A} 80 { weight ${W}0 }; " +
			"~LST(A,7, 8) real_server 198.51.100.${A} 80 { weight 5 }"),
			weightList, "[100 200 0 5 5]", nil},

		"weight in virtual_server": {tunnelled("quorum 20; real_server 198.51.100.1 80 {; }; weight 15; real_server " +
			"198.51.100.2 80 {; weight 5; }"),
			func(d *config.Director) any { return fmt.Sprint(weights(d), service(d).Quorum) }, "[15 5] 20", nil},

		"path with a blank": {server("HTTP_GET {; connect_timeout 3; url {; path \"/a b\"; }; }"),
			path, "/a%20b", []string{`^x.conf:9: path "/a b": .*"/a%20b"`}},
		"path with a percent sign": {server("HTTP_GET {; connect_timeout 3; url {; path /100%/%41?q=é; }; }"),
			path, "/100%25/%41?q=%C3%A9", []string{`path`}},
		"path that is none": {server("HTTP_GET {; url {; path index.html; }; }"),
			kind, "", []string{`^x.conf:8: path "index.html".*left out`}},
		"url without a path": {server("HTTP_GET {; url {; status_code 200; }; url {; path /b; }; connect_timeout 3; }"),
			path, "/b", []string{`^x.conf:7: url without a path`}},
		"HTTP_GET without url": {server("HTTP_GET {; connect_timeout 3; }"),
			kind, "", []string{`^x.conf:6: HTTP_GET without a url`}},

		"inhibit_on_failure on one": {server("}; real_server 198.51.100.2 80 {; inhibit_on_failure"),
			onFailure, "false [false true]", nil},
		"inhibit_on_failure on all but one": {tunnelled("inhibit_on_failure; real_server 198.51.100.1 80 {; " +
			"inhibit_on_failure off; }; real_server 198.51.100.2 80 {; }"),
			onFailure, "false [false true]", nil},
		"inhibit_on_failure on all": {tunnelled("inhibit_on_failure; real_server 198.51.100.1 80 {; }; real_server " +
			"198.51.100.2 80 {; }"),
			onFailure, "true [true true]", nil},

		"FILE_CHECK": {server("FILE_CHECK {; track_file w; }") + "track_file w {; file \"/run/a b\"; }; ",
			func(d *config.Director) any { return fmt.Sprintf("%+v", check(d)) },
			fmt.Sprintf("%+v", config.Check{Type: "file", Direct: true, File: "/run/a b", Factor: 1,
				Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1, Up: true}), nil},
		"FILE_CHECK with the file's weight": {server("FILE_CHECK {; track_file w; }") + "vrrp_track_file w {; file " +
			"/run/a; weight -5 reverse; init_file 3; }; ",
			factor, "-5 true", []string{`init_file 3`}},
		"FILE_CHECK with its own weight": {server("FILE_CHECK {; track_file w; weight 0 reverse; }") + "track_file " +
			"w {; file /run/a; weight -5; }; ",
			factor, "0 true", nil},
		"FILE_CHECK beside another": {server("FILE_CHECK {; track_file w; }; TCP_CHECK {; connect_timeout 3; "+
			"}") + "track_file w {; file /run/a; }; ",
			kind, "tcp", []string{`^x.conf:6: FILE_CHECK: a realserver has one check`}},
		"FILE_CHECK of no file": {server("FILE_CHECK {; track_file v; }") + "track_file w {; file /run/a; }; ",
			kind, "", []string{`^x.conf:6: FILE_CHECK: .*"v"`, `^x.conf:11: track_file w`}},

		"a } too many": {tunnelled("real_server 198.51.100.1 80 {; }") + "}; " +
			"" + strings.Replace(tunnelled("real_server 198.51.100.2 80 {; }"), "2.1", "2.2", 1),
			func(d *config.Director) any { return len(d.Services) }, 2, []string{`^x.conf:8: a } too many`}},
		"a } missing at the end": {"virtual_server 192.0.2.1 80 {; protocol TCP; lb_kind TUN; real_server " +
			"198.51.100.1 80 {; weight 3; ",
			weightList, "[3]", []string{`^x.conf:1: .*virtual_server.*}`, `^x.conf:4: .*real_server.*}`}},
		"a } missing within": {"virtual_server 192.0.2.1 80 {; protocol TCP; lb_kind TUN; real_server 198.51.100.1 " +
			"80 {; weight 3; }; virtual_server 192.0.2.2 80 {; real_server 198.51.100.2 80 {; weight 4; }; }; ",
			func(d *config.Director) any {
				return fmt.Sprint(len(d.Services),
					weights(d))
			}, "1 [3 4]", []string{`^x.conf:7: virtual_server .*line 1`}},
		"a { missing": {"virtual_server 192.0.2.1 80; protocol TCP; lb_kind TUN; real_server 198.51.100.1 80 {; " +
			"weight 3; }; }; ",
			func(d *config.Director) any {
				return fmt.Sprint(service(d).Protocol,
					weights(d))
			}, "tcp[3]", []string{`^x.conf:1: virtual_server .*{`}},
		"a { too many": {tunnelled("{; real_server 198.51.100.1 80 {; weight 3; }"),
			weightList, "[3]", []string{`^x.conf:5: a {`}},

		"DNS_CHECK": {udp(server("DNS_CHECK {; connect_timeout 3; retry 1; name example.com; }")),
			func(d *config.Director) any { return check(d).Records }, 0, nil},
		"payload": {udp(server("UDP_CHECK {; connect_timeout 3; payload Ab12f 3 456 546443123; require_reply 0X xX " +
			"f; min_reply_length 5; max_reply_length 80; }")),
			bytes, "ab 12 0f 03 45 06 54 64 43 12 03: 0? ?? 0f ?? ??", []string{`max_reply_length`}},
		"payload of TCP_CHECK": {server("TCP_CHECK {; connect_timeout 3; payload 00ff; require_reply 8x; }"),
			bytes, "00 ff: 8?", nil},
		"any reply": {udp(server("UDP_CHECK {; connect_timeout 3; require_reply; }")),
			func(d *config.Director) any { return check(d).Expect }, "^", nil},
		"payload that is none": {udp(server("UDP_CHECK {; connect_timeout 3; payload 0g; require_reply hello; }")),
			func(d *config.Director) any { return check(d).SendHex + check(d).ExpectHex }, "", []string{`payload`,
				`require_reply`}},

		"no lb_kind": {strings.Replace(server(""), "lb_kind TUN; ", "", 1),
			func(d *config.Director) any { return service(d).Realservers[0].Forward }, method.NAT, nil},
		"lb_kind DR": {strings.Replace(server(""), "TUN", "DR", 1),
			func(d *config.Director) any { return service(d).Realservers[0].Forward }, method.DR, nil},
		"lb_kind that is none": {strings.Replace(server(""), "TUN", "tun", 1),
			func(d *config.Director) any { return service(d).Realservers[0].Forward }, method.NAT,
			[]string{`^x.conf:3: lb_kind tun: unknown`}},
		"one server, two ports": {"virtual_server 192.0.2.1 80 {; protocol TCP; real_server 198.51.100.1 8080 {; }; " +
			"real_server 198.51.100.1 8081 {; }; real_server 198.51.100.1 80 {; }; real_server 198.51.100.1 {; }; }; ",
			func(d *config.Director) any {
				var all []string
				for _, r := range service(d).Realservers {
					all = append(all, r.ID().String())
				}
				return strings.Join(all, " ")
			}, "198.51.100.1:8080 198.51.100.1:8081 198.51.100.1:0",
			[]string{`^x.conf:9: .*198.51.100.1 is there twice`}},
		"LocalNode": {strings.Replace(tunnelled("sorry_server 127.0.0.1 80; real_server 198.51.100.1 80 {; }"), "TUN",
			"DR", 1),
			func(d *config.Director) any { return fmt.Sprint(service(d).Sorry.ID(), service(d).Sorry.Forward) },
			"127.0.0.1:0 nat",
			[]string{`^x.conf:5: sorry_server 127.0.0.1: is the director's own host: imported as nat`}},
		"LocalNode at another port": {"virtual_server 192.0.2.1 80 {; protocol TCP; lb_kind NAT; sorry_server " +
			"127.0.0.1 8080; real_server 198.51.100.1 80 {; }; }; ",
			func(d *config.Director) any { return fmt.Sprint(service(d).Sorry.ID(), service(d).Sorry.Forward) },
			"127.0.0.1:8080 nat", nil},
		"check of NAT": {"virtual_server 192.0.2.1 80 {; protocol TCP; delay_loop 6; real_server 198.51.100.1 8080 " +
			"{; TCP_CHECK {; connect_timeout 3; }; }; }; ",
			func(d *config.Director) any {
				r := service(d).Realservers[0]
				return fmt.Sprint(r.Via(), r.CheckPort())
			}, "direct8080", nil},

		"sorry server is a realserver": {tunnelled("sorry_server 198.51.100.2 80; real_server 198.51.100.1 80 {; }; " +
			"real_server 198.51.100.2 80 {; }"),
			func(d *config.Director) any { return service(d).Sorry.Address }, netip.MustParseAddr("198.51.100.2"), nil},

		"SSL": {"SSL {; certificate " + certificate(t, dir) + "; key " + filepath.Join(dir,
			"key.pem") + "; }; " + server("SSL_GET {; connect_timeout 3; url {; path /; }; }"),
			files, dir + "/cert.pem " + dir + "/key.pem", nil},
		"SSL of files that are elsewhere": {"SSL {; password x; ca /etc/ca.pem; certificate /nowhere/cert.pem; key " +
			"/nowhere/key.pem; }; " + server("SSL_GET {; connect_timeout 3; url {; path /; }; }"),
			func(d *config.Director) any { return check(d).CertFile }, "",
			[]string{`^x.conf:1: SSL: .*/nowhere/cert.pem.*cert = "/nowhere/cert.pem"`, `^x.conf:2: password`,
				`^x.conf:3: ca .*verify`}},
	} {
		t.Run(name, func(t *testing.T) {
			i, err := migrate.Keepalived("x.conf", lines(c.text), options())
			if err != nil {
				t.Fatal(err)
			}
			d := checkImport(t, i)
			if d == nil {
				t.Fatalf("nothing was taken: %v", i.Notes)
			}
			if got := c.got(d); got != c.want {
				t.Errorf("%+v, want %+v, in\n%s", got, c.want, i.TOML)
			}
			if len(i.Notes) != len(c.notes) {
				t.Fatalf("notes %v, want %q", i.Notes, c.notes)
			}
			for n, want := range c.notes {
				if !regexp.MustCompile(want).MatchString(i.Notes[n].String()) {
					t.Errorf("note %v, want %s", i.Notes[n], want)
				}
			}
		})
	}
}

// certificate makes cert.pem and key.pem, and returns the first one's path.
func certificate(t *testing.T, dir string) string {
	t.Helper()
	for name, text := range selfSigned(t) {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "cert.pem")
}

// TestManyBlocks: a sequence makes as many blocks as large sites have, up to a hundred thousand.
func TestManyBlocks(t *testing.T) {
	const server = "$VS= \\\nvirtual_server 10.${A}.${B}.${C} 80 { \\\nprotocol TCP \\\nlb_kind TUN \\\nreal_server " +
		"198.51.100.1 80 { \\\nweight 1 \\\n} \\\n}\n\n"
	for bounds, want := range map[string]int{"~SEQ(A,1,1) ~SEQ(B,1,3) ~SEQ(C,1,100)": 300,
		"~SEQ(A,0,3) ~SEQ(B,1,100) ~SEQ(C,1,50)": 20_000} {
		i, err := migrate.Keepalived("x.conf", []byte(server+bounds+" $VS\n"), options())
		if err != nil || i.Services != want || len(i.Notes) != 0 {
			t.Errorf("%s: %v, %+v, want %d services", bounds, err, i, want)
		}
	}
	if _, err := migrate.Keepalived("x.conf", []byte(server+"~SEQ(A,0,3) ~SEQ(B,1,255) ~SEQ(C,1,254) $VS\n"),
		options()); err == nil || !strings.Contains(err.Error(), "more than 100000 blocks") {
		t.Errorf("%v, want that the blocks are too many", err)
	}
}

// TestOnlyMarks: a configuration whose services are all of firewall marks becomes a file of comments.
func TestOnlyMarks(t *testing.T) {
	i, err := migrate.Keepalived("x.conf", []byte("virtual_server fwmark 5 {\nprotocol TCP\nlb_kind "+
		"TUN\nreal_server 198.51.100.1 80 {\n}\n}\n"), options())
	if err != nil || i.Services != 0 || i.Marks != 1 || !strings.Contains(string(i.TOML),
		"#[[service]]\n#name     = \"fwmark-5\"\n") {
		t.Fatalf("%v, %d services, %d marks in\n%s", err, i.Services, i.Marks, i.TOML)
	}
	filled := regexp.MustCompile(`(?m)^#(\[|[a-z]|  )`).ReplaceAllString(string(i.TOML), "$1")
	filled = strings.NewReplacer(`["…"]`, `["192.0.2.1"]`, "[ … ]", "[80]").Replace(filled)
	if _, err := config.ParseDirector("x.toml", []byte(filled)); err != nil {
		t.Errorf("filled in, it is no configuration: %v in\n%s", err, filled)
	}
}

// TestKeywordsOfBlocks puts each general keyword into each block, and has keepalived say where it does not know it:
// there the import leaves it out, too.
func TestKeywordsOfBlocks(t *testing.T) {
	program, err := exec.LookPath("keepalived")
	if err != nil {
		t.Skip("SKIPPED: needs keepalived: apt-get install keepalived (or make deps)")
	}
	keywords := []string{"delay_loop 6", "connect_timeout 3", "delay_before_retry 6", "retry 2", "nb_get_retry 2",
		"nb_sock_retry 2", "nb_gethost_retry 2", "warmup 3",
		"alpha", "inhibit_on_failure", "virtualhost example.com", "connect_ip 198.51.100.1", "connect_port " +
			"80", "bindto 127.0.0.1", "fwmark 1", "log_all_failures"}
	checks := map[string]string{"HTTP_GET": "url {; path /; }", "SSL_GET": "url {; path /; }", "TCP_CHECK": "",
		"SMTP_CHECK": "", "DNS_CHECK": "", "MISC_CHECK": "misc_path /bin/true",
		"UDP_CHECK": "", "PING_CHECK": "", "FILE_CHECK": "track_file w"}
	own := strings.Join(keywords, "; ") + "; "
	texts := map[string]string{
		"virtual_server": tunnelled(own + "real_server 198.51.100.1 80 {; }"),
		"real_server":    tunnelled("real_server 198.51.100.1 80 {; " + own + "}"),
	}
	for check, first := range checks {
		texts[check] = tunnelled("real_server 198.51.100.1 80 {; " + check + " {; " + first + "; " + own + "}; }")
	}
	unknown, ignored := regexp.MustCompile(`Line (\d+)\) Unknown keyword '(\w+)'`),
		regexp.MustCompile(`^(\w+) of .*keepalived knows it`)
	for name, block := range texts {
		file := filepath.Join(t.TempDir(), "x.conf")
		text := lines("track_file w {; file /run/w; }; " + block) // before what uses it, as keepalived wants it
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "--config-test", "--use-file="+file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it ends by a signal to its process group
		out, _ := cmd.CombinedOutput()                       // whose exit status says that it has said something
		want, got := map[string]bool{}, map[string]bool{}
		for _, m := range unknown.FindAllStringSubmatch(string(out), -1) {
			want[m[1]+" "+m[2]] = true
		}
		i, err := migrate.Keepalived(file, text, options())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range i.Notes {
			if m := ignored.FindStringSubmatch(n.Text); m != nil {
				got[fmt.Sprintf("%d %s", n.Line, m[1])] = true
			}
		}
		if len(want) == 0 {
			t.Errorf("%s: keepalived knows all keywords:\n%s", name, out)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: what keepalived does not know (-want +got):\n%s", name, diff)
		}
	}
}
