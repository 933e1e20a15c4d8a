package director

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"vstun/cmd/internal/config"
	"vstun/routing/announce"
)

// bgp compares the announcement by BGP of two configurations.
func (l difference) bgp(was, is *config.BGP) {
	b := l.in("bgp")
	switch {
	case !was.On() && !is.On():
		return
	case !was.On():
		b.note("", nil, fmt.Sprintf("AS %d, router_id %v", is.AS, is.RouterID))
	case !is.On():
		b.note("", "bgp", nil)
	default:
		b.compare("as", was.AS, is.AS)
		b.compare("router_id", was.RouterID, is.RouterID)
		b.compare("listen", addressName(was.Listen), addressName(is.Listen))
		b.compare("graceful_shutdown", was.Graceful, is.Graceful)
		b.compare("linger", was.Linger, is.Linger)
	}
	l.bgpPeers(was.Peers, is.Peers)
	l.bgpVIPs(was.VIPs, is.VIPs)
}

func (l difference) bgpPeers(was, is []announce.Peer) {
	former := make(map[netip.Addr]announce.Peer, len(was))
	for _, p := range was {
		former[p.Addr] = p
	}
	for _, p := range is {
		l := l.row("bgp peer", p.Addr)
		old, known := former[p.Addr]
		if delete(former, p.Addr); !known {
			l.note("", nil, fmt.Sprintf("AS %d", p.AS))
			continue
		}
		l.compare("as", old.AS, p.AS)
		l.compare("source", addressName(old.Source), addressName(p.Source))
		l.secret("password", old.Password, p.Password)
		l.compare("multihop", old.Multihop, p.Multihop)
		l.compare("ttl_security", old.TTLSecurity, p.TTLSecurity)
		l.compare("hold_time", old.HoldTime, p.HoldTime)
		l.compare("bfd", bfdName(old.BFD), bfdName(p.BFD))
		l.compare("families", familyNames(&old), familyNames(&p))
		l.compare("next_hop", addressName(old.NextHop), addressName(p.NextHop))
	}
	for _, p := range was {
		if _, gone := former[p.Addr]; gone {
			l.row("bgp peer", p.Addr).note("", p.Addr, nil)
		}
	}
}

func (l difference) bgpVIPs(was, is []announce.Route) {
	former := make(map[netip.Addr]announce.Route, len(was))
	for _, r := range was {
		former[r.VIP] = r
	}
	for _, r := range is {
		l := l.row("bgp vip", r.VIP)
		old, known := former[r.VIP]
		if delete(former, r.VIP); !known {
			l.note("", nil, fmt.Sprintf("med %d, local_pref %d, communities %s, prepend %d", r.MED, r.LocalPref,
				none(names(r.Communities).String()), r.Prepend))
			continue
		}
		l.compare("med", old.MED, r.MED)
		l.compare("local_pref", old.LocalPref, r.LocalPref)
		l.compare("communities", none(names(old.Communities).String()), none(names(r.Communities).String()))
		l.compare("prepend", old.Prepend, r.Prepend)
	}
	for _, r := range was {
		if _, gone := former[r.VIP]; gone {
			l.row("bgp vip", r.VIP).note("", r.VIP, nil)
		}
	}
}

func bfdName(b announce.BFD) string {
	if !b.On() {
		return "none"
	}
	return fmt.Sprintf("interval %v multiplier %d", b.Interval.Round(time.Microsecond), b.Multiplier)
}

func familyNames(p *announce.Peer) string {
	var all []string
	if p.IPv4 {
		all = append(all, "ipv4")
	}
	if p.IPv6 {
		all = append(all, "ipv6")
	}
	return strings.Join(all, ",")
}

// announceWhenName returns the value of announce_when.
func announceWhenName(always bool) string {
	if always {
		return "always"
	}
	return "quorum"
}
