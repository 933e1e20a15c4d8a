package config

import (
	"errors"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"vstun/cmd/internal/words"
)

// checkTypes are the types of checks, with the keys that are each one's own.
var checkTypes = []struct {
	name string
	keys []string
	here bool // it examines the director's host, and sends the realserver nothing
}{
	{"tcp", []string{"port", "send", "send_hex", "expect", "expect_hex"}, false},
	{"http", []string{"port", "path", "host", "status", "body"}, false},
	{"https", []string{"port", "path", "host", "status", "body", "sni", "ca", "verify", "cert", "key"}, false},
	{"dns", []string{"port", "query", "query_type", "rcode", "records"}, false},
	{"udp", []string{"port", "send", "send_hex", "expect", "expect_hex"}, false},
	{"ping", nil, false},
	{"smtp", []string{"port", "helo"}, false},
	{"exec", []string{"command"}, true},
	{"file", []string{"path", "factor", "reverse"}, true},
}

// checkTypesWith are the types that have a key; with "" all of them.
func checkTypesWith(key string) []string {
	var names []string
	for _, c := range checkTypes {
		if key == "" || slices.Contains(c.keys, key) {
			names = append(names, c.name)
		}
	}
	return names
}

// has says whether the check's type has a key.
func (c *Check) has(key string) bool { return slices.Contains(checkTypesWith(key), c.Type) }

// here reports whether the check examines the director's host.
func (c *Check) here() bool {
	for _, t := range checkTypes {
		if t.name == c.Type {
			return t.here
		}
	}
	return false
}

// checkReader reads the checks of one service.
type checkReader struct {
	service *Service
	table   *table // [service.check]
	check   *Check // what it says; nil: there is none
}

func newCheckReader(t *table, s *Service) *checkReader {
	r := &checkReader{service: s, table: t.child("check", nil, nil)}
	if _, ok := t.value("check"); ok {
		r.table = t.table("check", wantCheck)
		r.check = r.read(r.table, nil)
	}
	return r
}

const wantCheck = "a table such as { type = \"http\" }"

// readFor reads a realserver's check, which is its service's where the realserver says nothing else.
func (r *checkReader) readFor(t *table) *Check {
	if _, ok := t.value("check"); !ok {
		return r.check
	}
	return r.read(t.table("check", wantCheck), r.check)
}

// read reads a check from t; of what t does not have it is the base, if there is one.
func (r *checkReader) read(t *table, base *Check) *Check {
	types := checkTypesWith("")
	c := Check{Interval: 5 * time.Second, Rise: 2, Fall: 3}
	if base != nil {
		c = *base
	}
	switch v, ok := t.value("type"); {
	case ok:
		c.Type, _ = t.choice("type", v, types)
	case base == nil:
		t.faultAt("type", "missing: want %s", words.OneOf(types))
	}
	c.resetOthers(base)
	r.readTimes(t, &c)
	const wantRow = "1 to 1000 checks in a row"
	c.Rise = t.integer("rise", c.Rise, 1, 1000, wantRow)
	c.Fall = t.integer("fall", c.Fall, 1, 1000, wantRow)
	c.Up = t.word("initial", pick(c.Up, "up", "down"), "down", "up") == "up"
	r.readVia(t, &c, base)
	r.readPort(t, &c, base)
	readPath(t, &c)
	c.Host = t.graphic("host", c.Host, `a host's name such as "www.example.com"`)
	c.Status = readStatus(t, c.Status)
	c.Body = t.pattern("body", c.Body)
	c.SNI = t.graphic("sni", c.SNI, `a host's name such as "www.example.com"`)
	readCA(t, &c)
	c.Verify = t.boolean("verify", c.Verify)
	readCertificate(t, &c)
	readSend(t, &c)
	readExpect(t, &c)
	readQuery(t, &c)
	c.Helo = t.graphic("helo", c.Helo, `a host's name such as "lb.example.com"`)
	c.Command = readCommand(t, c.Command)
	readFactor(t, &c)
	if c.Type == "exec" && len(c.Command) == 0 && t.values["command"] == nil {
		t.faultAt("command", "missing: want %s", wantCommand)
	}
	for _, key := range t.known {
		if of := checkTypesWith(key); len(of) > 0 && c.Type != "" && t.values[key] != nil && !c.has(key) {
			t.faultAt(key, "is of %s checks only, and this one is %s: leave it out", words.OneOf(of), c.Type)
		}
	}
	r.warnTransport(t, &c)
	t.finish()
	return &c
}

// resetOthers gives what the check's type alone has its defaults, unless the base has it too.
func (c *Check) resetOthers(base *Check) {
	inherits := func(key string) bool { return base != nil && base.has(key) && c.has(key) }
	own := Check{Type: c.Type, Direct: c.Direct, Interval: c.Interval, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall,
		Up: c.Up}
	if inherits("port") {
		own.Port = c.Port
	}
	if c.has("status") {
		own.Path, own.Status = "/", []StatusRange{{200, 399}}
	}
	if c.has("verify") {
		own.Verify = true
	}
	if c.has("query") {
		own.QueryType, own.Rcode, own.Records = "A", "NOERROR", 1
	}
	if c.has("factor") {
		own.Factor = 1
	}
	if inherits("status") {
		own.Path, own.Host, own.Status, own.Body = c.Path, c.Host, c.Status, c.Body
	}
	if inherits("verify") {
		own.SNI, own.CA, own.CAFile, own.Verify = c.SNI, c.CA, c.CAFile, c.Verify
		own.CertFile, own.Cert, own.KeyFile, own.Key = c.CertFile, c.Cert, c.KeyFile, c.Key
	}
	if inherits("send") && c.Type == base.Type {
		own.Send, own.SendHex, own.Expect, own.ExpectHex = c.Send, c.SendHex, c.Expect, c.ExpectHex
	}
	if inherits("query") {
		own.Query, own.QueryType, own.Rcode, own.Records = c.Query, c.QueryType, c.Rcode, c.Records
	}
	if inherits("helo") {
		own.Helo = c.Helo
	}
	if inherits("command") {
		own.Command = c.Command
	}
	if inherits("factor") {
		own.File, own.Factor, own.Reverse = c.File, c.Factor, c.Reverse
	}
	*c = own
}

// readTimes reads interval and timeout; the default of timeout is no longer than interval.
func (r *checkReader) readTimes(t *table, c *Check) {
	const wantInterval, wantTimeout = "100ms to 24h", "10ms to interval"
	c.Interval = t.duration("interval", c.Interval, 100*time.Millisecond, 24*time.Hour, wantInterval)
	if c.Timeout == 0 || r.table.values["timeout"] == nil {
		c.Timeout = min(2*time.Second, c.Interval)
	}
	c.Timeout = t.duration("timeout", c.Timeout, 10*time.Millisecond, 24*time.Hour, wantTimeout)
	if c.Timeout > c.Interval && (t.values["interval"] != nil || t.values["timeout"] != nil) {
		t.faultAt("timeout", "%v is longer than interval, %v: want %s", c.Timeout, c.Interval, wantTimeout)
	}
}

// readVia reads the path of the check. A check of the director's host has none, and counts as direct.
func (r *checkReader) readVia(t *table, c, base *Check) {
	if base != nil && base.here() && !c.here() {
		c.Direct = r.table.values["via"] == "direct" // a check of the director's host has no key via
	}
	written, ok := t.value("via")
	c.Direct = t.word("via", pick(c.Direct, "direct", "tunnel"), "tunnel", "direct") == "direct"
	if !c.here() {
		return
	}
	if ok && written == "tunnel" {
		t.faultAt("via", "%s %s check runs on the director, by no tunnel: want direct, or leave it out",
			pick(c.Type == "exec", "an", "a"), c.Type)
	}
	c.Direct = true
}

// readPort reads the port to check; the default is the service's, of several the first.
func (r *checkReader) readPort(t *table, c, base *Check) {
	const want = "1 to 65535"
	c.Port = uint16(t.integer("port", int(c.Port), 1, 65535, want))
	if !c.has("port") || c.Port != 0 || t.values["port"] != nil || len(r.service.Ports) == 0 {
		return
	}
	c.Port = r.service.Ports[0].First
	if c.Port == 0 && (base == nil || !base.has("port")) { // else the service's check has said it
		t.faultAt("port", "missing, as the service has every port: want the one to check, %s", want)
	}
}

// readPath reads the path of a GET, or that of a file.
func readPath(t *table, c *Check) {
	if c.Type == "file" {
		readNumberFile(t, c)
		return
	}
	const want = `a path such as "/health?full=1"`
	c.Path = t.graphic("path", c.Path, want)
	if t.values["path"] == nil || c.Path == "" {
		return
	}
	if !strings.HasPrefix(c.Path, "/") {
		t.faultAt("path", "%s does not begin with /: want %s", show(c.Path), want)
	} else if _, err := url.ParseRequestURI(c.Path); err != nil {
		t.faultAt("path", "%s has a %% that two hexadecimal digits do not follow: want %s", show(c.Path), want)
	}
}

// graphic reads an optional string without spaces and control characters, in ASCII.
func (t *table) graphic(key, absent, want string) string {
	s, ok := t.text(key, absent, want)
	if _, written := t.values[key]; ok && written &&
		(s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })) {
		t.faultAt(key, "%s is empty, or has other than printable ASCII characters: want %s", show(s), want)
	}
	return s
}

// pattern reads an optional regular expression.
func (t *table) pattern(key, absent string) string {
	const want = "a regular expression, as Go has them (RE2)"
	s, ok := t.text(key, absent, want)
	if _, written := t.values[key]; ok && written {
		if _, err := regexp.Compile(s); err != nil {
			t.faultAt(key, "%s: %v: want %s", show(s), strings.TrimPrefix(err.Error(), "error parsing regexp: "), want)
		}
	}
	return s
}

// readStatus reads the codes that a check of HTTP takes for a success.
func readStatus(t *table, absent []StatusRange) []StatusRange {
	const want = `an array of codes, 100 to 599, and ranges of them: [200, "300-399"]`
	list, ok := t.array("status", want)
	if !ok {
		return absent
	}
	var all []StatusRange
	for _, v := range t.elements("status", list) {
		r, ok := parseStatus(v)
		if !ok {
			t.faultAt("status", "%s is no code and no range: want %s", show(v), want)
		}
		all = append(all, r)
	}
	return all
}

func parseStatus(value any) (r StatusRange, ok bool) {
	switch v := value.(type) {
	case int64:
		r = StatusRange{int(min(max(v, 0), math.MaxInt32)), int(min(max(v, 0), math.MaxInt32))}
	case string:
		low, high, isRange := strings.Cut(v, "-")
		if !isRange {
			high = low
		}
		var errA, errB error
		r.First, errA = strconv.Atoi(low)
		r.Last, errB = strconv.Atoi(high)
		if errA != nil || errB != nil {
			return r, false
		}
	}
	return r, r.First >= 100 && r.First <= r.Last && r.Last <= 599
}

func readQuery(t *table, c *Check) {
	const want = `a domain name such as "www.example.com"`
	c.Query = t.graphic("query", c.Query, want)
	if _, ok := dns.IsDomainName(c.Query); !ok && t.values["query"] != nil && c.Query != "" {
		t.faultAt("query", "%s is not a domain name: want %s", show(c.Query), want)
	}
	if c.Type == "dns" && c.Query == "" && t.values["query"] == nil {
		t.faultAt("query", "missing: want %s", want)
	}
	c.QueryType = t.word("query_type", c.QueryType, "A", "AAAA", "CAA", "CNAME", "DNSKEY", "DS", "HTTPS", "MX", "NAPTR",
		"NS", "PTR", "SOA", "SRV", "SVCB", "TXT")
	c.Records = t.integer("records", c.Records, 0, 1000, "0 (any NOERROR) to 1000")
	c.Rcode = t.word("rcode", c.Rcode, "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
}

const wantCommand = `an array of an absolute path and arguments: ["/usr/local/bin/check", "arg"]`

// readCommand reads a program with its arguments. Its absence is a warning: it may be installed later.
func readCommand(t *table, absent []string) []string {
	list, ok := t.array("command", wantCommand)
	if !ok {
		return absent
	}
	var command []string
	for i, v := range t.elements("command", list) {
		s, ok := v.(string)
		switch {
		case !ok:
			t.wrongType("command", v, wantCommand)
		case strings.ContainsRune(s, 0):
			t.faultAt("command", "%s has a NUL: want %s", show(s), wantCommand)
		case i == 0 && !filepath.IsAbs(s):
			t.faultAt("command", "%s is not an absolute path: want %s", show(s), wantCommand)
		case i == 0:
			if why := unfit(s); why != "" {
				t.warnAt("command", "%s %s: install it, or name another program", show(s), why)
			}
		}
		command = append(command, s)
	}
	return command
}

// unfit returns why a file can't be run as a program, or "".
func unfit(program string) string {
	info, err := os.Stat(program)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "is not there"
	case err != nil:
		return "can't be run: " + errors.Unwrap(err).Error()
	case !info.Mode().IsRegular():
		return "is no program"
	case info.Mode()&0o111 == 0:
		return "is not executable"
	}
	return ""
}

// transport returns the transport protocol of a check's type, or "" if it has none. DNS uses the service's, or else
// UDP.
func transport(checkType, service string) string {
	switch checkType {
	case "tcp", "http", "https", "smtp":
		return "tcp"
	case "udp":
		return "udp"
	case "dns":
		if service == "tcp" {
			return "tcp"
		}
		return "udp"
	}
	return ""
}

// warnTransport warns of a check of the service's port over another protocol than the service's. A check with a port of
// its own gets no warning.
func (r *checkReader) warnTransport(t *table, c *Check) {
	protocol := r.service.Protocol
	over := transport(c.Type, protocol)
	if t.values["type"] == nil || over == "" || protocol == "" || over == protocol || t.values["port"] != nil ||
		r.table.values["port"] != nil {
		return
	}
	t.warnAt("type", "%s checks go over %s, and the service is %s: want another type, or the port to check as port",
		c.Type, over, protocol)
}

// pick is one of two words.
func pick(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}
