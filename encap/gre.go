package encap

import (
	"encoding/binary"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// gre is a view over a GRE header (RFC 2784, section 2.1; RFC 2890, section 2), and what it carries.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-----------------+-----+-------------------------------+
//	|C| |K|S|    Reserved0    | Ver |         Protocol Type         |  0
//	+-+-+-+-+-----------------+-----+-------------------------------+
//	|      Checksum, with C         |           Reserved1           |  4
//	+-------------------------------+-------------------------------+
//	|                         Key, with K                           |  4, or 8 behind a checksum
//	+---------------------------------------------------------------+
type gre []byte

const (
	greMinLen   = 4
	greChecksum = 0x8000 // C
	greKey      = 0x2000 // K
	greIgnored  = 0x03f8 // bits 6 to 12, which a receiver ignores; it refuses the others (RFC 2784, section 2.3)
)

func (h gre) flags() uint16        { return binary.BigEndian.Uint16(h) }
func (h gre) protocolType() uint16 { return binary.BigEndian.Uint16(h[2:]) }

// len is the header's length in bytes, by its flags.
func (h gre) len() int {
	n := greMinLen
	if h.flags()&greChecksum != 0 {
		n += 4
	}
	if h.flags()&greKey != 0 {
		n += 4
	}
	return n
}

// key is the key of a header that has one.
func (h gre) key() uint32 { return binary.BigEndian.Uint32(h[h.len()-4:]) }

// version is the IP version that the protocol type names, 0 for another protocol.
func (h gre) version() int {
	switch h.protocolType() {
	case etherIPv4:
		return 4
	case etherIPv6:
		return 6
	}
	return 0
}

func (h gre) setVersion(version int) {
	t := uint16(etherIPv4)
	if version == 6 {
		t = etherIPv6
	}
	binary.BigEndian.PutUint16(h[2:], t)
}

// checksum is the checksum of a header that has one.
func (h gre) checksum() uint16 { return binary.BigEndian.Uint16(h[greMinLen:]) }

// unfinished reports whether the checksum of a header that has one may be wrong without damage: packets that have met
// no wire since a kernel sent them, and those that GRO has put together, come out of a raw socket before somebody has
// finished their checksums. One that a network card was to compute is 0 then (gre_build_header in include/net/gre.h).
// One that was computed already is right only once that of the TCP or UDP packet inside is (lco_csum in
// include/linux/skbuff.h); that of a super-packet is none at all. In both of these the checksum inside is the sum of
// the pseudo-header.
func (h gre) unfinished() bool {
	if h.checksum() == 0 {
		return true
	}
	p := h[h.len():]
	var t []byte
	var proto byte
	var pseudo uint64
	switch h.version() {
	case 4:
		in := packet.IPv4(p)
		if in.Check() != drop.Accept || in.Fragment() {
			return false
		}
		proto, t = in.Protocol(), in.Payload()
		pseudo = in.PseudoSum(len(t))
	case 6:
		in := packet.IPv6(p)
		if in.Check() != drop.Accept {
			return false
		}
		at, d := in.Transport()
		if d != drop.Accept || at.Fragment {
			return false
		}
		proto, t = at.Proto, in[at.Offset:in.TotalLen()]
		pseudo = in.PseudoSum(proto, len(t))
	}
	switch {
	case proto == packet.ProtoTCP && len(t) >= 20:
		t = t[16:]
	case proto == packet.ProtoUDP && len(t) >= 8:
		t = t[6:]
	default:
		return false
	}
	return binary.BigEndian.Uint16(t) == packet.Fold(pseudo)
}

// putGRE writes a header for IPv4, with checksum 0 where it has one, to the front of h, and returns its length in
// bytes.
func putGRE(h gre, checksum, hasKey bool, key uint32) int {
	var flags uint16
	if checksum {
		flags |= greChecksum
	}
	if hasKey {
		flags |= greKey
	}
	binary.BigEndian.PutUint16(h, flags)
	h.setVersion(4)
	n := h.len()
	clear(h[greMinLen:n])
	if hasKey {
		binary.BigEndian.PutUint32(h[n-4:], key)
	}
	return n
}
