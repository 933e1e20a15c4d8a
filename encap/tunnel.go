package encap

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"vstun/encap/packet"
)

// Tunnel is the ready-made headers towards one realserver. It is immutable after New. Any number of goroutines may use
// it. The zero value is no tunnel.
type Tunnel struct {
	header   [MaxOverhead]byte
	pseudo   uint16 // sum of UDP's pseudo-header without the length
	overhead uint8  // length of header, in bytes
	ip       uint8  // length of the outer IP header in it, in bytes
	kind     Kind
	checksum bool
	ethernet bool
	hop      bool  // the header has Hops of one hop
	ttl      uint8 // of the outer header; 0: the inner packet's
}

// New makes the tunnel that c describes. Its error names every contradiction in c.
func New(c Config) (Tunnel, error) {
	if err := c.check(); err != nil {
		return Tunnel{}, fmt.Errorf("tunnel to %v: %w", c.Destination, err)
	}
	t := Tunnel{kind: c.Kind, checksum: c.Checksum, ethernet: c.Ethernet, hop: c.Hop, ttl: c.TTL}
	proto := t.protocol()
	if c.Destination.Is4() {
		from := [4]byte{}
		if c.Source.IsValid() {
			from = c.Source.As4()
		}
		h := packet.IPv4(t.header[:])
		h.Encode(packet.IPv4Fields{Protocol: proto, Src: from, Dst: c.Destination.As4()})
		h.ClearChecksum() // the kernel computes it
		t.ip, t.pseudo = packet.IPv4HeaderLen, packet.Fold(h.PseudoSum(0))
	} else {
		h := packet.IPv6(t.header[:])
		h.Encode(packet.IPv6Fields{
			TotalLen: packet.IPv6HeaderLen, NextHeader: proto, Src: c.Source.As16(), Dst: c.Destination.As16(),
		})
		t.ip, t.pseudo = packet.IPv6HeaderLen, packet.Fold(h.PseudoSum(proto, 0))
	}
	h := t.header[t.ip:]
	switch c.Kind {
	case KindIPIP, KindWireGuard:
		t.overhead = t.ip
	case KindGRE:
		n := packet.GRE(h).Encode(packet.GREFields{Checksum: c.Checksum, HasKey: c.HasKey, Key: c.Key})
		t.overhead = t.ip + uint8(n)
	case KindGUE:
		t.overhead = t.ip + packet.UDPHeaderLen + packet.GUEHeaderLen
		if c.Hop {
			t.overhead += uint8(encodeHop(t.header[t.ip+packet.UDPHeaderLen:]))
		}
	case KindFOU:
		t.overhead = t.ip + packet.UDPHeaderLen
	}
	if c.Kind.UDP() {
		packet.UDP(h).SetDstPort(c.Port)
	}
	if c.Ethernet {
		t.addTEB()
	}
	return t, nil
}

// addTEB makes t a tunnel for Ethernet frames.
func (t *Tunnel) addTEB() {
	gre := packet.GRE(t.header[t.ip:])
	if t.kind != KindGRE {
		gre = packet.GRE(t.header[t.overhead:])
		gre.Encode(packet.GREFields{})
		t.overhead += packet.GREMinLen
	}
	gre.SetType(packet.EtherTypeTEB)
	if t.kind == KindGUE {
		packet.GUE(t.header[t.ip+packet.UDPHeaderLen:]).SetProto(packet.ProtoGRE)
	}
}

// protocol is the outer header's protocol number. For KindIPIP it is the number for IPv4 inside.
func (t *Tunnel) protocol() byte {
	switch {
	case t.kind.UDP():
		return packet.ProtoUDP
	case t.kind == KindGRE || t.ethernet:
		return packet.ProtoGRE
	}
	return packet.ProtoIPIP
}

// Kind is the tunnel's format.
func (t *Tunnel) Kind() Kind { return t.kind }

// Overhead is what Wrap adds to a packet, in bytes: at most MaxOverhead.
func (t *Tunnel) Overhead() int { return int(t.overhead) }

// Checksum reports whether Seal writes a checksum of GRE or UDP.
func (t *Tunnel) Checksum() bool { return t.checksum }

// Header returns a copy of the headers that Wrap puts before a packet of IP version 4 or 6. The fields that Wrap and
// Seal set from the packet are 0.
func (t *Tunnel) Header(version int) []byte {
	h := append([]byte(nil), t.header[:t.overhead]...)
	up := h[t.ip:]
	switch {
	case t.ethernet:
	case t.kind == KindGRE:
		packet.GRE(up).SetVersion(version)
	case t.kind == KindGUE:
		packet.GUE(up[packet.UDPHeaderLen:]).SetProto(protocol(version))
	case t.kind.bare() && t.outerIs4():
		packet.IPv4(h).SetProtocol(protocol(version))
	case t.kind.bare():
		packet.IPv6(h).SetNextHeader(protocol(version))
	}
	return h
}

// outerIs4 reports whether the outer header is IPv4, and not IPv6.
func (t *Tunnel) outerIs4() bool { return t.ip == packet.IPv4HeaderLen }

// SourcePort is the UDP source port for a flow with this hash. Routers (ECMP) and network cards (RSS) spread flows by
// it (draft-ietf-intarea-gue, "flow entropy"). It cannot be predicted without the hash's key.
func SourcePort(hash uint64) uint16 {
	const first, last = 32768, 60999 // Linux's own range of ephemeral ports
	n, _ := bits.Mul64(hash, last-first+1)
	return uint16(first + n)
}

// Outer is the fields of the outer IP header that Wrap takes over from the inner packet.
type Outer struct {
	Class, TTL uint8 // TOS or traffic class; TTL or hop limit
	DF         bool  // routers won't fragment the packet: always over IPv6
}

// Wrap puts all headers before the IP packet in b. The packet has been checked and its checksums are finished
// (Buf.Finish). port is the UDP source port of the kinds that use UDP. Wrap copies DSCP and ECN (RFC 6040, section 4.1,
// normal mode) and, without Config.TTL, the TTL or hop limit, as IPVS does. It copies DF from an inner IPv4 packet to
// an outer IPv4 header (RFC 2003, section 3.1). DF is clear for an inner IPv6 packet (RFC 4213, section 3.2.1), as in
// IPVS. The kernel fills in ID and checksum of an outer IPv4 header (raw(7)). The flow label of an outer IPv6 header is
// 0.
//
// Without Config.Checksum the UDP checksum is 0, also over IPv6, as in IPVS. RFC 6935 allows 0 for tunnels. The
// realserver's socket must accept it (UDP_NO_CHECK6_RX).
//
// Wrap does not set lengths and checksums for a GSO packet. The caller calls Seal for each of its segments.
func (t *Tunnel) Wrap(b *packet.Buf, port uint16) Outer { return t.wrap(b, port, 0) }

// WrapHop is Wrap of a tunnel with Config.Hop. next is the host that the packet may go on to.
func (t *Tunnel) WrapHop(b *packet.Buf, port uint16, next [4]byte) Outer {
	return t.wrap(b, port, binary.BigEndian.Uint32(next[:]))
}

// wrap is WrapHop. An array would not be passed in a register.
func (t *Tunnel) wrap(b *packet.Buf, port uint16, next uint32) Outer {
	class, ttl, df, version := outerFields(b.Bytes())
	if t.ttl != 0 {
		ttl = t.ttl
	}
	h := b.Prepend(int(t.overhead))
	copy(h, t.header[:])
	up := h[t.ip:]
	switch t.kind {
	case KindGRE:
		packet.GRE(up).SetVersion(version)
	case KindGUE:
		packet.UDP(up).SetSrcPort(port)
		packet.GUE(up[packet.UDPHeaderLen:]).SetProto(protocol(version))
		if t.hop {
			binary.BigEndian.PutUint32(up[packet.UDPHeaderLen+hopsList:], next)
		}
	case KindFOU:
		packet.UDP(up).SetSrcPort(port)
	}
	if t.outerIs4() {
		ip := packet.IPv4(h[:packet.IPv4HeaderLen]) // one bounds check for all fields
		ip.SetTOS(class)
		ip.SetDF(df)
		ip.SetTTL(ttl)
		if t.kind.bare() {
			ip.SetProtocol(protocol(version))
		}
	} else {
		ip := packet.IPv6(h[:packet.IPv6HeaderLen])
		ip.SetTrafficClass(class)
		ip.SetHopLimit(ttl)
		if t.kind.bare() {
			ip.SetNextHeader(protocol(version))
		}
	}
	if b.Offload.GSO == packet.GSONone {
		t.seal(b.Bytes(), nil)
	}
	return Outer{Class: class, TTL: ttl, DF: df || !t.outerIs4()}
}

// WrapFrame is Wrap for the Ethernet frame in b, of a tunnel with Config.Ethernet. class is the outer TOS or traffic
// class. DF is clear over IPv4: the sender of a frame learns of no path MTU. b's Offload counts from where it did
// before, such as the IP packet in the frame.
func (t *Tunnel) WrapFrame(b *packet.Buf, port uint16, class uint8) Outer {
	h := b.Prepend(int(t.overhead))
	copy(h, t.header[:])
	if t.kind.UDP() {
		packet.UDP(h[t.ip:]).SetSrcPort(port)
	}
	if t.outerIs4() {
		packet.IPv4(h).SetTOS(class)
		packet.IPv4(h).SetTTL(t.ttl)
	} else {
		packet.IPv6(h).SetTrafficClass(class)
		packet.IPv6(h).SetHopLimit(t.ttl)
	}
	if b.Offload.GSO == packet.GSONone {
		t.seal(b.Bytes(), nil)
	}
	return Outer{Class: class, TTL: t.ttl, DF: !t.outerIs4()}
}

// Seal sets the fields that depend on the length and contents of the wrapped packet s: the total length or payload
// length of the outer IP header, the length in the UDP header, and the checksum, if there is one. It changes no other
// field. Head holds the tunnel's headers and has an even number of bytes. The checksums of the inner packet are
// finished.
func (t *Tunnel) Seal(s packet.Segment) { t.seal(s.Head, s.Body) }

// seal is Seal, of a packet in two pieces.
func (t *Tunnel) seal(h, body []byte) {
	n := len(h) + len(body)
	if t.outerIs4() {
		packet.IPv4(h).SetTotalLen(n)
	} else {
		packet.IPv6(h).SetPayloadLen(n - packet.IPv6HeaderLen)
	}
	h, n = h[t.ip:], n-int(t.ip)
	switch {
	case t.kind.UDP():
		u := packet.UDP(h)
		u.SetLen(n)
		if t.checksum {
			u.SetChecksum(packet.Sum(body, uint64(t.pseudo)+uint64(n)))
		}
	case t.checksum:
		packet.GRE(h).SetChecksum(packet.Sum(body, 0))
	}
}

// outerFields returns the fields of the IP packet p that an outer header takes over. class is TOS or traffic class.
func outerFields(p []byte) (class, ttl byte, df bool, version int) {
	if h := packet.IPv6(p); h.Version() == 6 {
		return h.TrafficClass(), h.HopLimit(), false, 6
	}
	h := packet.IPv4(p)
	return h.TOS(), h.TTL(), h.DF(), 4
}
