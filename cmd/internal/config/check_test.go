package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/config"
)

// TestChecks: every key of every type is read, with its defaults and with a realserver's replacements.
func TestChecks(t *testing.T) {
	d, err := config.ParseDirector("x.toml", readTestdata(t, "checks.toml"))
	if err != nil {
		t.Fatal(err)
	}
	usual := config.Check{Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 3}
	with := func(c config.Check, change func(*config.Check)) *config.Check {
		change(&c)
		return &c
	}
	web := config.Check{Type: "https", Direct: true, Port: 9443, Interval: 10 * time.Second, Timeout: 3 * time.Second,
		Rise: 1, Fall: 5, Up: true,
		Path: "/health?full=1", Host: "www.example.com", Status: []config.StatusRange{{First: 200, Last: 200},
			{First: 300, Last: 399}, {First: 418, Last: 418}}, Body: "(?i)fine", SNI: "sni.example.com"}
	mail := with(usual, func(c *config.Check) {
		c.Type, c.Port, c.DefaultPort, c.Helo = "smtp", 25, true, "lb.example.com"
	})
	want := [][]*config.Check{{
		&web,
		with(web, func(c *config.Check) {
			c.Interval, c.Timeout, c.Fall, c.Verify = time.Second, time.Second, 1,
				true
		}),
		with(web, func(c *config.Check) { c.Type, c.Port, c.Body, c.SNI = "http", 8080, "", "" }),
		{Type: "tcp", Port: 9443, Interval: 10 * time.Second, Timeout: 3 * time.Second, Rise: 1, Fall: 5,
			Send: "PING\r\n", Expect: "PONG"},
		{Type: "exec", Direct: true, Interval: 10 * time.Second, Timeout: 3 * time.Second, Rise: 1, Fall: 5, Up: true,
			Command: []string{"/usr/local/bin/check", "an argument"}},
	}, {
		mail, mail,
	}, {
		with(usual, func(c *config.Check) {
			c.Type, c.Port, c.Interval, c.Timeout = "dns", 53, 500*time.Millisecond, 500*time.Millisecond
			c.DefaultPort = true
			c.Query, c.QueryType, c.Rcode, c.Records = "www.example.com", "AAAA", "NXDOMAIN", 1
		}),
		with(usual, func(c *config.Check) {
			c.Type, c.Port, c.Interval, c.Timeout = "udp", 53, 500*time.Millisecond, 500*time.Millisecond
			c.DefaultPort = true
			c.Send, c.Expect = "x", "^y"
		}),
		with(usual, func(c *config.Check) {
			c.Type, c.Port, c.Interval, c.Timeout = "udp", 53, 500*time.Millisecond, 500*time.Millisecond
			c.DefaultPort = true
			c.SendHex, c.ExpectHex = "00 ff", "00 ff ?? 1?"
		}),
		with(usual, func(c *config.Check) {
			c.Type, c.Direct, c.Interval, c.Timeout = "file", true, 500*time.Millisecond, 500*time.Millisecond
			c.File, c.Factor, c.Reverse = "/run/dns.weight", -2, true
		}),
		with(usual, func(c *config.Check) {
			c.Type, c.Port, c.Interval, c.Timeout = "dns", 53, 500*time.Millisecond, 500*time.Millisecond
			c.DefaultPort = true
			c.Query, c.QueryType, c.Rcode = "www.example.com", "AAAA", "NXDOMAIN"
		}),
	}, {
		nil,
		with(usual, func(c *config.Check) { c.Type = "ping" }),
		with(usual, func(c *config.Check) { c.Type, c.Port = "tcp", 22 }),
	}}
	var got [][]*config.Check
	for _, s := range d.Services {
		var checks []*config.Check
		for _, r := range s.Realservers {
			checks = append(checks, r.Check)
		}
		got = append(got, checks)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s := d.Services[0]; s.Check != s.Realservers[0].Check || s.Check == s.Realservers[1].Check {
		t.Error("a realserver has the check of its service in common with it if, and only if, it says nothing else")
	}
}

// TestCheckDefaults: a check of each type with only the required keys has the defaults.
func TestCheckDefaults(t *testing.T) {
	for text, want := range map[string]config.Check{
		`type = "tcp"`:  {Type: "tcp", Port: 80},
		`type = "udp"`:  {Type: "udp", Port: 80},
		`type = "http"`: {Type: "http", Port: 80, Path: "/", Status: []config.StatusRange{{First: 200, Last: 399}}},
		`type = "https"`: {Type: "https", Port: 80, Path: "/", Status: []config.StatusRange{{First: 200, Last: 399}},
			Verify: true},
		`type = "dns", query = "a"`: {Type: "dns", Port: 80, Query: "a", QueryType: "A", Rcode: "NOERROR",
			Records: 1},
		`type = "smtp"`:                   {Type: "smtp", Port: 80},
		`type = "ping"`:                   {Type: "ping"},
		`type = "exec", command = ["/a"]`: {Type: "exec", Direct: true, Command: []string{"/a"}},
		`type = "file", path = "/a"`:      {Type: "file", Direct: true, File: "/a", Factor: 1},

		`type = "dns", query = "a", records = 0`: {Type: "dns", Port: 80, Query: "a",
			QueryType: "A", Rcode: "NOERROR"},
		`type = "udp", send = "` + strings.Repeat("a", 65507) + `"`: {Type: "udp", Port: 80,
			Send: strings.Repeat("a", 65507)},
		`type = "tcp", send = "` + strings.Repeat("a", 65508) + `"`: {Type: "tcp", Port: 80,
			Send: strings.Repeat("a", 65508)},
		`type = "tcp", send_hex = "00FF 1f", expect_hex = "00 ?f1??A"`: {Type: "tcp", Port: 80,
			SendHex: "00 ff 1f", ExpectHex: "00 ?f 1? ?a"},
		`type = "udp", send = "x", expect_hex = ""`: {Type: "udp", Port: 80, Send: "x"},
		`type = "file", path = "/a b", factor = -2147483647, reverse = true`: {Type: "file", Direct: true,
			File: "/a b", Factor: -2147483647, Reverse: true},
		`type = "file", path = "/a", factor = 0, via = "direct", interval = "5s"`: {Type: "file", Direct: true,
			File: "/a"},
	} {
		want.Interval, want.Timeout, want.Rise, want.Fall = 5*time.Second, 2*time.Second, 2, 3
		want.DefaultPort = want.Port != 0
		d, err := config.ParseDirector("x.toml", []byte(goodService+"check = { "+text+" }\n"))
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(&want, d.Services[0].Check); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", text, diff)
		}
	}
}

// TestCheckAfterExec: a realserver's own check goes through the tunnel, unless the service's check has via = "direct".
// This holds although the service's check runs a program on the director's host.
func TestCheckAfterExec(t *testing.T) {
	for via, direct := range map[string]bool{"": false, `, via = "direct"`: true} {
		d, err := config.ParseDirector("x.toml", []byte(goodService+
			`check = { type = "exec", command = ["/a"]`+via+" }\n"+
			`realserver = [ { address = "10.0.11.1", check = { type = "tcp" } } ]`+"\n"))
		if err != nil {
			t.Error(err)
			continue
		}
		if c := d.Services[0].Realservers[0].Check; c.Direct != direct {
			t.Errorf("with %q it is %+v", via, c)
		}
	}
}

// TestCheckFaults: each gives exactly these lines.
func TestCheckFaults(t *testing.T) {
	const (
		types       = "want tcp, http, https, dns, udp, ping, smtp, exec or file"
		wantStatus  = `want an array of codes, 100 to 599, and ranges of them: [200, "300-399"]`
		wantCommand = `want an array of an absolute path and arguments: ["/usr/local/bin/check", "arg"]`
		wantCA      = "want the absolute path of a PEM file with certificates of authorities"
		wantRegexp  = "want a regular expression, as Go has them (RE2)"
	)
	dir := t.TempDir()
	noCA := filepath.Join(dir, "no-ca.pem")
	if err := os.WriteFile(noCA, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(lines ...string) (all []string) {
		for _, l := range lines {
			all = append(all, `service "web": check: `+l)
		}
		return all
	}
	check := func(text string) string { return goodService + "check = { " + text + " }\n" }
	own := func(service, realserver string) string {
		return goodService + "check = { " + service + " }\n[[service.realserver]]\naddress = \"10.0.0.1\"\ncheck = { " +
			realserver + " }\n"
	}
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"no table", goodService + "check = 1\n", []string{`service "web": check: 1 is of the wrong type: want a ` +
			`table such as { type = "http" }`,
			`service "web": check: type: missing: ` + types}},
		{"empty", check(""), at("type: missing: " + types)},
		{"type", check(`type = "icmp"`), at(`type: "icmp" is unknown: ` + types)},
		{"unknown", check(`type = "ping", intervall = "1s"`), at("intervall: unknown key: did you mean interval?")},
		{"common keys", check(`type = "tcp", via = "nat", port = 0, interval = "50ms", rise = 0, fall = 1001, ` +
			`initial = 1`), at(
			`interval: "50ms" is out of range: want 100ms to 24h`,
			`rise: 0 is out of range: want 1 to 1000 checks in a row`,
			`fall: 1001 is out of range: want 1 to 1000 checks in a row`,
			`initial: 1 is of the wrong type: want down or up`,
			`via: "nat" is unknown: want tunnel or direct`,
			`port: 0 is out of range: want 1 to 65535`,
		)},
		{"timeout", check(`type = "tcp", interval = "1s", timeout = "2s"`), at("timeout: 2s is longer than " +
			"interval, 1s: want 10ms to interval")},
		{"timeout of a realserver", own(`type = "tcp", timeout = "2s"`, `interval = "1s"`), []string{
			`service "web": realserver "10.0.0.1": check: timeout: 2s is longer than interval, 1s: want 10ms to ` +
				`interval`}},
		{"keys of other types", check(`type = "tcp", path = "/", ca = "/a", query = "a", command = ["/a"], helo = "a"`),
			at(
				"path: is of http, https or file checks only, and this one is tcp: leave it out",
				"ca: is of https checks only, and this one is tcp: leave it out",
				"query: is of dns checks only, and this one is tcp: leave it out",
				"helo: is of smtp checks only, and this one is tcp: leave it out",
				"command: is of exec checks only, and this one is tcp: leave it out",
			)},
		{"ping has no port", check(`type = "ping", port = 1`), at("port: is of tcp, http, https, dns, udp or smtp " +
			"checks only, and this one is ping: leave it out")},
		{"http", check(`type = "http", path = "health", host = "a b", status = [99, "600", "300-200", true], ` +
			`body = "("`), at(
			`path: "health" does not begin with /: want a path such as "/health?full=1"`,
			`host: "a b" is empty, or not printable ASCII without spaces: want a host's name such as `+
				`"www.example.com"`,
			`status: 99 is no code and no range: `+wantStatus,
			`status: "600" is no code and no range: `+wantStatus,
			`status: "300-200" is no code and no range: `+wantStatus,
			`status: true is no code and no range: `+wantStatus,
			"body: \"(\": missing closing ): `(`: "+wantRegexp,
		)},
		{"status empty", check(`type = "http", status = []`), at(`status: is empty: ` + wantStatus)},
		{"ca relative", check(`type = "https", ca = "ca.pem"`), at(`ca: "ca.pem" is not an absolute path: ` + wantCA)},
		{"ca missing", check(`type = "https", ca = "` + dir + `/x.pem"`),
			at(`ca: open ` + dir + `/x.pem: no such file or directory: ` + wantCA + ", which every user may read")},
		{"ca empty", check(`type = "https", ca = "` + noCA + `"`),
			at(`ca: "` + show64(noCA) + `" holds no certificate: ` + wantCA)},
		{"dns", check(`type = "dns", query_type = "ANY", rcode = "OK"`), at(
			`query: missing: want a domain name such as "www.example.com"`,
			`query_type: "ANY" is unknown: want A, AAAA, CAA, CNAME, DNSKEY, DS, HTTPS, MX, NAPTR, NS, PTR, SOA, `+
				`SRV, SVCB or TXT`,
			`rcode: "OK" is unknown: want NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP or REFUSED`,
		)},
		{"query", check(`type = "dns", query = "a..b"`), at(`query: "a..b" is not a domain name: want a domain name ` +
			`such as "www.example.com"`)},
		{"exec", check(`type = "exec", via = "tunnel", command = ["check", 1]`), at(
			"via: an exec check runs on the director, by no tunnel: want direct, or leave it out",
			`command: "check" is not an absolute path: `+wantCommand,
			`command: 1 is of the wrong type: `+wantCommand,
		)},
		{"bytes", check(`type = "udp", send_hex = "0", expect_hex = "0x00"`), at(
			`send_hex: "0" has an odd number of digits: want bytes of two hexadecimal digits, such as "00 1f ff"`,
			`expect_hex: "0x" is no byte: want bytes of two hexadecimal digits, of which ? is any, such as "00 1? ??"`,
		)},
		{"datagram", check(`type = "udp", send = "` + strings.Repeat("é", 32754) + `"`),
			at(`send: 65508 bytes are too long for a UDP datagram: want at most 65507 bytes`)},
		{"datagram of bytes", check(`type = "udp", send_hex = "` + strings.Repeat("00 ", 65508) + `"`),
			at(`send_hex: 65508 bytes are too long for a UDP datagram: want at most 65507 bytes`)},
		{"bytes to send", check(`type = "tcp", send_hex = "0?"`),
			at(`send_hex: ? is for what is expected only: want bytes of two hexadecimal digits, such as "00 1f ff"`)},
		{"bytes and text", check(`type = "tcp", send = "a", send_hex = "00", expect = "a", expect_hex = "00"`), at(
			`send_hex: stands beside send: want one of them`,
			`expect_hex: stands beside expect: want one of them`,
		)},
		{"records", check(`type = "dns", query = "a", records = -1`),
			at("records: -1 is out of range: want 0 (any NOERROR) to 1000")},
		{"percent", check(`type = "http", path = "/a%zz"`),
			at(`path: "/a%zz" has a % that two hexadecimal digits do not follow: want a path such as ` +
				`"/health?full=1"`)},
		{"file", check(`type = "file", via = "tunnel", factor = 2147483648, reverse = 1`), at(
			"via: a file check runs on the director, by no tunnel: want direct, or leave it out",
			`path: missing: want the absolute path of a file that has a number, such as "/run/web.weight"`,
			"factor: 2147483648 is out of range: want -2147483647 to 2147483647; with 0 a number other than 0 is a "+
				"failure",
			"reverse: 1 is of the wrong type: want true or false",
		)},
		{"file relative", check(`type = "file", path = "weight", port = 80`), at(
			`path: "weight" is not an absolute path: want the absolute path of a file that has a number, such as `+
				`"/run/web.weight"`,
			"port: is of tcp, http, https, dns, udp or smtp checks only, and this one is file: leave it out",
		)},
		{"exec without command", check(`type = "exec"`), at("command: missing: " + wantCommand)},
		{"every port", strings.Replace(own(`type = "tcp"`, `fall = 1`), "port = 80", "port = 0", 1),
			at("port: missing, as the service has every port: want the one to check, 1 to 65535")},
		{"realserver without a type", goodService + "[[service.realserver]]\naddress = \"10.0.0.1\"\ncheck = { fall " +
			"= 1 }\n", []string{
			`service "web": realserver "10.0.0.1": check: type: missing: ` + types}},
		{"a service's fault is told once", own(`type = "http", path = 1, fall = 0`, `rise = 1`), at(
			"fall: 0 is out of range: want 1 to 1000 checks in a row",
			`path: 1 is of the wrong type: want a path such as "/health?full=1"`,
		)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.ParseDirector("x.toml", []byte(c.text))
			wantFaults(t, err, c.want...)
		})
	}
}

// show64 is a text as a fault shows it.
func show64(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// TestCA: the file is read with the configuration.
func TestCA(t *testing.T) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, []byte(ca), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := config.ParseDirector("x.toml", []byte(goodService+"check = { type = \"https\", ca = \""+path+"\" }\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c := d.Services[0].Check; c.CA != ca || c.CAFile != path {
		t.Errorf("%+v", c)
	}
}

// TestClientCertificate: both files are read with the configuration; the key may be in the certificate's.
func TestClientCertificate(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, blocks ...*pem.Block) string {
		t.Helper()
		var text []byte
		for _, b := range blocks {
			text = append(text, pem.EncodeToMemory(b)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pair := func() (cert, key *pem.Block) {
		t.Helper()
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1)}
		der, err := x509.CreateCertificate(rand.Reader, c, c, &private.PublicKey, private)
		if err != nil {
			t.Fatal(err)
		}
		pkcs, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		return &pem.Block{Type: "CERTIFICATE", Bytes: der}, &pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	certificate, private := pair()
	_, otherPrivate := pair()
	cert, key, both, other := write("cert", certificate), write("key", private), write("both", private,
		certificate), write("other", otherPrivate)
	text := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const wantCert = "want the absolute path of a PEM file with the client's certificate"
	const wantKey = "want the absolute path of a PEM file with the private key of cert, without a password"
	own := func(service, realserver string) string {
		return goodService + "check = { type = \"https\", " + service + " }\n[[service.realserver]]\naddress = " +
			"\"10.0.0.1\"\ncheck = { " + realserver + " }\n"
	}
	for name, c := range map[string]struct {
		text  string
		want  config.Check // of the realserver
		fault string       // behind "check: "
	}{
		"two files": {own(`cert = "`+cert+`", key = "`+key+`"`, ``), config.Check{CertFile: cert, Cert: text(cert),
			KeyFile: key, Key: text(key)}, ""},
		"one file": {own(`cert = "`+both+`"`, ``), config.Check{CertFile: both, Cert: text(both),
			Key: text(both)}, ""},
		"another": {own(`cert = "`+cert+`", key = "`+key+`"`, `cert = "`+both+`"`), config.Check{CertFile: both,
			Cert: text(both), Key: text(both)}, ""},
		"none":   {own(`cert = "`+cert+`", key = "`+key+`"`, `cert = ""`), config.Check{}, ""},
		"no TLS": {own(`cert = "`+cert+`", key = "`+key+`"`, `type = "http"`), config.Check{}, ""},
		"key missing": {own(`cert = "`+cert+`"`, ``), config.Check{},
			"cert: found a certificate rather than a key in the PEM for the private key: " + wantCert},
		"another key": {own(`cert = "`+cert+`", key = "`+other+`"`, ``), config.Check{},
			"key: private key does not match public key: " + wantKey},
		"only a key": {own(`key = "`+key+`"`, ``), config.Check{},
			`key: "` + show64(key) + `" is the key of no certificate: want cert, too`},
		"no such file": {own(`cert = "`+cert+`", key = "`+dir+`/x"`, ``), config.Check{},
			"key: open " + dir + "/x: no such file or directory: " + wantKey + ", which the program's user may read"},
		"FIFO": {own(`cert = "`+fifo+`", key = "`+key+`"`, ``), config.Check{},
			`cert: "` + show64(fifo) + `" holds no certificate: ` + wantCert},
		"FIFO alone": {own(`cert = "`+fifo+`"`, ``), config.Check{},
			`cert: "` + show64(fifo) + `" holds no certificate: ` + wantCert},
		"a key as certificate": {own(`cert = "`+other+`", key = "`+key+`"`, ``), config.Check{},
			`cert: "` + show64(other) + `" holds no certificate: ` + wantCert},
		"FIFO as key": {own(`cert = "`+both+`", key = "`+fifo+`"`, ``), config.Check{},
			`key: "` + show64(fifo) + `" is empty: ` + wantKey},
		"relative": {own(`cert = "cert.pem"`, ``), config.Check{},
			`cert: "cert.pem" is not an absolute path: ` + wantCert},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := config.ParseDirector("x.toml", []byte(c.text))
			if c.fault != "" {
				wantFaults(t, err, `service "web": check: `+c.fault)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := d.Services[0].Realservers[0].Check
			if got.CertFile != c.want.CertFile || got.Cert != c.want.Cert || got.KeyFile != c.want.KeyFile ||
				got.Key != c.want.Key {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestQuorumAndNotifyFaults(t *testing.T) {
	web := func(lines string) string {
		return goodService + lines + "\nrealserver = [{ address = \"10.0.0.1\", weight = 2 }, { address = " +
			"\"10.0.0.2\" }]\n"
	}
	notify := func(lines string) string { return "[notify]\n" + lines + "\n" + goodService }
	const (
		wantHook    = `want a URL such as "https://hooks.example.com/vstun"`
		wantCommand = `want an array of an absolute path and arguments: ["/usr/local/bin/check", "arg"]`
	)
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"fine", web("quorum = 2\nhysteresis = 1\nsorry_server = \"10.0.0.3\"\non_failure = \"remove\""), nil},
		{"quorum", web("quorum = 0\nhysteresis = -1\non_failure = \"ignore\"\nsorry_server = 7"), []string{
			`service "web": quorum: 0 is out of range: want 1 to 2147483647, a sum of weights`,
			`service "web": hysteresis: -1 is out of range: want 0 to quorum - 1`,
			`service "web": on_failure: "ignore" is unknown: want remove or drain`,
			`service "web": sorry_server: 7 is of the wrong type: want an IPv4 or IPv6 address such as "10.0.2.2" ` +
				`or "2001:db8::2"`,
		}},
		{"hysteresis", web("quorum = 2\nhysteresis = 2"), []string{
			`service "web": hysteresis: 2 is not less than quorum, 2: want 0 to quorum - 1`,
			`service "web": quorum: 2 with hysteresis 2 is more than the weights of all realservers, 3: want at ` +
				`most that`,
		}},
		{"quorum high", web("quorum = 4"), []string{`service "web": quorum: 4 is more than the weights of all ` +
			`realservers, 3: want at most that`}},
		{"quorum high while one drains", goodService + "quorum = 4\nrealserver = [{ address = \"10.0.0.1\", weight " +
			"= 0 }, { address = \"10.0.0.2\" }]\n", nil},
		{"sorry server a realserver", web(`sorry_server = "10.0.0.2"`), nil},
		{"quorum high while a file may raise a weight", goodService + "quorum = 4\nrealserver = [{ address = " +
			"\"10.0.0.1\", check = { type = \"file\", path = \"/a\" } }]\n", nil},
		{"on_failure of a realserver", goodService + "realserver = [{ address = \"10.0.0.1\", on_failure = " +
			"\"ignore\" }]\n", []string{
			`service "web": realserver "10.0.0.1": on_failure: "ignore" is unknown: want remove or drain`}},
		{"sorry server a VIP", web(`sorry_server = "198.51.100.80"`), []string{`service "web": sorry_server: ` +
			`"198.51.100.80" is also a VIP of service "web": want the realserver's own address`}},
		{"notify", notify("command = [\"tell\"]\nwebhook = \"hooks.example.com\"\ntimeout = \"1h\""), []string{
			`notify: command: "tell" is not an absolute path: ` + wantCommand,
			`notify: webhook: "hooks.example.com" is not a URL of http or https: ` + wantHook,
			`notify: timeout: "1h" is out of range: want 100ms to 5m`,
		}},
		{"notify none", notify(""), []string{`notify: has none of command, webhook and mail: want one of them, ` +
			`or leave the table out`}},
		{"notify unknown", notify("webhook = \"http://[::1]:80/x\"\nsms = \"root\""),
			[]string{`notify: sms: unknown key: want command, webhook, mail or timeout`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.ParseDirector("x.toml", []byte(c.text))
			if c.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantFaults(t, err, c.want...)
		})
	}
}
