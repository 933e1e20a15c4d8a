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
	l.compare("timeout", was.Timeout, is.Timeout)
}
