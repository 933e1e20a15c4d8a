package endpoint

import (
	"bytes"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// coalescer merges consecutive segments of a TCP connection into GSO packets, as the kernel's GRO does
// (net/ipv4/tcp_offload.c, tcp_gro_receive). The kernel then handles one large packet. coalescer keeps the order of a
// connection's packets. It copies no payload: a GSO packet has one piece for each segment.
type coalescer struct {
	open [8]candidate
	next int // the candidate to finish for a new flow
}

// candidate is a packet that the next segment of its connection may be appended to.
type candidate struct {
	buf     *packet.Buf // nil: none
	tail    *packet.Buf // the last piece
	pieces  int
	total   int    // length of all pieces, in bytes
	ports   uint32 // packet.TCP.Ports
	ip      int    // length of the IP header, which has neither options nor extension headers, in bytes
	headers int    // length of IP and TCP header, in bytes
	seq     uint32 // sequence number of the next segment
	size    int    // payload of each segment, in bytes
}

// Segments with one of the flags notMerged are never part of a GSO packet. Segments with one of lastMerged end one.
const (
	notMerged  = packet.FlagSYN | packet.FlagRST | packet.FlagURG | packet.FlagCWR
	lastMerged = packet.FlagPSH | packet.FlagFIN
)

// add appends the packet in b to an earlier packet if it can, and reports whether it did. Otherwise the caller writes
// the packet after the earlier ones, once finish has been called. In both cases b is in use until the write.
func (c *coalescer) add(b *packet.Buf, in inside) (merged bool) {
	p, ip := b.Bytes(), in.offset
	t := packet.TCP(p[ip:])
	if len(t) < packet.TCPHeaderLen {
		return false
	}
	ports, header := t.Ports(), t.HeaderLen()
	plain := ipHeaderLen(p)
	slot := -1
	for i := range c.open {
		if o := &c.open[i]; o.buf != nil && o.ports == ports && o.ip == plain && sameAddrs(o.buf.Bytes(), p) &&
			sameLink(o.buf, b, in.link) {
			slot = i
			break
		}
	}
	mergeable := ip == plain && header >= packet.TCPHeaderLen && len(t) > header && t.Flags()&notMerged == 0 &&
		!b.Offload.Partial
	if slot >= 0 {
		if mergeable && c.open[slot].append(b, p, header) {
			return true
		}
		c.open[slot].finish()
	}
	if !mergeable || t.Flags()&lastMerged != 0 {
		return false
	}
	if slot < 0 {
		slot, c.next = c.next, (c.next+1)%len(c.open)
		c.open[slot].finish()
	}
	c.open[slot] = candidate{buf: b, tail: b, pieces: 1, total: len(p), ports: ports, ip: ip, headers: ip + header,
		seq: t.Seq() + uint32(len(t)-header), size: len(t) - header}
	return false
}

// ipHeaderLen is the length of an IP header without options or extension headers, of the family of p.
func ipHeaderLen(p []byte) int {
	if packet.Version(p) == 6 {
		return packet.IPv6HeaderLen
	}
	return packet.IPv4HeaderLen
}

// sameAddrs reports whether two packets of one family have the same source and destination.
func sameAddrs(a, b []byte) bool {
	if packet.Version(a) == 6 {
		return [32]byte(packet.IPv6(a).Addrs()) == [32]byte(packet.IPv6(b).Addrs())
	}
	return [8]byte(packet.IPv4(a).Addrs()) == [8]byte(packet.IPv4(b).Addrs())
}

// sameLink reports whether two packets have the same n bytes of link-layer header in front.
func sameLink(a, b *packet.Buf, n int) bool { return n == 0 || bytes.Equal(a.Before(n), b.Before(n)) }

// append appends the segment p in b to c if p continues it. It verifies the checksums of both: the merged packet gets a
// new checksum, which would hide damage.
func (c *candidate) append(b *packet.Buf, p []byte, header int) bool {
	head := c.buf.Bytes()
	t, first := packet.TCP(p[c.ip:]), packet.TCP(head[c.ip:])
	payload := len(t) - header
	if t.Seq() != c.seq || payload > c.size || !sameTCP(t, first) || !sameIP(p, head) {
		return false
	}
	if c.pieces == packet.MaxChain || c.total+payload > packet.MaxLen || !valid(p, c.ip) || c.pieces == 1 &&
		!valid(head, c.ip) {
		return false
	}
	end := t.Flags() & lastMerged
	first.SetFlags(first.Flags() | end)
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

// sameTCP reports whether the TCP headers of two segments of a connection agree in all but sequence number, checksum,
// PSH and FIN. The reserved bits count, of which Accurate ECN has one (RFC 9768).
func sameTCP(a, b packet.TCP) bool {
	return a.HeaderLen() == b.HeaderLen() && a.Reserved() == b.Reserved() && a.Ack() == b.Ack() &&
		a.Window() == b.Window() && (a.Flags()^b.Flags())&^lastMerged == 0 && bytes.Equal(a.Options(), b.Options())
}

// sameIP reports whether the IP headers of two whole packets of one family agree in all but addresses, length, ID and
// checksum: TOS, TTL and flags; traffic class, flow label and hop limit.
func sameIP(a, b []byte) bool {
	if a, b := packet.IPv6(a), packet.IPv6(b); a.Version() == 6 {
		return a.TrafficClass() == b.TrafficClass() && a.FlowLabel() == b.FlowLabel() && a.HopLimit() == b.HopLimit()
	}
	h, g := packet.IPv4(a), packet.IPv4(b)
	return h.TOS() == g.TOS() && h.Flags() == g.Flags() && h.TTL() == g.TTL()
}

// valid reports whether the checksum of the TCP packet p is correct. The TCP header is at offset ip.
func valid(p []byte, ip int) bool {
	t := p[ip:]
	return packet.Fold(packet.Sum(t, packet.PseudoSum(p, packet.ProtoTCP, len(t)))) == 0xffff
}

// ethernet is the packet size, in bytes, that offloaded accepts at least, even if mss is configured to be smaller.
const ethernet = 1500

// finish completes the headers of a merged packet, and empties the candidate.
func (c *candidate) finish() {
	if c.pieces > 1 {
		p := c.buf.Bytes()
		if packet.Version(p) == 6 {
			packet.IPv6(p).SetPayloadLen(c.total - packet.IPv6HeaderLen)
		} else {
			packet.IPv4(p).SetTotalLen(c.total)
			packet.IPv4(p).SetChecksum()
		}
		c.buf.Offload = packet.Offload{GSO: packet.GSOTCP, Size: uint16(c.size), Partial: true, CsumStart: uint16(c.ip),
			CsumOffset: packet.TCPChecksumAt}
		packet.TCP(p[c.ip:]).SetPartialChecksum(packet.PseudoSum(p, packet.ProtoTCP, c.total-c.ip))
	}
	*c = candidate{}
}

// finish finishes all candidates. The packets may then be written.
func (c *coalescer) finish() {
	for i := range c.open {
		if c.open[i].buf != nil {
			c.open[i].finish()
		}
	}
}

// offloaded detects work that was left to do in the packet in b, and writes it to b.Offload. A raw socket delivers
// packets that GRO has merged, and packets of a kernel on the same machine, with an unfinished transport checksum: the
// sum of the pseudo-header. Such a TCP packet with more payload than a segment of size mss is a GSO packet. Such a UDP
// packet that is larger than the path's packets is several merged datagrams. Their sizes are unknown, and it is dropped
// (drop.Gathered).
func offloaded(b *packet.Buf, in inside, mss int) drop.Reason {
	p := b.Bytes()
	t := p[in.offset:]
	var checksum uint16
	var at int
	switch {
	case in.proto == packet.ProtoTCP && len(t) >= packet.TCPHeaderLen:
		checksum, at = packet.TCP(t).Checksum(), packet.TCPChecksumAt
	case in.proto == packet.ProtoUDP && len(t) >= packet.UDPHeaderLen:
		checksum, at = packet.UDP(t).Checksum(), packet.UDPChecksumAt
	default:
		return drop.Accept
	}
	pseudo := packet.PseudoSum(p, in.proto, len(t))
	if checksum != uint16(pseudo) || packet.Fold(packet.Sum(t, pseudo)) == 0xffff {
		return drop.Accept
	}
	b.Offload = packet.Offload{Partial: true, CsumStart: uint16(in.offset), CsumOffset: uint16(at)}
	if in.proto == packet.ProtoUDP {
		if len(p) > max(ipHeaderLen(p)+packet.TCPHeaderLen+mss, ethernet)+encap.MaxOverhead {
			return drop.Gathered
		}
		return drop.Accept
	}
	header := packet.TCP(t).HeaderLen()
	size := mss + packet.TCPHeaderLen - header
	if header >= packet.TCPHeaderLen && size > 0 && len(t)-header > size {
		b.Offload.GSO, b.Offload.Size = packet.GSOTCP, uint16(size)
	}
	return drop.Accept
}
