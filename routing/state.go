// Package routing keeps a host's network in a desired state: links, addresses, routes, rules and sysctls. It makes
// changes by netlink and /proc/sys, and undoes them.
//
//	State ── Set ──► plan (what differs) ──► journal (how to undo it) ──► kernel
//	                   ▲                                                    │
//	                   └──────────── Watch: netlink events ◄────────────────┘
//
// Settings that existed before stay, even if the state asks for the same. An existing setting that contradicts the
// state is an error, before anything is changed. Close undoes the changes in reverse order. After a SIGKILL the next
// Open undoes them, by the journal, or Adopt takes them over.
package routing

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Protocol marks the routes and rules that this package creates (rtm_protocol in rtnetlink(7), FRA_PROTOCOL):
// `ip route show table all proto 118` lists them.
const Protocol = 118

const (
	// MaxReplyRoutes is the largest number of routes that a Replies table copies from the main table.
	MaxReplyRoutes = 10_000

	minMSS = 88         // TCP_MIN_MSS, include/net/tcp.h
	maxMSS = 65535 - 40 // the kernel's bound of RTAX_ADVMSS, net/ipv4/metrics.c
	minMTU = 68         // RFC 791
	maxMTU = 65535      // total length of an IP packet
	maxID  = 1<<31 - 1  // tables
	lastP  = 32766 - 1  // the last rule priority in front of the main table's
	maxQL  = 1_000_000  // packets
)

// State is the desired state of the host's network. It is applied in the order of the fields, and undone in the reverse
// order, with two exceptions: Loose is applied with Sysctls, and routes that lead nowhere are made first, undone last.
type State struct {
	// QuietIPIP keeps the kernel's own IPIP driver, whenever it is loaded, from answering packets of IP protocol 4 that
	// fit none of its tunnels. The driver answers them with ICMP port unreachable, even if a raw socket receives them
	// (tunnel4_rcv in net/ipv4/tunnel4.c). The state does not need the driver, and works even if the kernel refuses the
	// device, QuietLink. QuietIPIP has no effect if only the driver sit is loaded, nor on the answers of both drivers
	// to packets of protocol 41 (tunnel64_rcv).
	QuietIPIP bool

	Sysctls []Sysctl
	Links   []Link
	Addrs   []Addr
	Routes  []Route
	Rules   []Rule   // their tables contain only Routes
	Replies *Replies // nil: none

	// Tables says for the number of a table how to choose another, for errors: "set another table". Tables without an
	// entry have "choose another".
	Tables map[int]string

	// Loose are devices that may receive packets from addresses whose route leads to another device. A strict
	// reverse-path filter (RFC 3704) of such a device becomes loose. A filter that is looser stays. Devices that do not
	// exist are skipped.
	Loose []string
}

// Link is a device that exists already, such as a TUN device of the caller.
type Link struct {
	Name       string
	MTU        int    // bytes; 0: unchanged
	TxQueueLen int    // packets; 0: unchanged
	Bridge     string // whose port the device is; "": unchanged
	Up         bool
}

// Addr is an address of a device. Unless it is Preferred, the kernel uses it as a source address only in answers: IPv4
// addresses get host scope (inet_select_addr in net/ipv4/devinet.c), IPv6 addresses are deprecated (RFC 6724).
type Addr struct {
	Link      string
	Prefix    netip.Prefix // the address with its prefix length, usually /32 or /128
	Global    bool         // an IPv4 address like those of `ip addr add`, with its subnet's route
	Preferred bool         // an address of either family like those of `ip addr add`, for new connections, too
}

// Route sends Dst out of a device, without a gateway. If it is Unreachable, the kernel answers with ICMP host
// unreachable. If it is a Blackhole, the kernel drops the packet without an answer.
//
// Such a route with a high metric behind a route by a device is for packets that would go on to the default route once
// the device is gone. It outlives a SIGKILL on purpose, until the next Open, or Set after Adopt. A router that sends
// such packets here would get them back, and they would loop until their TTL is used up.
type Route struct {
	Dst         netip.Prefix // without host bits
	Link        string       // "" if Unreachable or Blackhole
	Unreachable bool
	Blackhole   bool
	Metric      uint32 // the smallest wins; 0 = the kernel's default: 0 for IPv4, 1024 for IPv6
	Table       int    // 0 = main
	MTU         int    // bytes; 0 = the device's; only with Link
	AdvMSS      int    // MSS that TCP advertises on this route, bytes; 0 = from the MTU; only with Link
}

// Rule makes the kernel look up a table of Routes for the packets that match all of its selectors (`ip rule`). Rules of
// a larger priority come later. A selector that is unset matches every packet. If the table has no route for a packet,
// the kernel goes on with the next rule.
//
// With Goto, the kernel goes on with the rules of that priority instead. While there is no such rule, it goes on with
// the next one. A rule without Table and Goto is a target of Gotos and has no other effect.
type Rule struct {
	IPv6 bool
	// In is the device by which packets come in; Loopback: this host sends them. To check the source of a packet
	// (rp_filter), the kernel looks up its way back, as of a packet that comes in by the device to which it would send
	// this one; for a packet to this host, by Loopback.
	In       string
	From     netip.Prefix // source
	Protocol uint8        // of the IP packet, also if that is a fragment
	// SrcPorts is the range of source ports. A fragment and an ICMP packet have no port, and match no range.
	SrcPorts PortRange
	Table    int // 1–252, or above 255; other programs' routes are an error
	Goto     int // a priority that is larger than Priority
	Priority int // 1–32765; other rules may have it too
}

// Loopback is the input device of the packets that this host sends.
const Loopback = "lo"

// PortRange is an inclusive range of ports. The kernel takes ranges with 1 ≤ First ≤ Last ≤ MaxRulePort.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// MaxRulePort is the largest port that a rule can select (fib_rule_port_range_valid in include/net/fib_rules.h).
const MaxRulePort = 65534

// Sysctl is one value below /proc/sys.
//
// Setting net/ipv4/ip_forward makes the kernel rewrite other values (inet_forward_change in net/ipv4/devinet.c). They
// are recorded and restored too, one by one. Large receive offload cannot be restored: the kernel switches it off on
// every device that forwards (dev_disable_lro). If two programs want ip_forward, it is off for about a second when the
// first one ends: that program restores the value, and the other sets it again.
//
// net/ipv6/conf/all/forwarding is handled likewise. Before it is switched on, devices that did not forward and have an
// accept_ra of 1 get 2, so that they still take router advertisements.
type Sysctl struct {
	Key      string // path below /proc/sys: "net/ipv4/conf/all/arp_ignore"
	Value    string
	AtLeast  bool // a larger number is fine too: the value is only ever raised
	Optional bool // skip it where the kernel has no such file
	Cosmetic bool // skip it where it can't be written: the state works without it
}

// Replies routes packets that this host sends from the given addresses by a table of its own. The table is a copy of
// the main table with a lower MSS for TCP to advertise. Watch updates it when the main table changes. Routes by devices
// of State.Links are left out, and so are routes that this package made.
//
// The copy has all routes that have not expired, of every type, with all their attributes and in the kernel's order of
// preference. Hops of a multipath route by devices that are down are left out. If the kernel can't copy a route (ip
// route … encap bpf), or refuses the copy, a throw route leads to the main table.
type Replies struct {
	From     []netip.Addr
	Table    int // 1–252, or above 255; must be empty
	Priority int // of the `ip rule`s, 1–32765; no other rule may have it
	// AdvMSS is the largest MSS for IPv4, in bytes. A route or device with a small MTU gets less. 0 leaves every route
	// as it is.
	AdvMSS  int
	AdvMSS6 int // the same for IPv6

	// Bound is a device of State.Links, "" for none. Rules of Priority + 1 make packets look up Table + 1 if their
	// socket asks for Bound as its output device (SO_BINDTODEVICE, the interface index of IP_PKTINFO) and Table has no
	// route for them. Packets without a source yet look it up, too: without one the kernel looks up the route whose
	// path MTU an ICMP error changes. State.Routes fill that table.
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
	s.Tables = maps.Clone(s.Tables)
	if s.Replies != nil {
		r := *s.Replies
		r.From = slices.Clone(r.From)
		s.Replies = &r
	}
	return s
}

func (r Route) table() int {
	if r.Table == 0 {
		return unix.RT_TABLE_MAIN
	}
	return r.Table
}

// inUse returns the error about a table of s that has a route of another program for dst.
func (s State) inUse(table int, dst string) error {
	return fmt.Errorf("routing table %d is in use: it has a route for %s; %s, or empty it (ip route flush table %d)",
		table, dst, cmp.Or(s.Tables[table], "choose another"), table)
}

func tableName(table int) string {
	if table == unix.RT_TABLE_MAIN {
		return "main"
	}
	return strconv.Itoa(table)
}
