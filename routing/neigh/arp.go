package neigh

import (
	"encoding/binary"
	"net/netip"
)

// arpPacket is an ARP packet for IPv4 over Ethernet (RFC 826). It is built and parsed by hand: mdlayher/arp has no
// release and no commit since 2022.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|       hardware space: 1       |     protocol space: 0x0800    |  0
//	+---------------+---------------+-------------------------------+
//	|  MAC length 6 | IP length 4   | opcode: 1 request, 2 reply    |  4
//	+---------------+---------------+-------------------------------+
//	|      sender's MAC (6), sender's IP (4), target's MAC (6), target's IP (4)      8
type arpPacket struct {
	op        uint16
	senderMAC MAC
	sender    netip.Addr
	targetMAC MAC
	target    netip.Addr
}

const (
	arpLen     = 28
	arpSender  = 14 // offset of the sender's IP
	arpTarget  = 24 // offset of the target's IP
	arpAsk     = 1
	arpReply   = 2
	arpSpaces  = 0x0001_0800 // the first four bytes: Ethernet and IPv4
	arpLengths = 0x0604      // the next two: the lengths of their addresses
)

// parseARP returns b as an ARP request or reply for IPv4 over Ethernet. It ignores the padding of short frames.
func parseARP(b []byte) (p arpPacket, ok bool) {
	if len(b) < arpLen || binary.BigEndian.Uint32(b) != arpSpaces || binary.BigEndian.Uint16(b[4:]) != arpLengths {
		return p, false
	}
	p = arpPacket{
		op:        binary.BigEndian.Uint16(b[6:]),
		senderMAC: MAC(b[8:]), sender: netip.AddrFrom4([4]byte(b[arpSender:])),
		targetMAC: MAC(b[18:]), target: netip.AddrFrom4([4]byte(b[arpTarget:])),
	}
	return p, p.op == arpAsk || p.op == arpReply
}

func (p *arpPacket) bytes() []byte {
	b := make([]byte, 0, arpLen)
	b = binary.BigEndian.AppendUint32(b, arpSpaces)
	b = binary.BigEndian.AppendUint16(b, arpLengths)
	b = binary.BigEndian.AppendUint16(b, p.op)
	b = append(append(b, p.senderMAC[:]...), p.sender.AsSlice()...)
	return append(append(b, p.targetMAC[:]...), p.target.AsSlice()...)
}

// arpRequest returns a request for a. The sender 0.0.0.0 makes it a probe, the sender a an announcement (RFC 5227,
// sections 1.1 and 3).
func arpRequest(mac MAC, from, a netip.Addr) []byte {
	return (&arpPacket{op: arpAsk, senderMAC: mac, sender: from, target: a}).bytes()
}

// answer returns the reply to p by the owner of p's target. mac is the owner's address.
func (p *arpPacket) answer(mac MAC) []byte {
	return (&arpPacket{op: arpReply, senderMAC: mac, sender: p.target, targetMAC: p.senderMAC, target: p.sender}).
		bytes()
}
