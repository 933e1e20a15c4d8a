package director

import (
	"fmt"
	"net/netip"
	"strings"

	"vstun/balancer/health"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
)

// check notes the differences of two checks. nil is no check.
func (l difference) check(was, is *config.Check) {
	switch {
	case was == nil && is == nil:
	case was == nil:
		l.note("check", nil, fmt.Sprintf("%s, via %s", is.Type, via(is)))
	case is == nil:
		l.note("check", fmt.Sprintf("%s, via %s", was.Type, via(was)), nil)
	default:
		before, after := checkKeys(was), checkKeys(is)
		for i, k := range after {
			l.in("check").compare(k.name, before[i].value, k.value)
		}
		if was.CAFile == is.CAFile && was.CA != is.CA {
			l.in("check").note("ca", is.CAFile, is.CAFile+" with other certificates")
		}
		if was.CertFile == is.CertFile && was.Cert != is.Cert {
			l.in("check").note("cert", is.CertFile, is.CertFile+" with another certificate")
		}
		if was.KeyFile == is.KeyFile && is.KeyFile != "" && was.Key != is.Key {
			l.in("check").note("key", is.KeyFile, is.KeyFile+" with another key")
		}
	}
}

// key is a key of the configuration with its value.
type key struct {
	name  string
	value any
}

// checkKeys returns the keys of a check.
func checkKeys(c *config.Check) []key {
	quoted := func(s string) string {
		if s == "" {
			return none("")
		}
		return fmt.Sprintf("%q", s)
	}
	var port, verify, records, factor, reverse any = none(""), none(""), none(""), none(""), none("")
	if c.Port != 0 {
		port = c.Port
	}
	if c.Type == "https" {
		verify = c.Verify
	}
	if c.Type == "dns" {
		records = c.Records
	}
	path := c.Path
	if c.Type == "file" {
		path, factor, reverse = c.File, c.Factor, c.Reverse
	}
	return []key{{"type", c.Type}, {"via", via(c)}, {"port", port}, {"interval", c.Interval}, {"timeout", c.Timeout},
		{"rise", c.Rise}, {"fall", c.Fall}, {"initial", plan.UpDown(c.Up)},
		{"path", none(path)}, {"host", none(c.Host)},
		{"status", none(statusName(c.Status))}, {"body", quoted(c.Body)}, {"sni", none(c.SNI)}, {"ca", none(c.CAFile)},
		{"verify", verify},
		{"cert", none(c.CertFile)}, {"key", none(c.KeyFile)},
		{"send", quoted(c.Send)}, {"send_hex", none(c.SendHex)}, {"expect", quoted(c.Expect)},
		{"expect_hex", none(c.ExpectHex)},
		{"query", none(c.Query)}, {"query_type", none(c.QueryType)}, {"rcode", none(c.Rcode)}, {"records", records},
		{"factor", factor}, {"reverse", reverse}, {"helo", none(c.Helo)}, {"command", none(commandName(c.Command))}}
}

func statusName(list []config.StatusRange) string {
	var names []string
	for _, r := range list {
		names = append(names, health.StatusRange(r).String())
	}
	return strings.Join(names, ",")
}

// commandName writes a program and its arguments, each quoted where it has to be.
func commandName(command []string) string {
	var words []string
	for _, w := range command {
		if w == "" || strings.ContainsAny(w, " \t\n\"'") {
			w = fmt.Sprintf("%q", w)
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

// sorry notes the differences of the sorry server.
func (l difference) sorry(was, is *config.Service) {
	l.compare("sorry_server", sorryName(was.SorryServer), sorryName(is.SorryServer))
	if was.SorryServer.IsValid() && is.SorryServer.IsValid() {
		l.in("sorry_server").tunnel(was.SorryTunnel, is.SorryTunnel)
	}
}

func sorryName(a netip.Addr) string {
	if !a.IsValid() {
		return none("")
	}
	return a.String()
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
	l.compare("command", none(commandName(was.Command)), none(commandName(is.Command)))
	if was.Webhook != is.Webhook { // its path may be a secret
		l.note("webhook", none(health.WebhookHost(was.Webhook)), none(health.WebhookHost(is.Webhook)))
	}
	l.compare("timeout", was.Timeout, is.Timeout)
}
