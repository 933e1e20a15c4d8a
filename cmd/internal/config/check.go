package config

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"vstun/balancer/method"
	"vstun/cmd/internal/words"
)

// checkReader reads the checks of one service.
type checkReader struct {
	service *Service
	table   *table // [service.check]
	check   *Check // of the service; nil: none
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

// readFor reads a realserver's check. Without a key check it returns its service's check, the same pointer.
func (r *checkReader) readFor(t *table, forward method.Kind) *Check {
	if _, ok := t.value("check"); !ok {
		return r.check
	}
	own := t.table("check", wantCheck)
	c := r.read(own, r.check)
	if forward == method.NAT && !c.Row().Local && own.values["via"] == "tunnel" {
		own.faultAt("via", wantDirect)
	}
	return c
}

// read reads a check from t. A missing key has the value of base, if there is one.
func (r *checkReader) read(t *table, base *Check) *Check {
	types := CheckTypes()
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
	row := c.Row()
	for _, g := range keyGroups {
		if g.read != nil {
			g.read(t, &c, slices.Contains(row.keys, g))
		}
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

// resetOthers sets the keys that not every type has to their defaults, unless the base's type has them too.
func (c *Check) resetOthers(base *Check) {
	own := Check{Type: c.Type, Direct: c.Direct, Interval: c.Interval, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall,
		Up: c.Up}
	for _, g := range c.Row().keys {
		switch {
		case base != nil && slices.Contains(base.Row().keys, g) && (!g.private || c.Type == base.Type):
			g.inherit(&own, c)
		case g.defaults != nil:
			g.defaults(&own)
		}
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

// readVia reads the path of the check. A check that examines the director's host has no path and counts as direct.
func (r *checkReader) readVia(t *table, c, base *Check) {
	if base != nil && base.Row().Local && !c.Row().Local {
		c.Direct = r.table.values["via"] == "direct" // a check of the director's host has no key via
	}
	written, ok := t.value("via")
	c.Direct = t.word("via", c.Via(), "tunnel", "direct") == "direct"
	if !c.Row().Local {
		return
	}
	if ok && written == "tunnel" {
		t.faultAt("via", "%s %s check runs on the director, by no tunnel: want direct, or leave it out",
			pick(strings.ContainsRune("aeiou", rune(c.Type[0])), "an", "a"), c.Type)
	}
	c.Direct = true
}

// checkVia refuses via = "tunnel" where it has no effect, in a service whose realservers all have the method nat.
func (r *checkReader) checkVia(s *Service) {
	all := s.EveryRef()
	others := slices.ContainsFunc(all, func(rs RealserverRef) bool { return rs.Forward != method.NAT })
	if r.table.values["via"] == "tunnel" && !others && (s.Forward == method.NAT || len(all) > 0) {
		r.table.faultAt("via", wantDirect)
	}
}

const wantDirect = "a realserver of nat is checked at its own address and port: want direct, or leave it out"

// readPort reads the port to check. The default is the first port of the service.
func (r *checkReader) readPort(t *table, c, base *Check) {
	const want = wantPort
	c.Port = uint16(t.integer("port", int(c.Port), 1, 65535, want))
	c.DefaultPort = c.DefaultPort && t.values["port"] == nil
	if !c.has("port") || c.Port != 0 || t.values["port"] != nil || len(r.service.Ports) == 0 {
		return
	}
	c.Port, c.DefaultPort = r.service.Ports[0].First, true
	if c.Port == 0 && (base == nil || !base.has("port")) { // else the fault is in the service's check
		t.faultAt("port", "missing, as the service has every port: want the one to check, %s", want)
	}
}

// graphic reads an optional string without spaces and control characters, in ASCII.
func (t *table) graphic(key, absent, want string) string {
	s, ok := t.text(key, absent, want)
	if _, written := t.values[key]; ok && written &&
		(s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })) {
		t.faultAt(key, "%s is empty, or not printable ASCII without spaces: want %s", show(s), want)
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

// warnTransport warns if a check goes to the service's port over another protocol than the service's. A check with its
// own port gets no warning.
func (r *checkReader) warnTransport(t *table, c *Check) {
	protocol := r.service.Protocol
	over := c.transport(protocol)
	if t.values["type"] == nil || over == "" || protocol == "" || over == protocol || t.values["port"] != nil ||
		r.table.values["port"] != nil {
		return
	}
	t.warnAt("type", "%s checks go over %s, and the service is %s: want another type, or the port to check as port",
		c.Type, over, protocol)
}

// pick returns a if first is set, else b.
func pick(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}
