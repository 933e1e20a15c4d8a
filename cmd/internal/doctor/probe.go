package doctor

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"vstun/encap"
	"vstun/encap/packet"
)

// Probes are packets of this host's own address, to a realserver or, inside a tunnel, to a VIP: ICMP echo requests (RFC
// 792, RFC 4443), which the kernel there answers, TCP SYNs, which show whether a server listens, and questions to the
// agent (package query).

const (
	probeTTL  = 64
	probeSize = 84 // bytes of a small echo request, as ping(8) sends it

	// Source ports of SYNs and questions: beyond those that Linux gives its own connections.
	firstPort, lastPort = 61000, 65535

	cookieLen = 8
)

// cookie is in every echo request, so that nobody else's answer is taken for one of ours.
type cookie [cookieLen]byte

func newCookie() (c cookie) {
	binary.NativeEndian.PutUint64(c[:], rand.Uint64())
	return c
}

// ipHeader writes an IP header to the front of b, a packet of either family, and returns its length and the sum of the
// pseudo-header behind it. An IPv4 packet may not be fragmented.
func ipHeader(b []byte, src, dst netip.Addr, protocol uint8) (n int, pseudo uint64) {
	if dst.Is4() {
		h := packet.IPv4(b)
		h.Encode(packet.IPv4Fields{
			TotalLen: len(b), TTL: probeTTL, Protocol: protocol, Src: src.As4(), Dst: dst.As4(),
		})
		h.SetDF(true)
		h.SetChecksum()
		return packet.IPv4HeaderLen, h.PseudoSum(len(b) - packet.IPv4HeaderLen)
	}
	h := packet.IPv6(b)
	h.Encode(packet.IPv6Fields{
		TotalLen: len(b), HopLimit: probeTTL, NextHeader: protocol, Src: src.As16(), Dst: dst.As16(),
	})
	return packet.IPv6HeaderLen, h.PseudoSum(protocol, len(b)-packet.IPv6HeaderLen)
}

// headerLen is the length of a plain IP header towards a.
func headerLen(a netip.Addr) int {
	if a.Is4() {
		return packet.IPv4HeaderLen
	}
	return packet.IPv6HeaderLen
}

// echoRequest is an ICMP echo request of size bytes in all, whose identifier and sequence number are number.
func echoRequest(src, dst netip.Addr, size int, number uint32, c cookie) []byte {
	protocol, kind := uint8(packet.ProtoICMP), byte(packet.ICMPEcho)
	if !dst.Is4() {
		protocol, kind = packet.ProtoICMPv6, packet.ICMPv6Echo
	}
	b := make([]byte, max(size, headerLen(dst)+packet.ICMPHeaderLen+cookieLen))
	n, pseudo := ipHeader(b, src, dst, protocol)
	t := packet.ICMP(b[n:])
	t.Encode(packet.ICMPFields{Type: kind, Rest: number})
	copy(t.Payload(), c[:])
	if dst.Is4() {
		pseudo = 0
	}
	t.SetChecksum(pseudo)
	return b
}

// segment is a TCP segment without data.
func segment(src, dst netip.AddrPort, seq, ack uint32, flags byte) []byte {
	b := make([]byte, headerLen(dst.Addr())+packet.TCPHeaderLen)
	n, pseudo := ipHeader(b, src.Addr(), dst.Addr(), packet.ProtoTCP)
	t := packet.TCP(b[n:])
	t.SetSrcPort(src.Port())
	t.SetDstPort(dst.Port())
	t.SetSeq(seq)
	t.SetAck(ack)
	t.SetHeaderLen(packet.TCPHeaderLen)
	t.SetFlags(flags)
	t.SetWindow(1024)
	t.SetChecksum(pseudo)
	return b
}

// datagram is a UDP datagram that asks a realserver's agent.
func datagram(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, headerLen(dst.Addr())+packet.UDPHeaderLen+len(payload))
	n, pseudo := ipHeader(b, src.Addr(), dst.Addr(), packet.ProtoUDP)
	t := packet.UDP(b[n:])
	t.SetSrcPort(src.Port())
	t.SetDstPort(dst.Port())
	t.SetLen(len(t))
	copy(t.Payload(), payload)
	t.SetChecksum(pseudo)
	return b
}

// wrap puts the packet into the tunnel that c describes. The outer packet may not be fragmented either.
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

// overhead is what the tunnel that c describes adds to a packet, in bytes.
func overhead(c encap.Config) int {
	t, err := encap.New(c)
	if err != nil {
		return 0
	}
	return t.Overhead()
}

// outer is the IP protocol number of the tunnel that c describes, for a VIP.
func outer(c encap.Config, vip netip.Addr) uint8 {
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
