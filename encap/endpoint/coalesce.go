package endpoint

import (
	"bytes"
	"encoding/binary"

	"vstun/encap/packet"
)

// coalescer makes super-packets of the consecutive segments of a TCP connection, as the kernel's GRO does for packets that it receives itself
// (net/ipv4/tcp_offload.c, tcp_gro_receive), so that they are written, routed and acknowledged once. The order of a connection's packets
// stays as it is.
type coalescer struct {
	open [8]candidate
	next int // the one to give up for a new flow
}

// candidate is a packet that the next segment of its connection may be appended to.
type candidate struct {
	buf     *packet.Buf // nil: none
	flow    [12]byte    // addresses and ports, as in the packet
	seq     uint32      // that the next segment has to begin with
	size    int         // payload of each segment, in bytes
	headers int         // length of IP and TCP header, in bytes
	merged  bool        // more than one segment; its checksums are not right until finish
}

// TCP flags with which a segment is never part of a super-packet, but for PSH and FIN, with which it ends one.
const notMerged = packet.FlagSYN | packet.FlagRST | packet.FlagURG | 0x80 // CWR

// add takes a packet, in has its IPv4 header and t what is behind it, and tells whether it has been appended to one before it. Otherwise the
// caller writes it after those, not before finish.
func (c *coalescer) add(b *packet.Buf, in packet.IPv4, t []byte) (merged bool) {
	if len(t) < 20 || in.HeaderLen() != packet.IPv4HeaderLen {
		return false
	}
	var flow [12]byte
	copy(flow[:], in[12:20])
	copy(flow[8:], t[:4])
	header := int(t[12]>>4) * 4
	slot := -1
	for i := range c.open {
		if c.open[i].buf != nil && c.open[i].flow == flow {
			slot = i
			break
		}
	}
	mergeable := header >= 20 && len(t) > header && t[13]&notMerged == 0 && !b.Offload.Partial
	if slot >= 0 {
		if mergeable && c.open[slot].append(in, t, header) {
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
	c.open[slot] = candidate{buf: b, flow: flow, seq: binary.BigEndian.Uint32(t[4:]) + uint32(len(t)-header), size: len(t) - header,
		headers: packet.IPv4HeaderLen + header}
	return false
}

// append puts the segment behind those that c has, if it belongs there. The checksums of both must be right: what is appended gets a new
// one, and damage must not go unseen.
func (c *candidate) append(in packet.IPv4, t []byte, header int) bool {
	head := packet.IPv4(c.buf.Bytes())
	ht := head[packet.IPv4HeaderLen:]
	payload := t[header:]
	if packet.IPv4HeaderLen+header != c.headers || binary.BigEndian.Uint32(t[4:]) != c.seq || len(payload) > c.size ||
		in.TOS() != head.TOS() || in.TTL() != head.TTL() || in[6] != head[6] ||
		!bytes.Equal(t[8:12], ht[8:12]) || !bytes.Equal(t[14:16], ht[14:16]) || !bytes.Equal(t[20:header], ht[20:header]) ||
		(t[13]^ht[13])&^(packet.FlagPSH|packet.FlagFIN) != 0 {
		return false
	}
	if !valid(in, t) || !c.merged && !valid(head, ht) {
		return false
	}
	room := c.buf.Extend(len(payload))
	if room == nil {
		return false
	}
	copy(room, payload)
	head = c.buf.Bytes()
	c.merged = true
	c.seq += uint32(len(payload))
	head[packet.IPv4HeaderLen+13] |= t[13] & (packet.FlagPSH | packet.FlagFIN)
	if len(payload) < c.size || t[13]&(packet.FlagPSH|packet.FlagFIN) != 0 {
		c.finish()
	}
	return true
}

// valid tells whether a TCP checksum is right.
func valid(in packet.IPv4, t []byte) bool {
	return packet.Fold(packet.Sum(t, in.PseudoSum(len(t)))) == 0xffff
}

// finish makes the headers right, and ends the candidate.
func (c *candidate) finish() {
	if c.merged {
		in := packet.IPv4(c.buf.Bytes())
		in.SetTotalLen(len(in))
		in.SetChecksum()
		c.buf.Offload = packet.Offload{GSO: packet.GSOTCP, Size: uint16(c.size), Partial: true, CsumStart: packet.IPv4HeaderLen, CsumOffset: 16}
		binary.BigEndian.PutUint16(in[packet.IPv4HeaderLen+16:], packet.Fold(in.PseudoSum(len(in)-packet.IPv4HeaderLen)))
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

// offloaded finds what a network card, or a kernel on the same machine, has left undone in the packet in b, and says so in b.Offload: such
// packets come out of a raw socket as they are. The checksum is that of the pseudo-header only. A TCP packet with more payload than a
// segment of size mss can have has been made of several by GRO.
func offloaded(b *packet.Buf, in packet.IPv4, t []byte, mss int) {
	at := 16
	switch {
	case in.Protocol() == packet.ProtoTCP && len(t) >= 20:
	case in.Protocol() == packet.ProtoUDP && len(t) >= 8:
		at = 6
	default:
		return
	}
	pseudo := in.PseudoSum(len(t))
	if binary.BigEndian.Uint16(t[at:]) != uint16(pseudo) || packet.Fold(packet.Sum(t, pseudo)) == 0xffff {
		return
	}
	b.Offload = packet.Offload{Partial: true, CsumStart: uint16(in.HeaderLen()), CsumOffset: uint16(at)}
	if at == 6 {
		return
	}
	header := int(t[12]>>4) * 4
	if size := mss + 20 - header; header >= 20 && size > 0 && len(t)-header > size {
		b.Offload.GSO, b.Offload.Size = packet.GSOTCP, uint16(size)
	}
}
