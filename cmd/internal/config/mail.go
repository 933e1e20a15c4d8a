package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vstun/balancer/health/notify"
	"vstun/cmd/internal/words"
)

// Mail is the [notify.mail] table: the receiver of changes of health by mail.
type Mail = notify.Mail

// MaxRecipients is the number of recipients that every SMTP server takes (RFC 5321, section 4.5.3.1.8).
const MaxRecipients = 100

const (
	wantMail    = `a table: { to = ["ops@example.com"], from = "lb@example.com", server = "smtp.example.com:587" }`
	wantAddress = `a mail address such as "ops@example.com" or "Operators <ops@example.com>"`
)

// readMail reads the table mail of [notify], t. It returns nil if there is none.
func readMail(t *table, d *Director) *Mail {
	if _, written := t.value("mail"); !written {
		return nil
	}
	t = t.table("mail", wantMail)
	if t.values == nil {
		return nil // of the wrong type
	}
	m := &Mail{To: readRecipients(t), From: readSender(t), Server: readServer(t)}
	m.TLS = notify.MailTLS(t.word("tls", string(notify.TLSStart), notify.MailTLSNames()...))
	if m.TLS == notify.TLSStart && strings.HasSuffix(m.Server, ":465") {
		t.warnAt("tls", `a server at port 465 begins with TLS (RFC 8314) and offers no STARTTLS: want tls = "tls"`)
	}
	readMailCA(t, m)
	readLogin(t, m)
	m.Helo = t.graphic("helo", "", `this host's name for the server, such as "lb.example.com"`)
	kinds, _ := t.array("kinds", "an array of "+words.OneOf(notify.Kinds()))
	m.Kinds = t.once("kinds", kinds, func(v any) (string, bool) { return t.choice("kinds", v, notify.Kinds()) })
	if len(d.VRRP) == 0 && slices.Contains(m.Kinds, notify.KindVRRP) {
		t.warnAt("kinds", "there is no [[vrrp]], so that no role changes: leave \"vrrp\" out, or add [[vrrp]]")
	}
	m.Services = readMailServices(t, d.Services)
	m.Gather = t.duration("gather", 5*time.Second, 100*time.Millisecond, 5*time.Minute, "100ms to 5m")
	t.finish()
	return m
}

// readRecipients reads the required key to.
func readRecipients(t *table) []string {
	list := t.oneOrMore("to", "an array of mail addresses")
	if len(list) > MaxRecipients {
		t.faultAt("to", "has %d addresses: want at most %d: let a mailing list have more", len(list), MaxRecipients)
	}
	return t.once("to", list, func(v any) (string, bool) { return t.mailAddress("to", v) })
}

// once reads the elements of a key's array. check reads one of them. An element that is there twice is a fault.
func (t *table) once(key string, list []any, check func(v any) (string, bool)) (all []string) {
	for _, v := range t.elements(key, list) {
		switch s, ok := check(v); {
		case !ok:
		case slices.Contains(all, s):
			t.faultAt(key, "%s is there twice: want it once", show(s))
		default:
			all = append(all, s)
		}
	}
	return all
}

// readSender reads the required key from.
func readSender(t *table) string {
	v, ok := t.required("from", wantAddress)
	if !ok {
		return ""
	}
	s, _ := t.mailAddress("from", v)
	return s
}

// mailAddress checks that a value is a mail address.
func (t *table) mailAddress(key string, value any) (string, bool) {
	s, ok := value.(string)
	if !ok {
		t.wrongType(key, value, wantAddress)
		return "", false
	}
	if _, err := notify.ParseAddress(s); err != nil {
		t.faultAt(key, "%s is not a mail address: want %s", show(s), wantAddress)
		return "", false
	}
	return s, true
}

// readServer reads the required key server, HOST:PORT.
func readServer(t *table) string {
	const want = `a host and a port, such as "smtp.example.com:587" or "[2001:db8::25]:25"`
	v, ok := t.required("server", want)
	if !ok {
		return ""
	}
	s, ok := v.(string)
	if !ok {
		t.wrongType("server", v, want)
		return ""
	}
	host, port, err := net.SplitHostPort(s)
	number, errPort := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil || !validHost(host):
		t.faultAt("server", "%s is not a host and a port: want %s", show(s), want)
	case errPort != nil || number == 0:
		t.faultAt("server", "%s has the port %s: want 1 to 65535", show(s), show(port))
	}
	return s
}

// IsHostPort reports whether a text is a legal value of the key server.
func IsHostPort(text string) bool {
	host, port, err := net.SplitHostPort(text)
	number, errPort := strconv.ParseUint(port, 10, 16)
	return err == nil && validHost(host) && errPort == nil && number != 0
}

// validHost reports whether a text is an address or a host's name, of at most 253 bytes.
func validHost(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil {
		return true
	}
	return text != "" && len(text) <= 253 && strings.IndexFunc(text, func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0 && !strings.HasPrefix(text, ".") && !strings.HasPrefix(text, "-")
}

// readMailCA reads the file of the authorities of the server's certificate.
func readMailCA(t *table, m *Mail) {
	const want = "the absolute path of a PEM file with certificates of authorities"
	if !readPEM(t, "ca", want, true, &m.CAFile, &m.CA) || m.CAFile == "" {
		return
	}
	switch {
	case !holdsCertificate(m.CA):
		t.faultAt("ca", "%s holds no certificate: want %s", show(m.CAFile), want)
	case m.TLS == notify.TLSOff:
		t.warnAt("ca", `tls is "none", so no certificate is verified: leave it out, or set another tls`)
	}
}

// readLogin reads the keys user and password_file, and the password at once: the program may lack the permission later.
func readLogin(t *table, m *Mail) {
	const wantPassword = "the absolute path of a file with the password of user in one line"
	user, ok := t.text("user", "", "the name to log in with, or \"\" for no login")
	path, okPath := t.text("password_file", "", wantPassword)
	if !ok || !okPath {
		return
	}
	switch {
	case strings.ContainsFunc(user, func(r rune) bool { return r < ' ' || r == 0x7f }):
		t.faultAt("user", "%s has control characters: want the name to log in with", show(user))
	case user != "" && path == "":
		t.faultAt("user", "%s has no password: want password_file, too: %s", show(user), wantPassword)
	case user == "" && path != "":
		t.faultAt("password_file", "%s is the password of no user: want user, too", show(path))
	case user != "" && m.TLS == notify.TLSOff:
		t.faultAt("user", `the password would cross the network in clear with tls = "none": want tls = "starttls" `+
			`or "tls"`)
	case path != "" && !filepath.IsAbs(path):
		t.faultAt("password_file", "%s is not an absolute path: want %s", show(path), wantPassword)
	case path != "":
		m.User, m.PasswordFile, m.Password = user, path, readPassword(t, path, wantPassword)
	}
}

// readPassword reads a file with one line.
func readPassword(t *table, path, want string) string {
	content, err := readBounded(path)
	if err != nil {
		t.faultAt("password_file", "%v: want %s, which the program's user may read", err, want)
		return ""
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	switch {
	case password == "":
		t.faultAt("password_file", "%s is empty: want %s", show(path), want)
	case strings.ContainsAny(password, "\n\r\x00"):
		t.faultAt("password_file", "%s has more than one line: want %s", show(path), want)
	}
	return password
}

// readMailServices reads the key services: names of services.
func readMailServices(t *table, services []Service) []string {
	const want = "an array of names of services"
	var known []string
	for i := range services {
		known = append(known, services[i].Name)
	}
	list, _ := t.array("services", want)
	return t.once("services", list, func(v any) (string, bool) {
		name, ok := v.(string)
		switch {
		case !ok:
			t.wrongType("services", v, want)
		case !slices.Contains(known, name):
			t.faultAt("services", "there is no service %s: %s", show(name), words.Instead(name, known))
			return "", false
		}
		return name, ok
	})
}
