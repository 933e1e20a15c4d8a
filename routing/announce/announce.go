// Package announce has the types of the announcement of VIPs to routers by BGP: the configuration, the routes and the
// states of the sessions. Package bgp below it has the speaker.
package announce

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is the configuration of a speaker. The zero value is none.
type Config struct {
	AS       uint32
	RouterID netip.Addr // IPv4
	Listen   netip.Addr // sessions are accepted at it; the zero value: the speaker only connects
	Peers    []Peer     // with different addresses
	// Graceful is the time from the GRACEFUL_SHUTDOWN community to the withdrawal of a yielded route; 0: it is
	// withdrawn at once.
	Graceful time.Duration
	// Linger is the time from the withdrawal to the end of forwarding.
	Linger time.Duration
}

// On reports whether there is a speaker.
func (c *Config) On() bool { return c.AS != 0 }

// SameSpeaker reports whether sessions survive a change from c to o, apart from those of changed peers.
func (c *Config) SameSpeaker(o *Config) bool {
	return c.AS == o.AS && c.RouterID == o.RouterID && c.Listen == o.Listen
}

// Equal reports whether c and o are the same.
func (c *Config) Equal(o *Config) bool {
	return c.SameSpeaker(o) && c.Graceful == o.Graceful && c.Linger == o.Linger && slices.Equal(c.Peers, o.Peers)
}

// Peer is a router that the VIPs are announced to.
type Peer struct {
	Addr     netip.Addr
	AS       uint32
	Source   netip.Addr // of the session; the zero value: that of the route
	Password string     // TCP MD5 (RFC 2385); "": none
	// Multihop is the TTL of packets to a peer of another AS; 0: it is a neighbour, and the TTL is 1.
	Multihop    int
	TTLSecurity bool          // GTSM (RFC 5082): packets have the TTL 255, and must come with it
	HoldTime    time.Duration // whole seconds from 3 on
	BFD         BFD
	IPv4, IPv6  bool // the families of the VIPs
	// NextHop is an address of this host of the family that the session does not have. Without it, VIPs of that family
	// are not announced to the peer.
	NextHop netip.Addr
}

// Internal reports whether the peer is of the AS of the speaker, which is as.
func (p *Peer) Internal(as uint32) bool { return p.AS == as }

// BFD is the configuration of BFD to a peer (RFC 5880, RFC 5881). The zero value is none.
type BFD struct {
	Interval   time.Duration // from packet to packet
	Multiplier int           // packets that may be lost
}

// On reports whether there is BFD.
func (b BFD) On() bool { return b.Interval > 0 }

// Carries reports whether p gets VIPs of the family of a.
func (p *Peer) Carries(a netip.Addr) bool {
	if a.Is4() && !p.IPv4 || a.Is6() && !p.IPv6 {
		return false
	}
	return a.Is4() == p.Addr.Is4() || p.NextHop.IsValid()
}

// Route is a VIP that is announced, as /32 or /128.
type Route struct {
	VIP         netip.Addr
	MED         uint32 // 0: none
	LocalPref   uint32 // 0: 100; only peers of the speaker's AS get it
	Communities []Community
	Prepend     int // additional copies of the own AS in the path
	// Yielded: another speaker announces the VIP, or is about to.
	Yielded bool
}

// Equal reports whether r and o are announced alike.
func (r *Route) Equal(o *Route) bool {
	return r.VIP == o.VIP && r.MED == o.MED && r.LocalPref == o.LocalPref && r.Prepend == o.Prepend &&
		slices.Equal(r.Communities, o.Communities)
}

// Community is a community (RFC 1997), or a large one (RFC 8092).
type Community struct {
	Large   bool
	A, B, C uint32 // C only of a large one; else A and B have 16 bits
}

// GracefulShutdown is the community of routes that will be withdrawn soon (RFC 8326).
var GracefulShutdown = Community{A: 65535, B: 0}

// wellKnown are the names of communities (RFC 1997, RFC 8326).
var wellKnown = map[string]Community{
	"no-export":         {A: 65535, B: 65281},
	"no-advertise":      {A: 65535, B: 65282},
	"graceful-shutdown": GracefulShutdown,
}

// ParseCommunity parses "AS:VALUE", "AS:VALUE:VALUE", "no-export", "no-advertise" or "graceful-shutdown".
func ParseCommunity(s string) (c Community, err error) {
	if c, known := wellKnown[s]; known {
		return c, nil
	}
	fail := fmt.Errorf("%q is not a community", s)
	parts, err := numbers(s)
	switch {
	case err != nil:
		return c, fail
	case len(parts) == 3:
		return Community{Large: true, A: parts[0], B: parts[1], C: parts[2]}, nil
	case len(parts) == 2 && parts[0] <= 65535 && parts[1] <= 65535:
		return Community{A: parts[0], B: parts[1]}, nil
	}
	return c, fail
}

// numbers parses numbers with colons between them.
func numbers(s string) (all []uint32, err error) {
	for part := range strings.SplitSeq(s, ":") {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			return nil, err
		}
		all = append(all, uint32(n))
	}
	return all, nil
}

func (c Community) String() string {
	if c.Large {
		return fmt.Sprintf("%d:%d:%d", c.A, c.B, c.C)
	}
	return fmt.Sprintf("%d:%d", c.A, c.B)
}
