package director

import (
	"fmt"
	"net/netip"
	"strings"

	"vstun/balancer/health"
	"vstun/cmd/internal/config"
)

// check notes what differs between two checks, either of which may be none.
func (l *difference) check(at string, was, is *config.Check) {
	switch {
	case was == nil && is == nil:
	case was == nil:
		l.note("%scheck added: %s, via %s", at, is.Type, via(is))
	case is == nil:
		l.note("%scheck removed", at)
	default:
		before, after := checkKeys(was), checkKeys(is)
		for i, k := range after {
			l.compare(at+"check: "+k.name, none(before[i].value), none(k.value))
		}
		if was.CAFile == is.CAFile && was.CA != is.CA {
			l.note("%scheck: ca %s has other certificates", at, is.CAFile)
		}
		if was.CertFile == is.CertFile && was.Cert != is.Cert {
			l.note("%scheck: cert %s has another certificate", at, is.CertFile)
		}
		if was.KeyFile == is.KeyFile && is.KeyFile != "" && was.Key != is.Key {
			l.note("%scheck: key %s has another key", at, is.KeyFile)
		}
	}
}

// key is a key of the configuration with its value.
type key struct{ name, value string }

// checkKeys are the keys of a check.
func checkKeys(c *config.Check) []key {
	quoted := func(s string) string {
		if s == "" {
			return ""
		}
		return fmt.Sprintf("%q", s)
	}
	var port, verify, records, factor, reverse string
	if c.Port != 0 {
		port = fmt.Sprint(c.Port)
	}
	if c.Type == "https" {
		verify = fmt.Sprint(c.Verify)
	}
	if c.Type == "dns" {
		records = fmt.Sprint(c.Records)
	}
	path := c.Path
	if c.Type == "file" {
		path, factor, reverse = c.File, fmt.Sprint(c.Factor), fmt.Sprint(c.Reverse)
	}
	return []key{{"type", c.Type}, {"via", via(c)}, {"port", port}, {"interval", c.Interval.String()}, {"timeout", c.Timeout.String()},
		{"rise", fmt.Sprint(c.Rise)}, {"fall", fmt.Sprint(c.Fall)}, {"initial", upDown(c.Up)},
		{"path", path}, {"host", c.Host}, {"status", statusName(c.Status)},
		{"body", quoted(c.Body)}, {"sni", c.SNI}, {"ca", c.CAFile}, {"verify", verify},
		{"cert", c.CertFile}, {"key", c.KeyFile},
		{"send", quoted(c.Send)}, {"send_hex", c.SendHex}, {"expect", quoted(c.Expect)}, {"expect_hex", c.ExpectHex},
		{"query", c.Query}, {"query_type", c.QueryType}, {"rcode", c.Rcode}, {"records", records},
		{"factor", factor}, {"reverse", reverse}, {"helo", c.Helo}, {"command", commandName(c.Command)}}
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

// sorry notes what differs of the sorry server.
func (l *difference) sorry(at string, was, is *config.Service) {
	l.compare(at+"sorry_server", sorryName(was.SorryServer), sorryName(is.SorryServer))
	if was.SorryServer.IsValid() && is.SorryServer.IsValid() {
		l.tunnel(at+"sorry_server: ", was.SorryTunnel, is.SorryTunnel)
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

// notify notes who is told of changes now.
func (l *difference) notify(was, is *config.Notify) {
	l.compare("notify command", none(commandName(was.Command)), none(commandName(is.Command)))
	if was.Webhook != is.Webhook {
		l.note("notify webhook %s -> %s", none(health.WebhookHost(was.Webhook)), none(health.WebhookHost(is.Webhook)))
	}
	l.compare("notify timeout", was.Timeout, is.Timeout)
}
