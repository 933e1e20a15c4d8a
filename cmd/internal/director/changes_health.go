package director

import (
	"fmt"

	"vstun/balancer/health/notify"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
)

// check notes the differences of two checks. nil is no check.
func (l difference) check(was, is *config.Check) {
	switch {
	case was == nil && is == nil:
	case was == nil:
		l.note("check", nil, fmt.Sprintf("%s, via %s", is.Type, is.Via()))
	case is == nil:
		l.note("check", fmt.Sprintf("%s, via %s", was.Type, was.Via()), nil)
	default:
		before, after := was.Keys(), is.Keys()
		for i, k := range after {
			old := before[i]
			l.in("check").compare(k.Name, orNone(old.Value), orNone(k.Value))
			if k.Value != nil && k.Value == old.Value && !k.SameContent(old) {
				l.in("check").note(k.Name, k.Value, fmt.Sprintf("%v with %s", k.Value, k.Changed))
			}
		}
	}
}

// orNone returns a value of a key as a change shows it.
func orNone(v any) any {
	if v == nil {
		return none("")
	}
	return v
}

// sorry notes the differences of the sorry server.
func (l difference) sorry(was, is *config.Service) {
	l.compare("sorry_server", sorryName(was), sorryName(is))
	if was.HasSorry() && is.HasSorry() {
		l.compare("sorry_forward", was.Sorry.Forward, is.Sorry.Forward)
		l.in("sorry_server").tunnel(was.Sorry.Tunnel, is.Sorry.Tunnel)
	}
}

func sorryName(s *config.Service) string {
	if !s.HasSorry() {
		return none("")
	}
	return words.Realserver(s.Sorry.ID())
}

func failureName(drain bool) string {
	if drain {
		return "drain"
	}
	return "remove"
}

// notify notes the differences of the receivers of notifications.
func (l difference) notify(was, is *config.Notify) {
	l = l.in("notify")
	l.compare("command", none(config.CommandLine(was.Command)), none(config.CommandLine(is.Command)))
	if was.Webhook != is.Webhook { // its path may be a secret
		l.note("webhook", none(notify.WebhookHost(was.Webhook)), none(notify.WebhookHost(is.Webhook)))
	}
	l.mail(was.Mail, is.Mail)
	l.compare("timeout", was.Timeout, is.Timeout)
}

// mail notes the differences of two receivers by mail. nil is none.
func (l difference) mail(was, is *config.Mail) {
	switch {
	case was == nil && is == nil:
		return
	case was == nil:
		l.note("mail", nil, mailName(is))
		return
	case is == nil:
		l.note("mail", mailName(was), nil)
		return
	}
	l = l.in("notify.mail")
	l.compare("to", nameList(was.To), nameList(is.To))
	l.compare("from", was.From, is.From)
	l.compare("server", was.Server, is.Server)
	l.compare("tls", string(was.TLS), string(is.TLS))
	l.file("ca", was.CAFile, is.CAFile, was.CA == is.CA, "other certificates")
	l.compare("user", none(was.User), none(is.User))
	l.file("password_file", was.PasswordFile, is.PasswordFile, was.Password == is.Password, "another password")
	l.compare("helo", none(was.Helo), none(is.Helo))
	l.compare("kinds", orAll(was.Kinds), orAll(is.Kinds))
	l.compare("services", orAll(was.Services), orAll(is.Services))
	l.compare("gather", was.Gather, is.Gather)
}

// orAll returns a list of names, of which none means all.
func orAll(list []string) any {
	if len(list) == 0 {
		return "all"
	}
	return nameList(list)
}

func mailName(m *config.Mail) string { return fmt.Sprintf("to %s by %s", nameList(m.To), m.Server) }

// file notes another file as a key's value, or other content of the same one.
func (l difference) file(key, was, is string, same bool, other string) {
	l.compare(key, none(was), none(is))
	if was == is && !same {
		l.note(key, is, is+" with "+other)
	}
}
