package packet

import (
	"encoding/binary"
	"net/netip"
)

// ReplaceDst replaces destination address and port of the packet in b, whose headers are p, for network address
// translation. to is of the packet's family. With to's port 0 the port stays. p is not changed.
//
// Checksums are updated incrementally (RFC 1624, equation 3), so that a damaged packet stays damaged. An unfinished
// checksum stays unfinished: it is the sum of the pseudo-header, which has the addresses and not the ports. A UDP
// datagram without checksum gets one, as from IPVS (Linux net/netfilter/ipvs/ip_vs_proto_udp.c), unless it is a GSO
// packet, or a checksum inside it is unfinished. A GSO packet's checksum becomes an unfinished one.
func ReplaceDst(b *Buf, p *Info, to netip.AddrPort) { replace(b, p, &dstFields, to) }

// ReplaceSrc is ReplaceDst for source address and port.
func ReplaceSrc(b *Buf, p *Info, from netip.AddrPort) { replace(b, p, &srcFields, from) }

// fields are the offsets of one end's fields: of its address in the headers of both families, and of its port in the
// transport header.
type fields struct{ four, six, port int }

var (
	srcFields = fields{12, 8, 0}
	dstFields = fields{16, 24, 2}
)

func replace(b *Buf, p *Info, at *fields, with netip.AddrPort) {
	in := b.Bytes()
	var addr uint64 // the change of the addresses' sum
	if p.Flow.Src.Is4() {
		addr = replace4(in[at.four:], with.Addr().As4())
		update(in[ipChecksumAt:], addr)
	} else {
		addr = replace6(in[at.six:], with.Addr().As16())
	}
	t := in[p.Offset:p.Len]
	port := with.Port()
	if port == 0 {
		port = binary.BigEndian.Uint16(t[at.port:])
	}
	if p.Flow.Proto == ProtoSCTP {
		replaceSCTP(t, at.port, port)
		return
	}
	ports := replace2(t[at.port:], port)
	checksumAt, udp := TCPChecksumAt, p.Flow.Proto == ProtoUDP
	if udp {
		checksumAt = UDPChecksumAt
	}
	checksum, o := t[checksumAt:], &b.Offload
	switch none := udp && binary.BigEndian.Uint16(checksum) == 0; {
	case o.Partial && int(o.CsumStart) == p.Offset:
		binary.BigEndian.PutUint16(checksum, Fold(uint64(binary.BigEndian.Uint16(checksum))+addr))
	case none && (o.Partial || o.GSO != GSONone):
	case none:
		PutChecksum(checksum, Sum(t, PseudoSum(in, ProtoUDP, len(t))), true)
	case o.GSO != GSONone:
		o.Partial, o.CsumStart, o.CsumOffset = true, uint16(p.Offset), uint16(checksumAt)
		binary.BigEndian.PutUint16(checksum, Fold(PseudoSum(in, p.Flow.Proto, len(t))))
	case udp:
		updateUDP(checksum, addr+ports)
	default:
		update(checksum, addr+ports)
	}
}

// RaiseTTL raises TTL or hop limit of the packet in b by one, at most to 255. A packet that is written back into a TUN
// device passes two hops of the kernel instead of one.
func RaiseTTL(b []byte) {
	if Version(b) == 6 {
		if h := IPv6(b); h.HopLimit() < 255 {
			h.SetHopLimit(h.HopLimit() + 1)
		}
		return
	}
	if h := IPv4(b); h.TTL() < 255 {
		h.SetTTL(h.TTL() + 1)
		update(h[ipChecksumAt:], 1<<8)
	}
}

// The replace functions overwrite the first bytes of b. They return the change of b's sum, ~m + m' in RFC 1624, for
// update. The offset of b in the summed bytes is even.

func replace2(b []byte, with uint16) (change uint64) {
	was := binary.BigEndian.Uint16(b)
	binary.BigEndian.PutUint16(b, with)
	return uint64(^was) + uint64(with)
}

func replace4(b []byte, with [4]byte) (change uint64) {
	was, is := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(with[:])
	binary.BigEndian.PutUint32(b, is)
	return uint64(^was) + uint64(is) // a sum of words of 32 bits folds to that of their halves
}

func replace6(b []byte, with [16]byte) (change uint64) {
	for i := 0; i < len(with); i += 4 {
		change += replace4(b[i:], [4]byte(with[i:]))
	}
	return change
}

// update updates the finished checksum at the front of b after a change of the bytes that it covers (RFC 1624, equation
// 3).
func update(b []byte, change uint64) {
	binary.BigEndian.PutUint16(b, ^Fold(uint64(^binary.BigEndian.Uint16(b))+change))
}

// updateUDP is update for a UDP checksum. A result of 0 becomes 0xffff: 0 means none (RFC 768).
func updateUDP(b []byte, change uint64) {
	if update(b, change); b[0]|b[1] == 0 {
		b[0], b[1] = 0xff, 0xff
	}
}
