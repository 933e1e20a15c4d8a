package notify

import (
	"cmp"
	"fmt"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	gomail "github.com/wneessen/go-mail"
)

// report is the content of a mail.
type report struct {
	host     string  // of the director
	events   []Event // at least one, in their order
	lost     int     // earlier events that no mail has
	attempts int     // at this mail, before, which failed
	stats    MailStats
	to       []string // recipients that do not have it yet; nil: all of the configuration
}

// recipients returns the recipients of r.
func (r *report) recipients(c *Mail) []string {
	if r.to != nil {
		return r.to
	}
	return c.To
}

// message returns the mail of r.
func (r *report) message(c *Mail) (*gomail.Msg, error) {
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	if err := m.From(c.From); err != nil {
		return nil, err
	}
	if err := m.To(c.To...); err != nil {
		return nil, err
	}
	m.Subject(r.subject())
	m.SetDate()
	m.SetMessageID()
	m.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no vacation notice comes back
	m.SetUserAgent("vstun")
	m.SetBodyString(gomail.TypeTextPlain, r.body())
	return m, nil
}

// subject names the change of a single event, and counts those of several: "lb1: 2 realservers down, 1 service down".
func (r *report) subject() string {
	if len(r.events) == 1 && r.lost == 0 {
		e := &r.events[0]
		return printable(r.host + ": " + e.subject() + " " + e.New)
	}
	type group struct{ kind, state string }
	var order []group
	count := map[group]int{}
	for i := range r.events {
		g := group{r.events[i].Kind, r.events[i].New}
		if count[g]++; count[g] == 1 {
			order = append(order, g)
		}
	}
	slices.SortStableFunc(order, func(a, b group) int { return cmp.Compare(rank(a.state), rank(b.state)) })
	var parts []string
	for _, g := range order {
		parts = append(parts, plural(count[g], noun(g.kind))+" "+g.state)
	}
	if r.lost > 0 {
		parts = append(parts, strconv.Itoa(r.lost)+" more")
	}
	return printable(r.host + ": " + strings.Join(parts, ", "))
}

// noun is what an event of this kind is about.
func noun(kind string) string {
	if kind == KindVRRP {
		return "VRRP instance"
	}
	return kind
}

// rank puts faults before recoveries.
func rank(state string) int {
	if state == up {
		return 1
	}
	return 0
}

// body has a line for each event.
func (r *report) body() string {
	var b strings.Builder
	fmt.Fprintf(&b, "The director on %s reports %s.\r\n\r\n", printable(r.host), changes(len(r.events)))
	for i := range r.events {
		e := &r.events[i]
		b.WriteString(printable(fmt.Sprintf("%s  %s is %s, was %s: %s", e.Time.Format(time.RFC3339), e.subject(), e.New,
			e.Old, e.Reason)) + "\r\n")
	}
	if r.lost > 0 {
		fmt.Fprintf(&b, "\r\n%s in no mail: more than %d waited, or the server refused the mail. See director "+
			"status.\r\n", are(r.lost), maxMailed)
	}
	if r.attempts > 0 {
		fmt.Fprintf(&b, "\r\nThis mail is late: %s failed since %s. The last error: %s.\r\n",
			plural(r.attempts, "attempt"), r.stats.Since.Format(time.RFC3339), strings.TrimSuffix(r.stats.Error, "."))
	}
	return b.String()
}

// changes returns "1 change of state" or "2 changes of state".
func changes(n int) string { return plural(n, "change") + " of state" }

// are returns "1 earlier change of state is" or "2 earlier changes of state are".
func are(n int) string {
	verb := " are"
	if n == 1 {
		verb = " is"
	}
	return plural(n, "earlier change") + " of state" + verb
}

// plural returns "1 realserver" or "2 realservers".
func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

// printable replaces control characters, so that a line stays one.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

// ParseAddress returns the address in "ops@example.com" or "Operators <ops@example.com>", which has only ASCII
// characters: not every server takes others (SMTPUTF8, RFC 6531).
func ParseAddress(text string) (string, error) {
	a, err := mail.ParseAddress(text)
	if err != nil {
		return "", err
	}
	if strings.ContainsFunc(a.Address, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%q has other characters than those of ASCII", a.Address)
	}
	return a.Address, nil
}
