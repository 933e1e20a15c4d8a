package packet

import (
	"encoding/binary"
	"net/netip"
)

// ReplaceQuotedSrc replaces the source of the packet that the ICMP error in b quotes, address and port, and the error's
// own destination, which is that source's address (RFC 5508, section 4). It is for an error that comes from the other
// end's side. q is QuotedFlow's result for b. The checksums of the error and of the quoted headers are updated
// incrementally, as far as the quote has them. The error's data behind the quote stays as it is. SCTP's checksum covers
// the whole quoted packet, which the quote does not have: it stays, too.
func ReplaceQuotedSrc(b []byte, q *Quoted, with netip.AddrPort) {
	replaceQuoted(b, q, &dstFields, &srcFields, with)
}

// ReplaceQuotedDst replaces the destination of the packet that the ICMP error in b quotes, address and port, and makes
// that address the error's own source: the error may come from the destination or from a router on the way to it. All
// else is as with ReplaceQuotedSrc.
func ReplaceQuotedDst(b []byte, q *Quoted, with netip.AddrPort) {
	replaceQuoted(b, q, &srcFields, &dstFields, with)
}

// replaceQuoted replaces an address of the error at outer, and an address and port of the quoted packet at inner.
func replaceQuoted(b []byte, q *Quoted, outer, inner *fields, with netip.AddrPort) {
	quoted, end := b[q.Offset:], len(b)
	var addr, change uint64 // of the quoted addresses; of all bytes that the error's checksum covers
	if q.Flow.Src.Is4() {
		a := with.Addr().As4()
		update(b[ipChecksumAt:], replace4(b[outer.four:], a))
		addr = replace4(quoted[inner.four:], a)
		change = addr + updateQuoted(quoted[ipChecksumAt:], addr, false)
		end = min(end, q.Offset+IPv4(quoted).TotalLen())
	} else {
		a := with.Addr().As16()
		addr = replace6(quoted[inner.six:], a)
		change = addr + replace6(b[outer.six:], a) // of the pseudo-header
		end = min(end, q.Offset+IPv6(quoted).TotalLen())
	}
	switch q.Flow.Proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP:
		t := b[q.Payload:]
		ports := replace2(t[inner.port:], with.Port())
		t = t[:max(end-q.Payload, 0)]
		change += ports + updateQuotedTransport(t, q.Flow.Proto, addr+ports)
	}
	update(b[q.Offset-ICMPHeaderLen+icmpChecksumAt:], change)
}

// updateQuotedTransport updates the checksum of the quoted transport header t, as far as it is quoted, after a change
// of the bytes that it covers. It returns the change of the checksum itself.
func updateQuotedTransport(t []byte, proto uint8, change uint64) uint64 {
	switch {
	case proto == ProtoTCP && len(t) >= TCPChecksumAt+2:
		return updateQuoted(t[TCPChecksumAt:], change, false)
	case proto == ProtoUDP && len(t) >= UDPChecksumAt+2 && binary.BigEndian.Uint16(t[UDPChecksumAt:]) != 0:
		return updateQuoted(t[UDPChecksumAt:], change, true)
	}
	return 0
}

// updateQuoted is update or updateUDP. It returns the change of the checksum itself.
func updateQuoted(b []byte, change uint64, udp bool) uint64 {
	was := binary.BigEndian.Uint16(b)
	if udp {
		updateUDP(b, change)
	} else {
		update(b, change)
	}
	return uint64(^was) + uint64(binary.BigEndian.Uint16(b))
}
