// Package routing brings a machine's network into a desired state by netlink and /proc/sys, again and again, and
// takes back what it did: links, addresses, routes, rules and sysctls.
//
//	State ── Set ──► plan (what differs) ──► journal (how to undo it) ──► kernel
//	                   ▲                                                    │
//	                   └──────────── Watch: netlink events ◄────────────────┘
//
// Whatever existed before is left alone, also when the state asks for the same; whatever exists and contradicts the
// state is an error before anything is changed. Close undoes the changes in reverse order. After a SIGKILL the next
// Open does it, from the journal.
package routing

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// Protocol marks the routes and rules that this package creates (rtm_protocol in rtnetlink(7), FRA_PROTOCOL), so that
// they can be told from everybody else's: `ip route show table all proto 118`.
const Protocol = 118

const (
	// MaxReplyRoutes is how many routes a Replies table takes over from the main table at most.
	MaxReplyRoutes = 10_000

	minMSS = 88         // TCP_MIN_MSS, include/net/tcp.h
	maxMSS = 65535 - 40 // what the kernel caps RTAX_ADVMSS at, net/ipv4/metrics.c
	minMTU = 68         // RFC 791
	maxMTU = 65535      // total length of an IP packet
	maxID  = 1<<31 - 1  // tables
	lastP  = 32766 - 1  // the last rule priority in front of the main table's
	maxQL  = 1_000_000  // packets
)

// State is how the machine shall be. It is applied in the order of the fields, and undone in the reverse order, save
// for unreachable routes, which are made before and undone after everything else.
type State struct {
	// QuietIPIP keeps the kernel's own IPIP driver, whenever it is loaded, from answering packets of IP protocol 4 that
	// fit none of its tunnels with ICMP port unreachable, as it does although a raw socket takes them (tunnel4_rcv in
	// net/ipv4/tunnel4.c). The state needs no such driver, and works where the kernel refuses the device, QuietLink. It
	// can do nothing about the driver sit alone, nor about the answers of both drivers to packets of protocol 41
	// (tunnel64_rcv).
	QuietIPIP bool

	Sysctls []Sysctl
	Links   []Link
	Addrs   []Addr
	Routes  []Route
	Rules   []Rule   // whose tables hold nothing but Routes
	Replies *Replies // nil: none

	// Loose are devices by which packets may come in from addresses whose route leads elsewhere: their reverse-path
	// filter (RFC 3704) becomes loose where it is strict. What is looser stays, and devices that are not there don't
	// count.
	Loose []string
}

// Link is a device that exists already, such as a TUN device of the caller.
type Link struct {
	Name       string
	MTU        int // bytes; 0 keeps what it has
	TxQueueLen int // packets; 0 keeps what it has
	Up         bool
}

// Addr is an address of a device. The kernel shall not pick one as the source of other traffic than answers: IPv4
// addresses get host scope (RFC 6724 has no say in IPv4; see inet_select_addr in net/ipv4/devinet.c), IPv6 addresses
// are deprecated.
type Addr struct {
	Link   string
	Prefix netip.Prefix // the address with its prefix length, usually /32 or /128
}

// Route sends Dst out of a device, without a gateway, or, if it is Unreachable, nowhere: the kernel answers with ICMP
// host unreachable.
//
// An unreachable route with a high metric behind one by a device catches what would take the default route when the
// device goes. It outlives a SIGKILL on purpose, until the next Open: a router that sends us these packets would get
// them back, again and again until their TTL ends.
type Route struct {
	Dst         netip.Prefix // without host bits
	Link        string       // "" if Unreachable
	Unreachable bool
	Metric      uint32 // the smallest wins; 0 = the kernel's default: 0 for IPv4, 1024 for IPv6
	Table       int    // 0 = main
	MTU         int    // bytes; 0 = the device's; not with Unreachable
	AdvMSS      int    // MSS that TCP advertises on this route, bytes; 0 = from the MTU; not with Unreachable
}

// Rule has the kernel look up a table of Routes for the packets that this host itself sends (`ip rule … iif lo`),
// before the rules of a larger priority. Packets that the host forwards don't match it.
type Rule struct {
	IPv6     bool
	Table    int // 1–252, or above 255; routes of others are an error
	Priority int // 1–32765; other rules may have it too
}

// Sysctl is one value below /proc/sys.
//
// Setting net/ipv4/ip_forward makes the kernel rewrite other values (inet_forward_change in net/ipv4/devinet.c);
// these are recorded and restored too, one by one. What it cannot restore is large receive offload, which the kernel
// switches off on every device that it makes forward (dev_disable_lro).
//
// With net/ipv6/conf/all/forwarding it is likewise. Before it is switched on, devices with an accept_ra of 1 that did
// not forward get one of 2, so that they go on taking router advertisements.
type Sysctl struct {
	Key      string // path below /proc/sys: "net/ipv4/conf/all/arp_ignore"
	Value    string
	AtLeast  bool // a larger number is fine too: only ever raise it
	Optional bool // skip it where the kernel has no such file
	Cosmetic bool // skip it where it can't be written: the state works without it
}

// Replies routes what this host sends from the given addresses by a table of its own: a copy of the main table, kept in
// step with it by Watch, with the MSS that TCP advertises lowered. Routes by devices of State.Links are left out, and
// so are those that this package made.
//
// Copied are all routes that have not expired, of every type, with all their attributes and in the kernel's order of
// preference. Of a multipath route the hops by devices that are down are left out. Where the kernel does not let a
// route be copied (ip route … encap bpf), or refuses the copy, a throw route leads to the main table.
type Replies struct {
	From     []netip.Addr
	Table    int // 1–252, or above 255; must be empty
	Priority int // of the `ip rule`s, 1–32765; taken by nobody else
	// bytes, at most, for IPv4; a route or device whose MTU needs less gets less. 0 leaves every route as it is
	AdvMSS  int
	AdvMSS6 int // the same for IPv6

	// Bound is a device of State.Links, "" for none. Packets whose socket asks for it as their output device
	// (SO_BINDTODEVICE, the interface index of IP_PKTINFO) look up Table + 1, by rules of Priority + 1, if Table has no
	// route for them. So do those without source yet: without one the kernel looks up the route whose path MTU an error
	// changes. State.Routes fill that table.
	Bound string
}

// clone returns a copy that shares nothing with s.
func (s State) clone() State {
	s.Sysctls = slices.Clone(s.Sysctls)
	s.Links = slices.Clone(s.Links)
	s.Addrs = slices.Clone(s.Addrs)
	s.Routes = slices.Clone(s.Routes)
	s.Rules = slices.Clone(s.Rules)
	s.Loose = slices.Clone(s.Loose)
	if s.Replies != nil {
		r := *s.Replies
		r.From = slices.Clone(r.From)
		s.Replies = &r
	}
	return s
}

// validate reports everything that is wrong with s without looking at the machine.
func (s State) validate() error {
	var errs []error
	seen := map[string]bool{}
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	once := func(what string) {
		check(!seen[what], "%s: given twice", what)
		seen[what] = true
	}
	for _, c := range s.Sysctls {
		once("sysctl " + c.Key)
		check(validKey(c.Key), "sysctl %q: want a path below /proc/sys such as net/ipv4/ip_forward", c.Key)
		check(validValue(c.Value), "sysctl %s: bad value %q", c.Key, c.Value)
		if c.AtLeast {
			_, err := strconv.Atoi(c.Value)
			check(err == nil, "sysctl %s: value %q must be a number to compare with", c.Key, c.Value)
		}
	}
	for _, name := range s.Loose {
		once("loose " + name)
		check(validLink(name), "loose %q: want a device name of 1 to 15 bytes", name)
	}
	for _, l := range s.Links {
		once("link " + l.Name)
		check(validLink(l.Name), "link %q: want a device name of 1 to 15 bytes", l.Name)
		check(l.MTU == 0 || inRange(l.MTU, minMTU, maxMTU), "link %s: MTU %d: want %d to %d", l.Name, l.MTU, minMTU,
			maxMTU)
		check(inRange(l.TxQueueLen, 0, maxQL), "link %s: queue length %d: want 0 to %d", l.Name, l.TxQueueLen, maxQL)
	}
	for _, a := range s.Addrs {
		once(fmt.Sprintf("address %s on %s", a.Prefix, a.Link))
		check(validLink(a.Link), "address %s: bad device name %q", a.Prefix, a.Link)
		check(validPrefix(a.Prefix) && !a.Prefix.Addr().IsUnspecified(), "address %s on %s: not an address with a "+
			"prefix length", a.Prefix, a.Link)
	}
	for _, r := range s.Routes {
		once(fmt.Sprintf("route %s in table %s with metric %d", r.Dst, tableName(r.table()), r.record().Metric))
		if r.Unreachable {
			check(r.Link == "" && r.MTU == 0 && r.AdvMSS == 0, "route %s: unreachable, so it has no device, MTU or MSS",
				r.Dst)
		} else {
			check(validLink(r.Link), "route %s: bad device name %q", r.Dst, r.Link)
		}
		check(uint64(r.Metric) <= math.MaxInt, "route %s: metric %d: want 0 to %d on this machine", r.Dst, r.Metric,
			math.MaxInt)
		check(validPrefix(r.Dst) && r.Dst == r.Dst.Masked(), "route %s: not a network prefix without host bits", r.Dst)
		check(inRange(r.Table, 0, maxID), "route %s: bad table %d", r.Dst, r.Table)
		check(r.MTU == 0 || inRange(r.MTU, minMTU, maxMTU), "route %s: MTU %d: want %d to %d", r.Dst, r.MTU, minMTU,
			maxMTU)
		check(r.AdvMSS == 0 || inRange(r.AdvMSS, minMSS, maxMSS), "route %s: advmss %d: want %d to %d", r.Dst, r.AdvMSS,
			minMSS, maxMSS)
		check(s.Replies == nil || s.Replies.Table != r.table(), "route %s: table %d is the one for replies", r.Dst,
			r.Table)
	}
	for _, r := range s.Rules {
		once(fmt.Sprintf("rule %s", r.record()))
		check(validTable(r.Table), "rule %s: table %d: want %s", r.record(), r.Table, wantTable)
		check(inRange(r.Priority, 1, lastP), "rule %s: want a priority of 1 to %d, in front of the main table's",
			r.record(), lastP)
		check(s.Replies == nil || s.Replies.Table != r.Table, "rule %s: table %d is the one for replies", r.record(),
			r.Table)
	}
	if r := s.Replies; r != nil {
		check(len(r.From) > 0, "replies: no addresses")
		for _, a := range r.From {
			once("replies from " + a.String())
			check(validAddr(a) && !a.IsUnspecified(), "replies from %s: not an address", a)
		}
		check(validTable(r.Table), "replies: table %d: want %s", r.Table, wantTable)
		check(inRange(r.Priority, 1, lastP), "replies: priority %d: want 1 to %d, in front of the main table's",
			r.Priority, lastP)
		if r.Bound != "" {
			check(validLink(r.Bound), "replies: bad device name %q", r.Bound)
			check(!inRange(r.Table+1, unix.RT_TABLE_COMPAT+1, unix.RT_TABLE_LOCAL) && r.Table < maxID,
				"replies: table %d: the next one is the kernel's", r.Table)
			check(r.Priority < lastP, "replies: priority %d: the next one is the main table's", r.Priority)
		}
		for _, mss := range []int{r.AdvMSS, r.AdvMSS6} {
			check(mss == 0 || inRange(mss, minMSS, maxMSS), "replies: advmss %d: want %d to %d", mss, minMSS, maxMSS)
		}
	}
	return errors.Join(errs...)
}

var wantTable = fmt.Sprintf("1 to 252, or 256 to %d", maxID)

// validTable reports whether a table may be one of this package's own: it is none of the kernel's (default, main,
// local).
func validTable(id int) bool {
	return inRange(id, 1, maxID) && !inRange(id, unix.RT_TABLE_COMPAT+1, unix.RT_TABLE_LOCAL)
}

func (r Route) table() int {
	if r.Table == 0 {
		return unix.RT_TABLE_MAIN
	}
	return r.Table
}

func tableName(table int) string {
	if table == unix.RT_TABLE_MAIN {
		return "main"
	}
	return strconv.Itoa(table)
}

func inRange(v, low, high int) bool { return v >= low && v <= high }

// validLink is dev_valid_name of net/core/dev.c.
func validLink(name string) bool {
	return len(name) > 0 && len(name) < unix.IFNAMSIZ && name != "." && name != ".." && !strings.ContainsAny(name,
		"/: \t\n\v\f\r\x00")
}

// An IPv4-mapped IPv6 address would be taken for IPv4 by netlink's net.IP; a zone has no place in a route.
func validAddr(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func validPrefix(p netip.Prefix) bool { return p.IsValid() && validAddr(p.Addr()) }

func validKey(key string) bool {
	return strings.HasPrefix(key, "net/") && fs.ValidPath(key) && !strings.ContainsAny(key, "\x00\n")
}

func validValue(v string) bool {
	return v != "" && v == kernel.CleanSysctl(v) && !strings.ContainsAny(v, "\x00\n")
}
