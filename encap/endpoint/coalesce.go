package endpoint

import (
	"bytes"
	"encoding/binary"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// coalescer makes super-packets of the consecutive segments of a TCP connection, as the kernel's GRO does for packets
// that it receives itself (net/ipv4/tcp_offload.c, tcp_gro_receive), so that they are written, routed and acknowledged
// once. The order of a connection's packets stays as it is. No payload is copied: a super-packet is in pieces, each
// where it came.
type coalescer struct {
	open [8]candidate
	next int // the one to give up for a new flow
}

// candidate is a packet that the next segment of its connection may be appended to.
type candidate struct {
	buf     *packet.Buf // nil: none
	tail    *packet.Buf // the last piece
	pieces  int
	total   int    // length of all pieces, in bytes
	ports   uint32 // as in the packet
	ip      int    // length of the IP header, which has neither options nor extension headers, in bytes
	headers int    // length of IP and TCP header, in bytes
	seq     uint32 // that the next segment has to begin with
	size    int    // payload of each segment, in bytes
}

// TCP flags with which a segment is never part of a super-packet, but for PSH and FIN, with which it ends one.
const notMerged = packet.FlagSYN | packet.FlagRST | packet.FlagURG | 0x80 // CWR

// add takes a packet, and reports whether it has been appended to one before it. Otherwise the caller writes it after
// those, not before finish. b is in use until then in either case.
func (c *coalescer) add(b *packet.Buf, in inside) (merged bool) {
	p, ip := b.Bytes(), in.offset
	t := p[ip:]
	if len(t) < 20 {
		return false
	}
	ports := binary.BigEndian.Uint32(t)
	header := int(t[12]>>4) * 4
	plain := ipHeaderLen(p)
	slot := -1
	for i := range c.open {
		if o := &c.open[i]; o.buf != nil && o.ports == ports && o.ip == plain && sameAddrs(o.buf.Bytes(), p) {
			slot = i
			break
		}
	}
	mergeable := ip == plain && header >= 20 && len(t) > header && t[13]&notMerged == 0 && !b.Offload.Partial
	if slot >= 0 {
		if mergeable && c.open[slot].append(b, p, header) {
			return true
		}
		c.open[slot].finish()
	}
	if !mergeable || t[13]&(packet.FlagPSH|packet.FlagFIN) != 0 {
		return false
	}
	if slot < 0 {
		slot, c.next = c.next, (c.next+1)%len(c.open)
		c.open[slot].finish()
	}
	c.open[slot] = candidate{buf: b, tail: b, pieces: 1, total: len(p), ports: ports, ip: ip, headers: ip + header,
		seq: binary.BigEndian.Uint32(t[4:]) + uint32(len(t)-header), size: len(t) - header}
	return false
}

// ipHeaderLen is the length of an IP header without options or extension headers, of the family of p.
func ipHeaderLen(p []byte) int {
	if p[0]>>4 == 6 {
		return packet.IPv6HeaderLen
	}
	return packet.IPv4HeaderLen
}

// sameAddrs reports whether two packets of one family have the same source and destination.
func sameAddrs(a, b []byte) bool {
	if a[0]>>4 == 6 {
		return [32]byte(a[8:40]) == [32]byte(b[8:40])
	}
	return [8]byte(a[12:20]) == [8]byte(b[12:20])
}

// append puts the segment p in b behind those that c has, if it belongs there: its TCP header differs in sequence
// number, checksum, PSH and FIN only, not even in the reserved bits, of which Accurate ECN has one (RFC 9768). The
// checksums of both must be right: together they get a new one, and damage must not go unseen.
func (c *candidate) append(b *packet.Buf, p []byte, header int) bool {
	head := c.buf.Bytes()
	t, ht := p[c.ip:], head[c.ip:]
	payload := len(t) - header
	if t[12] != ht[12] || binary.BigEndian.Uint32(t[4:]) != c.seq || payload > c.size || !sameWay(p, head) ||
		!bytes.Equal(t[8:12], ht[8:12]) || !bytes.Equal(t[14:16], ht[14:16]) || !bytes.Equal(t[20:header],
		ht[20:header]) ||
		(t[13]^ht[13])&^(packet.FlagPSH|packet.FlagFIN) != 0 {
		return false
	}
	if c.pieces == packet.MaxChain || c.total+payload > packet.MaxLen || !valid(p, c.ip) || c.pieces == 1 &&
		!valid(head, c.ip) {
		return false
	}
	end := t[13] & (packet.FlagPSH | packet.FlagFIN)
	ht[13] |= end
	b.Strip(c.headers)
	c.tail.Next, c.tail = b, b
	c.pieces++
	c.total += payload
	c.seq += uint32(payload)
	if payload < c.size || end != 0 {
		c.finish()
	}
	return true
}

// sameWay reports whether the IP headers of two packets of one family agree in all that is neither address, length nor
// ID: TOS, TTL and DF; traffic class, flow label and hop limit.
func sameWay(a, b []byte) bool {
	if a[0]>>4 == 6 {
		return [4]byte(a) == [4]byte(b) && a[7] == b[7]
	}
	return a[1] == b[1] && a[6] == b[6] && a[8] == b[8]
}

// pseudoSum is that of the TCP or UDP packet p, n the length of its transport header and payload.
func pseudoSum(p []byte, proto uint8, n int) uint64 {
	if p[0]>>4 == 6 {
		return packet.IPv6(p).PseudoSum(proto, n)
	}
	return packet.IPv4(p).PseudoSum(n)
}

// valid reports whether the checksum of the TCP packet p is right, which begins behind ip bytes.
func valid(p []byte, ip int) bool {
	t := p[ip:]
	return packet.Fold(packet.Sum(t, pseudoSum(p, packet.ProtoTCP, len(t)))) == 0xffff
}

// ethernet is the MTU that a way has at least, where it is not known: mss may be a smaller one that somebody has
// configured.
const ethernet = 1500

// finish makes the headers right, and ends the candidate.
func (c *candidate) finish() {
	if c.pieces > 1 {
		p := c.buf.Bytes()
		if p[0]>>4 == 6 {
			packet.IPv6(p).SetPayloadLen(c.total - packet.IPv6HeaderLen)
		} else {
			packet.IPv4(p).SetTotalLen(c.total)
			packet.IPv4(p).SetChecksum()
		}
		c.buf.Offload = packet.Offload{GSO: packet.GSOTCP, Size: uint16(c.size), Partial: true, CsumStart: uint16(c.ip),
			CsumOffset: 16}
		binary.BigEndian.PutUint16(p[c.ip+16:], packet.Fold(pseudoSum(p, packet.ProtoTCP, c.total-c.ip)))
	}
	*c = candidate{}
}

// finish ends all candidates: the packets may be written.
func (c *coalescer) finish() {
	for i := range c.open {
		if c.open[i].buf != nil {
			c.open[i].finish()
		}
	}
}

// offloaded finds what a network card, or a kernel on the same machine, has left undone in the packet in b, and says so
// in b.Offload: such packets come out of a raw socket as they are. The checksum is that of the pseudo-header only. A
// TCP packet with more payload than a segment of size mss can have has been made of several by GRO, and so has a
// datagram that is longer than its way takes, whatever its tunnel: nobody knows of what sizes, and it is refused.
func offloaded(b *packet.Buf, in inside, mss int) drop.Reason {
	p := b.Bytes()
	t := p[in.offset:]
	at := 16
	switch {
	case in.proto == packet.ProtoTCP && len(t) >= 20:
	case in.proto == packet.ProtoUDP && len(t) >= 8:
		at = 6
	default:
		return drop.Accept
	}
	pseudo := pseudoSum(p, in.proto, len(t))
	if binary.BigEndian.Uint16(t[at:]) != uint16(pseudo) || packet.Fold(packet.Sum(t, pseudo)) == 0xffff {
		return drop.Accept
	}
	b.Offload = packet.Offload{Partial: true, CsumStart: uint16(in.offset), CsumOffset: uint16(at)}
	if at == 6 {
		if len(p) > max(ipHeaderLen(p)+20+mss, ethernet)+encap.MaxOverhead {
			return drop.Gathered
		}
		return drop.Accept
	}
	header := int(t[12]>>4) * 4
	if size := mss + 20 - header; header >= 20 && size > 0 && len(t)-header > size {
		b.Offload.GSO, b.Offload.Size = packet.GSOTCP, uint16(size)
	}
	return drop.Accept
}
