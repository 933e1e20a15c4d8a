package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// tunnelEnd is an end of a tunnel at a realserver: the tunnel's kind, and the outer addresses.
type tunnelEnd struct {
	agent    *program
	kind     string     // "ipip", "gre", "gre-key", "gue", "fou"
	address  netip.Addr // of the realserver
	director netip.Addr // the outer source that it accepts
}

const (
	plea     = "let me in, I am but a datagram" // so long that an IPv4 packet with it could be an IPv6 one
	gateKey  = 4711                             // of gre-key
	gatePort = 6080                             // of gue and fou
)

// tunnelEnds returns the tunnel ends of the agents that startTunnelEnds starts.
func (s *site) tunnelEnds() (all []tunnelEnd) {
	for i, kinds := range [][]string{{"ipip", "gre", "gue"}, {"gre-key", "fou"}} {
		web := s.Webs[i]
		for _, kind := range kinds {
			all = append(all, tunnelEnd{s.agents[i], kind, web.Addr, s.Director.Addr},
				tunnelEnd{s.agents[i], kind, web.Addr6, s.Director.Addr6})
		}
	}
	return all
}

// startTunnelEnds starts agents on the first two web servers. Together they have all tunnel ends.
func (s *site) startTunnelEnds() {
	s.t.Helper()
	s.addIPv6()
	s.startAgent(s.Webs[0], `encap = ["ipip", "gre", "gue"]`)
	s.startAgent(s.Webs[1], fmt.Sprintf("encap = [\"gre\", \"fou\"]\nencap_key = %d", gateKey))
}

func (g *tunnelEnd) String() string { return g.kind + " to " + g.address.String() }

// udp reports whether the tunnel runs over UDP.
func (g *tunnelEnd) udp() bool { return g.kind == "gue" || g.kind == "fou" }

// protocol returns the outer header's protocol for an inner packet of this IP version.
func (g *tunnelEnd) protocol(version int) uint8 {
	switch {
	case g.udp():
		return 17
	case g.kind != "ipip":
		return 47
	case version == 6:
		return 41
	}
	return 4
}

// wrap returns a tunnel packet from an outer source. Its tunnel header announces an inner packet of this IP version.
func (g *tunnelEnd) wrap(source netip.Addr, version int, inside []byte) []byte {
	return ipPacket(source, g.address, g.protocol(version), g.header(version, inside))
}

// header returns inside behind the tunnel's header.
func (g *tunnelEnd) header(version int, inside []byte) []byte {
	etherType := uint16(0x0800)
	if version == 6 {
		etherType = 0x86dd
	}
	switch g.kind {
	case "gre":
		return slices.Concat(words(0, etherType), inside)
	case "gre-key":
		return slices.Concat(words(0x2000, etherType, 0, gateKey), inside)
	case "gue":
		return toPort(slices.Concat([]byte{0, (&tunnelEnd{kind: "ipip"}).protocol(version), 0, 0}, inside))
	case "fou":
		return toPort(inside)
	}
	return inside
}

// words returns 16-bit words in network byte order.
func words(all ...uint16) (b []byte) {
	for _, w := range all {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	return b
}

// toPort returns inside behind a UDP header to the tunnels' port, without a checksum (RFC 6935).
func toPort(inside []byte) []byte {
	return slices.Concat(words(40000, gatePort, uint16(8+len(inside)), 0), inside)
}

// ipPacket returns an IPv4 or IPv6 packet, by the family of its addresses.
func ipPacket(src, dst netip.Addr, protocol uint8, payload []byte) []byte {
	var b []byte
	if src.Is4() {
		b = append(b, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0)
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	} else {
		b = append(b, 0x60, 0, 0, 0, 0, 0, protocol, 64)
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	}
	b = slices.Concat(b, src.AsSlice(), dst.AsSlice())
	if src.Is4() {
		fixChecksum(b)
	}
	return append(b, payload...)
}

// badPacket is a packet that a realserver must refuse, with the reason.
type badPacket struct {
	name   string
	end    tunnelEnd
	packet []byte // from the outer header on
	reason string // under which it is counted
	frame  []byte // to send it again by itself
}

// badPackets returns packets to a tunnel end with one fault each: everything that can be wrong with them.
func (s *site) badPackets(g tunnelEnd) (list []*badPacket) {
	add := func(name, reason string, packet []byte) {
		list = append(list, &badPacket{name: fmt.Sprintf("%s: %s", &g, name), end: g, packet: packet, reason: reason})
	}
	for _, version := range []int{4, 6} {
		client, vip := s.Client.Addr, s.VIP
		if version == 6 {
			client, vip = s.Client.Addr6, s.VIP6
		}
		good := udpPacket(s.t, client, vip, 1234, trapPort, plea)
		for _, source := range s.strangers(g) {
			add(fmt.Sprintf("a packet from %s", source), "not_director", g.wrap(source, version, good))
			add(fmt.Sprintf("no packet from %s", source), "not_director", g.wrap(source, version, []byte("no packet")))
		}
		inner := func(name, reason string, packet []byte) {
			add(fmt.Sprintf("IPv%d: %s", version, name), reason, g.wrap(g.director, version, packet))
		}
		if version == 4 {
			s.inner4(g, good, inner)
		} else {
			s.inner6(g, good, inner)
		}
		// The tunnel's header announces another IP version. Without such a header the packet itself has it.
		other := 10 - version
		if g.kind != "fou" {
			add(fmt.Sprintf("IPv%d where the tunnel says IPv%d", version, other), "not_ipv4", g.wrap(g.director, other,
				good))
		}
		// The outer header has CE, and the inner packet is not ECN-capable (RFC 6040, section 4.2).
		congested := g.wrap(g.director, version, good)
		if g.address.Is4() {
			congested[1] = 3
			fixChecksum(congested)
		} else {
			congested[1] = 3 << 4
		}
		add("congestion", "congestion", congested)
		s.headers(g, version, good, add)
	}
	return list
}

// strangers returns outer sources of the tunnel end's family that no agent accepts.
func (s *site) strangers(g tunnelEnd) []netip.Addr {
	addr := netip.MustParseAddr
	if g.address.Is4() {
		return []netip.Addr{s.Webs[2].Addr, s.Client.Addr, g.director.Next(), addr("203.0.113.9")}
	}
	return []netip.Addr{s.Webs[2].Addr6, s.Client.Addr6, g.director.Next(), addr("2001:db8:bad::9")}
}

// inner4 adds the faults of an inner IPv4 packet. good is a packet without a fault.
func (s *site) inner4(g tunnelEnd, good []byte, add func(name, reason string, packet []byte)) {
	addr := netip.MustParseAddr
	edited := func(edit func(b []byte)) []byte {
		b := slices.Clone(good)
		edit(b)
		return b
	}
	packet := func(src, dst netip.Addr) []byte { return udpPacket(s.t, src, dst, 1234, trapPort, plea) }
	for _, dst := range []netip.Addr{s.Webs[0].Addr, s.Webs[1].Addr, s.Director.Addr, s.VIP.Next(), addr("127.0.0.1"),
		addr("224.0.0.1"), addr("255.255.255.255"), addr("0.0.0.0")} {
		add("a packet to "+dst.String(), "inner_destination", packet(s.Client.Addr, dst))
	}
	for _, src := range []netip.Addr{s.VIP, g.agent.host.Addr, addr("127.0.0.1"), addr("127.255.0.1"),
		addr("224.0.0.1"), addr("239.1.2.3"), addr("0.0.0.0"), addr("0.1.2.3"), addr("240.0.0.1"),
		addr("255.255.255.255")} {
		add("a packet that comes from "+src.String(), "inner_source", packet(src, s.VIP))
	}
	for _, p := range []uint8{4, 41, 47} {
		add(fmt.Sprintf("a tunnel of protocol %d in the tunnel", p), "inner_protocol", ipPacket(s.Client.Addr, s.VIP, p,
			good))
	}
	if g.udp() {
		add("a tunnel over UDP in the tunnel", "inner_protocol", ipPacket(s.Client.Addr, s.VIP, 17, g.header(4, good)))
	}
	for _, n := range []int{0, 1, 19, 20, 24, len(good) - 1} {
		add(fmt.Sprintf("%d bytes of it", n), "truncated", good[:n])
	}
	add("a byte too many", "trailing_bytes", slices.Concat(good, []byte{0}))
	add("a packet behind it", "trailing_bytes", slices.Concat(good, good))
	add("a header of 16 bytes", "bad_header", edited(func(b []byte) { b[0] = 0x44; fixChecksum(b) }))
	add("a length that is the header's less one", "bad_header",
		edited(func(b []byte) { b[2], b[3] = 0, 19; fixChecksum(b) }))
	add("a wrong checksum", "bad_checksum", edited(func(b []byte) { b[10] ^= 1 }))
	for _, version := range []byte{0, 1, 5, 15} {
		add(fmt.Sprintf("version %d", version), "not_ipv4",
			edited(func(b []byte) { b[0] = version<<4 | 5; fixChecksum(b) }))
	}
	options := func(o ...byte) []byte {
		b := slices.Concat(good[:20], o, good[20:])
		b[0] += byte(len(o) / 4)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		return fixChecksum(b)
	}
	add("a loose source route", "source_route", options(131, 7, 4, 10, 0, 11, 2, 0))
	add("a strict source route", "source_route", options(137, 7, 4, 10, 0, 11, 2, 0))
	add("an option without end", "bad_header", options(7, 40, 4, 0))
	add("an option of length 0", "bad_header", options(7, 0, 4, 0))
}

// inner6 adds the faults of an inner IPv6 packet. good is a packet without a fault.
func (s *site) inner6(g tunnelEnd, good []byte, add func(name, reason string, packet []byte)) {
	addr := netip.MustParseAddr
	edited := func(edit func(b []byte)) []byte {
		b := slices.Clone(good)
		edit(b)
		return b
	}
	packet := func(src, dst netip.Addr) []byte { return udpPacket(s.t, src, dst, 1234, trapPort, plea) }
	for _, dst := range []netip.Addr{s.Webs[0].Addr6, s.Webs[1].Addr6, s.Director.Addr6, s.VIP6.Next(), addr("::1"),
		addr("::"), addr("ff02::1"), addr("ff0e::1"), addr("fe80::1")} {
		add("a packet to "+dst.String(), "inner_destination", packet(s.Client.Addr6, dst))
	}
	for _, src := range []netip.Addr{s.VIP6, g.agent.host.Addr6, addr("::1"), addr("::"), addr("ff02::1"),
		addr("ff0e::1"), addr("fe80::1")} {
		add("a packet that comes from "+src.String(), "inner_source", packet(src, s.VIP6))
	}
	for _, src := range []netip.Addr{addr("::ffff:10.0.1.2"), addr("::ffff:127.0.0.1")} {
		add("a packet that comes from "+src.String(), "bad_header", packet(src, s.VIP6))
	}
	// chain puts extension headers before the datagram. next is the kind of the first one.
	chain := func(next uint8, headers ...[]byte) []byte {
		return ipPacket(s.Client.Addr6, s.VIP6, next, slices.Concat(slices.Concat(headers...), good[40:]))
	}
	none := []byte{1, 4, 0, 0, 0, 0} // PadN
	options := func(next uint8) []byte { return append([]byte{next, 0}, none...) }
	routing := func(next, kind, left uint8) []byte { return []byte{next, 2, kind, left, 0, 0, 0, 0, 15: 0, 23: 1} }
	for _, p := range []uint8{4, 41, 47} {
		add(fmt.Sprintf("a tunnel of protocol %d in the tunnel", p), "inner_protocol", ipPacket(s.Client.Addr6, s.VIP6,
			p, good))
		add(fmt.Sprintf("a tunnel of protocol %d behind destination options", p), "inner_protocol",
			ipPacket(s.Client.Addr6, s.VIP6, 60, slices.Concat(options(p), good)))
		add(fmt.Sprintf("a tunnel of protocol %d behind two headers", p), "inner_protocol",
			ipPacket(s.Client.Addr6, s.VIP6, 0, slices.Concat(options(60), options(p), good)))
	}
	if g.udp() {
		add("a tunnel over UDP in the tunnel", "inner_protocol", ipPacket(s.Client.Addr6, s.VIP6, 17,
			g.header(6, good)))
		add("a tunnel over UDP behind destination options", "inner_protocol",
			ipPacket(s.Client.Addr6, s.VIP6, 60, slices.Concat(options(17), g.header(6, good))))
	}
	for _, n := range []int{0, 1, 39, 40, 44, len(good) - 1} {
		add(fmt.Sprintf("%d bytes of it", n), "truncated", good[:n])
	}
	add("a byte too many", "trailing_bytes", slices.Concat(good, []byte{0}))
	add("a packet behind it", "trailing_bytes", slices.Concat(good, good))
	add("a jumbogram", "bad_header", chain(0, []byte{17, 0, 0xc2, 4, 0, 1, 0, 0}))
	add("a length of 0", "trailing_bytes", edited(func(b []byte) { b[4], b[5] = 0, 0 }))
	for _, version := range []byte{0, 1, 5, 15} {
		add(fmt.Sprintf("version %d", version), "not_ipv4", edited(func(b []byte) { b[0] = version << 4 }))
	}
	for kind, left := range map[uint8]uint8{0: 0, 2: 1, 3: 1, 4: 1, 253: 2} {
		add(fmt.Sprintf("a routing header of type %d", kind), "source_route", chain(43, routing(17, kind, left)))
	}
	add("a routing header behind options", "source_route", chain(0, options(60), options(43), routing(17, 0, 1)))
	add("hop-by-hop options in the second place", "bad_header", chain(60, options(0), options(17)))
	add("two fragment headers", "bad_header", chain(44, []byte{44, 0, 0, 0, 0, 0, 0, 1}, []byte{17, 0, 0, 0, 0, 0, 0,
		1}))
	add("an option without end", "bad_header", chain(60, []byte{17, 0, 5, 9, 0, 0, 0, 0}))
	add("a header without end", "truncated", chain(60, []byte{17, 200, 1, 4, 0, 0, 0, 0}))
	add("half a header", "truncated", ipPacket(s.Client.Addr6, s.VIP6, 60, []byte{17, 0, 1, 0}))
	long := [][]byte{}
	for range 20 {
		long = append(long, options(60))
	}
	add("twenty headers", "bad_header", chain(60, append(long, options(17))...))
}

// headers adds the faults of a tunnel's header. good is an inner packet of that version without a fault.
func (s *site) headers(g tunnelEnd, version int, good []byte, add func(name, reason string, packet []byte)) {
	throw := func(name, reason string, protocol uint8, parts ...[]byte) {
		add(fmt.Sprintf("IPv%d in %s", version, name), reason, ipPacket(g.director, g.address, protocol,
			slices.Concat(parts...)))
	}
	etherType := map[int]uint16{4: 0x0800, 6: 0x86dd}[version]
	switch g.kind {
	case "gre", "gre-key":
		key, keyed := []uint16(nil), uint16(0)
		if g.kind == "gre-key" {
			key, keyed = []uint16{0, gateKey}, 0x2000
		}
		gre := func(flags, etherType uint16, more ...uint16) []byte {
			return words(append([]uint16{flags, etherType}, more...)...)
		}
		for name, flags := range map[string]uint16{"version 1": 1, "version 7": 7, "routing": 0x4000,
			"a sequence number": 0x1000, "a strict source route": 0x0800, "recursion": 0x0400} {
			throw("GRE with "+name, "tunnel_header", 47, gre(keyed|flags, etherType, append(slices.Clone(key), 0,
				0)...), good)
		}
		for _, t := range []uint16{0, 0x0806, 0x6558, 0x88be, 0x880b} {
			throw(fmt.Sprintf("GRE with protocol type %#04x", t), "tunnel_header", 47, gre(keyed, t, key...), good)
		}
		throw("GRE with a wrong checksum", "tunnel_checksum", 47, gre(0x8000|keyed, etherType,
			append([]uint16{0xdead, 0}, key...)...), good)
		throw("GRE cut short", "tunnel_header", 47, []byte{0, 0, 8})
		throw("GRE with a checksum cut short", "tunnel_header", 47, gre(0x8000|keyed, etherType, 1))
		throw("GRE with a key cut short", "tunnel_header", 47, gre(0x2000, etherType, 0))
		if g.kind == "gre-key" {
			throw("GRE without a key", "tunnel_key", 47, gre(0, etherType), good)
			throw("GRE with the next key", "tunnel_key", 47, gre(0x2000, etherType, 0, gateKey+1), good)
			throw("GRE with key 0", "tunnel_key", 47, gre(0x2000, etherType, 0, 0), good)
			throw("GRE with the key swapped", "tunnel_key", 47, gre(0x2000, etherType, gateKey, 0), good)
		} else {
			throw("GRE with key 0", "tunnel_key", 47, gre(0x2000, etherType, 0, 0), good)
			throw("GRE with a key", "tunnel_key", 47, gre(0x2000, etherType, 0, gateKey), good)
		}
	case "gue":
		proto := (&tunnelEnd{kind: "ipip"}).protocol(version)
		gue := func(first, proto uint8, flags uint16) []byte {
			return append([]byte{first, proto}, words(flags)...)
		}
		udp := func(name string, header []byte) {
			throw("GUE with "+name, "tunnel_header", 17, toPort(slices.Concat(header, good)))
		}
		udp("variant 2", gue(0x80, proto, 0))
		udp("variant 3", gue(0xc0, proto, 0))
		udp("the control bit", gue(0x20, proto, 0))
		udp("extension fields that are no hops", append(gue(0x01, proto, 0), 0, 1, 0, 0))
		udp("extension fields that are not there", gue(0x1f, proto, 0))
		for bit := range 16 {
			udp(fmt.Sprintf("flag %d", bit), gue(0, proto, 1<<bit))
		}
		udp("private options", append(gue(0x02, proto, 1), 0, 0, 0, 1, 0, 0, 0, 0))
		for _, p := range []uint8{0, 6, 17, 47, 59, 255} {
			udp(fmt.Sprintf("protocol %d", p), gue(0, p, 0))
		}
		throw("GUE cut short", "tunnel_header", 17, toPort([]byte{0, proto, 0}))
		throw("UDP without anything", "tunnel_header", 17, toPort(nil))
	case "fou":
		throw("UDP without anything", "truncated", 17, toPort(nil))
	}
}
