package vrrp

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Versions of the protocol.
const (
	Version2 = 2 // RFC 3768, of IPv4
	Version3 = 3 // RFC 9568
)

// Types of authentication of version 2: RFC 2338, section 5.3.6. RFC 3768 has removed all but the first; keepalived
// still has them.
const (
	AuthNone     = 0
	AuthPassword = 1
)

const (
	headerLen   = 8
	authLen     = 8 // version 2: behind the addresses, also without authentication
	advertType  = 1
	checksumOff = 6
	maxAddrs    = 255
)

// Advert is an advertisement.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+-------+---------------+---------------+---------------+
//	|version| type 1|   router id   |   priority    |   addresses   |  0
//	+-------+-------+---------------+---------------+---------------+
//	| 2:   auth type|   interval, s |           checksum            |  4
//	| 3: res|     interval, 1/100 s |                               |
//	+---------------+---------------+-------------------------------+
//	|                           addresses                           |  8
//	+---------------------------------------------------------------+
//	| 2:            authentication data, 8 bytes                    |
//	+---------------------------------------------------------------+
//	| keepalived 2.4: trailer with an HMAC, 28 bytes, see trailer   |
type Advert struct {
	Version  uint8
	RouterID uint8
	Priority uint8         // 0: the master steps down
	Interval time.Duration // in seconds, or with version 3 in 1/100 s
	Addrs    []netip.Addr  // of the family of the IP packet
	AuthType uint8         // version 2
	AuthData [authLen]byte // version 2

	pdu     []byte // without the trailer
	trailer []byte // nil: there is none
}

// Checksum is how the checksum of version 3 over IPv4 is computed.
type Checksum uint8

const (
	RFC5798 Checksum = iota // with a pseudo header, as keepalived and FRR do
	RFC9568                 // without one
)

// Append appends a to b, with the checksum of a packet from src to dst.
func (a *Advert) Append(b []byte, src, dst netip.Addr, sum Checksum) []byte {
	at := len(b)
	b = append(b, a.Version<<4|advertType, a.RouterID, a.Priority, uint8(len(a.Addrs)))
	if a.Version == Version2 {
		b = append(b, a.AuthType, uint8(a.Interval/time.Second))
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(a.Interval/centisecond))
	}
	b = append(b, 0, 0)
	for _, addr := range a.Addrs {
		b = append(b, addr.AsSlice()...)
	}
	if a.Version == Version2 {
		b = append(b, a.AuthData[:]...)
	}
	setChecksum(b[at:], src, dst, a.Version, sum)
	return b
}

// setChecksum fills the checksum of the packet p in.
func setChecksum(p []byte, src, dst netip.Addr, version uint8, sum Checksum) {
	begin := uint32(0)
	if version != Version2 && (src.Is6() || sum == RFC5798) {
		begin = pseudoHeader(src, dst, len(p))
	}
	p[checksumOff], p[checksumOff+1] = 0, 0
	binary.BigEndian.PutUint16(p[checksumOff:], ^fold(add(begin, p)))
}

// centisecond is the unit of version 3's interval.
const centisecond = 10 * time.Millisecond

// Parse returns the advertisement in b, the payload of an IP packet from src to dst. The advertisement refers to b. It
// has been checked, except for what depends on the instance. Of version 3 over IPv4 either checksum will do.
func Parse(b []byte, src, dst netip.Addr) (a Advert, r Refusal) {
	if len(b) < headerLen {
		return a, BadLength
	}
	a = Advert{Version: b[0] >> 4, RouterID: b[1], Priority: b[2]}
	size := src.BitLen() / 8
	length := headerLen + int(b[3])*size
	switch {
	case a.Version == Version2 && src.Is4():
		a.AuthType, a.Interval = b[4], time.Duration(b[5])*time.Second
		length += authLen
	case a.Version == Version3:
		a.Interval = time.Duration(binary.BigEndian.Uint16(b[4:])&0x0fff) * centisecond
	default:
		return a, BadVersion
	}
	if b[0]&0x0f != advertType {
		return a, BadType
	}
	switch len(b) - length {
	case 0:
	case trailerLen:
		a.trailer = b[length:]
	default:
		return a, BadLength
	}
	a.pdu = b[:length]
	summed := a.pdu
	if src.Is6() { // the kernel fills it in: IPV6_CHECKSUM in ipv6(7)
		summed = b
	}
	if !checksumFits(summed, src, dst, a.Version) {
		return a, BadChecksum
	}
	if a.Interval == 0 {
		return a, BadInterval
	}
	for n := range int(b[3]) {
		addr, _ := netip.AddrFromSlice(b[headerLen+n*size:][:size])
		a.Addrs = append(a.Addrs, addr)
	}
	if a.Version == Version2 {
		a.AuthData = [authLen]byte(a.pdu[length-authLen:])
	}
	return a, Accepted
}

// checksumFits reports whether the checksum of p is right.
func checksumFits(p []byte, src, dst netip.Addr, version uint8) bool {
	without, with := add(0, p), uint32(0)
	if version == Version2 {
		return fold(without) == 0xffff
	}
	with = add(pseudoHeader(src, dst, len(p)), p)
	return fold(with) == 0xffff || src.Is4() && fold(without) == 0xffff
}

// pseudoHeader returns the sum of the pseudo header: RFC 9568, section 5.2.8; RFC 5798, section 5.2.8.
func pseudoHeader(src, dst netip.Addr, length int) uint32 {
	sum := add(add(0, src.AsSlice()), dst.AsSlice())
	return sum + Protocol + uint32(length)
}

// add adds the words of b to a sum: RFC 1071.
func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
