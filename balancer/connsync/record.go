package connsync

import (
	"encoding/binary"
	"net/netip"
)

// Record is a connection or persistence template as a datagram carries it (Linux ip_vs_sync.c, struct ip_vs_sync_v4 and
// ip_vs_sync_v6).
//
//	 0 type: 0 IPv4, 1 IPv6      12 virtual port
//	 1 protocol                  14 real port
//	 2 version 0, 4 bits; size   16 firewall mark
//	 4 flags                     20 timeout, in seconds
//	 8 state                     24 client, virtual and real address
//	10 client port               36 options; IPv6: 72
//
// Size includes the options, but not the padding to a multiple of 4 bytes. All numbers are in network byte order.
type Record struct {
	Protocol uint8 // 0 in templates of firewall marks
	Flags    Flags
	State    uint16 // of the protocol, in the kernel's numbers
	Client   netip.AddrPort
	Virtual  netip.AddrPort // of Client's family; in templates of firewall marks the mark stands for the address
	Real     netip.AddrPort // of another family: an option has its address
	Mark     uint32         // firewall mark
	Timeout  uint32         // of the state, from the last packet on, in seconds; 0: the receiver's own
	Options
}

// Flags are the flags of a connection (Linux include/uapi/linux/ip_vs.h, IP_VS_CONN_F_…).
type Flags uint32

// The flags that have a meaning here.
const (
	FlagMasquerade  Flags = 0      // VS/NAT
	FlagTunnel      Flags = 2      // VS/TUN
	FlagDirectRoute Flags = 3      // VS/DR
	FlagMethod      Flags = 0x7    // mask of the forwarding method
	FlagNoOutput    Flags = 0x80   // replies do not pass the director
	FlagInactive    Flags = 0x100  // schedulers count the connection as inactive
	FlagTemplate    Flags = 0x1000 // a persistence template
)

// Sizes of a record without options, and the largest size.
const (
	recordSize4   = 36
	recordSize6   = 72
	maxRecordSize = 0xfff
)

// sixType is the bit of a record's type that stands for IPv6.
const sixType = 1

// size returns the size of r without padding.
func (r *Record) size() int {
	if r.Client.Addr().Is4() {
		return recordSize4 + r.optionsSize()
	}
	return recordSize6 + r.optionsSize()
}

// paddedSize is the number of bytes that appendRecord appends.
func (r *Record) paddedSize() int { return (r.size() + 3) &^ 3 }

// appendRecord appends r with its padding. Client and Virtual are of the same family, without zones.
func appendRecord(b []byte, r *Record) []byte {
	four := r.Client.Addr().Is4()
	kind := byte(sixType)
	if four {
		kind = 0
	}
	b = append(b, kind, r.Protocol)
	b = binary.BigEndian.AppendUint16(b, uint16(r.size()))
	b = binary.BigEndian.AppendUint32(b, uint32(r.Flags))
	b = binary.BigEndian.AppendUint16(b, r.State)
	for _, at := range [...]netip.AddrPort{r.Client, r.Virtual, r.Real} {
		b = binary.BigEndian.AppendUint16(b, at.Port())
	}
	b = binary.BigEndian.AppendUint32(b, r.Mark)
	b = binary.BigEndian.AppendUint32(b, r.Timeout)
	for _, at := range [...]netip.AddrPort{r.Client, r.Virtual, r.Real} {
		b = appendAddress(b, at.Addr(), four)
	}
	b = r.appendOptions(b)
	for n := r.size(); n%4 != 0; n++ {
		b = append(b, 0)
	}
	return b
}

// appendAddress appends a as an IPv4 or an IPv6 address. An address of the other family becomes zeros.
func appendAddress(b []byte, a netip.Addr, four bool) []byte {
	switch {
	case four && a.Is4():
		bytes := a.As4()
		return append(b, bytes[:]...)
	case four:
		return append(b, 0, 0, 0, 0)
	case a.Is6():
		bytes := a.As16()
		return append(b, bytes[:]...)
	}
	var zeros [16]byte
	return append(b, zeros[:]...)
}

// parseRecord parses the record at the start of b, which has the rest of a datagram. It returns the bytes behind the
// record and its padding. Accepted is the fault of a record that is well-formed. Without own, this program's own
// options are ignored, as the kernel does: nothing authenticates them in the mode IPVS.
func parseRecord(b []byte, into *Record, own bool) (rest []byte, fault Fault) {
	if len(b) < recordSize4 {
		return nil, BadRecord
	}
	size, base, n := int(binary.BigEndian.Uint16(b[2:])), recordSize4, 4
	if b[0]&sixType != 0 {
		base, n = recordSize6, 16
	}
	switch {
	case b[0]&^sixType != 0 && base == recordSize4:
		return nil, BadRecord
	case size > maxRecordSize: // the upper bits are the record's version
		return nil, BadRecord
	case size < base || size > len(b):
		return nil, BadRecord
	}
	*into = Record{Protocol: b[1], Flags: Flags(binary.BigEndian.Uint32(b[4:])), State: binary.BigEndian.Uint16(b[8:]),
		Mark: binary.BigEndian.Uint32(b[16:]), Timeout: binary.BigEndian.Uint32(b[20:])}
	for i, at := range [...]*netip.AddrPort{&into.Client, &into.Virtual, &into.Real} {
		a, _ := netip.AddrFromSlice(b[24+i*n : 24+(i+1)*n])
		*at = netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[10+2*i:]))
	}
	if fault = into.parseOptions(b[base:size], own); fault == BadRecord {
		return nil, fault
	}
	return b[min((size+3)&^3, len(b)):], fault
}
