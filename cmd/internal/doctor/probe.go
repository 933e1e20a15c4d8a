package doctor

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"vstun/encap"
	"vstun/encap/packet"
)

// Probes are packets from this host's own address to a realserver or, inside a tunnel, to a VIP. ICMP echo requests
// (RFC 792, RFC 4443) are answered by the kernel there. TCP SYNs show whether a server listens. Questions go to the
// agent (package query).
//
// They are built with package packet's views and not with gopacket, which would add 2 MB to the program realserver.

const (
	probeTTL  = 64
	probeSize = 84 // bytes of a small echo request, as ping(8) sends it

	// Source ports of SYNs and questions. They lie above Linux's default range for its own connections.
	firstPort, lastPort = 61000, 65535

	cookieLen = 8
)

// cookie is in every echo request. It distinguishes the answers to this program from others.
type cookie [cookieLen]byte

func newCookie() (c cookie) {
	binary.NativeEndian.PutUint64(c[:], rand.Uint64())
	return c
}

// newPacket makes an IP packet with n bytes of zeros behind its header. An IPv4 packet has DF set.
func newPacket(src, dst netip.Addr, protocol uint8, n int) []byte {
	if dst.Is4() {
		h := make(packet.IPv4, packet.IPv4HeaderLen+n)
		h.Encode(packet.IPv4Fields{TotalLen: len(h), TTL: probeTTL, Protocol: protocol, Src: src.As4(),
			Dst: dst.As4()})
		h.SetDF(true)
		h.SetChecksum()
		return h
	}
	h := make(packet.IPv6, packet.IPv6HeaderLen+n)
	h.Encode(packet.IPv6Fields{TotalLen: len(h), HopLimit: probeTTL, NextHeader: protocol, Src: src.As16(),
		Dst: dst.As16()})
	return h
}

// transport returns the part of newPacket's b behind the IP header.
func transport(b []byte) []byte {
	if packet.Version(b) == 4 {
		return b[packet.IPv4HeaderLen:]
	}
	return b[packet.IPv6HeaderLen:]
}

// pseudoSum returns the sum of the pseudo-header of newPacket's b.
func pseudoSum(b []byte) uint64 {
	if packet.Version(b) == 4 {
		return packet.IPv4(b).PseudoSum(len(transport(b)))
	}
	return packet.IPv6(b).PseudoSum(packet.IPv6(b).NextHeader(), len(transport(b)))
}

// echoRequest makes an ICMP echo request of size bytes in all, with number as its identifier and sequence number.
func echoRequest(src, dst netip.Addr, size int, number uint32, c cookie) []byte {
	protocol, kind, header := uint8(packet.ProtoICMP), uint8(packet.ICMPEcho), packet.IPv4HeaderLen
	if dst.Is6() {
		protocol, kind, header = packet.ProtoICMPv6, packet.ICMPv6Echo, packet.IPv6HeaderLen
	}
	b := newPacket(src, dst, protocol, max(size-header, packet.ICMPHeaderLen+cookieLen))
	t := packet.ICMP(transport(b))
	t.Encode(packet.ICMPFields{Type: kind, Rest: number})
	copy(t.Payload(), c[:])
	if dst.Is6() {
		t.SetChecksum(pseudoSum(b))
	} else {
		t.SetChecksum(0)
	}
	return b
}

// segment makes a TCP segment without data.
func segment(src, dst netip.AddrPort, seq, ack uint32, flags uint8) []byte {
	b := newPacket(src.Addr(), dst.Addr(), packet.ProtoTCP, packet.TCPHeaderLen)
	t := packet.TCP(transport(b))
	t.SetSrcPort(src.Port())
	t.SetDstPort(dst.Port())
	t.SetSeq(seq)
	t.SetAck(ack)
	t.SetHeaderLen(packet.TCPHeaderLen)
	t.SetFlags(flags)
	t.SetWindow(1024)
	t.SetChecksum(pseudoSum(b))
	return b
}

// datagram makes a UDP datagram.
func datagram(src, dst netip.AddrPort, payload []byte) []byte {
	b := newPacket(src.Addr(), dst.Addr(), packet.ProtoUDP, packet.UDPHeaderLen+len(payload))
	t := packet.UDP(transport(b))
	t.SetSrcPort(src.Port())
	t.SetDstPort(dst.Port())
	t.SetLen(len(t))
	copy(t.Payload(), payload)
	t.SetChecksum(pseudoSum(b))
	return b
}

// wrap puts a packet into the tunnel c. An outer IPv4 header has DF set.
func wrap(c encap.Config, inner []byte) ([]byte, error) {
	t, err := encap.New(c)
	if err != nil {
		return nil, err
	}
	b := &packet.NewBufs(1)[0]
	b.SetLen(copy(b.Room(), inner))
	t.Wrap(b, firstPort)
	if c.Destination.Is4() {
		packet.IPv4(b.Bytes()).SetDF(true) // the kernel computes the checksum
	}
	return bytes.Clone(b.Bytes()), nil // b is far larger
}

// overhead returns the number of bytes that the tunnel c adds to a packet.
func overhead(c encap.Config) int {
	t, err := encap.New(c)
	if err != nil {
		return 0
	}
	return t.Overhead()
}

// outerProtocol returns the IP protocol number of the tunnel c for packets to vip.
func outerProtocol(c encap.Config, vip netip.Addr) uint8 {
	switch {
	case c.Kind.UDP():
		return packet.ProtoUDP
	case c.Kind == encap.KindGRE:
		return packet.ProtoGRE
	case vip.Is4():
		return packet.ProtoIPIP
	}
	return packet.ProtoIPv6
}
