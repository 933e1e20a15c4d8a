package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// device reads the name of a TUN device. The kernel's rule is dev_valid_name in net/core/dev.c: 1 to 15 bytes without
// '/', ':' and whitespace, not "." or "..". Also refused are '%', from which the kernel would make up a name, and "all"
// and "default", which are directories of net.ipv4.conf.
func (t *table) device(key string) string {
	const want = "1 to 15 letters, digits or signs other than / : % (not \".\", \"..\", \"all\" or \"default\")"
	name, ok := t.text(key, "vs0", want)
	if !ok {
		return ""
	}
	if !validDevice(name) {
		t.faultAt(key, "%s is not a device's name: want %s", show(name), want)
	} else if name == "lo" {
		t.faultAt(key, "\"lo\" is the loopback device: want another name")
	}
	return name
}

func validDevice(name string) bool {
	return len(name) >= 1 && len(name) <= 15 && !slices.Contains([]string{".", "..", "all", "default"}, name) &&
		strings.IndexFunc(name, func(r rune) bool {
			return r <= ' ' || r > '~' || strings.ContainsRune("/:%", r)
		}) < 0
}

// IsDevice reports whether a text is a legal name of a device.
func IsDevice(text string) bool { return validDevice(text) }

// socket reads the path of a Unix socket, which has 108 bytes with the final NUL: unix(7).
func (t *table) socket(key, absent string) string {
	const want = `an absolute path of at most 107 bytes, such as "/run/vstun/NAME.sock"`
	path, ok := t.text(key, absent, want)
	switch {
	case !ok:
	case !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") || strings.ContainsRune(path, 0):
		t.faultAt(key, "%s is not a socket's path: want %s", show(path), want)
	case len(path) > 107:
		t.faultAt(key, "%s has %d bytes: want %s", show(path), len(path), want)
	}
	return path
}

// listen reads the address and port of a server, or returns the zero value for a missing key. such is an example.
func (t *table) listen(key, such string) netip.AddrPort {
	want := fmt.Sprintf("an address of this host and a port, such as %q, or \"0.0.0.0\" or \"[::]\" for all of its "+
		"addresses", such)
	v, ok := t.value(key)
	if !ok {
		return netip.AddrPort{}
	}
	s, ok := v.(string)
	if !ok {
		t.wrongType(key, v, want)
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(s)
	switch {
	case err != nil:
		t.faultAt(key, "%s is not an address and a port: want %s", show(s), want)
	case a.Port() == 0:
		t.faultAt(key, "%s has port 0: want 1 to 65535", show(s))
	case a.Addr().Is4In6():
		t.faultAt(key, "%s is an IPv4-mapped IPv6 address: want \"%v\"", show(s), netip.AddrPortFrom(a.Addr().Unmap(),
			a.Port()))
	case a.Addr().IsMulticast():
		t.faultAt(key, "%s is a multicast address: want %s", show(s), want)
	default:
		return a
	}
	return netip.AddrPort{}
}

// offload reads whether a TUN device may leave checksums and segmentation to the program: "auto" or "off".
func (t *table) offload(key string) bool {
	return t.oneOf(key, "auto", "off") != "off"
}

// oneOf reads one of several words; the first is the default.
func (t *table) oneOf(key string, words ...string) string { return t.word(key, words[0], words...) }

// word reads one of several words.
func (t *table) word(key, absent string, words ...string) string {
	v, ok := t.value(key)
	if !ok {
		return absent
	}
	word, _ := t.choice(key, v, words)
	return word
}

// level reads the least level that is logged.
func (t *table) level(key string) slog.Level {
	v, ok := t.value(key)
	if !ok {
		return slog.LevelInfo
	}
	name, _ := t.choice(key, v, []string{"debug", "info", "warn", "error"})
	switch name {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// address checks that a value is an IPv4 or IPv6 address that can belong to one host.
func (t *table) address(key string, value any) (netip.Addr, bool) {
	const want = `an IPv4 or IPv6 address such as "10.0.2.2" or "2001:db8::2"`
	s, ok := value.(string)
	if !ok {
		t.wrongType(key, value, want)
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		t.faultAt(key, "%s is not an address: want %s", show(s), want)
	case a.Zone() != "":
		t.faultAt(key, "%s has a zone: want %s", show(s), want)
	case a.Is4In6():
		t.faultAt(key, "%s is an IPv4-mapped IPv6 address: want \"%v\"", show(s), a.Unmap())
	case NotUnicast(a) != "":
		t.faultAt(key, "%s is %s: want a unicast address", show(s), NotUnicast(a))
	default:
		return a, true
	}
	return netip.Addr{}, false
}

// NotUnicast returns why an address cannot be a host's own address on more than one network, or "".
func NotUnicast(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "the unspecified address"
	case a.Is6() && a.IsLinkLocalUnicast():
		return "a link-local address"
	case a.Is4() && a.As4()[0] == 0:
		return "in 0.0.0.0/8, \"this network\""
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast():
		return "a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "the broadcast address"
	}
	return ""
}

// addresses checks a list of addresses without duplicates.
func (t *table) addresses(key string, values []any) []netip.Addr {
	var list []netip.Addr
	seen := map[netip.Addr]bool{}
	for _, v := range t.elements(key, values) {
		a, ok := t.address(key, v)
		switch {
		case !ok:
		case seen[a]:
			t.faultAt(key, "%s is there twice: want each address once", show(v))
		default:
			seen[a] = true
			t.mark(key, a.String())
			list = append(list, a)
		}
	}
	return list
}

// source checks that a value is an address or prefix for the sources of tunnel packets. A prefix wider than /8 (IPv6:
// /32, a provider's largest, RFC 6177) would make the agent an open decapsulator: CVE-2020-10136.
func (t *table) source(key string, value any) (netip.Prefix, bool) {
	const want = `an address such as "10.0.2.2" or "2001:db8::2", or a prefix such as "10.0.2.0/24" or "2001:db8::/64"`
	const widest, widest6 = 8, 32
	s, ok := value.(string)
	if !ok {
		t.wrongType(key, value, want)
		return netip.Prefix{}, false
	}
	if !strings.Contains(s, "/") {
		a, ok := t.address(key, value)
		return netip.PrefixFrom(a, a.BitLen()), ok
	}
	p, err := netip.ParsePrefix(s)
	least := widest
	if p.Addr().Is6() {
		least = widest6
	}
	switch {
	case err != nil:
		t.faultAt(key, "%s is not a prefix: want %s", show(s), want)
	case p.Addr().Is4In6():
		t.faultAt(key, "%s is of IPv4-mapped IPv6 addresses: want %s", show(s), want)
	case p.Bits() < least:
		t.faultAt(key, "%s lets anybody send packets into this host's network (an open decapsulator, "+
			"CVE-2020-10136): want the directors' own addresses, or prefixes from /%d to /%d", show(s), least,
			p.Addr().BitLen())
	case p != p.Masked():
		t.faultAt(key, "%s has bits beyond its length: want \"%v\", or \"%v\" for the one address",
			show(s), p.Masked(), p.Addr())
	case NotUnicast(p.Addr()) != "":
		t.faultAt(key, "%s is %s: want a unicast address or prefix", show(s), NotUnicast(p.Addr()))
	default:
		return p, true
	}
	return netip.Prefix{}, false
}

// ports reads a required port, a range of ports, or an array of both; 0 means every port.
func (t *table) ports(key string) []PortRange {
	const want = `0 (every port), 1 to 65535, a range "8000-8099" or an array of them`
	var list []PortRange
	for _, v := range t.elements(key, t.oneOrMore(key, want)) {
		r, fault := parsePorts(v)
		if fault != "" {
			t.faultAt(key, "%s %s: want %s", show(v), fault, want)
			continue
		}
		list = append(list, r)
	}
	if len(list) > 1 && slices.Contains(list, PortRange{}) {
		t.faultAt(key, "0 is every port, and stands among others: want it alone")
		return list
	}

	sorted := slices.Clone(list)
	slices.SortFunc(sorted, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	for i, widest := 1, 0; i < len(sorted); i++ {
		if sorted[i].First <= sorted[widest].Last {
			t.faultAt(key, "%v overlaps %v: want each port once", sorted[i], sorted[widest])
		}
		if sorted[i].Last > sorted[widest].Last {
			widest = i
		}
	}
	return list
}

// parsePorts returns the range of a number or of "first-last", or the value's fault.
func parsePorts(value any) (r PortRange, fault string) {
	var first, last int64
	switch v := value.(type) {
	case int64:
		if v == 0 {
			return PortRange{}, ""
		}
		first, last = v, v
	case string:
		low, high, isRange := strings.Cut(v, "-")
		a, errA := strconv.ParseUint(low, 10, 63)
		b, errB := strconv.ParseUint(high, 10, 63)
		if !isRange || errA != nil || errB != nil {
			return r, "is not a range of ports"
		}
		first, last = int64(a), int64(b)
	default:
		return r, "is of the wrong type"
	}
	switch {
	case first < 1 || first > 65535 || last < 1 || last > 65535:
		return r, "is out of range"
	case first > last:
		return r, "runs from high to low"
	}
	return PortRange{First: uint16(first), Last: uint16(last)}, ""
}
