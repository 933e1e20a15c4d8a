package routing

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// faults collects the errors of a State.
type faults struct {
	errs []error
	seen map[string]bool
}

func (f *faults) check(ok bool, format string, args ...any) {
	if !ok {
		f.errs = append(f.errs, fmt.Errorf(format, args...))
	}
}

// once adds an error if an element of this name has been seen already.
func (f *faults) once(name string) {
	f.check(!f.seen[name], "%s: given twice", name)
	f.seen[name] = true
}

// validate returns all errors of s that show without looking at the machine.
func (s State) validate() error {
	f := &faults{seen: map[string]bool{}}
	for _, c := range s.Sysctls {
		f.once("sysctl " + c.Key)
		f.check(validKey(c.Key), "sysctl %q: want a path below /proc/sys such as net/ipv4/ip_forward", c.Key)
		f.check(validValue(c.Value), "sysctl %s: bad value %q", c.Key, c.Value)
		if c.AtLeast {
			_, err := strconv.Atoi(c.Value)
			f.check(err == nil, "sysctl %s: value %q must be a number to compare with", c.Key, c.Value)
		}
	}
	for _, name := range s.Loose {
		f.once("loose " + name)
		f.check(validLink(name), "loose %q: want a device name of 1 to 15 bytes", name)
	}
	for _, l := range s.Links {
		f.once("link " + l.Name)
		f.check(validLink(l.Name), "link %q: want a device name of 1 to 15 bytes", l.Name)
		f.check(l.MTU == 0 || inRange(l.MTU, minMTU, maxMTU), "link %s: MTU %d: want %d to %d", l.Name, l.MTU, minMTU,
			maxMTU)
		f.check(l.Bridge == "" || validLink(l.Bridge), "link %s: bridge %q: want a device name of 1 to 15 bytes",
			l.Name, l.Bridge)
		f.check(inRange(l.TxQueueLen, 0, maxQL), "link %s: queue length %d: want 0 to %d", l.Name, l.TxQueueLen, maxQL)
	}
	for _, a := range s.Addrs {
		f.once(fmt.Sprintf("address %s on %s", a.Prefix, a.Link))
		f.check(validLink(a.Link), "address %s: bad device name %q", a.Prefix, a.Link)
		f.check(validPrefix(a.Prefix) && !a.Prefix.Addr().IsUnspecified(), "address %s on %s: not an address with a "+
			"prefix length", a.Prefix, a.Link)
	}
	for _, r := range s.Routes {
		f.route(r)
		f.check(s.Replies == nil || s.Replies.Table != r.table(), "route %s: table %d is the one for replies", r.Dst,
			r.Table)
	}
	for _, r := range s.Rules {
		f.rule(r)
		f.check(s.Replies == nil || s.Replies.Table != r.Table, "rule %s: table %d is the one for replies", r.record(),
			r.Table)
	}
	if s.Replies != nil {
		f.replies(s.Replies)
	}
	return errors.Join(f.errs...)
}

func (f *faults) route(r Route) {
	f.once(fmt.Sprintf("route %s in table %s with metric %d", r.Dst, tableName(r.table()), r.record().Metric))
	if r.leadsNowhere() {
		f.check(r.Link == "" && r.MTU == 0 && r.AdvMSS == 0, "route %s: unreachable or a blackhole, so it has no "+
			"device, MTU or MSS", r.Dst)
		f.check(!r.Unreachable || !r.Blackhole, "route %s: either unreachable or a blackhole", r.Dst)
	} else {
		f.check(validLink(r.Link), "route %s: bad device name %q", r.Dst, r.Link)
	}
	f.check(uint64(r.Metric) <= math.MaxInt, "route %s: metric %d: want 0 to %d on this machine", r.Dst, r.Metric,
		math.MaxInt)
	f.check(validPrefix(r.Dst) && r.Dst == r.Dst.Masked(), "route %s: not a network prefix without host bits", r.Dst)
	f.check(inRange(r.Table, 0, maxID), "route %s: bad table %d", r.Dst, r.Table)
	f.check(r.MTU == 0 || inRange(r.MTU, minMTU, maxMTU), "route %s: MTU %d: want %d to %d", r.Dst, r.MTU, minMTU,
		maxMTU)
	f.check(r.AdvMSS == 0 || inRange(r.AdvMSS, minMSS, maxMSS), "route %s: advmss %d: want %d to %d", r.Dst, r.AdvMSS,
		minMSS, maxMSS)
}

func (f *faults) rule(r Rule) {
	rec := r.record()
	f.once(fmt.Sprintf("rule %s", rec))
	f.check(inRange(r.Priority, 1, lastP), "rule %s: want a priority of 1 to %d, in front of the main table's", rec,
		lastP)
	f.check(r.In == "" || validLink(r.In), "rule %s: bad device name %q", rec, r.In)
	f.check(!r.From.IsValid() || validPrefix(r.From) && r.From == r.From.Masked() && r.From.Bits() > 0 &&
		r.From.Addr().Is6() == r.IPv6, "rule %s: source %s: not a prefix of the rule's family, without host bits", rec,
		r.From)
	f.check(validPorts(r.SrcPorts), "rule %s: source ports %d to %d: want a range of 1 to %d", rec, r.SrcPorts.First,
		r.SrcPorts.Last, MaxRulePort)
	f.check(r.SrcPorts == PortRange{} || r.Protocol != 0, "rule %s: ports without a protocol", rec)
	switch {
	case r.Goto != 0:
		f.check(r.Table == 0, "rule %s: either a table or a goto", rec)
		f.check(r.Goto > r.Priority, "rule %s: goto %d: want a larger priority than the rule's", rec, r.Goto)
		f.check(r.Goto <= lastP, "rule %s: goto %d: want %d at most", rec, r.Goto, lastP)
	case r.Table != 0:
		f.check(validTable(r.Table), "rule %s: table %d: want %s", rec, r.Table, wantTable)
	}
}

func validPorts(p PortRange) bool {
	return p == PortRange{} || p.First >= 1 && p.First <= p.Last && p.Last <= MaxRulePort
}

func (f *faults) replies(r *Replies) {
	f.check(len(r.From) > 0, "replies: no addresses")
	for _, a := range r.From {
		f.once("replies from " + a.String())
		f.check(validAddr(a) && !a.IsUnspecified(), "replies from %s: not an address", a)
	}
	f.check(validTable(r.Table), "replies: table %d: want %s", r.Table, wantTable)
	f.check(inRange(r.Priority, 1, lastP), "replies: priority %d: want 1 to %d, in front of the main table's",
		r.Priority, lastP)
	if r.Bound != "" {
		f.check(validLink(r.Bound), "replies: bad device name %q", r.Bound)
		f.check(!inRange(r.Table+1, unix.RT_TABLE_COMPAT+1, unix.RT_TABLE_LOCAL) && r.Table < maxID,
			"replies: table %d: the next one is the kernel's", r.Table)
		f.check(r.Priority < lastP, "replies: priority %d: the next one is the main table's", r.Priority)
	}
	for _, mss := range []int{r.AdvMSS, r.AdvMSS6} {
		f.check(mss == 0 || inRange(mss, minMSS, maxMSS), "replies: advmss %d: want %d to %d", mss, minMSS, maxMSS)
	}
}

var wantTable = fmt.Sprintf("1 to 252, or 256 to %d", maxID)

// validTable reports whether a table may be one of this package's own: it is not one of the kernel's (default, main,
// local).
func validTable(id int) bool {
	return inRange(id, 1, maxID) && !inRange(id, unix.RT_TABLE_COMPAT+1, unix.RT_TABLE_LOCAL)
}

func inRange(v, low, high int) bool { return v >= low && v <= high }

// validLink reports whether name is a valid device name: dev_valid_name of net/core/dev.c.
func validLink(name string) bool {
	return len(name) > 0 && len(name) < unix.IFNAMSIZ && name != "." && name != ".." && !strings.ContainsAny(name,
		"/: \t\n\v\f\r\x00")
}

// validAddr reports whether a is an address without a zone. An IPv4-mapped address is not valid: netlink's net.IP would
// be IPv4.
func validAddr(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func validPrefix(p netip.Prefix) bool { return p.IsValid() && validAddr(p.Addr()) }

func validKey(key string) bool {
	return strings.HasPrefix(key, "net/") && fs.ValidPath(key) && !strings.ContainsAny(key, "\x00\n")
}

func validValue(v string) bool {
	return v != "" && v == kernel.CleanSysctl(v) && !strings.ContainsAny(v, "\x00\n")
}
