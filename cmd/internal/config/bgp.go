package config

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"vstun/cmd/internal/words"
	"vstun/routing/announce"
)

// BGP is the [bgp] table: the announcement of VIPs to routers.
type BGP struct {
	announce.Config                  // the zero value without the table
	VIPs            []announce.Route // what [[bgp.vip]] says of VIPs, in the file's order
}

// Route returns the route of a VIP.
func (b *BGP) Route(vip netip.Addr) announce.Route {
	for i := range b.VIPs {
		if b.VIPs[i].VIP == vip {
			return b.VIPs[i]
		}
	}
	return announce.Route{VIP: vip}
}

// systemdWaits is the time that systemd gives a unit to stop, unless it has TimeoutStopSec= (DefaultTimeoutStopSec= in
// systemd-system.conf(5)). restOfStop is what a stop may take besides the withdrawal from routers: peers of [sync] get
// connections before.
const (
	systemdWaits = 90 * time.Second
	restOfStop   = 10 * time.Second
)

// bgpReader reads the [bgp] table and keeps the addresses that must not be VIPs, or must.
type bgpReader struct {
	vips map[netip.Addr]bool
}

// readBGP reads the [bgp] table, which may be missing. services are those of the file.
func readBGP(root *table, services []Service) (b BGP) {
	t := root.optional("bgp", "a [bgp] table")
	r := &bgpReader{vips: map[netip.Addr]bool{}}
	for i := range services {
		for _, vip := range services[i].VIPs {
			r.vips[vip] = true
		}
	}
	if t.values == nil {
		return b
	}
	const wantAS = "the number of the director's autonomous system, 1 to 4294967294, such as 65010"
	if _, ok := t.required("as", wantAS); ok {
		b.AS = uint32(t.integer("as", 0, 1, math.MaxUint32-1, wantAS))
	}
	b.RouterID = r.readRouterID(t)
	b.Listen = r.readOwn(t, "listen")
	b.Graceful = t.duration("graceful_shutdown", time.Second, 0, time.Minute, "0s (withdraw at once) to 1m")
	b.Linger = t.duration("linger", 3*time.Second, 0, time.Minute, "0s to 1m")
	if stop := b.Graceful + b.Linger; stop+restOfStop > systemdWaits {
		t.warnAt("linger", "a stop takes %v with graceful_shutdown, and up to %v for the rest, and systemd kills a "+
			"director after %v: shorten them, or set TimeoutStopSec=%d in the unit", stop, restOfStop, systemdWaits,
			int((stop + 2*restOfStop).Seconds()))
	}
	for i, row := range t.tables("peer", "[[bgp.peer]] tables") {
		r.readPeer(t, i+1, row, &b)
	}
	if _, there := t.values["peer"]; !there {
		t.faultAt("peer", "missing: want at least one [[bgp.peer]] table")
	}
	for i, row := range t.tables("vip", "[[bgp.vip]] tables") {
		r.readVIP(t, i+1, row, &b)
	}
	t.finish()
	return b
}

// readAnnounceWhen reports whether the VIPs of a service are announced without its quorum.
func readAnnounceWhen(t *table) (always bool) {
	return t.oneOf("announce_when", "quorum", "always") == "always"
}

// warnAnnounceWhen warns of services whose key announce_when has no effect, and of those that need it.
func warnAnnounceWhen(r *serviceReader, d *Director) {
	for i, t := range r.tables {
		s := &d.Services[i]
		switch _, set := t.values["announce_when"]; {
		case set && !d.BGP.On():
			t.warnAt("announce_when", "without [bgp] no VIP is announced to routers: leave it out, or add [bgp]")
		case d.BGP.On() && s.HasSorry() && !s.AnnounceAlways && aloneAt(d.Services, i):
			t.warnAt("sorry_server", "without its quorum the VIP is withdrawn from routers, so that no client comes "+
				"to it: set announce_when = \"always\"")
		}
	}
}

// aloneAt reports whether no other service has a VIP of the i-th one: another one can announce it.
func aloneAt(services []Service, i int) bool {
	for j := range services {
		if j != i && slices.ContainsFunc(services[j].VIPs, func(a netip.Addr) bool {
			return slices.Contains(services[i].VIPs, a)
		}) {
			return false
		}
	}
	return true
}

func (r *bgpReader) readRouterID(t *table) netip.Addr {
	const want = `an IPv4 address that no other router has as its ID, such as "10.0.2.2"`
	value, ok := t.required("router_id", want)
	if !ok {
		return netip.Addr{}
	}
	text, isText := value.(string)
	a, err := netip.ParseAddr(text)
	switch {
	case !isText:
		t.wrongType("router_id", value, want)
	case err != nil || !a.Is4() || a.IsUnspecified():
		t.faultAt("router_id", "%s is not a router ID: want %s", show(text), want)
	}
	return a
}

// readOwn reads an optional address of this host; "" is none.
func (r *bgpReader) readOwn(t *table, key string) netip.Addr {
	value, ok := t.value(key)
	if text, isText := value.(string); !ok || isText && text == "" {
		return netip.Addr{}
	}
	a, ok := t.address(key, value)
	if !ok {
		return netip.Addr{}
	}
	if r.vips[a] {
		t.faultAt(key, "%v is a VIP, and no director's host has it as an address: want an address of this host", a)
	}
	return a
}

// readPeer reads a [[bgp.peer]].
func (r *bgpReader) readPeer(bgp *table, position int, written row, b *BGP) {
	label := fmt.Sprintf("peer[%d]", position)
	if text, ok := written.values["address"].(string); ok {
		if _, err := netip.ParseAddr(text); err == nil {
			label = "peer " + show(text)
		}
	}
	t := bgp.child(label, written.values, written.at)
	var p announce.Peer
	if value, ok := t.required("address", "the router's IPv4 or IPv6 address"); ok {
		p.Addr, _ = t.address("address", value)
	}
	switch {
	case !p.Addr.IsValid():
	case r.vips[p.Addr]:
		t.faultAt("address", "%v is a VIP: want the router's own address", p.Addr)
	case slices.ContainsFunc(b.Peers, func(o announce.Peer) bool { return o.Addr == p.Addr }):
		t.faultAt("address", "%v is there twice: want each peer once", p.Addr)
	}
	const wantAS = "the number of the router's autonomous system, 1 to 4294967294"
	if _, ok := t.required("as", wantAS); ok {
		p.AS = uint32(t.integer("as", 0, 1, math.MaxUint32-1, wantAS))
	}
	const longest = 80 // TCP_MD5SIG_MAXKEYLEN, linux/tcp.h
	if p.Password, _ = t.text("password", "", "a password of at most 80 bytes"); len(p.Password) > longest {
		t.faultAt("password", "has %d bytes: want at most %d", len(p.Password), longest)
	}
	p.HoldTime = t.duration("hold_time", 9*time.Second, 3*time.Second, 65535*time.Second, "whole seconds from 3s on")
	if p.HoldTime%time.Second != 0 {
		t.faultAt("hold_time", "\"%v\" is no whole number of seconds: want whole seconds from 3s on", p.HoldTime)
	}
	p.Source = r.readOwn(t, "source")
	if p.Source.IsValid() && p.Addr.IsValid() && p.Source.Is4() != p.Addr.Is4() {
		t.faultAt("source", "%v is of another family than the peer: want an %s address", p.Source, family(p.Addr))
	}
	r.readReach(t, &p, b)
	r.readFamilies(t, &p)
	t.finish()
	b.Peers = append(b.Peers, p)
}

// readReach reads how far the peer is, and how it is watched.
func (r *bgpReader) readReach(t *table, p *announce.Peer, b *BGP) {
	p.Multihop = t.integer("multihop", 0, 0, 255, "0 (a neighbour), or 2 to 255, the TTL of packets to the peer")
	p.TTLSecurity = t.boolean("ttl_security", false)
	p.BFD = readBFD(t)
	switch {
	case p.Multihop == 1:
		t.faultAt("multihop", "1 is the TTL to a neighbour: leave it out, or want 2 to 255")
	case p.Multihop > 0 && p.Internal(b.AS):
		t.faultAt("multihop", "the peer is of the director's own AS, to which packets have the host's TTL: leave it "+
			"out")
	case p.Multihop > 0 && p.TTLSecurity:
		t.faultAt("ttl_security", "is for neighbours, and multihop is %d: want one of them", p.Multihop)
	case p.Multihop > 0 && p.BFD.On():
		t.faultAt("bfd", "is for neighbours, and multihop is %d: leave one of them out, or let another program on "+
			"this host speak BGP", p.Multihop)
	}
}

// readBFD reads the optional table bfd.
func readBFD(t *table) (b announce.BFD) {
	c := t.optional("bfd", `a table such as { interval = "300ms", multiplier = 3 }`)
	if c.values == nil {
		return b
	}
	b.Interval = c.duration("interval", 300*time.Millisecond, 50*time.Millisecond, 10*time.Second, "50ms to 10s")
	b.Multiplier = c.integer("multiplier", 3, 2, 255, "2 to 255")
	c.finish()
	return b
}

// readFamilies reads which VIPs the peer gets, and the next hop of those of the other family than the session's.
func (r *bgpReader) readFamilies(t *table, p *announce.Peer) {
	offered := []string{"ipv4", "ipv6"}
	p.IPv4, p.IPv6 = true, true
	if list, ok := t.array("families", words.OneOf(offered)+", or both in an array"); ok {
		p.IPv4, p.IPv6 = false, false
		for _, v := range t.elements("families", list) {
			switch name, _ := t.choice("families", v, offered); name {
			case "ipv4":
				p.IPv4 = true
			case "ipv6":
				p.IPv6 = true
			}
		}
	}
	p.NextHop = r.readOwn(t, "next_hop")
	if !p.NextHop.IsValid() || !p.Addr.IsValid() {
		return
	}
	if p.NextHop.Is4() == p.Addr.Is4() {
		t.faultAt("next_hop", "%v is of the session's family, in which the session's address is the next hop: want an "+
			"address of the other family", p.NextHop)
	}
	if p.NextHop.Is4() && !p.IPv4 || p.NextHop.Is6() && !p.IPv6 {
		t.warnAt("next_hop", "the peer gets no VIPs of this family: leave it out, or add the family")
	}
}

// readVIP reads a [[bgp.vip]].
func (r *bgpReader) readVIP(bgp *table, position int, written row, b *BGP) {
	label := fmt.Sprintf("vip[%d]", position)
	if text, ok := written.values["address"].(string); ok {
		if _, err := netip.ParseAddr(text); err == nil {
			label = "vip " + show(text)
		}
	}
	t := bgp.child(label, written.values, written.at)
	var v announce.Route
	const want = "a VIP of a service"
	if value, ok := t.required("address", want); ok {
		v.VIP, ok = t.address("address", value)
		switch {
		case !ok:
		case !r.vips[v.VIP]:
			t.faultAt("address", "%v is not a VIP of a service: want %s", v.VIP, want)
		case slices.ContainsFunc(b.VIPs, func(o announce.Route) bool { return o.VIP == v.VIP }):
			t.faultAt("address", "%v is there twice: want each VIP once", v.VIP)
		}
	}
	v.MED = uint32(t.integer("med", 0, 0, math.MaxUint32, "0 (none) to 4294967295"))
	v.LocalPref = uint32(t.integer("local_pref", 0, 0, math.MaxUint32, "0 (100) to 4294967295"))
	v.Prepend = t.integer("prepend", 0, 0, 16, "0 to 16 additional copies of the director's AS")
	r.readCommunities(t, &v)
	r.checkAttributes(t, &v, b)
	t.finish()
	b.VIPs = append(b.VIPs, v)
}

func (r *bgpReader) readCommunities(t *table, v *announce.Route) {
	value, ok := t.value("communities")
	if !ok {
		return
	}
	const want = `an array of communities such as "65010:100", "65010:1:2" or "no-export"`
	list, ok := value.([]any)
	if !ok {
		t.wrongType("communities", value, want)
		return
	}
	for _, value := range t.elements("communities", list) {
		text, ok := value.(string)
		if !ok {
			t.wrongType("communities", value, want)
			continue
		}
		c, err := announce.ParseCommunity(text)
		switch {
		case err != nil:
			t.faultAt("communities", "%s is not a community: want %s", show(text), want)
		case c == announce.GracefulShutdown:
			t.faultAt("communities", "%s is of routes that will be withdrawn soon: the director adds it itself",
				show(text))
		case slices.Contains(v.Communities, c):
			t.faultAt("communities", "%s is there twice: want each community once", show(text))
		default:
			v.Communities = append(v.Communities, c)
		}
	}
}

// checkAttributes refuses and warns of attributes that the peers would not take.
func (r *bgpReader) checkAttributes(t *table, v *announce.Route, b *BGP) {
	internal := func(p announce.Peer) bool { return p.Internal(b.AS) }
	if at := slices.IndexFunc(b.Peers, internal); v.Prepend > 0 && at >= 0 {
		t.faultAt("prepend", "peer %v is of the director's own AS, and refuses a path with it: leave it out, or set "+
			"local_pref", b.Peers[at].Addr)
	}
	if v.LocalPref > 0 && len(b.Peers) > 0 && !slices.ContainsFunc(b.Peers, internal) {
		t.warnAt("local_pref", "only peers of the director's own AS get it, and there are none: leave it out, or set "+
			"med or communities")
	}
}
