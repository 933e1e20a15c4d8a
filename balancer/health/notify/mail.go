package notify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mail is a receiver of events by mail.
type Mail struct {
	To           []string // at least one address that ParseAddress reads
	From         string   // another
	Server       string   // HOST:PORT of an SMTP server (RFC 5321)
	TLS          MailTLS
	CAFile       string   // file of CA
	CA           string   // authorities of the server's certificate, in PEM; "": the system's
	User         string   // name to log in with; "": no login. With TLSOff there is none
	PasswordFile string   // file of Password
	Password     string   // of User
	Helo         string   // the client's name in EHLO; "": the host's
	Kinds        []string // kinds of events to mail; none: all
	Services     []string // services whose events are mailed; none: all
	// Gather is the time from the first event to its mail, which has all the events of that time. The next mail is
	// sent betweenMails times as long after it, at the earliest. 100 ms to 5 min
	Gather time.Duration
}

// MailTLS selects how the connection to an SMTP server is encrypted.
type MailTLS string

const (
	TLSStart  MailTLS = "starttls" // by STARTTLS (RFC 3207); a server without it gets no mail
	TLSDirect MailTLS = "tls"      // from its first byte on (RFC 8314, section 3.3)
	TLSOff    MailTLS = "none"
)

// MailTLSNames returns the values of MailTLS.
func MailTLSNames() []string { return []string{string(TLSStart), string(TLSDirect), string(TLSOff)} }

// wants reports whether e is mailed. A first state that is up is not, and neither are the begin and the end of an
// instance of VRRP, except with a fault: a start and a stop without faults send no mail about them.
func (c *Mail) wants(e *Event) bool {
	if e.Old == unknown && e.New == up || e.New == initialize || e.Old == initialize && e.New != fault {
		return false
	}
	return (len(c.Kinds) == 0 || slices.Contains(c.Kinds, e.Kind)) &&
		(len(c.Services) == 0 || e.Service == "" || e.Kind == KindVRRP || slices.Contains(c.Services, e.Service))
}

// States of events that the mailer distinguishes.
const (
	unknown    = "unknown"
	up         = "up"
	initialize = "initialize" // of VRRP, as fault
	fault      = "fault"
)

// MailStats is the state of the mailer.
type MailStats struct {
	Configured bool
	Sent       uint64    // mails that the server has taken
	Failed     uint64    // failed attempts at a mail
	Lost       uint64    // events that no mail has: too many waited, or the server refused their mail's content
	Waiting    int       // events that wait for a mail
	Error      string    // why the last attempt failed; "": it did not
	Since      time.Time // of the first of the failed attempts in a row; zero: the last one did not fail
}

// betweenMails is the least time from one mail to the next, in units of Mail.Gather.
const betweenMails = 12

// maxMailed bounds the events of a mail, and those that wait for one.
const maxMailed = 1000

// Pauses after failed attempts: the first one, which doubles up to the longest one.
const (
	firstPause   = 5 * time.Second
	longestPause = 5 * time.Minute
)

// mailer gathers events and mails them. While the server takes none, events wait for the next attempt.
type mailer struct {
	failed func(error)
	host   string        // name of this host
	pause  time.Duration // after the first failed attempt
	wake   chan struct{}

	mu       sync.Mutex
	config   *Mail // nil: no mail
	timeout  time.Duration
	events   []Event // that wait, maxMailed at most
	lost     int     // events that were dropped since the last mail
	attempts int     // failed ones in a row
	due      time.Time
	rest     time.Time // no mail is due before, unless an attempt has failed
	stats    MailStats
}

func newMailer(failed func(error)) *mailer {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	return &mailer{failed: failed, host: host, pause: firstPause, wake: make(chan struct{}, 1)}
}

// set replaces the configuration. After a failure the next attempt begins at once.
func (m *mailer) set(c *Mail, timeout time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.config, m.timeout = c, timeout
	m.stats.Configured = c != nil
	if c == nil {
		m.events, m.lost, m.attempts = nil, 0, 0
		m.stats.Error, m.stats.Since = "", time.Time{}
	}
	if m.attempts > 0 {
		m.due = time.Now()
	}
	m.awake()
}

// add queues the events that the configuration wants. It never blocks.
func (m *mailer) add(events []Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.config == nil {
		return
	}
	before := len(m.events)
	for i := range events {
		if m.config.wants(&events[i]) {
			m.events = append(m.events, events[i])
		}
	}
	if len(m.events) == before {
		return
	}
	if before == 0 && m.attempts == 0 {
		m.gather()
	}
	m.bound()
	m.awake()
}

// gather sets when the mail of an event of the present time is due.
func (m *mailer) gather() {
	m.due = time.Now().Add(m.config.Gather)
	if m.due.Before(m.rest) {
		m.due = m.rest
	}
}

// bound drops the oldest of too many events.
func (m *mailer) bound() {
	if more := len(m.events) - maxMailed; more > 0 {
		m.events = slices.Delete(m.events, 0, more)
		m.lost += more
		m.stats.Lost += uint64(more)
	}
}

func (m *mailer) awake() {
	select {
	case m.wake <- struct{}{}:
	default: // a wake-up is pending already
	}
}

// read returns the state.
func (m *mailer) read() MailStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.stats
	st.Waiting = len(m.events)
	return st
}

// run mails events until ctx is cancelled, and then those that wait, until after is cancelled.
func (m *mailer) run(ctx, after context.Context) {
	for {
		select {
		case <-ctx.Done():
			if after.Err() == nil {
				m.attempt(after)
			}
			m.finish()
			return
		case <-m.wake:
		case <-m.next():
			m.attempt(after)
		}
	}
}

// next returns a channel that delivers when a mail is due, or nil where no event waits.
func (m *mailer) next() <-chan time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.events) == 0 {
		return nil
	}
	return time.After(time.Until(m.due))
}

// attempt mails the waiting events. After a failure they wait on, unless the server refuses the content of their mail.
func (m *mailer) attempt(ctx context.Context) {
	m.mu.Lock()
	c, timeout := m.config, m.timeout
	r := report{host: m.host, events: m.events, lost: m.lost, attempts: m.attempts, stats: m.stats}
	m.events, m.lost = nil, 0
	m.mu.Unlock()
	if len(r.events) == 0 || c == nil {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	delivered, err := deliver(bounded, c, &r)
	if errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(bounded.Err(), context.Canceled) {
		err = fmt.Errorf("not done within %v: %w", timeout, err)
	}
	cancel()
	m.note(c, &r, delivered, err)
}

// note notes the outcome of an attempt. err is why no recipient, or with delivered not every one, gets the mail.
func (m *mailer) note(c *Mail, r *report, delivered bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.config == nil {
		return // a reload has ended mail
	}
	m.stats.Error = ""
	if err != nil {
		m.stats.Error = oneLine(err)
	}
	outcome := ""
	switch {
	case delivered:
		m.stats.Sent++
		outcome = "the other recipients have it"
		m.done(c)
	case isRefusal(err):
		m.stats.Failed++
		m.stats.Lost += uint64(len(r.events))
		m.lost += r.lost + len(r.events)
		outcome = "it is not sent again"
		m.done(c)
	default:
		m.stats.Failed++
		m.keep(r)
		if m.config != c {
			m.due = time.Now()
		}
		outcome = fmt.Sprintf("next attempt in %v", time.Until(m.due).Round(time.Second))
	}
	if err != nil {
		m.failed(fmt.Errorf("mail of %s by %s: %s: %s", changes(len(r.events)), c.Server, m.stats.Error, outcome))
	}
}

// done ends the attempts at a mail.
func (m *mailer) done(c *Mail) {
	m.attempts, m.stats.Since = 0, time.Time{}
	m.rest = time.Now().Add(betweenMails * c.Gather)
	m.gather()
}

// keep lets the events of a failed attempt wait before those that have come meanwhile.
func (m *mailer) keep(r *report) {
	m.events = slices.Concat(r.events, m.events)
	m.lost += r.lost
	m.bound()
	if m.attempts == 0 {
		m.stats.Since = time.Now()
	}
	pause := m.pause << min(m.attempts, 20)
	m.attempts++
	m.due = time.Now().Add(min(pause, longestPause))
}

// finish reports the events that no mail has at the end.
func (m *mailer) finish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.events); n > 0 {
		m.failed(fmt.Errorf("%s never mailed: the director has ended", changes(n)))
	}
}

// maxError bounds the text of an error, in bytes: parts of it are the server's.
const maxError = 500

// oneLine returns the text of err in one line.
func oneLine(err error) string {
	text := strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(text) > maxError {
		text = text[:maxError] + "…"
	}
	return printable(text)
}
