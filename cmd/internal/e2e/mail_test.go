package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/mail"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// mailTOML is [notify.mail] for a server, and further keys.
func mailTOML(server, more string) string {
	return fmt.Sprintf("[notify.mail]\nto = [\"ops@example.com\"]\nfrom = \"lb@example.com\"\nserver = %q\n"+
		"gather = \"300ms\"\n%s\n", server, more)
}

// serveSMTP runs an SMTP server on h, and returns it and its end.
func (s *site) serveSMTP(h *lab.Host, address string, o testkit.SMTPOptions) (server *testkit.SMTPServer, end func()) {
	s.t.Helper()
	ln, err := h.Listen("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	return testkit.ServeSMTP(s.t, ln, o), func() { _ = ln.Close() }
}

// secret writes a file that only its owner may read.
func (s *site) secret(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// TestMail: the director mails which realserver is down, and why. A reload changes the server and reads the password
// again, with the few rights that the director has kept, or is refused. While the server is away, status and doctor
// say so, and a mail comes when it is back.
func TestMail(t *testing.T) {
	t.Parallel()
	needDoctorsTools(t)
	s := newSite(t, 1, nil)
	s.startAgents("")
	s.namedEcho(s.Webs[0], 80)
	first, second := netip.AddrPortFrom(s.Client.Addr, 587).String(), netip.AddrPortFrom(s.Client.Addr, 465).String()
	own, ca := testkit.Certificate(t, s.Client.Addr.String())
	keys := fmt.Sprintf("user = \"lb\"\npassword_file = %q\nca = %q\n", s.secret("password", "one\n"),
		s.secret("ca", ca))
	plain, _ := s.serveSMTP(s.Client, first, testkit.SMTPOptions{TLS: "starttls", Certificate: own, User: "lb",
		Password: "one"})
	direct, away := s.serveSMTP(s.Client, second, testkit.SMTPOptions{TLS: "tls", Certificate: own, User: "lb",
		Password: "two"})
	checked := s.checkedTOML("", `type = "udp", port = 9, send = "x", expect = "yes", `+quick)
	up := s.alive(s.Webs[0])
	s.startDirectorWith(checked + mailTOML(first, keys))
	s.awaitHealth("up")
	up.Close()
	testkit.Within(t, "a mail comes", 2*soon, func() bool { return len(plain.Mails()) == 1 })
	m := plain.Mails()[0]
	if got := m.Subject(t); !strings.HasSuffix(got, ": 1 realserver down, 1 service down") {
		t.Errorf("subject %q", got)
	}
	for _, want := range []string{`  service "web": realserver 10.0.11.2 is down, was up: port unreachable` + "\n",
		`  service "web" is down, was up: weight 0 is up, quorum 1` + "\n"} {
		if got := m.Text(t); !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	if !m.TLS || m.User != "lb" {
		t.Errorf("%+v", m)
	}

	s.secret("password", "two\n")
	changes := s.reloadWith(checked + mailTOML(second, keys+"tls = \"tls\"\n"))
	want := fmt.Sprintf("notify: mail: server %s -> %s\nnotify: mail: tls starttls -> tls\nnotify: mail: "+
		"password_file %[3]s -> %[3]s with another password", first, second, filepath.Join(s.dir, "password"))
	if got := strings.Join(changes, "\n"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	up = s.alive(s.Webs[0])
	testkit.Within(t, "a mail comes by the other server", 2*soon, func() bool { return len(direct.Mails()) == 1 })
	if got := direct.Mails()[0]; !strings.HasSuffix(got.Subject(t), ": 1 service up, 1 realserver up") &&
		!strings.HasSuffix(got.Subject(t), ": 1 realserver up, 1 service up") || got.User != "lb" ||
		len(plain.Mails()) > 1 {
		t.Errorf("%+v", got)
	}
	s.mustRefuseForeignPassword()

	away()
	up.Close()
	testkit.Within(t, "it fails", 3*soon, func() bool { return s.director.balance().Mail.Failed > 0 })
	if st := s.director.balance().Mail; st.Sent != 2 || st.Waiting == 0 || !strings.Contains(st.Error,
		"connection refused") || st.Server != second {
		t.Errorf("status has %+v", st)
	}
	if got := s.ask("status").stdout; !strings.Contains(got, "last mail error: "+second+": dial tcp ") {
		t.Errorf("status prints\n%s", got)
	}
	s.director.mustName(symptom{"health", []string{"its quorum is 1"}},
		symptom{"health", []string{"10.0.11.2", "is down"}},
		symptom{"mail", []string{"warning", second, "the director's mails fail: ", "in no mail yet"}})
	back, _ := s.serveSMTP(s.Client, second, testkit.SMTPOptions{TLS: "tls", Certificate: own, User: "lb",
		Password: "two"})
	testkit.Within(t, "a late mail comes", 3*soon, func() bool { return len(back.Mails()) == 1 })
	if got := back.Mails()[0].Text(t); !strings.Contains(got, "realserver 10.0.11.2 is down, was up: ") ||
		!strings.Contains(got, "\nThis mail is late: ") {
		t.Errorf("%q", got)
	}
	testkit.Within(t, "it is well", soon, func() bool { return s.director.balance().Mail.Error == "" })
}

// mustRefuseForeignPassword makes the password another user's: the director can't read it any more. A reload is
// refused, and names file, line and key.
func (s *site) mustRefuseForeignPassword() {
	s.t.Helper()
	path := filepath.Join(s.dir, "password")
	if err := os.Chown(path, unprivileged, unprivileged); err != nil {
		s.t.Fatal(err)
	}
	text, err := os.ReadFile(s.director.config)
	if err != nil {
		s.t.Fatal(err)
	}
	line := strings.Count(string(text[:strings.Index(string(text), "password_file")]), "\n") + 1
	want := fmt.Sprintf("%s:%d: notify: mail: password_file: open %s: permission denied: want ", s.director.config,
		line, path)
	if got := s.ask("reload"); got.code != 1 || !strings.Contains(got.stderr, want) {
		s.t.Errorf("reload: exit status %d, want %q:\n%s", got.code, want, got.stderr)
	}
	if err := os.Chown(path, 0, 0); err != nil {
		s.t.Fatal(err)
	}
	if got := s.reloadWith(strings.SplitN(string(text), "\n", 2)[1]); got[0] != "nothing changed" {
		s.t.Errorf("the reload back: %q", got)
	}
}

// TestMailFaults: director check names file and line of faults of mail.
func TestMailFaults(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	file := filepath.Join(s.dir, "x.toml")
	text := s.checkedTOML("", quickTCP) + "[notify.mail]\nto = [\"ops@example.com\"]\nserver = \"smtp.example.com\"\n" +
		"tls = \"ssl\"\nuser = \"lb\"\npassword_file = \"" + s.dir + "/gone\"\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got := run(t, s.Director, exec.Command(programPath("director"), "check", file))
	at := func(key string) int { return strings.Count(text[:strings.Index(text, "\n"+key)+1], "\n") + 1 }
	for _, want := range []string{fmt.Sprintf("%s:%d: notify: mail: from: missing: ", file, at("[notify.mail]")),
		fmt.Sprintf("%s:%d: notify: mail: server: ", file, at("server")),
		fmt.Sprintf(`%s:%d: notify: mail: tls: "ssl" is unknown: want starttls, tls or none`, file, at("tls")),
		fmt.Sprintf("%s:%d: notify: mail: password_file: open %s/gone: no such file", file, at("password_file"),
			s.dir)} {
		if got.code == 0 || !strings.Contains(got.stderr+got.stdout, want) {
			t.Errorf("exit status %d, want %q:\n%s%s", got.code, want, got.stdout, got.stderr)
		}
	}
}

const quickTCP = `type = "tcp", ` + quick

// TestMailOfBurst: 1,000 realservers that are down give few mails, which name each of them once.
func TestMailOfBurst(t *testing.T) {
	t.Parallel()
	const dead = 1000
	s := newSite(t, 1, nil)
	server, _ := s.serveSMTP(s.Client, netip.AddrPortFrom(s.Client.Addr, 25).String(), testkit.SMTPOptions{TLS: "none"})
	text := fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\n", s.VIP) +
		"check = { type = \"file\", path = \"" + s.secret("down", "1") +
		"\", factor = 0, interval = \"1s\", fall = 1 }\n"
	for i := range dead {
		text += fmt.Sprintf("[[service.realserver]]\naddress = \"10.99.%d.%d\"\n", i/200, 1+i%200)
	}
	s.startDirectorWith(text + mailTOML(netip.AddrPortFrom(s.Client.Addr, 25).String(), "tls = \"none\"\nkinds = "+
		"[\"realserver\"]\n"))
	named := func() (lines []string) {
		for _, m := range server.Mails() {
			for line := range strings.Lines(m.Text(t)) {
				if strings.Contains(line, ": realserver 10.99.") {
					lines = append(lines, line)
				}
			}
		}
		return lines
	}
	testkit.Within(t, "all are mailed", 6*soon, func() bool { return len(named()) >= dead })
	seen := map[string]bool{}
	for _, line := range named() {
		_, name, _ := strings.Cut(line, " realserver ")
		seen[name] = true
	}
	if n := len(server.Mails()); n > 4 || len(seen) != dead || len(named()) != dead {
		t.Errorf("%d mails, %d lines, %d realservers", n, len(named()), len(seen))
	}
	t.Logf("%d mails", len(server.Mails()))
}

// TestImportedMail: the import of a keepalived.conf with mail passes director check, and the director that runs it
// mails what keepalived would mail about: the realservers, and not the service.
func TestImportedMail(t *testing.T) {
	slowWithRace(t)
	t.Parallel()
	s := newSite(t, 2, nil)
	server, _ := s.serveSMTP(s.Client, netip.AddrPortFrom(s.Client.Addr, 25).String(), testkit.SMTPOptions{TLS: "none"})
	conf, err := os.ReadFile(fixtures + "keepalived/mail.conf")
	if err != nil {
		t.Fatal(err)
	}
	global := fmt.Sprintf("global_defs {\nnotification_email {\nops@example.com\n}\nnotification_email_from "+
		"lb@example.com\nsmtp_server %s\nsmtp_connect_timeout 20\n", s.Client.Addr)
	text := strings.Replace(string(conf), "global_defs {\n", global, 1)
	code, toml, notes := imports(t, []byte(text), "keepalived", "-")
	if code != 0 || strings.Count(notes, "\n") != 1 || !strings.Contains(notes, "router_id") {
		t.Fatalf("import: exit status %d: %s", code, notes)
	}
	s.startAgents("")
	servers := map[string]net.Listener{}
	for _, web := range s.Webs {
		ln, err := web.Listen("tcp", netip.AddrPortFrom(web.Addr, 25).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		servers[web.Name] = ln
	}
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.fileWith(toml))
	if got := s.ask("check"); got.code != 0 {
		t.Fatalf("director check: exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	s.director.configure(s.fileWith(strings.Replace(toml, "[notify.mail]\n", "[notify.mail]\ngather = \"1s\"\n", 1)))
	s.director.start()
	s.awaitHealth("up up")
	for _, ln := range servers {
		_ = ln.Close()
	}
	testkit.Within(t, "mails come", 12*soon, func() bool {
		all := ""
		for _, m := range server.Mails() {
			all += m.Text(t)
		}
		return strings.Contains(all, "realserver 10.0.11.2 is down, was ") && strings.Contains(all,
			"realserver 10.0.12.2 is down, was ")
	})
	testkit.Within(t, "the service is down", soon, func() bool {
		return s.director.balance().Services[0].Health == "down"
	})
	for _, m := range server.Mails() {
		if m.From != "lb@example.com" || m.TLS || strings.Contains(m.Subject(t)+m.Text(t), "205\" is ") ||
			strings.Contains(m.Subject(t), "service down") {
			t.Errorf("%q: %q", m.Subject(t), m.Text(t))
		}
	}
}

// aiosmtpd runs Debian's python3-aiosmtpd with a kind of TLS and a login. It writes each mail to a file.
const aiosmtpd = `
import signal, ssl, sys
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import AuthResult

mode, host, port, cert, key, folder = sys.argv[1:]

def login(server, session, envelope, mechanism, data):
    return AuthResult(success=(data.login, data.password) == (b"lb", b"secret"), handled=False)

more = {}
if mode != "none":
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    more = dict(authenticator=login, auth_required=True)
if mode == "tls":
    more.update(ssl_context=context, auth_require_tls=False) # it does not know that the connection is encrypted
if mode == "starttls":
    more.update(tls_context=context, require_starttls=True)
Controller(Mailbox(folder), hostname=host, port=int(port), **more).start()
signal.pause()
`

// TestMailByAnotherServer: another program's SMTP server takes the mails, by each kind of connection, and refuses a
// wrong password.
func TestMailByAnotherServer(t *testing.T) {
	slowWithRace(t)
	t.Parallel()
	const python = "/usr/bin/python3" // Debian's, which has the package
	if err := exec.Command(python, "-c", "import aiosmtpd.controller").Run(); err != nil {
		t.Skip("SKIPPED: needs aiosmtpd: apt-get install python3-aiosmtpd (or make deps)")
	}
	needTool(t, "unshare", "util-linux")
	s := newSite(t, 1, nil)
	cert, key := filepath.Join(s.dir, "cert.pem"), filepath.Join(s.dir, "key.pem")
	issueCertificate(t, "mail.example.com", cert, key)
	hosts := filepath.Join(s.dir, "hosts")
	if err := os.WriteFile(hosts, fmt.Appendf(nil, "%s mail.example.com\n", s.Client.Addr), 0o644); err != nil {
		t.Fatal(err)
	}
	ports := map[string]uint16{"none": 25, "starttls": 587, "tls": 465}
	for mode, port := range ports {
		folder := filepath.Join(s.dir, mode)
		s.server(s.Client, netip.AddrPortFrom(s.Client.Addr, port), exec.Command(python, "-c", aiosmtpd, mode,
			s.Client.Addr.String(), fmt.Sprint(port), cert, key, folder))
	}
	// The first state of a realserver without a server is down, which is mailed after each start.
	for mode, port := range ports {
		keys := fmt.Sprintf("tls = %q\n", mode)
		server := netip.AddrPortFrom(s.Client.Addr, port).String()
		if mode != "none" {
			keys += fmt.Sprintf("ca = %q\nuser = \"lb\"\npassword_file = %q\n", cert, s.secret("password", "secret"))
			server = net.JoinHostPort("mail.example.com", fmt.Sprint(port))
		}
		s.director = s.prepare(s.Director, "director")
		s.director.configure(s.fileWith(s.checkedTOML("", quickTCP+`, via = "direct"`) + mailTOML(server, keys)))
		cmd := exec.Command("unshare", "-m", "sh", "-c", "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"", "sh",
			hosts, programPath("director"), "run", "-c", s.director.config)
		s.director.startAs(cmd)
		testkit.Within(t, "a mail comes by "+mode, 3*soon, func() bool {
			text, err := mailIn(filepath.Join(s.dir, mode))
			return err == nil && strings.Contains(text, "realserver 10.0.11.2 is down, was unknown: connection")
		})
		s.director.stop()
		if mode == "none" {
			continue
		}
		s.secret("password", "wrong")
		s.director.startAs(exec.Command(cmd.Args[0], cmd.Args[1:]...))
		testkit.Within(t, "a wrong password is refused by "+mode, 3*soon, func() bool {
			m := s.director.balance().Mail
			const refusal = `the server refuses the login as "lb": 535 `
			return m.Failed > 0 && m.Sent == 0 && strings.Contains(m.Error, refusal)
		})
		s.director.stop()
	}
}

// mailIn returns the text of the first mail in a folder.
func mailIn(folder string) (string, error) {
	files, err := filepath.Glob(filepath.Join(folder, "new", "*"))
	if err != nil || len(files) == 0 {
		return "", errors.Join(err, os.ErrNotExist)
	}
	f, err := os.Open(files[0])
	if err != nil {
		return "", err
	}
	defer f.Close()
	m, err := mail.ReadMessage(f)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(m.Body)
	return strings.ReplaceAll(strings.ReplaceAll(string(body), "\r\n", "\n"), "=\n", ""), err
}
