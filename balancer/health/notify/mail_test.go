package notify

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"vstun/testdata/testkit"
)

// mailTo returns a configuration for a server.
func mailTo(server string) *Mail {
	return &Mail{To: []string{"ops@example.com"}, From: "Director <lb@example.com>", Server: server, TLS: TLSOff,
		Gather: 10 * time.Millisecond}
}

// listenLocal returns a listener at 127.0.0.1.
func listenLocal(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// newMailed starts a Notifier with a short pause after a failed attempt.
func newMailed(t *testing.T, c *Mail, timeout time.Duration) *teller {
	t.Helper()
	return newTellerWith(t, Config{Mail: c, Timeout: timeout}, func(n *Notifier) {
		n.mailer.pause, n.mailer.host = 20*time.Millisecond, "lb1"
	})
}

// TestMailTLS: mails go over each kind of connection, with each login, and only to the server that the certificate
// names.
func TestMailTLS(t *testing.T) {
	t.Parallel()
	own, ca := testkit.Certificate(t, "127.0.0.1")
	_, otherCA := testkit.Certificate(t, "127.0.0.1")
	elsewhere, elsewhereCA := testkit.Certificate(t, "elsewhere.example.com")
	const secret = "pass word ü\\"
	for _, c := range []struct {
		name   string
		server testkit.SMTPOptions
		client Mail
		fault  string // ""; none
	}{
		{"none", testkit.SMTPOptions{TLS: "none"}, Mail{TLS: TLSOff}, ""},
		{"starttls", testkit.SMTPOptions{TLS: "starttls", Certificate: own}, Mail{TLS: TLSStart, CA: ca}, ""},
		{"tls", testkit.SMTPOptions{TLS: "tls", Certificate: own}, Mail{TLS: TLSDirect, CA: ca}, ""},
		{"PLAIN after STARTTLS", testkit.SMTPOptions{TLS: "starttls", Certificate: own, User: "lb", Password: secret},
			Mail{TLS: TLSStart, CA: ca, User: "lb", Password: secret}, ""},
		{"LOGIN over TLS", testkit.SMTPOptions{TLS: "tls", Certificate: own, User: "lb", Password: secret,
			Mechanisms: []string{"LOGIN"}}, Mail{TLS: TLSDirect, CA: ca, User: "lb", Password: secret}, ""},

		{"wrong password", testkit.SMTPOptions{TLS: "starttls", Certificate: own, User: "lb", Password: secret},
			Mail{TLS: TLSStart, CA: ca, User: "lb", Password: "wrong"},
			`the server refuses the login as "lb": 535 "5.7.8 Authentication failed": look at user and password_file`},
		{"no password", testkit.SMTPOptions{TLS: "starttls", Certificate: own, User: "lb", Password: secret},
			Mail{TLS: TLSStart, CA: ca}, `from lb@example.com: 502 "5.7.0 Please authenticate first": next attempt`},
		{"no STARTTLS", testkit.SMTPOptions{TLS: "none"}, Mail{TLS: TLSStart, CA: ca},
			`the server offers no STARTTLS: want tls = "tls" or "none", or another port`},
		{"no login", testkit.SMTPOptions{TLS: "tls", Certificate: own}, Mail{TLS: TLSDirect, CA: ca, User: "lb"},
			`the server offers no login by PLAIN, LOGIN or CRAM-MD5, but ""`},
		{"TLS where STARTTLS is", testkit.SMTPOptions{TLS: "starttls", Certificate: own},
			Mail{TLS: TLSDirect, CA: ca}, `the server does not speak TLS first: want tls = "starttls"`},
		{"unknown authority", testkit.SMTPOptions{TLS: "tls", Certificate: own}, Mail{TLS: TLSDirect, CA: otherCA},
			`as ca`},
		{"unknown to the system", testkit.SMTPOptions{TLS: "starttls", Certificate: own}, Mail{TLS: TLSStart},
			`as ca`},
		{"other name", testkit.SMTPOptions{TLS: "starttls", Certificate: elsewhere},
			Mail{TLS: TLSStart, CA: elsewhereCA}, `write the name in its certificate as server`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ln := listenLocal(t)
			s := testkit.ServeSMTP(t, ln, c.server)
			m := *mailTo(ln.Addr().String())
			m.TLS, m.CA, m.User, m.Password = c.client.TLS, c.client.CA, c.client.User, c.client.Password
			n := newMailed(t, &m, patience)
			n.Send(event(1))
			if c.fault != "" {
				testkit.Eventually(t, "it fails", func() bool { return len(n.said()) > 0 })
				if got := n.said()[0]; !strings.Contains(got, c.fault) || strings.ContainsAny(got, "\r\n") ||
					strings.Contains(got, secret) || !strings.HasPrefix(got, "mail of 1 change of state by 127.") {
					t.Errorf("%q, want %q", got, c.fault)
				}
				if st := n.Mail(); st.Failed == 0 || st.Sent > 0 || st.Error == "" || len(s.Mails()) > 0 {
					t.Errorf("%+v, %d mails", st, len(s.Mails()))
				}
				return
			}
			testkit.Eventually(t, "mailed", func() bool { return n.Mail().Sent == 1 })
			got := s.Mails()[0]
			if got.TLS != (c.client.TLS != TLSOff) || got.User != c.client.User || got.From != "lb@example.com" ||
				!slices.Equal(got.To, []string{"ops@example.com"}) {
				t.Errorf("%+v", got)
			}
			if said := n.said(); said != nil {
				t.Errorf("%q", said)
			}
		})
	}
}

// TestMailText: a mail says what has happened, where and why. No text of an event begins a line or a header.
func TestTextOfRoles(t *testing.T) {
	t.Parallel()
	e := Event{Kind: "vrrp", Service: "VI_1", Old: "backup", New: "master", Reason: "no other master was heard"}
	one, two := report{host: "lb1", events: []Event{e}}, report{host: "lb1", events: []Event{e, e}}
	if got := one.subject(); got != `lb1: VRRP instance "VI_1" master` {
		t.Errorf("%q", got)
	}
	if got := two.subject(); got != "lb1: 2 VRRP instances master" {
		t.Errorf("%q", got)
	}
	const line = `VRRP instance "VI_1" is master, was backup: no other master was heard`
	if got := one.body(); !strings.Contains(got, line) {
		t.Errorf("%q", got)
	}
}

func TestMailText(t *testing.T) {
	t.Parallel()
	ln := listenLocal(t)
	s := testkit.ServeSMTP(t, ln, testkit.SMTPOptions{TLS: "none"})
	n := newMailed(t, mailTo(ln.Addr().String()), patience)
	at := time.Date(2026, 1, 1, 0, 0, 7, 0, time.UTC)
	n.Send(Event{Time: at, Kind: "realserver", Service: "wéb", Realserver: "10.0.0.1", Old: "up", New: "down",
		Reason: "answer \"\r\n.\r\nBcc: x@example.com\x00\""})
	testkit.Eventually(t, "mailed", func() bool { return len(s.Mails()) == 1 })
	m := s.Mails()[0]
	if got := m.Subject(t); got != `lb1: service "wéb": realserver 10.0.0.1 down` {
		t.Errorf("subject %q", got)
	}
	const want = "The director on lb1 reports 1 change of state.\n\n2026-01-01T00:00:07Z  service \"wéb\": " +
		"realserver 10.0.0.1 is down, was up: answer \"??.??Bcc: x@example.com?\"\n"
	if got := m.Text(t); got != want {
		t.Errorf("body %q", got)
	}
	h := m.Message.Header
	for key, want := range map[string]string{"From": `"Director" <lb@example.com>`, "To": "<ops@example.com>",
		"Auto-Submitted": "auto-generated", "Content-Type": "text/plain; charset=UTF-8"} {
		if got := h.Get(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	if _, err := h.Date(); err != nil || !strings.HasPrefix(h.Get("Message-Id"), "<") {
		t.Errorf("%+v: %v", h, err)
	}

	n.Send(Event{Time: at, Kind: "service", Service: "web", Old: "down", New: "up", Reason: "weight 1 is up, want 1"},
		event(1), event(2), Event{Time: at, Kind: "service", Service: "dns", Old: "unknown", New: "down"},
		Event{Time: at, Kind: "service", Service: "ntp", Old: "unknown", New: "up"}) // no news
	testkit.Eventually(t, "mailed", func() bool { return len(s.Mails()) == 2 })
	if got := s.Mails()[1].Subject(t); got != "lb1: 2 realservers down, 1 service down, 1 service up" {
		t.Errorf("subject %q", got)
	}
	if got := s.Mails()[1].Text(t); strings.Contains(got, "ntp") || strings.Count(got, "\n") != 6 {
		t.Errorf("body %q", got)
	}
}

// TestMailSelection: only the wanted kinds of events of the wanted services are mailed.
func TestMailSelection(t *testing.T) {
	t.Parallel()
	realserver, service := event(1), Event{Kind: "service", Service: "web", Old: "up", New: "down"}
	elsewhere := Event{Kind: "service", Service: "dns", Old: "up", New: "down"}
	role := Event{Kind: "vrrp", Service: "VI_1", Old: "backup", New: "master"} // an instance, no service
	first := Event{Kind: "service", Service: "web", Old: "unknown", New: "up"}
	begin := Event{Kind: "vrrp", Service: "VI_1", Old: "initialize", New: "backup", Reason: "start"}
	end := Event{Kind: "vrrp", Service: "VI_1", Old: "master", New: "initialize", Reason: "stop"}
	broken := Event{Kind: "vrrp", Service: "VI_2", Old: "initialize", New: "fault", Reason: "eth0 has no link"}
	all := []Event{realserver, service, elsewhere, role, first, begin, broken, end}
	for _, c := range []struct {
		Mail
		want []Event
	}{
		{Mail{}, []Event{realserver, service, elsewhere, role, broken}},
		{Mail{Kinds: []string{"realserver"}}, []Event{realserver}},
		{Mail{Services: []string{"dns", "ntp"}}, []Event{elsewhere, role, broken}},
		{Mail{Kinds: []string{"service", "vrrp"}, Services: []string{"web"}}, []Event{service, role, broken}},
	} {
		m := newMailer(func(error) {})
		c.Mail.Gather = time.Hour
		m.set(&c.Mail, time.Second)
		m.add(all)
		if !slices.Equal(m.events, c.want) {
			t.Errorf("%+v: %+v, want %+v", c.Mail, m.events, c.want)
		}
	}
}

// TestMailBurst: a burst of 1,000 events gives one mail. The mails of a longer storm are far apart.
func TestMailBurst(t *testing.T) {
	t.Parallel()
	ln := listenLocal(t)
	s := testkit.ServeSMTP(t, ln, testkit.SMTPOptions{TLS: "none"})
	c := mailTo(ln.Addr().String())
	c.Gather = 500 * time.Millisecond
	n := newMailed(t, c, patience)
	begin := time.Now()
	var burst []Event
	for i := range maxMailed {
		burst = append(burst, event(i%250))
	}
	for some := range slices.Chunk(burst, 100) {
		n.Send(some...)
	}
	testkit.Eventually(t, "mailed", func() bool { return len(s.Mails()) > 0 })
	if took := time.Since(begin); took < c.Gather {
		t.Errorf("mailed after %v", took)
	}
	if got := s.Mails()[0].Subject(t); got != "lb1: 1000 realservers down" {
		t.Errorf("subject %q", got)
	}
	if got := strings.Count(s.Mails()[0].Text(t), "is down, was up"); got != maxMailed {
		t.Errorf("%d events", got)
	}
	first := time.Now()
	n.Send(event(1))
	testkit.Eventually(t, "mailed", func() bool { return len(s.Mails()) > 1 })
	if took := time.Since(first); took < (betweenMails-1)*c.Gather {
		t.Errorf("the second mail comes %v after the first", took)
	}
}

// TestMailServerAway: while the server is away, events gather. The mail that comes through has the last of them, and
// the number of the others.
func TestMailServerAway(t *testing.T) {
	t.Parallel()
	ln := listenLocal(t)
	address := ln.Addr().String()
	_ = ln.Close()
	n := newMailed(t, mailTo(address), patience)
	n.Send(event(1))
	testkit.Eventually(t, "it fails", func() bool { return n.Mail().Failed > 2 })
	const more = 7
	for i := range maxMailed + more - 1 {
		n.Send(event(i % 250))
	}
	testkit.Eventually(t, "it fails with all", func() bool {
		said := n.said()
		return strings.Contains(said[len(said)-1], "mail of 1000 changes of state by "+address)
	})
	if got := n.said()[0]; !regexp.MustCompile(`: connection refused: next attempt in \d+s$`).MatchString(got) {
		t.Errorf("%q", got)
	}
	st := n.Mail()
	if st.Lost != more || st.Waiting > maxMailed || st.Since.IsZero() || !strings.Contains(st.Error, "refused") {
		t.Errorf("%+v", st)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := testkit.ServeSMTP(t, ln, testkit.SMTPOptions{TLS: "none"})
	testkit.Eventually(t, "mailed", func() bool { return len(s.Mails()) == 1 })
	m := s.Mails()[0]
	if got := m.Subject(t); got != "lb1: 1000 realservers down, 7 more" {
		t.Errorf("subject %q", got)
	}
	body := m.Text(t)
	for _, want := range []string{"\n7 earlier changes of state are in no mail: ", "\nThis mail is late: ",
		" attempts failed since ", ": connection refused.\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("body %q lacks %q", body[strings.LastIndex(body, "was up"):], want)
		}
	}
	testkit.Eventually(t, "it is well", func() bool { return n.Mail().Error == "" })
	if st := n.Mail(); st.Waiting != 0 || !st.Since.IsZero() || st.Sent != 1 {
		t.Errorf("%+v", st)
	}
}

// TestMailSlowServer: an attempt at a server that never answers, or that answers without end, is bounded. A reload that
// names another server brings the mail there at once.
func TestMailSlowServer(t *testing.T) {
	t.Parallel()
	endless := func(c net.Conn) {
		for line := strings.Repeat("220-x\r\n", 1000); ; {
			if _, err := io.WriteString(c, line); err != nil {
				return
			}
		}
	}
	trickle := func(c net.Conn) {
		for range time.Tick(10 * time.Millisecond) {
			if _, err := io.WriteString(c, "220-x\r\n"); err != nil {
				return
			}
		}
	}
	for _, c := range []struct {
		name    string
		serve   func(net.Conn)
		timeout time.Duration
		want    string
	}{
		{"silent", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, 100 * time.Millisecond,
			`not done within 100ms: greeting: i/o timeout: .*: next attempt`},
		{"trickle", trickle, 200 * time.Millisecond, `not done within 200ms: greeting: i/o timeout: .*: next attempt`},
		{"endless", endless, patience, `the server's answers are longer than 1024 KiB: .*: next attempt`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ln := listenLocal(t)
			go func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					go func() {
						defer conn.Close()
						c.serve(conn)
					}()
				}
			}()
			n := newMailed(t, mailTo(ln.Addr().String()), c.timeout)
			n.mailer.mu.Lock()
			n.mailer.pause = time.Hour
			n.mailer.mu.Unlock()
			n.Send(event(1))
			testkit.Eventually(t, "it fails", func() bool { return len(n.said()) == 1 })
			if got := n.said()[0]; !regexp.MustCompile(c.want).MatchString(got) {
				t.Errorf("%q, want %q", got, c.want)
			}
			other := listenLocal(t)
			s := testkit.ServeSMTP(t, other, testkit.SMTPOptions{TLS: "none"})
			n.Set(Config{Mail: mailTo(other.Addr().String()), Timeout: patience})
			testkit.Eventually(t, "mailed by the other server", func() bool { return len(s.Mails()) == 1 })
		})
	}
}

// TestMailRefused: a recipient that the server refuses keeps the mail from no other one. If it refuses all, the events
// wait for a reload. A message whose content the server refuses is not repeated, and the next one counts its events.
func TestMailRefused(t *testing.T) {
	t.Parallel()
	ln, strict := listenLocal(t), listenLocal(t)
	unknown := &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	spam := &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "spam"}
	s := testkit.ServeSMTP(t, ln, testkit.SMTPOptions{TLS: "none",
		Refused: map[string]error{"gone@example.com": unknown}})
	testkit.ServeSMTP(t, strict, testkit.SMTPOptions{TLS: "none", Message: spam})
	address := ln.Addr().String()
	const gone = `to gone@example.com: 550 "5.1.1 no such user"`
	c := mailTo(address)
	c.To = append(c.To, "Gone <gone@example.com>")
	n := newMailed(t, c, patience)
	n.Send(event(1))
	testkit.Eventually(t, "mailed", func() bool { return len(n.said()) == 1 })
	want := fmt.Sprintf("mail of 1 change of state by %s: %s: the other recipients have it", address, gone)
	if got := n.said()[0]; got != want || n.Mail().Sent != 1 || len(s.Mails()) != 1 {
		t.Errorf("%q, want %q; %+v", got, want, n.Mail())
	}

	c = mailTo(address)
	c.To = []string{"gone@example.com"}
	n.Set(Config{Mail: c, Timeout: patience})
	n.Send(event(2))
	testkit.Eventually(t, "refused", func() bool { return n.Mail().Failed > 1 })
	if got := n.said()[1]; !strings.Contains(got, gone+": next attempt in ") {
		t.Errorf("%q", got)
	}
	n.Set(Config{Mail: mailTo(address), Timeout: patience})
	testkit.Eventually(t, "mailed", func() bool { return len(s.Mails()) == 2 })

	failed := n.Mail().Failed
	n.Set(Config{Mail: mailTo(strict.Addr().String()), Timeout: patience})
	n.Send(event(3))
	testkit.Eventually(t, "refused", func() bool { return n.Mail().Failed > failed })
	if got := n.said(); !strings.HasSuffix(got[len(got)-1], `554 "5.7.1 spam": it is not sent again`) {
		t.Errorf("%q", got)
	}
	if st := n.Mail(); st.Lost != 1 || st.Waiting != 0 || st.Failed != failed+1 || !strings.Contains(st.Error, "spam") {
		t.Errorf("%+v", st)
	}
	n.Set(Config{Mail: mailTo(address), Timeout: patience})
	n.Send(event(4))
	testkit.Eventually(t, "mailed", func() bool { return len(s.Mails()) == 3 })
	if got := s.Mails()[2].Text(t); !strings.Contains(got, "\n1 earlier change of state is in no mail: ") {
		t.Errorf("body %q", got)
	}
}

// TestMailLater: a recipient that the server refuses for now gets the mail later, and no other one gets it twice.
func TestMailLater(t *testing.T) {
	t.Parallel()
	ln := listenLocal(t)
	busy := &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 7, 1}, Message: "greylisted"}
	s := testkit.ServeSMTP(t, ln, testkit.SMTPOptions{TLS: "none",
		Greylisted: map[string]error{"new@example.com": busy}})
	c := mailTo(ln.Addr().String())
	c.To = append(c.To, "new@example.com")
	n := newMailed(t, c, patience)
	n.Send(event(1))
	testkit.Eventually(t, "both have it", func() bool { return len(s.Mails()) == 2 })
	first, second := s.Mails()[0], s.Mails()[1]
	if !slices.Equal(first.To, []string{"ops@example.com"}) || !slices.Equal(second.To, []string{"new@example.com"}) ||
		first.Text(t) != second.Text(t) {
		t.Errorf("mails to %v and %v", first.To, second.To)
	}
	if st := n.Mail(); st.Lost != 0 || st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
}

// TestMailEnds: at the end waiting events are mailed at once. A server that hangs does not delay the end for long, and
// the events without a mail are reported.
func TestMailEnds(t *testing.T) {
	t.Parallel()
	ln := listenLocal(t)
	s := testkit.ServeSMTP(t, ln, testkit.SMTPOptions{TLS: "none"})
	c := mailTo(ln.Addr().String())
	c.Gather = time.Hour
	n := newMailed(t, c, patience)
	n.Send(event(1), event(2))
	n.stopWhile(t, func() {})
	if got := s.Mails(); len(got) != 1 || n.said() != nil {
		t.Errorf("%d mails, %q", len(got), n.said())
	}

	asked := make(chan struct{}, 10)
	c = mailTo(listenSilently(t, func() { asked <- struct{}{} }).String())
	n = newMailed(t, c, time.Hour)
	n.Send(event(1), event(2))
	testkit.Receive(t, "it hangs", asked)
	n.stopWhile(t, func() {})
	if got := n.said(); len(got) != 2 || got[1] != "2 changes of state never mailed: the director has ended" {
		t.Errorf("%q", got)
	}
}

// TestMailPauses: the pauses after failed attempts double up to the longest one.
func TestMailPauses(t *testing.T) {
	m := newMailer(func(error) {})
	m.set(&Mail{Gather: time.Second}, time.Second)
	var got []time.Duration
	for range 40 {
		m.keep(&report{events: []Event{event(1)}})
		got = append(got, time.Until(m.due).Round(time.Second))
	}
	want := []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second,
		160 * time.Second, longestPause, longestPause}
	if !slices.Equal(got[:len(want)], want) || got[39] != longestPause || len(m.events) != 40 {
		t.Errorf("%v, %d events", got, len(m.events))
	}
}

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]string{"ops@example.com": "ops@example.com", "A B <a@b>": "a@b",
		`"Ö" <o@example.com>`: "o@example.com", "root@localhost": "root@localhost", "root": "", "": "", "a@b, c@d": "",
		"ö@example.com": "", "a@b\r\nX: y": "", `"a b"@example.com`: "", "<a@b": ""} {
		if got, err := ParseAddress(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}
