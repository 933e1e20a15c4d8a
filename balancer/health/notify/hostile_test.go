package notify

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// badServer is an SMTP server that behaves badly at one step of the exchange.
type badServer struct {
	step   string // "greeting", a command, "handshake" after STARTTLS, "body" after DATA, "end" after the message
	act    func(c net.Conn)
	secure *tls.Config // for STARTTLS; nil: it has none
	direct bool        // TLS comes first

	reached atomic.Bool // act was called
}

// talk serves one connection. Unless its step comes, it answers as a good server does.
func (b *badServer) talk(c net.Conn) {
	defer func() { _ = c.Close() }()
	encrypted := b.direct
	if b.direct && b.step != "handshake" {
		c = tls.Server(c, b.secure)
	}
	if b.step == "greeting" || b.direct && b.step == "handshake" {
		b.behave(c)
		return
	}
	say := func(text string) { _, _ = io.WriteString(c, text) }
	say("220 mail.example.com ESMTP\r\n")
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " ")
		if verb == b.step {
			b.behave(c)
			return
		}
		switch verb {
		case "EHLO":
			if say("250-mail.example.com\r\n"); b.secure != nil && !encrypted {
				say("250-STARTTLS\r\n")
			}
			say("250 AUTH PLAIN\r\n")
		case "STARTTLS":
			if say("220 go on\r\n"); b.step == "handshake" {
				b.behave(c)
				return
			}
			c, encrypted = tls.Server(c, b.secure), true
			r = bufio.NewReader(c)
		case "AUTH":
			say("235 welcome\r\n")
		case "DATA":
			if say("354 go on\r\n"); b.step == "body" {
				b.behave(c)
				return
			}
			for line != ".\r\n" && err == nil {
				line, err = r.ReadString('\n')
			}
			if b.step == "end" {
				b.behave(c)
				return
			}
			say("250 it is on its way\r\n")
		case "QUIT":
			say("221 bye\r\n")
			return
		default:
			say("250 well\r\n")
		}
	}
}

// behave behaves badly.
func (b *badServer) behave(c net.Conn) {
	b.reached.Store(true)
	b.act(c)
}

// serveBadly runs a badServer until the test ends, and returns its address.
func serveBadly(t *testing.T, b *badServer) string {
	t.Helper()
	ln := listenLocal(t)
	var all sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { b.talk(c) })
		}
	})
	return ln.Addr().String()
}

// Bad behaviours.
var (
	silent   = func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	closing  = func(net.Conn) {}
	longLine = repeat(strings.Repeat("x", 1<<16))
	endless  = repeat(strings.Repeat("250-x\r\n", 1000))
	web      = say("HTTP/1.1 400 Bad Request\r\n\r\n")
)

// resetting ends the connection with a RST, and TLS without a goodbye.
func resetting(c net.Conn) {
	if encrypted, ok := c.(*tls.Conn); ok {
		c = encrypted.NetConn()
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// noTLS answers the client's first bytes by a line of text.
func noTLS(c net.Conn) {
	if _, err := c.Read(make([]byte, 1)); err == nil {
		say("454 no\r\n")(c)
	}
}

// repeat sends a text again and again, 10 MB at most.
func repeat(text string) func(net.Conn) {
	return func(c net.Conn) {
		for sent := 0; sent < 10<<20; sent += len(text) {
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
		silent(c)
	}
}

// say sends a text and waits.
func say(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		silent(c)
	}
}

// lastWords sends a text and closes the connection.
func lastWords(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

// hostileCase is a badServer, the client's settings, and the error after the server's name.
type hostileCase struct {
	name   string
	server *badServer
	client Mail
	want   string // of the log's line, behind the server's address; a regular expression

	notifier *teller
	hook     hook
}

// atMost bounds each attempt.
const atMost = 3 * time.Second

// Errors behind the server's address: regular expressions with the step.
const (
	noAnswer = `not done within 3s: %s: i/o timeout: look at the server's log`
	closed   = `%s: the server closes the connection: look at its log`
	tooLong  = `%s: the server's answers are longer than 1024 KiB: want the port of an SMTP server`
	noSMTP   = `%s: .*: want the port of an SMTP server`

	otherPort = `not done within 3s: greeting: i/o timeout: want the port of an SMTP server, and tls = "tls" for one ` +
		`that begins with TLS`
)

// hostileCases returns the cases of TestHostileMailServer.
func hostileCases(t *testing.T) (all []*hostileCase) {
	t.Helper()
	own, ca := testkit.Certificate(t, "127.0.0.1")
	expired, expiredCA := testkit.ExpiredCertificate(t, "127.0.0.1")
	secure := func(c tls.Certificate, newest uint16) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS10, MaxVersion: newest}
	}
	good, old := secure(own, 0), secure(own, tls.VersionTLS11)
	off, first := Mail{TLS: TLSOff}, Mail{TLS: TLSDirect, CA: ca}
	starts := Mail{TLS: TLSStart, CA: ca, User: "lb", Password: "secret"}
	expires := Mail{TLS: TLSStart, CA: expiredCA}
	add := func(name string, server *badServer, client Mail, want string, args ...any) {
		all = append(all, &hostileCase{name: name, server: server, client: client, want: fmt.Sprintf(want, args...)})
	}
	add("greeting silent", &badServer{step: "greeting", act: silent}, off, otherPort)
	add("greeting silent, starttls", &badServer{step: "greeting", act: silent}, starts, otherPort)
	add("greeting silent, tls", &badServer{step: "greeting", act: silent, secure: good, direct: true}, first,
		noAnswer, "greeting")
	add("handshake silent, tls", &badServer{step: "handshake", act: silent, direct: true}, first, noAnswer, "TLS")
	add("handshake closed, tls", &badServer{step: "handshake", act: closing, direct: true}, first, closed, "TLS")
	add("handshake of SMTP", &badServer{step: "handshake", act: noTLS, secure: good}, starts, `STARTTLS: tls: first `+
		`record does not look like a TLS handshake: the server does not speak TLS after STARTTLS: look at its log`)
	add("no STARTTLS", &badServer{}, starts,
		`the server offers no STARTTLS: want tls = "tls" or "none", or another port`)
	add("old TLS", &badServer{secure: old}, starts, `STARTTLS: .*: want a server with TLS 1.2 or later`)
	add("expired", &badServer{secure: secure(expired, 0)}, expires,
		`STARTTLS: .*expired.*: renew the server's certificate, or set this host's clock`)
	add("unknown login", &badServer{step: "AUTH", act: lastWords("535 who?\r\n"), secure: good}, starts,
		`the server refuses the login as "lb": 535 "who\?": look at user and password_file`)
	add("too busy", &badServer{step: "greeting", act: say("421 too many\r\n")}, off, `greeting: 421 "too many"`)
	for at, named := range map[string]string{"EHLO": "EHLO", "STARTTLS": "STARTTLS", "handshake": "STARTTLS",
		"AUTH": "login", "MAIL": "from lb@example.com", "RCPT": "to ops@example.com", "DATA": "message",
		"body": "message", "end": "message"} {
		add(at+" silent", &badServer{step: at, act: silent, secure: good}, starts, noAnswer, named)
		add(at+" closed", &badServer{step: at, act: closing, secure: good}, starts, closed, named)
		add(at+" reset", &badServer{step: at, act: resetting, secure: good}, starts, closed, named)
	}
	for at, named := range map[string]string{"greeting": "greeting", "EHLO": "EHLO", "MAIL": "from lb@example.com",
		"RCPT": "to ops@example.com", "DATA": "message", "end": "message"} {
		add(at+" of 10 MB", &badServer{step: at, act: longLine}, off, tooLong, named)
		add(at+" endless", &badServer{step: at, act: endless}, off, tooLong, named)
		add(at+" of the web", &badServer{step: at, act: web}, off, noSMTP, named)
	}
	return all
}

// TestHostileMailServer: whatever a mail server does at whichever step, an attempt is bounded in time and memory, and
// gives one line that says at which step what was wrong, and what to do. The webhook gets its events meanwhile, and
// the next server gets the mail: nothing is lost, and no goroutine is left.
func TestHostileMailServer(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	t.Run("all", func(t *testing.T) {
		cases := hostileCases(t)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, c := range cases {
			if c.isSilent() {
				c.start(t, atMost)
			}
		}
		for _, c := range cases {
			if !c.isSilent() { // one after the other: on a busy machine, too, none takes long
				c.start(t, patience)
				testkit.Within(t, c.name+" fails", 2*patience, func() bool { return len(c.notifier.said()) > 0 })
			}
		}
		for _, c := range cases {
			testkit.Eventually(t, c.name+" fails", func() bool { return len(c.notifier.said()) > 0 })
		}
		runtime.ReadMemStats(&after)
		const each = 4 << 20 // four times what a server may send
		if got := (after.TotalAlloc - before.TotalAlloc) / uint64(len(cases)); got > each {
			t.Errorf("%d bytes were allocated in each case, want %d at most", got, each)
		}
		for _, c := range cases {
			c.examine(t)
		}
	})
	testkit.Eventually(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// isSilent reports whether the case takes all the time that it has.
func (c *hostileCase) isSilent() bool { return strings.HasPrefix(c.want, "not done within") }

// start sends the events of a case.
func (c *hostileCase) start(t *testing.T, timeout time.Duration) {
	m := &c.client
	m.To, m.From, m.Gather = []string{"ops@example.com"}, "lb@example.com", 10*time.Millisecond
	m.Server = serveBadly(t, c.server)
	webhook := httptest.NewServer(&c.hook)
	t.Cleanup(webhook.Close)
	c.notifier = newTellerWith(t, Config{Mail: m, Webhook: webhook.URL, Timeout: timeout}, func(n *Notifier) {
		n.mailer.pause = time.Hour
	})
	c.notifier.Send(event(1), event(2))
}

// examine examines what the attempt of a case has left, and lets another server take the mail.
func (c *hostileCase) examine(t *testing.T) {
	n := c.notifier
	if c.isSilent() && !c.server.reached.Load() {
		t.Logf("%s: the machine was too busy: %q", c.name, n.said())
		return
	}
	want := regexp.MustCompile(`^mail of 2 changes of state by ` + regexp.QuoteMeta(c.client.Server) + `: ` + c.want +
		`: next attempt in \S+$`)
	if got := n.said(); len(got) != 1 || !want.MatchString(got[0]) || len(got[0]) > 2*maxError ||
		strings.ContainsAny(got[0], "\r\n") || strings.Contains(got[0], "secret") {
		t.Errorf("%s: %.1000q, want %q", c.name, got, want)
	}
	if st := n.Mail(); st.Failed != 1 || st.Sent != 0 || st.Lost != 0 || st.Waiting != 2 {
		t.Errorf("%s: %+v, want 2 waiting", c.name, st)
	}
	testkit.Eventually(t, "the webhook has both", func() bool {
		c.hook.mu.Lock()
		defer c.hook.mu.Unlock()
		return len(c.hook.events) == 2
	})
	ln := listenLocal(t)
	good := testkit.ServeSMTP(t, ln, testkit.SMTPOptions{TLS: "none"})
	n.Set(Config{Mail: mailTo(ln.Addr().String()), Timeout: patience})
	testkit.Eventually(t, "mailed by the next server", func() bool { return len(good.Mails()) == 1 })
	n.stop()
}

// TestMailServerWithoutBye: a server that does not answer the client's goodbye has the mail all the same, and holds up
// no other one.
func TestMailServerWithoutBye(t *testing.T) {
	t.Parallel()
	n := newMailed(t, mailTo(serveBadly(t, &badServer{step: "QUIT", act: silent})), time.Hour)
	for i := range 2 {
		n.Send(event(i))
		testkit.Eventually(t, "mailed", func() bool { return n.Mail().Sent == uint64(i+1) })
	}
	if said := n.said(); said != nil {
		t.Errorf("%q", said)
	}
}

// TestMailUnread: a server that does not read the message, so that the kernel takes no more of it, does not hold up the
// client.
func TestMailUnread(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	defer close(ended)
	address := serveBadly(t, &badServer{step: "body", act: func(net.Conn) { <-ended }})
	n := newMailed(t, mailTo(address), atMost)
	e := event(1)
	e.Reason = strings.Repeat("no answer ", 1000)
	n.Send(slices.Repeat([]Event{e}, maxMailed)...)
	want := "mail of 1000 changes of state by " + address + ": not done within 3s: message: i/o timeout: look at the " +
		"server's log"
	testkit.Within(t, want, 3*patience, func() bool { // on a busy machine the first attempts end before
		return slices.ContainsFunc(n.said(), func(line string) bool { return strings.HasPrefix(line, want) })
	})
}
