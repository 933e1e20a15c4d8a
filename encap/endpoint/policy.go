package endpoint

import (
	"encoding/binary"
	"net/netip"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// Rules are the tunnel packets that a Policy accepts.
type Rules struct {
	Directors     []netip.Prefix       // outer sources
	Peers         []netip.Prefix       // outer sources of packets that other realservers have sent on
	VIPs          []netip.Addr         // inner destinations
	Decapsulators []encap.Decapsulator // one for each kind; GUE and FOU are one
	Port          uint16               // UDP port of GUE and FOU
	Sealed        []netip.Addr         // outer sources that only WireGuard brings, and that are refused here
	LocalAddrs    []netip.Addr         // addresses of this host, beside the VIPs: not valid as inner sources
	MSS4          int                  // MSS that this host's servers advertise over IPv4, in bytes
	MSS6          int                  // the same over IPv6
}

// Policy accepts the tunnel packets that its rules allow. It is immutable.
type Policy struct {
	vips       map[netip.Addr]struct{}
	directors  map[netip.Addr]struct{} // directors given as one address
	prefixes   []netip.Prefix          // directors given as a prefix of several addresses
	peers      []netip.Prefix          // other realservers
	sealed     map[netip.Addr]struct{} // addresses of directors or prefixes that are refused
	localAddrs map[netip.Addr]struct{} // this host's addresses, VIPs included
	port       uint16
	mss4       int
	mss6       int

	ipip, gre, udp *encap.Decapsulator // nil: none
}

// NewPolicy makes the policy of r.
func NewPolicy(r Rules) *Policy {
	p := &Policy{vips: map[netip.Addr]struct{}{}, directors: map[netip.Addr]struct{}{},
		sealed: map[netip.Addr]struct{}{}, localAddrs: map[netip.Addr]struct{}{}, mss4: r.MSS4, mss6: r.MSS6,
		peers: r.Peers}
	for _, v := range r.VIPs {
		p.vips[v], p.localAddrs[v] = struct{}{}, struct{}{}
	}
	for _, a := range r.LocalAddrs {
		p.localAddrs[a] = struct{}{}
	}
	for _, a := range r.Sealed {
		p.sealed[a] = struct{}{}
	}
	for _, d := range r.Directors {
		if d.IsSingleIP() {
			p.directors[d.Addr()] = struct{}{}
		} else {
			p.prefixes = append(p.prefixes, d)
		}
	}
	for _, e := range r.Decapsulators {
		switch {
		case e.Kind == encap.KindIPIP, e.Kind.Sealed():
			p.ipip = &e
		case e.Kind == encap.KindGRE:
			p.gre = &e
		case e.Kind.UDP():
			p.udp, p.port = &e, r.Port
		}
	}
	return p
}

// isDirector reports whether a is a director's address.
func (p *Policy) isDirector(a netip.Addr) bool {
	if _, ok := p.sealed[a]; ok {
		return false
	}
	if _, ok := p.directors[a]; ok {
		return true
	}
	for _, d := range p.prefixes {
		if d.Contains(a) {
			return true
		}
	}
	return false
}

// isPeer reports whether a is another realserver's address.
func (p *Policy) isPeer(a netip.Addr) bool {
	for _, d := range p.peers {
		if d.Contains(a) {
			_, sealed := p.sealed[a]
			return !sealed
		}
	}
	return false
}

// hop returns the next hop of a packet with hops. ok is false if the packet must not go on: there is no hop left, or
// that is this host, or none of the peers.
func (p *Policy) hop(h encap.Hops) (to netip.Addr, ok bool) {
	if to, ok = h.Next(); !ok || !p.isPeer(to) {
		return netip.Addr{}, false
	}
	_, local := p.localAddrs[to]
	return to, !local
}

// mss is the MSS that this host's servers advertise to the sender of the packet in b.
func (p *Policy) mss(b *packet.Buf) int {
	if packet.Version(b.Bytes()) == 6 {
		return p.mss6
	}
	return p.mss4
}

// answers reports whether a packet from src to dst can be an answer of this host's servers: from a VIP, to a client.
func (p *Policy) answers(src, dst netip.Addr) bool {
	_, vip := p.vips[src]
	return vip && p.isClient(dst)
}

// arrival is the outer header's fields of a tunnel packet, or of a GSO packet of several.
type arrival struct {
	decap        *encap.Decapsulator
	proto, class byte       // of the outer header
	from         netip.Addr // outer source
	fromPeer     bool       // that is another realserver's
	hops         uint8      // length of the encap.Hops in front of the inner packet; 0: it has none
	refused      netip.Addr // inner destination, with drop.InnerDestination

	// lastAccepted is the addresses of the last inner packet that the policy accepted. Nearly all datagrams that GRO
	// has merged have the same addresses.
	lastAccepted struct{ src, dst netip.Addr }
}

// inside is the transport header's place and protocol in an inner packet.
type inside struct {
	offset   int   // of the transport header, in bytes
	proto    uint8 // of the transport header
	fragment bool
	link     int // length of the link-layer header in front, in bytes
}

// outer takes the outer IP header off the packet in b, and the UDP header behind it, if there is one. It checks the
// outer source before any other byte of the packet is used.
func (p *Policy) outer(b *packet.Buf) (t arrival, d drop.Reason) {
	whole := b.Bytes()
	var n int
	var right bool // the lengths agree
	switch h, h6 := packet.IPv4(whole), packet.IPv6(whole); {
	case len(whole) >= packet.IPv4HeaderLen && h.Version() == 4:
		t.from, t.proto, t.class, n = h.Src(), h.Protocol(), h.TOS(), h.HeaderLen()
		right = n >= packet.IPv4HeaderLen && n <= len(h) && h.TotalLen() == len(h)
	case len(whole) >= packet.IPv6HeaderLen && h6.Version() == 6:
		t.from, t.proto, t.class, n = h6.Src(), h6.NextHeader(), h6.TrafficClass(), packet.IPv6HeaderLen
		right = h6.TotalLen() == len(h6)
	default:
		return t, drop.Outer
	}
	t.fromPeer = len(p.peers) > 0 && p.isPeer(t.from)
	if !t.fromPeer && !p.isDirector(t.from) {
		return t, drop.NotDirector
	}
	switch t.proto {
	case packet.ProtoIPIP, packet.ProtoIPv6:
		t.decap = p.ipip
	case packet.ProtoGRE:
		t.decap = p.gre
	case packet.ProtoUDP:
		t.decap = p.udp
		n += packet.UDPHeaderLen
	}
	if t.decap == nil || !right || n > len(whole) {
		return t, drop.Outer
	}
	b.Strip(n)
	return t, drop.Accept
}

// inner takes the tunnel header off and checks the packet behind it. It returns drop.Accept if that packet may enter
// this host.
func (p *Policy) inner(b *packet.Buf, t *arrival) (in inside, d drop.Reason) {
	if t.decap == p.udp {
		var n int
		n, d = t.decap.DecapHops(b, t.proto, t.class)
		t.hops = uint8(n)
	} else {
		d = t.decap.Decap(b, t.proto, t.class)
	}
	if d != drop.Accept {
		return in, d
	}
	in, src, dst, offset, d := transport(b.Bytes())
	if d != drop.Accept {
		return in, d
	}
	if last := &t.lastAccepted; src != last.src || dst != last.dst {
		if _, ok := p.vips[dst]; !ok {
			t.refused = dst
			return in, drop.InnerDestination
		}
		if !p.isClient(src) {
			return in, drop.InnerSource
		}
		last.src, last.dst = src, dst
	}
	if tunnelled(in.proto) {
		return in, drop.InnerProtocol
	}
	if in.proto == packet.ProtoUDP && p.udp != nil && offset == 0 {
		// A datagram to the agent's own port would come to the agent as a tunnel packet with a forged outer source.
		if u := packet.UDP(b.Bytes()[in.offset:]); len(u) < 4 || u.DstPort() == p.port {
			return in, drop.InnerProtocol
		}
	}
	return in, drop.Accept
}

// transport finds the transport header in the checked IP packet p. offset is the fragment offset, 0 in a whole packet.
func transport(p []byte) (in inside, src, dst netip.Addr, offset int, d drop.Reason) {
	if h := packet.IPv4(p); h.Version() == 4 {
		in = inside{offset: h.HeaderLen(), proto: h.Protocol(), fragment: h.Fragment()}
		if in.fragment {
			offset = h.FragOffset()
		}
		return in, h.Src(), h.Dst(), offset, drop.Accept
	}
	h := packet.IPv6(p)
	x, d := h.Transport()
	if d != drop.Accept {
		return in, src, dst, 0, d
	}
	return inside{offset: x.Offset, proto: x.Proto, fragment: x.Fragment}, h.Src(), h.Dst(), x.FragOffset, d
}

// tunnelled reports whether packets of this protocol carry other packets (IANA).
func tunnelled(proto uint8) bool {
	switch proto {
	case packet.ProtoIPIP, packet.ProtoIPv6, packet.ProtoGRE,
		55,  // minimal encapsulation, RFC 2004
		94,  // IPIP of KA9Q
		97,  // EtherIP, RFC 3378
		98,  // RFC 1241
		115, // L2TP, RFC 3931
		137, // MPLS, RFC 4023
		143: // Ethernet, RFC 8986
		return true
	}
	return false
}

// isClient reports whether a can be a client's address: one of a single host other than this one.
func (p *Policy) isClient(a netip.Addr) bool {
	if _, local := p.localAddrs[a]; local {
		return false
	}
	if a.Is4() {
		first := a.As4()[0]
		// 224/4 is multicast, 240/4 reserved, with the broadcast address
		return first != 0 && first < 224 && first != 127
	}
	b := a.As16()
	if b[0] == 0xff || b[0] == 0xfe && b[1]&0xc0 == 0x80 { // multicast, link-local
		return false
	}
	// ::/96 has no client: ::, ::1 and the deprecated IPv4-compatible addresses (RFC 4291, sections 2.5.2, 2.5.3 and
	// 2.5.5.1).
	return binary.BigEndian.Uint64(b[:]) != 0 || binary.BigEndian.Uint32(b[8:]) != 0
}
