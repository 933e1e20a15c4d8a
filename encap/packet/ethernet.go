package packet

import "encoding/binary"

// EthernetHeaderLen is the length of an Ethernet header without VLAN tag, in bytes.
const EthernetHeaderLen = 14

// Types of Ethernet frames, and protocol types of GRE (IANA, IEEE 802 numbers).
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeIPv6 = 0x86dd
	EtherTypeTEB  = 0x6558 // of GRE alone: an Ethernet frame ("Transparent Ethernet Bridging", RFC 1701)
	EtherTypeVLAN = 0x8100 // a VLAN tag of 4 bytes (IEEE 802.1Q, section 9.6)
	EtherTypeQinQ = 0x88a8 // an outer one
)

// VLANTagLen is the length of a VLAN tag, in bytes.
const VLANTagLen = 4

// Ethernet is a view over an Ethernet frame without VLAN tag and frame check sequence (IEEE 802.3, section 3.1.1; RFC
// 894). Its methods need the first 14 bytes to be there.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------------------------------------------------------+
//	|                 Destination Address, 6 bytes                  |  0
//	+-------------------------------+-------------------------------+
//	|                               |    Source Address, 6 bytes    |  4
//	+-------------------------------+-------------------------------+
//	|                                                               |  8
//	+-------------------------------+-------------------------------+
//	|             Type              |                               | 12
//	+-------------------------------+-------------------------------+
type Ethernet []byte

func (h Ethernet) Dst() [6]byte       { return [6]byte(h) }
func (h Ethernet) Src() [6]byte       { return [6]byte(h[6:]) }
func (h Ethernet) Type() uint16       { return binary.BigEndian.Uint16(h[12:]) }
func (h Ethernet) Payload() []byte    { return h[EthernetHeaderLen:] }
func (h Ethernet) SetDst(mac [6]byte) { copy(h, mac[:]) }
func (h Ethernet) SetSrc(mac [6]byte) { copy(h[6:], mac[:]) }
func (h Ethernet) SetType(t uint16)   { binary.BigEndian.PutUint16(h[12:], t) }

// IP returns the offset of the IP packet in the frame, in bytes, and its version. It skips up to two VLAN tags. For a
// frame with another payload, the version is 0.
func (h Ethernet) IP() (at, version int) {
	at = EthernetHeaderLen
	t := h.Type()
	for range 2 {
		if t != EtherTypeVLAN && t != EtherTypeQinQ || len(h) < at+VLANTagLen {
			break
		}
		t = binary.BigEndian.Uint16(h[at+VLANTagLen-2:])
		at += VLANTagLen
	}
	if version = etherVersion(t); version != 0 && Version(h[at:]) != version {
		version = 0
	}
	return at, version
}

// EtherType is the type of packets of IP version 4 or 6.
func EtherType(version int) uint16 {
	if version == 6 {
		return EtherTypeIPv6
	}
	return EtherTypeIPv4
}

// etherVersion is the reverse of EtherType: 0 for another type.
func etherVersion(t uint16) int {
	switch t {
	case EtherTypeIPv4:
		return 4
	case EtherTypeIPv6:
		return 6
	}
	return 0
}
