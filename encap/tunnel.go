package encap

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"vstun/encap/packet"
)

// Tunnel is the ready-made headers towards one realserver. It is not changed after New, so that any number of
// goroutines may use it. The zero value is no tunnel.
type Tunnel struct {
	header   [MaxOverhead]byte
	pseudo   uint16 // sum of UDP's pseudo-header without the length
	overhead uint8  // length of header, in bytes
	ip       uint8  // length of the outer IP header in it, in bytes
	kind     Kind
	checksum bool
}

// New makes the tunnel that c describes. Its error names every contradiction in c.
func New(c Config) (Tunnel, error) {
	if err := c.check(); err != nil {
		return Tunnel{}, fmt.Errorf("tunnel to %v: %w", c.Destination, err)
	}
	t := Tunnel{kind: c.Kind, checksum: c.Checksum}
	proto := t.protocol()
	if c.Destination.Is4() {
		from := [4]byte{}
		if c.Source.IsValid() {
			from = c.Source.As4()
		}
		h := packet.IPv4(t.header[:])
		packet.PutIPv4(h, 0, 0, 0, proto, from, c.Destination.As4())
		h[10], h[11] = 0, 0 // the checksum is the kernel's
		t.ip, t.pseudo = packet.IPv4HeaderLen, packet.Fold(h.PseudoSum(0))
	} else {
		h := packet.IPv6(t.header[:])
		packet.PutIPv6(h, 0, packet.IPv6HeaderLen, 0, proto, c.Source.As16(), c.Destination.As16())
		t.ip, t.pseudo = packet.IPv6HeaderLen, packet.Fold(h.PseudoSum(proto, 0))
	}
	h := t.header[t.ip:]
	switch c.Kind {
	case KindIPIP:
		t.overhead = t.ip
	case KindGRE:
		t.overhead = t.ip + uint8(putGRE(h, c.Checksum, c.HasKey, c.Key))
	case KindGUE:
		t.overhead = t.ip + packet.UDPHeaderLen + gueHeaderLen
	case KindFOU:
		t.overhead = t.ip + packet.UDPHeaderLen
	}
	if c.Kind.UDP() {
		binary.BigEndian.PutUint16(h[2:], c.Port)
	}
	return t, nil
}

// protocol is the outer header's protocol number; IPIP's is that of IPv4 inside.
func (t *Tunnel) protocol() byte {
	switch t.kind {
	case KindGRE:
		return packet.ProtoGRE
	case KindGUE, KindFOU:
		return packet.ProtoUDP
	}
	return packet.ProtoIPIP
}

// Kind is the tunnel's format.
func (t *Tunnel) Kind() Kind { return t.kind }

// Overhead is what Wrap adds to a packet, in bytes: at most MaxOverhead.
func (t *Tunnel) Overhead() int { return int(t.overhead) }

// outerIs4 reports whether the outer header is IPv4, and not IPv6.
func (t *Tunnel) outerIs4() bool { return t.ip == packet.IPv4HeaderLen }

// SourcePort is the UDP source port for a flow of this hash: it lets routers and network cards between director and
// realserver tell flows apart (draft-ietf-intarea-gue, "flow entropy"). Only who knows the key of the hash can foresee
// it.
func SourcePort(hash uint64) uint16 {
	const first, last = 32768, 60999 // Linux's own range of ephemeral ports
	n, _ := bits.Mul64(hash, last-first+1)
	return uint16(first + n)
}

// Wrap puts all headers before the IP packet in b, which has been checked and has its checksums (Buf.Finish); port is
// the UDP source port, for the kinds that have one. DSCP and ECN are copied (RFC 6040, section 4.1, normal mode), so is
// the TTL or hop limit, as IPVS does. An outer IPv4 header has DF as the IPv4 packet inside has (RFC 2003, section
// 3.1), and none for IPv6 inside (RFC 4213, section 3.2.1), as in IPVS; ID and checksum are left to the kernel, which
// fills them in on a raw socket (raw(7)). The flow label of an outer IPv6 header is 0.
//
// Without Config.Checksum a UDP checksum is 0, also over IPv6, as IPVS sends it: RFC 6935 allows that for tunnels, but
// a realserver's socket has to agree (UDP_NO_CHECK6_RX).
//
// Of a super-packet, lengths and checksums are left open: each packet that it is cut into needs Seal.
func (t *Tunnel) Wrap(b *packet.Buf, port uint16) {
	class, ttl, df, version := look(b.Bytes())
	h := b.Prepend(int(t.overhead))
	copy(h, t.header[:])
	ip, up := h[:t.ip], h[t.ip:]
	switch t.kind {
	case KindGRE:
		gre(up).setVersion(version)
	case KindGUE:
		binary.BigEndian.PutUint16(up, port)
		gue(up[packet.UDPHeaderLen:]).setProto(protocol(version))
	case KindFOU:
		binary.BigEndian.PutUint16(up, port)
	}
	if t.outerIs4() {
		ip[1], ip[6], ip[8] = class, df, ttl
		if t.kind == KindIPIP {
			ip[9] = protocol(version)
		}
	} else {
		packet.IPv6(ip).SetTrafficClass(class)
		ip[7] = ttl
		if t.kind == KindIPIP {
			ip[6] = protocol(version)
		}
	}
	if b.Offload.GSO == packet.GSONone {
		t.seal(b.Bytes(), nil)
	}
}

// Seal sets what depends on length and contents of the wrapped packet s: total length or payload length of the outer IP
// header, the length in the UDP header, and the checksum, if there is one, over Head and Body. Nothing else that Wrap
// wrote is touched. Head holds the tunnel's headers and an even number of bytes; the packet inside is finished.
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
		binary.BigEndian.PutUint16(h[4:], uint16(n))
		if t.checksum {
			h[6], h[7] = 0, 0
			packet.PutChecksum(h[6:], packet.Sum(body, packet.Sum(h, uint64(t.pseudo)+uint64(n))), true)
		}
	case t.checksum:
		h[4], h[5] = 0, 0
		packet.PutChecksum(h[4:], packet.Sum(body, packet.Sum(h, 0)), false)
	}
}

// look finds what an outer header takes over from the IP packet p: class is TOS or traffic class, df is 0x40 or 0.
func look(p []byte) (class, ttl, df byte, version int) {
	if h := packet.IPv6(p); h.Version() == 6 {
		return h.TrafficClass(), h.HopLimit(), 0, 6
	}
	h := packet.IPv4(p)
	return h.TOS(), h.TTL(), h[6] & 0x40, 4
}
