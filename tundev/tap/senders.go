package tap

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"vstun/encap/packet"
)

// Senders remembers from which MAC addresses the packets of IP addresses came: of clients in the network itself, their
// own, else their router's. It is for answers that belong to no packet of a batch, such as relayed ICMP errors. The
// host's routes cannot serve: the host needs no address in the network. An address takes the place of an earlier one of
// the same slot. All ports of a device share one Senders.
type Senders struct {
	slots [1 << senderBits]atomic.Uint64
}

// senderBits is the logarithm of the number of slots.
const senderBits = 14

// Of a slot: the MAC address, and bits of the address's hash above it.
const macBits = 48

// note remembers that the IP packet in b came from mac.
func (s *Senders) note(b []byte, mac [6]byte) {
	var h uint64
	switch {
	case packet.Version(b) == 4 && len(b) >= packet.IPv4HeaderLen:
		h = hash4(b[12:])
	case packet.Version(b) == 6 && len(b) >= packet.IPv6HeaderLen:
		h = hash6(b[8:])
	default:
		return
	}
	slot, v := &s.slots[h>>(64-senderBits)], h<<macBits|number(mac)
	if slot.Load() != v { // a load does not take the cache line from the other workers
		slot.Store(v)
	}
}

// find returns the MAC address from which packets of a came. ok is false if it is not known.
func (s *Senders) find(a netip.Addr) (mac [6]byte, ok bool) {
	var h uint64
	if a.Is4() {
		b := a.As4()
		h = hash4(b[:])
	} else {
		b := a.As16()
		h = hash6(b[:])
	}
	v := s.slots[h>>(64-senderBits)].Load()
	if v == 0 || v>>macBits != h&0xffff {
		return mac, false
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return [6]byte(b[2:]), true
}

// hashFactor is the fractional part of the golden ratio, whose products spread over all bits.
const hashFactor = 0x9e3779b97f4a7c15

func hash4(b []byte) uint64 { return spread(uint64(binary.BigEndian.Uint32(b))) }

func hash6(b []byte) uint64 {
	return spread(binary.BigEndian.Uint64(b)*hashFactor ^ binary.BigEndian.Uint64(b[8:]))
}

// spread returns a hash whose high and low bits are independent.
func spread(v uint64) uint64 {
	v *= hashFactor
	v ^= v >> 32
	return v * hashFactor
}

// number returns the bytes of mac as a number of macBits bits.
func number(mac [6]byte) uint64 {
	return uint64(binary.BigEndian.Uint16(mac[:]))<<32 | uint64(binary.BigEndian.Uint32(mac[2:]))
}
