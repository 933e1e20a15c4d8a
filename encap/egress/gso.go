package egress

import (
	"encoding/binary"
	"errors"
	"os"
)

// gsoBatch groups the packets of a batch by five-tuple. Packets of a group can be sent by one call. The kernel then
// handles them as one packet as far as the network card. The order of a flow's packets does not change: all of them
// have the same source port and so are in the same group.
//
//	batch:   a1 b1 a2 c1 a3 b2       letters are five-tuples
//	groups:  a1 a2 a3 | b1 b2        by themselves: c1
type gsoBatch struct {
	first, last [sendBatch]int8     // first and last packet of a group
	single      [sendBatch]bool     // the group's packets are sent one by one: one of them must not have DF
	next        [sendBatch]int8     // next packet of the same group; -1: none
	groups      int                 // number of them
	slots       [2 * sendBatch]int8 // groups by the hash of their five-tuple; -1: none
	call        [sendBatch]Outgoing // packets of one call
}

// wholePathMTU is the packet size, in bytes, that is assumed to pass every path without fragmentation. It is the size
// that every host accepts (RFC 791, section 3.1). Packets up to this size may be sent with DF even if they do not have
// it.
const wholePathMTU = 576

// mayHaveDF reports whether p can go out by a socket that sets DF.
func mayHaveDF(p *Outgoing) bool { return p.DF || p.Len() <= wholePathMTU }

// canBatch reports whether b can share a's GSO send (same TOS and TTL).
func canBatch(a, b *Outgoing) bool { return a.Class == b.Class && a.TTL == b.TTL }

// slot is the first slot in which group looks for h's group.
func (h *Hop) slot() uint32 {
	dst := h.To.Dst.As16()
	n := binary.LittleEndian.Uint32(dst[12:]) ^ uint32(h.SrcPort)<<16 ^ uint32(h.To.DstPort)
	return n * 0x9e3779b1 >> 25
}

// group finds the groups of out, at most sendBatch packets.
func (g *gsoBatch) group(out []Outgoing) {
	g.groups = 0
	for i := range g.slots {
		g.slots[i] = -1
	}
	for i := range out {
		p := &out[i]
		g.next[i] = -1
		if p.Kind != UDP {
			continue
		}
		for at := p.slot(); ; at = (at + 1) % uint32(len(g.slots)) {
			c := g.slots[at]
			if c < 0 {
				c = int8(g.groups)
				g.slots[at], g.first[c], g.last[c], g.single[c] = c, int8(i), int8(i), !mayHaveDF(p)
				g.groups++
				break
			}
			if out[g.first[c]].Hop.sameTuple(&p.Hop) {
				g.next[g.last[c]] = int8(i)
				g.last[c] = int8(i)
				g.single[c] = g.single[c] || !mayHaveDF(p)
				break
			}
		}
	}
}

// sendTogether sends the packets that can share a call, and leaves the others in the batch.
func (o *Output) sendTogether() {
	g := &o.gso
	g.group(o.batch)
	together := false
	for c := range g.groups {
		if g.first[c] != g.last[c] && !g.single[c] && o.udp != nil {
			o.sendGroup(g.first[c])
			together = true
		}
	}
	if !together {
		return
	}
	rest := o.batch[:0]
	for i := range o.batch {
		if o.batch[i].Head != nil {
			rest = append(rest, o.batch[i])
		}
	}
	o.batch = rest
}

// sendGroup sends the packets of the group that begins with packet i, by as few calls as possible, and removes them
// from the batch. If the kernel refuses a call, the rest stays in the batch, in order.
func (o *Output) sendGroup(i int8) {
	g := &o.gso
	for i >= 0 {
		from, n := i, 0
		for i >= 0 && (n == 0 || canBatch(&g.call[0], &o.batch[i]) && o.batch[i].Len() <= g.call[0].Len()) {
			g.call[n] = o.batch[i]
			i = g.next[i]
			if n++; g.call[n-1].Len() < g.call[0].Len() {
				break // the last of a call may be shorter
			}
		}
		for call := g.call[:n]; len(call) > 0; {
			sent, err := o.sendUDP(call)
			if errors.Is(err, os.ErrClosed) {
				sent = len(call)
			} else if err != nil {
				return
			}
			for range sent {
				o.batch[from].Head = nil
				from = g.next[from]
			}
			call = call[sent:]
		}
	}
}
