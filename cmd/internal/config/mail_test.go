package config_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/balancer/health/notify"
	"vstun/cmd/internal/config"
	"vstun/testdata/testkit"
)

// write writes a file of a directory and returns its path.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMail: the keys of [notify.mail], their defaults, and the files that they name.
func TestMail(t *testing.T) {
	dir := t.TempDir()
	_, pem := testkit.Certificate(t, "smtp.example.com")
	ca, password := write(t, dir, "ca.pem", pem), write(t, dir, "password", " s3cret \"ü\" \n")
	windows := write(t, dir, "windows", "s3cret\r\n")
	const least = `to = "ops@example.com", from = "lb@example.com", server = "smtp.example.com:587"`
	for _, c := range []struct {
		keys string
		want config.Mail
	}{
		{least, config.Mail{TLS: notify.TLSStart, Gather: 5 * time.Second}},
		{least + `, user = "", password_file = "", ca = ""`,
			config.Mail{TLS: notify.TLSStart, Gather: 5 * time.Second}},
		{least + `, tls = "none", helo = "lb1", kinds = ["service"], services = ["web"], gather = "1m"`,
			config.Mail{TLS: notify.TLSOff, Helo: "lb1", Kinds: []string{"service"}, Services: []string{"web"},
				Gather: time.Minute}},
		{least + `, tls = "tls", ca = "` + ca + `", user = "lb", password_file = "` + password + `"`,
			config.Mail{TLS: notify.TLSDirect, CAFile: ca, CA: pem, User: "lb", PasswordFile: password,
				Password: ` s3cret "ü" `, Gather: 5 * time.Second}},
		{least + `, user = "lb", password_file = "` + windows + `"`, config.Mail{TLS: notify.TLSStart, User: "lb",
			PasswordFile: windows, Password: "s3cret", Gather: 5 * time.Second}},
	} {
		d, err := config.ParseDirector("x.toml", []byte(served+"[notify]\nmail = { "+c.keys+" }\n"))
		if err != nil {
			t.Errorf("%s: %v", c.keys, err)
			continue
		}
		c.want.To, c.want.From, c.want.Server = []string{"ops@example.com"}, "lb@example.com", "smtp.example.com:587"
		if diff := cmp.Diff(&c.want, d.Notify.Mail); diff != "" || d.Warnings != nil {
			t.Errorf("%s: (-want +got):\n%s%q", c.keys, diff, d.Warnings)
		}
	}
	for _, server := range []string{"192.0.2.25:25", "[2001:db8::25]:25", "mail:465", "a-b.example.com.:1"} {
		_, err := config.ParseDirector("x.toml", []byte(served+"[notify.mail]\nto = \"a@b\"\nfrom = \"a@b\"\nserver = "+
			strconv.Quote(server)+"\n"))
		if err != nil {
			t.Error(err)
		}
	}
}

// TestMailFaults: each fault of [notify.mail] names its line, and does not show a password.
func TestMailFaults(t *testing.T) {
	dir := t.TempDir()
	empty, lines := write(t, dir, "empty", "\n"), write(t, dir, "lines", "s3cret\nx\n")
	const (
		wantAddress  = `want a mail address such as "ops@example.com" or "Operators <ops@example.com>"`
		wantServer   = `want a host and a port, such as "smtp.example.com:587" or "[2001:db8::25]:25"`
		wantPassword = "want the absolute path of a file with the password of user in one line"
		wantCA       = "want the absolute path of a PEM file with certificates of authorities"
		fine         = "to = [\"a@b\"]\nfrom = \"a@b\"\nserver = \"c:25\"\n"
	)
	for name, c := range map[string]struct {
		keys string
		want []string
	}{
		"to alone": {`to = ["ops@example.com"]`, []string{"from: missing: " + wantAddress, "server: missing: " +
			wantServer}},
		"from alone": {`from = "a@b"`, []string{"to: missing: want an array of mail addresses", "server: missing: " +
			wantServer}},
		"no addresses": {"to = []\nfrom = \"root\"\nserver = \"c:25\"", []string{
			"to: is empty: want an array of mail addresses", `from: "root" is not a mail address: ` + wantAddress}},
		"wrong addresses": {"to = [\"a@b, c@d\", \"a@b\", 7, \"a@b\"]\nfrom = \"a@b\\r\\nX: y\"\nserver = 25", []string{
			`to: "a@b, c@d" is not a mail address: ` + wantAddress, "to: 7 is of the wrong type: " + wantAddress,
			`to: "a@b" is there twice: want it once`, `from: "a@b\r\nX: y" is not a mail address: ` + wantAddress,
			"server: 25 is of the wrong type: " + wantServer}},
		"server without port": {"to = \"a@b\"\nfrom = \"a@b\"\nserver = \"smtp.example.com\"",
			[]string{`server: "smtp.example.com" is not a host and a port: ` + wantServer}},
		"server of a URL": {"to = \"a@b\"\nfrom = \"a@b\"\nserver = \"smtp://c:25\"",
			[]string{`server: "smtp://c:25" is not a host and a port: ` + wantServer}},
		"server's port": {"to = \"a@b\"\nfrom = \"a@b\"\nserver = \"c:smtp\"",
			[]string{`server: "c:smtp" has the port "smtp": want 1 to 65535`}},
		"server's port 0": {"to = \"a@b\"\nfrom = \"a@b\"\nserver = \"c:0\"",
			[]string{`server: "c:0" has the port "0": want 1 to 65535`}},
		"tls": {fine + `tls = "ssl"`, []string{`tls: "ssl" is unknown: want starttls, tls or none`}},
		"user alone": {fine + `user = "lb"`,
			[]string{`user: "lb" has no password: want password_file, too: ` + wantPassword[len("want "):]}},
		"password alone": {fine + `password_file = "/etc/p"`,
			[]string{`password_file: "/etc/p" is the password of no user: want user, too`}},
		"password in clear": {fine + "user = \"lb\"\npassword_file = \"/etc/p\"\ntls = \"none\"",
			[]string{`user: the password would cross the network in clear with tls = "none": want tls = "starttls" ` +
				`or "tls"`}},
		"password relative": {fine + "user = \"lb\"\npassword_file = \"p\"",
			[]string{`password_file: "p" is not an absolute path: ` + wantPassword}},
		"password missing": {fine + "user = \"lb\"\npassword_file = \"" + dir + "/gone\"",
			[]string{"password_file: open " + dir + "/gone: no such file or directory: " + wantPassword +
				", which the program's user may read"}},
		"password empty": {fine + "user = \"lb\"\npassword_file = \"" + empty + "\"",
			[]string{"password_file: \"" + show64(empty) + "\" is empty: " + wantPassword}},
		"password of lines": {fine + "user = \"lb\"\npassword_file = \"" + lines + "\"",
			[]string{"password_file: \"" + show64(lines) + "\" has more than one line: " + wantPassword}},
		"ca": {fine + "ca = \"" + lines + "\"",
			[]string{"ca: \"" + show64(lines) + "\" holds no certificate: " + wantCA}},
		"others": {fine + "helo = \"a b\"\nkinds = [\"vip\"]\nservices = [\"wbe\"]\ngather = \"1h\"\npassword = \"x\"",
			[]string{`helo: "a b" is empty, or not printable ASCII without spaces: want this host's name for ` +
				`the server, such as "lb.example.com"`, `kinds: "vip" is unknown: want service, realserver or vrrp`,
				`services: there is no service "wbe": did you mean web?`,
				`gather: "1h" is out of range: want 100ms to 5m`,
				"password: unknown key: " +
					"want to, from, server, tls, ca, user, password_file, helo, kinds, services or gather"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.ParseDirector("x.toml", []byte("[notify.mail]\n"+c.keys+"\n"+served))
			var want []string
			for _, line := range c.want {
				want = append(want, "notify: mail: "+line)
			}
			wantFaults(t, err, want...)
		})
	}
	_, err := config.ParseDirector("x.toml", []byte("[notify]\nmail = \"root\"\n"+served))
	wantFaults(t, err, `notify: mail: "root" is of the wrong type: want a table: { to = ["ops@example.com"], from = `+
		`"lb@example.com", server = "smtp.example.com:587" }`)
}
