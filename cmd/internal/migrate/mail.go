package migrate

import (
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"vstun/balancer/health/notify"
	"vstun/cmd/internal/config"
)

// mail is the mail of global_defs.
type mail struct {
	Place         // of notification_email, or of the first other statement
	to            []string
	from          string
	server        string // HOST:PORT; "": keepalived sends no mail
	helo          string
	timeout       time.Duration // of each attempt; 0: the default
	alert         *bool         // smtp_alert; nil: not set
	checker, vrrp *bool         // smtp_alert_checker and smtp_alert_vrrp
	noFaults      Place         // of no_email_faults
}

// usualMailTimeout is keepalived's default of smtp_connect_timeout, DEFAULT_SMTP_CONNECTION_TIMEOUT.
const usualMailTimeout = 30 * time.Second

// mailStatements are the keywords of global_defs about mail.
var mailStatements = map[string]func(*keepalived, *statement){
	"notification_email": func(k *keepalived, st *statement) {
		k.mail.Place = st.Place
		for _, line := range st.block {
			for _, text := range line.words {
				k.addRecipient(line.Place, text)
			}
		}
	},
	"notification_email_from": func(k *keepalived, st *statement) {
		if k.isAddress(st.Place, st.name(), st.arg(1)) {
			k.mail.from = st.arg(1)
		}
	},
	"smtp_server": (*keepalived).mailServer,
	"smtp_helo_name": func(k *keepalived, st *statement) {
		if text := st.arg(1); isGraphic(text) {
			k.mail.helo = text
		} else {
			k.note(st.Place, "smtp_helo_name %q: is no name of a host: left out: write helo in [notify.mail]", text)
		}
	},
	"smtp_connect_timeout": (*keepalived).mailTimeout,
	"smtp_alert":           func(k *keepalived, st *statement) { k.setAlert(nil, st, &k.mail.alert) },
	"smtp_alert_checker":   func(k *keepalived, st *statement) { k.setAlert(nil, st, &k.mail.checker) },
	"smtp_alert_vrrp":      func(k *keepalived, st *statement) { k.setAlert(nil, st, &k.mail.vrrp) },
	"no_email_faults":      func(k *keepalived, st *statement) { k.mail.noFaults = st.Place },
}

// mailStatement reads a statement of global_defs about mail.
func (k *keepalived) mailStatement(st *statement) {
	if k.mail.Place == (Place{}) {
		k.mail.Place = st.Place
	}
	mailStatements[st.name()](k, st)
}

// isAddress reports whether a text is a mail address, and notes if it is none.
func (k *keepalived) isAddress(at Place, name, text string) bool {
	_, err := notify.ParseAddress(text)
	if err != nil {
		k.note(at, "%s %q: is no address such as ops@example.com: left out: write it in [notify.mail]", name, text)
	}
	return err == nil
}

// maxRecipients is the maximum number of recipients that the director takes.
const maxRecipients = config.MaxRecipients

func (k *keepalived) addRecipient(at Place, text string) {
	switch {
	case !k.isAddress(at, "notification_email", text) || slices.Contains(k.mail.to, text):
	case len(k.mail.to) == maxRecipients:
		k.note(at, "notification_email %s: is one more than %d: left out: let a mailing list have more", text,
			maxRecipients)
	default:
		k.mail.to = append(k.mail.to, text)
	}
}

func (k *keepalived) mailServer(st *statement) {
	port := uint16(25)
	if st.arg(2) != "" {
		n, ok := k.port(st.Place, "smtp_server", st.arg(2))
		if ok && n == 0 {
			k.note(st.Place, "smtp_server %q: port 0 is no server's: left out: write server in [notify.mail]",
				st.arg(1))
		}
		if !ok || n == 0 {
			return
		}
		port = n
	}
	server := net.JoinHostPort(strings.Trim(st.arg(1), "[]"), strconv.Itoa(int(port)))
	if !config.IsHostPort(server) {
		k.note(st.Place, "smtp_server %q: is no host: left out: write server in [notify.mail]", st.arg(1))
		return
	}
	k.mail.server = server
}

func (k *keepalived) mailTimeout(st *statement) {
	const least, most = 1, 300 // seconds, of the director's timeout
	n, err := strconv.ParseUint(st.arg(1), 10, 32)
	switch {
	case err != nil:
		k.note(st.Place, "smtp_connect_timeout %q: is no number of seconds: left out: write timeout in [notify]",
			st.arg(1))
		return
	case n > most:
		k.note(st.Place, "smtp_connect_timeout %d: is longer than the director waits: imported as %d seconds: a "+
			"failed mail is sent again", n, most)
	}
	k.mail.timeout = time.Duration(min(max(n, least), most)) * time.Second
}

// setAlert reads an smtp_alert. As in keepalived, it is on without an argument, and an unknown argument changes
// nothing. s is the service, nil in global_defs.
func (k *keepalived) setAlert(s *service, st *statement, to **bool) {
	on := true
	switch st.arg(1) {
	case "", "true", "on", "yes":
	case "false", "off", "no":
		on = false
	default:
		k.noteOf(s, st.Place, "%s %q: keepalived leaves it out, and so does the import: want true or false", st.name(),
			st.arg(1))
		return
	}
	*to = &on
}

// alerts reports whether keepalived mails about something whose own smtp_alert is own. usual is its default.
func (m *mail) alerts(own *bool, usual bool) bool {
	for _, set := range []*bool{own, m.checker, m.alert} {
		if set != nil {
			return *set
		}
	}
	return usual
}

// alertsOf reports whether keepalived mails about the roles of an instance, or of its group. Without smtp_alert it does
// not.
func (m *mail) alertsOf(v *instance) bool {
	all := []*bool{v.alert, m.vrrp, m.alert}
	if v.group != nil && v.group.alert != nil && *v.group.alert {
		return true
	}
	for _, set := range all {
		if set != nil {
			return *set
		}
	}
	return false
}

// Defaults of smtp_alert: keepalived mails about realservers, and not about virtual servers (check_data.c,
// validate_check_config).
const (
	usualServiceAlert    = false
	usualRealserverAlert = true
)

// alerted is what of a service keepalived mails about.
type alerted struct {
	service     bool
	realservers int // number of those with mail
}

func (p *plan) alerted(s *service) (a alerted) {
	a.service = p.mail.alerts(s.alert, usualServiceAlert)
	for _, r := range s.realservers {
		if p.mail.alerts(r.alert, usualRealserverAlert) {
			a.realservers++
		}
	}
	return a
}

// mailKeys returns the keys of [notify.mail], or nil if keepalived sends no mail. It notes what keepalived would not
// mail about, and the director does.
func (p *plan) mailKeys() []key {
	m := &p.mail
	if m.Place == (Place{}) {
		return nil
	}
	if len(m.to) == 0 || m.server == "" {
		p.note(m.Place, "mail: keepalived sends none without notification_email and smtp_server: left out: write mail "+
			"in [notify]")
		return nil
	}
	var names []string
	var services, realservers bool
	for _, s := range p.services {
		a := p.alerted(s)
		if a.service || a.realservers > 0 {
			names = append(names, s.name)
		}
		services, realservers = services || a.service, realservers || a.realservers > 0
	}
	roles := p.mailedRoles()
	if names == nil && !roles {
		p.note(m.Place, "mail: smtp_alert is off for every virtual_server, real_server and vrrp_instance: left out: "+
			"write mail in [notify]")
		return nil
	}
	p.noteMore(services, realservers)
	if m.from == "" {
		p.note(m.Place, "no notification_email_from: keepalived takes its user and host: %s is in its place: write "+
			"the sender as from in [notify.mail]", m.to[0])
		m.from = m.to[0]
	}
	keys := []key{{"to", list(m.to), ""}, {"from", quote(m.from), ""}, {"server", quote(m.server), ""},
		{"tls", quote(string(notify.TLSOff)), ""}}
	if m.helo != "" {
		keys = append(keys, key{"helo", quote(m.helo), ""})
	}
	var kinds []string
	for _, k := range []struct {
		name   string
		mailed bool
	}{{notify.KindService, services}, {notify.KindRealserver, realservers}, {notify.KindVRRP, roles}} {
		if k.mailed {
			kinds = append(kinds, k.name)
		}
	}
	if !services || !realservers || !roles && len(p.instances) > 0 {
		keys = append(keys, key{"kinds", list(kinds), ""})
	}
	if names != nil && len(names) < len(p.services) {
		keys = append(keys, key{"services", list(names), ""})
	}
	return keys
}

// mailedRoles reports whether keepalived mails about the roles of an instance. It notes those about which it does not.
func (p *plan) mailedRoles() bool {
	m := &p.mail
	mailed := slices.ContainsFunc(p.instances, m.alertsOf)
	if !mailed {
		return false
	}
	for _, v := range p.instances {
		if !m.alertsOf(v) {
			p.noteOn(v, v.Place, "smtp_alert: is off for this vrrp_instance, on for another one: its changes are "+
				"mailed, too: look at kinds of [notify.mail]")
		}
	}
	if m.noFaults != (Place{}) {
		p.note(m.noFaults, "no_email_faults: no counterpart: faults of VRRP are mailed, too")
	}
	return true
}

// noteMore notes what keepalived does not mail about and the director does: the keys kinds and services apply to all
// that they name.
func (p *plan) noteMore(services, realservers bool) {
	for _, s := range p.services {
		a := p.alerted(s)
		if !a.service && a.realservers == 0 {
			continue // is not in services
		}
		if services && !a.service {
			p.noteOf(s, s.Place, "smtp_alert: is off for the virtual_server, on for another one: its changes are "+
				"mailed, too: look at kinds of [notify.mail]")
		}
		if realservers && a.realservers < len(s.realservers) {
			p.noteOf(s, s.Place, "smtp_alert: is off for %d of %d real_servers: their changes are mailed, too: look "+
				"at services of [notify.mail]", len(s.realservers)-a.realservers, len(s.realservers))
		}
	}
}

// isGraphic reports whether a text has only printable ASCII characters, and at least one.
func isGraphic(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}
