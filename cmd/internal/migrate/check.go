package migrate

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"vstun/balancer/method"
	"vstun/cmd/internal/config"
)

// check is a future [service.check] or [service.realserver.check].
type check struct {
	Place
	kind     string
	via      string // "tunnel" or "direct"
	port     uint16 // 0: the service's, or the realserver's own
	foreign  bool   // no client gets to the port
	keys     []key  // keys of this kind only
	interval time.Duration
	timeout  time.Duration
	rise     int
	fall     int
	up       bool // before the first results
}

// local reports whether the check examines the director's host.
func (c *check) local() bool { return config.LookupCheckType(c.kind).Local }

// key is a key of a table, its value as TOML, and the comment after it.
type key struct{ name, value, comment string }

// checker is one of keepalived's checkers: the type of check for it, and its defaults for retry and delay_before_retry.
type checker struct {
	kind       string // "": none
	rank       int    // if a realserver has several checkers, the highest rank stays
	retry      int
	retryDelay time.Duration // 0: delay_loop
	read       func(*keepalived, *service, *check, *statement, settings) bool
}

var checkers = map[string]checker{
	"HTTP_GET":   {"http", 7, 1, 3 * time.Second, (*keepalived).httpGet},
	"SSL_GET":    {"https", 7, 1, 3 * time.Second, (*keepalived).httpGet},
	"SMTP_CHECK": {"smtp", 6, 1, time.Second, (*keepalived).smtpCheck},
	"DNS_CHECK":  {"dns", 6, 3, 0, (*keepalived).dnsCheck},
	"MISC_CHECK": {"exec", 5, 0, time.Second, (*keepalived).miscCheck},
	"UDP_CHECK":  {"udp", 4, 1, time.Second, (*keepalived).payloadCheck},
	"TCP_CHECK":  {"tcp", 3, 1, time.Second, (*keepalived).payloadCheck},
	"PING_CHECK": {"ping", 2, 1, time.Second, (*keepalived).noMore},
	"FILE_CHECK": {"file", 1, 0, time.Second, (*keepalived).fileCheck},
	"BFD_CHECK":  {},
}

// check reads the checkers of a realserver and returns the one that stays, or nil. port is the real_server's port.
func (k *keepalived) check(s *service, r *realserver, port uint16, found []*statement, general settings) *check {
	found = slices.Clone(found)
	slices.SortStableFunc(found, func(a, b *statement) int { return checkers[b.name()].rank - checkers[a.name()].rank })
	var best *check
	for _, st := range found {
		if f := k.files[fileName(st)]; f != nil {
			f.used = true
		}
		switch {
		case st.name() == "BFD_CHECK":
			k.noteOf(s, st.Place, "BFD_CHECK: no counterpart: left out: use a check of type ping or tcp with a "+
				"short interval")
		case best != nil:
			k.noteOf(s, st.Place, "%s: a realserver has one check, and that of line %d stays: left out: a check of "+
				"type exec can do several things", st.name(), best.Line)
		default:
			best = k.readCheck(s, r, port, st, general)
		}
	}
	return best
}

// readCheck reads one checker.
func (k *keepalived) readCheck(s *service, r *realserver, port uint16, block *statement, t settings) *check {
	of := checkers[block.name()]
	c := &check{Place: block.Place, kind: of.kind, via: "tunnel", rise: 1}
	var connectPort uint16
	var own []*statement // statements of this kind only
	t.leastRetry = 0
	for _, st := range k.flatten(s, block) {
		if k.ignores(s, block.name(), st) {
			continue
		}
		switch st.name() {
		case "connect_ip":
			a, err := netip.ParseAddr(st.arg(1))
			if err != nil || a != r.address && !slices.Contains(s.vips, a) {
				k.noteOf(s, st.Place, "connect_ip %s: no counterpart: left out: the check goes to this realserver",
					st.arg(1))
			}
		case "connect_port":
			connectPort, _ = k.port(st.Place, "connect_port", st.arg(1))
		case "bindto", "bind_if", "bind_port":
			k.noteOf(s, st.Place, "%s: no counterpart: left out: checks come from the address that the route gives",
				st.name())
		case "fwmark":
			k.noteOf(s, st.Place, "fwmark of a check: no counterpart: left out")
		case "log_all_failures":
			k.noteOf(s, st.Place, "log_all_failures: no counterpart: left out: director status shows the last "+
				"check's reason")
		default:
			if !t.read(k, s, block.name(), st) {
				own = append(own, st)
			}
		}
	}
	c.interval, c.timeout, c.up = t.delay, t.timeout, !t.alpha
	if !of.read(k, s, c, &statement{Place: block.Place, text: block.text, words: block.words, block: own}, t) {
		return nil
	}
	retry, retryDelay := of.retry, of.retryDelay
	if t.retry >= 0 {
		retry = t.retry
	}
	if t.retryDelay > 0 {
		retryDelay = t.retryDelay
	}
	if retryDelay == 0 {
		retryDelay = t.delay
	}
	k.settleTimes(s, c, retry, retryDelay, t.retryDelay > 0)
	if !k.settlePort(s, r, c, connectPort, port) {
		return nil
	}
	return c
}

// hostKeywords are those of a checker that keep SMTP_CHECK from taking them from its first host
// (smtp_check_end_handler in keepalived's check_smtp.c).
var hostKeywords = []string{"connect_ip", "connect_port", "bindto", "bind_if", "bind_port", "fwmark", "connect_timeout"}

// flatten returns the statements of a checker, and the statements of its first "host" block, which old versions have.
// keepalived makes a check of its own from each further host.
func (k *keepalived) flatten(s *service, block *statement) (list []*statement) {
	var hosts []*statement
	first := true
	for _, st := range block.block {
		if st.name() == "host" && st.hasBlock {
			hosts = append(hosts, st)
			continue
		}
		list = append(list, st)
		first = first && !slices.Contains(hostKeywords, st.name())
	}
	if first && len(hosts) > 0 {
		list = append(list, hosts[0].block...)
		hosts = hosts[1:]
	}
	for _, h := range hosts {
		k.noteOf(s, h.Place, "host: a realserver has one check, and that of another host stays: left out: a check "+
			"of type exec can do several things")
	}
	return list
}

// settlePort sets via and port of a check of r. keepalived connects to the realserver's own address, by default at its
// port, own. If that is a port of the service, the check is for the server that clients reach by the VIP.
func (k *keepalived) settlePort(s *service, r *realserver, c *check, connect, own uint16) bool {
	if c.local() || r.forward == method.NAT {
		c.via = "direct"
	}
	if c.local() {
		return true
	}
	if !config.LookupCheckType(c.kind).Has("port") || len(s.vips) == 0 && connect == 0 {
		return true
	}
	port := connect
	if port == 0 && slices.Contains(s.ports, 0) {
		port = own // else the VIP's port, see notePort, or the realserver's own
	}
	switch {
	case r.port != 0:
		if port != 0 && port != r.port {
			c.port, c.foreign = port, true
		}
	case port == 0 && slices.Contains(s.ports, 0):
		k.noteOf(s, c.Place, "a check without a port, in a service of every port: left out: write port in the check")
		return false
	case port == 0 || port == s.ports[0]:
	case slices.Contains(s.ports, port) || slices.Contains(s.ports, 0):
		c.port = port
	default:
		c.port, c.via, c.foreign = port, "direct", true
	}
	return true
}

// Bounds of checks in director.toml.
const (
	leastInterval = 100 * time.Millisecond
	mostInterval  = 24 * time.Hour
	leastTimeout  = 10 * time.Millisecond
	mostFall      = 1000
)

// queryTypes are the types of records that both keepalived and a check can ask for.
var queryTypes = []string{"A", "AAAA", "NS", "CNAME", "SOA", "MX", "TXT"}

// settleTimes converts retries to fall. keepalived retries before the next check is due. explicit is set if
// delay_before_retry sets that time.
func (k *keepalived) settleTimes(s *service, c *check, retry int, retryDelay time.Duration, explicit bool) {
	bound := func(name string, d *time.Duration, least, most time.Duration) {
		if within := min(max(*d, least), most); within != *d {
			k.noteOf(s, c.Place, "%s of %s: %s is in its place: want %s to %s", name, duration(*d), duration(within),
				duration(least), duration(most))
			*d = within
		}
	}
	bound("a check's interval", &c.interval, leastInterval, mostInterval)
	bound("a check's timeout", &c.timeout, leastTimeout, c.interval)
	c.fall = min(retry+1, mostFall)
	theirs := c.interval + c.timeout + time.Duration(retry)*(retryDelay+c.timeout)
	if ours := time.Duration(c.fall)*c.interval + c.timeout; ours > theirs*3/2 || explicit && ours != theirs {
		k.noteOf(s, s.Place, "retry %d, %s apart, becomes fall = %d, %s apart: a dead realserver is out within %s, "+
			"with keepalived within %s: shorten interval where that is too long",
			retry, duration(retryDelay), c.fall, duration(c.interval), duration(ours), duration(theirs))
	}
}

// noMore reads a checker that has no keywords of its own.
func (k *keepalived) noMore(s *service, _ *check, block *statement, _ settings) bool {
	for _, st := range block.block {
		k.unknown(s, block, st)
	}
	return true
}

func (k *keepalived) unknown(s *service, block, st *statement) {
	k.noteOf(s, st.Place, "%s of %s: no counterpart: left out", st.name(), block.name())
}

// add adds a key, or replaces its value.
func (c *check) add(name, value string) {
	if i := slices.IndexFunc(c.keys, func(k key) bool { return k.name == name }); i >= 0 {
		c.keys[i].value = value
		return
	}
	c.keys = append(c.keys, key{name: name, value: value})
}

// httpGet reads HTTP_GET and SSL_GET.
func (k *keepalived) httpGet(s *service, c *check, block *statement, t settings) bool {
	url, sni := k.firstURL(s, block)
	if url == nil {
		k.noteOf(s, block.Place, "%s without a url: left out, as by keepalived: write a check of type %s",
			block.name(), c.kind)
		return false
	}
	u := k.readURL(s, url, t.host)
	if !strings.HasPrefix(u.path, "/") {
		k.noteOf(s, u.pathAt, "path %q: is none that can be asked for: the check is left out: write a check with a "+
			"path that begins with /", u.path)
		return false
	}
	if encoded := percentEncoded(u.path); encoded != u.path {
		k.noteOf(s, u.pathAt, "path %q: keepalived asks for it as it is, which is no HTTP: %q is in its place: look "+
			"whether that is the page", u.path, encoded)
		u.path = encoded
	}
	c.add("path", quote(u.path))
	if u.host != "" && !isHost(u.host) {
		k.noteOf(s, url.Place, "virtualhost %q: is no name: left out: write host in the check", u.host)
		u.host = ""
	}
	if u.host != "" {
		c.add("host", quote(u.host))
	}
	c.add("status", statusArray(u.status))
	k.body(s, c, url.Place, u.body, u.bodyOptions, u.noMatch)
	if c.kind == "https" {
		if sni && u.host != "" {
			c.add("sni", quote(u.host))
		}
		c.add("verify", "false")
		if k.ssl != nil {
			c.add("cert", quote(k.ssl.cert))
			c.add("key", quote(k.ssl.key))
		}
	}
	return true
}

// firstURL returns the first url of the block, or nil, and whether the block enables SNI.
func (k *keepalived) firstURL(s *service, block *statement) (url *statement, sni bool) {
	for _, st := range block.block {
		switch st.name() {
		case "url":
			switch {
			case st.find("path") == nil:
				k.noteOf(s, st.Place, "url without a path: left out, as by keepalived: write path in the check")
			case url != nil:
				k.noteOf(s, st.Place, "url: a check has one, and that of line %d stays: left out: let the server's "+
					"own check page look at the others", url.Line)
			default:
				url = st
			}
		case "enable_sni":
			sni = isTrue(st.arg(1))
		case "http_protocol":
			if st.arg(1) != "1.1" {
				k.noteOf(s, st.Place, "http_protocol %s: checks speak HTTP/1.1", st.arg(1))
			}
		case "fast_recovery":
			k.noteOf(s, st.Place, "fast_recovery: no counterpart, and none needed")
		default:
			k.unknown(s, block, st)
		}
	}
	return url, sni
}

// urlBlock is the content of a url block.
type urlBlock struct {
	path, host        string
	pathAt            Place
	status            []string // codes and ranges
	body, bodyOptions string   // a regular expression
	noMatch           bool     // the body must not match
}

// readURL reads a url block. host is the default of its virtualhost.
func (k *keepalived) readURL(s *service, url *statement, host string) urlBlock {
	u := urlBlock{host: host}
	for _, st := range url.block {
		first, _ := st.rest()
		switch st.name() {
		case "path":
			u.path, u.pathAt = first, st.Place
		case "virtualhost":
			u.host = first
		case "status_code":
			for _, w := range st.words[1:] {
				if !isStatus(w) {
					k.noteOf(s, st.Place, "status_code %q: is none: left out: want 200, or a range 200-299", w)
					continue
				}
				u.status = append(u.status, w)
			}
		case "digest":
			k.noteOf(s, st.Place, "digest: no counterpart: left out: write body, a regular expression that a good "+
				"page matches")
		case "regex":
			u.body = first
		case "regex_no_match":
			u.noMatch = true
		case "regex_options":
			for _, w := range st.words[1:] {
				flag, ok := map[string]string{"caseless": "i", "dotall": "s", "multiline": "m", "ungreedy": "U"}[w]
				if !ok {
					k.noteOf(s, st.Place, "regex_options %s: no counterpart: left out: look at body", w)
				}
				u.bodyOptions += flag
			}
		default:
			k.unknown(s, url, st)
		}
	}
	return u
}

// statusArray writes codes and ranges as the value of the key status. The default is keepalived's.
func statusArray(status []string) string {
	if len(status) == 0 {
		status = []string{"200-299"}
	}
	var values []string
	for _, w := range status {
		if strings.Contains(w, "-") {
			w = quote(w)
		}
		values = append(values, w)
	}
	return "[" + strings.Join(values, ", ") + "]"
}

// isStatus reports whether text is a code or a range, such as "200" or "200-299".
func isStatus(text string) bool {
	low, high, isRange := strings.Cut(text, "-")
	if !isRange {
		high = low
	}
	a, errA := strconv.Atoi(low)
	b, errB := strconv.Atoi(high)
	return errA == nil && errB == nil && 100 <= a && a <= b && b <= 599 && len(low) == 3 && len(high) == 3
}

// isHost reports whether text can be a Host header: a name or an address, with or without a port.
func isHost(text string) bool {
	return text != "" && len(text) <= 253 && strings.IndexFunc(text, func(r rune) bool {
		return r >= 0x80 || lower(byte(r)) < 'a' && (r < '0' || r > '9') && !strings.ContainsRune(".:-_[]", r) ||
			lower(byte(r)) > 'z'
	}) < 0
}

// percentEncoded returns a path and a query in the characters that an HTTP request can have (RFC 3986, section 2.1).
func percentEncoded(path string) string {
	var b strings.Builder
	for i := range len(path) {
		_, err := strconv.ParseUint(path[i:min(i+3, len(path))][1:], 16, 8)
		escape := path[i] == '%' && (err != nil || i+3 > len(path) || path[i+1] == '+' || path[i+1] == '-')
		if c := path[i]; c <= ' ' || c > '~' || escape {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// isDomain reports whether text is a domain name (RFC 1035, section 2.3.4).
func isDomain(text string) bool {
	labels := strings.Split(strings.TrimSuffix(text, "."), ".")
	return text == "." || isHost(text) && !slices.ContainsFunc(labels, func(l string) bool {
		return l == "" || len(l) > 63
	})
}

// body adds the key body. keepalived's regular expressions are PCRE2, the key's are RE2.
func (k *keepalived) body(s *service, c *check, at Place, expression, options string, noMatch bool) {
	if expression == "" {
		return
	}
	if options != "" {
		expression = "(?" + options + ")" + expression
	}
	switch _, err := regexp.Compile(expression); {
	case noMatch:
		k.noteOf(s, at, "regex_no_match: no counterpart: the regex is left out: write body, a regular expression "+
			"that a good page matches")
	case err != nil || !utf8.ValidString(expression):
		k.noteOf(s, at, "regex %q: is none of RE2's (%v): left out: write body, a regular expression that a good "+
			"page matches", expression, err)
	default:
		c.add("body", quote(expression))
	}
}

func (k *keepalived) smtpCheck(s *service, c *check, block *statement, _ settings) bool {
	for _, st := range block.block {
		if st.name() != "helo_name" {
			k.unknown(s, block, st)
			continue
		}
		if first, _ := st.rest(); isHost(first) {
			c.add("helo", quote(first))
		} else {
			k.noteOf(s, st.Place, "helo_name %q: is no name: left out", first)
		}
	}
	return true
}

func (k *keepalived) dnsCheck(s *service, c *check, block *statement, _ settings) bool {
	name, kind := ".", "SOA" // keepalived's defaults
	for _, st := range block.block {
		switch st.name() {
		case "name":
			name, _ = st.rest()
		case "type":
			kind = strings.ToUpper(st.arg(1))
		default:
			k.unknown(s, block, st)
		}
	}
	if !isDomain(name) {
		k.noteOf(s, c.Place, "DNS_CHECK: %q is no name: left out: write a check of type dns with a query", name)
		return false
	}
	if !slices.Contains(queryTypes, kind) {
		k.noteOf(s, c.Place, "DNS_CHECK: type %q: SOA is in its place: want %s", kind, strings.Join(queryTypes, ", "))
		kind = "SOA"
	}
	c.add("query", quote(name))
	c.add("query_type", quote(kind))
	c.add("records", "0") // keepalived accepts any NOERROR
	return true
}

func (k *keepalived) miscCheck(s *service, c *check, block *statement, t settings) bool {
	var command []string
	c.timeout = t.delay // keepalived's default
	for _, st := range block.block {
		switch st.name() {
		case "misc_path":
			first, others := st.rest()
			command = append(shellWords(first), others...)
		case "misc_timeout":
			k.timer(s, st, &c.timeout)
		case "misc_dynamic":
			if isTrue(st.arg(1)) {
				k.noteOf(s, st.Place, "misc_dynamic: no counterpart: an exit status other than 0 is a failure here: "+
					"set weights by director set")
			}
		case "user":
			k.noteOf(s, st.Place, "user %s: no counterpart: commands run as the director's user: let the command "+
				"change it (setpriv, runuser)", st.arg(1))
		default:
			k.unknown(s, block, st)
		}
	}
	if !isCommand(command) {
		k.noteOf(s, c.Place, "MISC_CHECK: %q is no command with an absolute path: left out: write command in a "+
			"check of type exec", strings.Join(command, " "))
		return false
	}
	c.add("command", list(command))
	return true
}

// isCommand reports whether a command is legal in a director.toml.
func isCommand(words []string) bool {
	return len(words) > 0 && strings.HasPrefix(words[0], "/") && !slices.ContainsFunc(words, func(w string) bool {
		return !utf8.ValidString(w) || strings.ContainsRune(w, 0)
	})
}
