package migrate

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"vstun/balancer/method"
)

// writer writes TOML in the manual's style: keys in the manual's order, aligned, without defaults, and comments before
// their subject.
type writer struct {
	strings.Builder
	prefix string // begins every line
}

// line writes a line.
func (w *writer) line(format string, args ...any) {
	text := strings.TrimRight(w.prefix+fmt.Sprintf(format, args...), " ") + "\n"
	if w.prefix != "" {
		text = strings.ReplaceAll(text[:len(text)-1], "\n", "\n"+w.prefix) + "\n"
	}
	w.WriteString(text)
}

// table writes a header and its keys.
func (w *writer) table(indent, header string, keys []key) {
	w.line("%s%s", indent, header)
	width := 0
	for _, k := range keys {
		width = max(width, len(k.name))
	}
	for _, k := range keys {
		comment := ""
		if k.comment != "" {
			comment = "  # " + k.comment
		}
		w.line("%s%-*s = %s%s", indent, width, k.name, k.value, comment)
	}
}

// notes writes notes as comments. Equal notes on several lines of the source become one comment.
func (w *writer) notes(indent string, notes []Note) {
	lines := map[string][]string{}
	for _, n := range notes {
		id := n.File + ":" + n.Text
		lines[id] = append(lines[id], strconv.Itoa(n.Line))
	}
	for _, n := range notes {
		id := n.File + ":" + n.Text
		if all := lines[id]; all != nil {
			lines[id] = nil
			w.line("%s# ! %s:%s: %s", indent, printable(filepath.Base(n.File)), strings.Join(all, ","), n.Text)
		}
	}
}

// write writes the director.toml. script is the shell script for [notify], or "". mail is the keys of
// [notify.mail].
func (p *plan) write(source, script string, mail []key) []byte {
	w := &writer{}
	w.line("# From %s, by director import %s.", printable(filepath.Base(source)), p.program)
	if len(p.notes) > 0 {
		w.line("# A line that begins with \"# !\" says what has no counterpart, or is different, in which line of " +
			"the source, and what to do.")
	}
	if p.hasChecks() {
		w.line("#")
		w.line("# Checks with via = \"tunnel\" go to the VIP, by the forwarding method, as clients' packets do, and " +
			"so find more than keepalived's, which go to")
		w.line("# the realserver's own address: that is via = \"direct\". As with keepalived, realservers begin as " +
			"up (initial) but for those with alpha,")
		w.line("# one success makes them up again (rise), and certificates are not verified (verify).")
	}
	if p.program == "ipvsadm" {
		w.line("# ipvsadm-save leaves thresholds out (-x, -y), which ipvsadm -Ln --thresholds shows: they are upper " +
			"and lower of a realserver. IPVS")
		w.line("# itself checks no realserver: a [service.check] takes those out that don't work.")
	}
	of, on := map[*service][]Note{}, map[*instance][]Note{}
	for _, n := range p.notes {
		if n.on != nil {
			on[n.on] = append(on[n.on], n)
		} else {
			of[n.of] = append(of[n.of], n)
		}
	}
	if len(of[nil]) > 0 {
		w.line("#")
		w.notes("", of[nil])
	}
	if p.timeouts != (timeouts{}) {
		var list []string
		for _, t := range []struct {
			name string
			time.Duration
		}{{"tcp", p.timeouts.tcp}, {"tcp_fin", p.timeouts.tcpFin}, {"udp", p.timeouts.udp}} {
			if t.Duration > 0 {
				list = append(list, t.name+" = "+quote(duration(t.Duration)))
			}
		}
		w.line("")
		w.table("", "[connections]", []key{{"timeouts", "{ " + strings.Join(list, ", ") + " }", ""}})
	}
	w.notify(script, mail, p.mail.timeout)
	w.vrrp(p, on)
	w.sync(&p.sync)
	for _, s := range p.services {
		w.line("")
		w.notes("", of[s])
		w.source(s)
		w.service(s)
	}
	for _, s := range p.marks {
		w.line("")
		w.notes("", of[s])
		w.source(s)
		w.prefix = "#"
		w.service(s)
		w.prefix = ""
	}
	return []byte(w.String())
}

// notify writes [notify] with a shell script and [notify.mail], if there are any.
func (w *writer) notify(script string, mail []key, timeout time.Duration) {
	if script == "" && mail == nil {
		return
	}
	var keys []key
	w.line("")
	if script != "" {
		w.line("# keepalived's scripts. The director runs this for every change of state, with these arguments " +
			"behind it: service, realserver or vrrp, the")
		w.line("# service's or instance's name, the realserver's address (ADDRESS:PORT, if it has a port of its own) " +
			"or -, the old state, the new state,")
		w.line("# why. It runs with the director's rights, which are few.")
		keys = append(keys, key{"command", `["/bin/sh", "-c", ` + block(script) + `, "notify"]`, ""})
	}
	if mail != nil {
		keys = append(keys, key{"timeout", quote(duration(cmp.Or(timeout, usualMailTimeout))), ""})
	}
	w.table("", "[notify]", keys)
	if mail != nil {
		w.line("")
		w.line("# keepalived's mail, which is neither encrypted nor has a login: tls, user and password_file do that.")
		w.table("", "[notify.mail]", mail)
	}
}

// vrrp writes the instances, each with its notes.
func (w *writer) vrrp(p *plan, notes map[*instance][]Note) {
	vips := map[netip.Addr]bool{}
	for _, s := range p.services {
		for _, vip := range s.vips {
			vips[vip] = true
		}
	}
	for _, v := range p.instances {
		w.line("")
		w.notes("", notes[v])
		w.line("# %s:%d: %s", printable(filepath.Base(v.File)), v.Line, v.source)
		w.table("", "[[vrrp]]", v.keys(vips))
	}
}

// sync writes [sync], if there is a sync daemon.
func (w *writer) sync(d *syncDaemon) {
	if d.device == "" {
		return
	}
	w.line("")
	w.line("# %s:%d: the kernel's protocol, which has no authentication. When all directors are of vstun, set mode = "+
		"\"vstun\" and a key.", printable(filepath.Base(d.File)), d.Line)
	w.table("", "[sync]", d.keys())
}

func (p *plan) hasChecks() bool {
	return slices.ContainsFunc(p.services, func(s *service) bool {
		return slices.ContainsFunc(s.realservers, func(r *realserver) bool { return r.check != nil })
	})
}

// source writes the line of the source that a service comes from.
func (w *writer) source(s *service) {
	w.line("# %s:%d: %s", printable(filepath.Base(s.File)), s.Line, s.source)
}

// service writes a service. A service without VIPs is written for a comment, with marks where the user fills in values.
func (w *writer) service(s *service) {
	tunnel, drain, common := s.tunnel(), s.drain(), s.check()
	keys := slices.Concat([]key{{"name", quote(s.name), ""}}, s.addressKeys(), s.schedulingKeys(), s.methodKeys(tunnel),
		s.healthKeys(drain))
	w.table("", "[[service]]", keys)
	if common != nil {
		w.line("")
		w.check("  ", "[service.check]", common)
	}
	for _, r := range s.realservers {
		w.line("")
		w.realserver(r, s.method(), tunnel, drain)
		if common == nil && r.check != nil {
			w.line("")
			w.check("    ", "[service.realserver.check]", r.check)
		}
	}
}

// addressKeys returns the keys vip, protocol and port.
func (s *service) addressKeys() []key {
	protocol := key{"protocol", quote(s.protocol), ""}
	if len(s.vips) == 0 {
		return []key{{"vip", `["…"]`, "the addresses that get the mark"}, protocol, {"port", "[ … ]",
			"the ports that get it"}}
	}
	var vips, ports []string
	for _, vip := range s.vips {
		vips = append(vips, vip.String())
	}
	for _, port := range s.ports {
		ports = append(ports, strconv.Itoa(int(port)))
	}
	vip, port := list(vips), "["+strings.Join(ports, ", ")+"]"
	if len(vips) == 1 {
		vip = quote(vips[0])
	}
	if len(ports) == 1 {
		port = ports[0]
	}
	return []key{{"vip", vip, ""}, protocol, {"port", port, ""}}
}

// schedulingKeys returns the keys of the scheduler and of persistence.
func (s *service) schedulingKeys() (keys []key) {
	add := func(name, value string) { keys = append(keys, key{name, value, ""}) }
	if s.scheduler != "" {
		add("scheduler", quote(s.scheduler))
	}
	if flags := s.settledFlags(); len(flags) > 0 {
		add("scheduler_flags", list(flags))
	}
	if s.persistence.timeout > 0 {
		value := "timeout = " + quote(duration(s.persistence.timeout))
		if n := s.persistence.netmask; n > 0 {
			value += ", netmask = " + strconv.Itoa(n)
		}
		if n := s.persistence.netmask6; n > 0 {
			value += ", netmask6 = " + strconv.Itoa(n)
		}
		add("persistence", "{ "+value+" }")
	}
	if s.onePacket {
		add("one_packet", "true")
	}
	return keys
}

// methodKeys returns the keys of the service's forwarding method and tunnel.
func (s *service) methodKeys(tunnel tunnel) (keys []key) {
	add := func(name, value string) { keys = append(keys, key{name, value, ""}) }
	if s.method() != method.TUN {
		add("forward", quote(s.method().String()))
	}
	if tunnel.encap != "ipip" {
		add("encap", quote(tunnel.encap))
	}
	for _, r := range s.realservers {
		if r.tunnel.encap == "gue" && r.tunnel.port != 6080 {
			add("encap_port", strconv.Itoa(int(r.tunnel.port)))
			break
		}
	}
	if tunnel.checksum {
		add("encap_checksum", "true")
	}
	return keys
}

// healthKeys returns the keys quorum, hysteresis, on_failure and those of the sorry server.
func (s *service) healthKeys(drain bool) (keys []key) {
	add := func(name, value string) { keys = append(keys, key{name, value, ""}) }
	if s.quorum > 1 {
		add("quorum", strconv.Itoa(s.quorum))
	}
	if s.hysteresis > 0 {
		add("hysteresis", strconv.Itoa(s.hysteresis))
	}
	if drain {
		add("on_failure", quote("drain"))
	}
	if s.sorry != nil {
		add("sorry_server", quote(s.sorry.name()))
		if s.sorry.forward != s.method() {
			add("sorry_forward", quote(s.sorry.forward.String()))
		}
	}
	return keys
}

// realserver writes a realserver of a service with a method, a tunnel and on_failure.
func (w *writer) realserver(r *realserver, forward method.Kind, tunnel tunnel, drain bool) {
	var keys []key
	add := func(name, value string) { keys = append(keys, key{name, value, ""}) }
	add("address", quote(r.address.String()))
	if r.port != 0 {
		add("port", strconv.Itoa(int(r.port)))
	}
	add("weight", strconv.Itoa(r.weight))
	if r.forward != forward {
		add("forward", quote(r.forward.String()))
	}
	if r.forward != method.TUN {
		tunnel = r.tunnel // none
	}
	if r.tunnel.encap != tunnel.encap {
		add("encap", quote(r.tunnel.encap))
	}
	if r.tunnel.encap != "ipip" && r.tunnel.checksum != tunnel.checksum {
		add("encap_checksum", strconv.FormatBool(r.tunnel.checksum))
	}
	if r.upper > 0 {
		add("upper", strconv.Itoa(r.upper))
	}
	if r.lower > 0 {
		add("lower", strconv.Itoa(r.lower))
	}
	if r.drain && !drain {
		add("on_failure", quote("drain"))
	}
	w.table("  ", "[[service.realserver]]", keys)
}

// method returns the service's forwarding method: its first realserver's. A realserver with another method has a key of
// its own.
func (s *service) method() method.Kind {
	if len(s.realservers) == 0 {
		return s.forward
	}
	return s.realservers[0].forward
}

// tunnel returns the service's tunnel: that of its first realserver with one. A realserver with another tunnel has keys
// of its own.
func (s *service) tunnel() tunnel {
	for _, r := range s.realservers {
		if r.forward == method.TUN {
			return r.tunnel
		}
	}
	return tunnel{encap: "ipip"}
}

// drain reports whether all realservers drain when they fail. If not, the draining ones have a key of their own.
func (s *service) drain() bool {
	return len(s.realservers) > 0 && !slices.ContainsFunc(s.realservers, func(r *realserver) bool { return !r.drain })
}

// check returns the check that all realservers of a service have in common, or nil.
func (s *service) check() *check {
	if len(s.realservers) == 0 || s.realservers[0].check == nil {
		return nil
	}
	first := *s.realservers[0].check
	for _, r := range s.realservers[1:] {
		if r.check == nil {
			return nil
		}
		other := *r.check
		other.Place = first.Place
		if !reflect.DeepEqual(first, other) {
			return nil
		}
	}
	return s.realservers[0].check
}

// check writes a check with all its values, since keepalived's defaults differ.
func (w *writer) check(indent, header string, c *check) {
	keys := []key{{"type", quote(c.kind), ""}}
	add := func(name, value string) { keys = append(keys, key{name, value, ""}) }
	if !c.local() {
		add("via", quote(c.via))
	}
	if c.port != 0 {
		add("port", strconv.Itoa(int(c.port)))
	}
	if c.foreign {
		keys[len(keys)-1].comment = "no port of the service"
	}
	keys = append(keys, c.keys...)
	add("interval", quote(duration(c.interval)))
	add("timeout", quote(duration(c.timeout)))
	add("rise", strconv.Itoa(c.rise))
	add("fall", strconv.Itoa(c.fall))
	if c.up {
		add("initial", quote("up"))
	}
	w.table(indent, header, keys)
}

// duration returns a duration in the form of a director.toml: "90s", "10m", "1.5s".
func duration(d time.Duration) string {
	switch {
	case d > 0 && d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d > time.Minute && d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	case d%time.Second == 0:
		return strconv.Itoa(int(d/time.Second)) + "s"
	}
	return d.String()
}

// quote returns a basic string of TOML.
func quote(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// block returns a string of several lines. If possible the text is unchanged, between three ' (TOML, "literal
// strings").
func block(text string) string {
	control := func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }
	if strings.Contains(text, "'''") || strings.HasSuffix(text, "'") || strings.ContainsFunc(text, control) ||
		!utf8.ValidString(text) {
		return quote(text)
	}
	return "'''\n" + text + "'''"
}

// list returns an array of strings. A long array has a line for each string.
func list(texts []string) string {
	var quoted []string
	for _, t := range texts {
		quoted = append(quoted, quote(t))
	}
	if one := "[" + strings.Join(quoted, ", ") + "]"; len(one) <= 120 {
		return one
	}
	return "[\n  " + strings.Join(quoted, ",\n  ") + ",\n]"
}
