package forward

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"

	"vstun/encap/packet"
)

// trains finds, among the packets of a batch that are wrapped in UDP, those that can go out by one call: packets of one
// source port to one realserver, that are equally long. The kernel then takes one packet all the way to the network
// card, where it took each. The order of a flow's packets stays as it is, as a flow has one port.
//
//	batch:   a1 b1 a2 c1 a3 b2       letters are ports and realservers
//	trains:  a1 a2 a3 | b1 b2        rest: c1
type trains struct {
	first, last [sendBatch]int8 // of a chain: the packets of one port and realserver
	single      [sendBatch]bool // its packets go one by one, for one of them has to
	next        [sendBatch]int8 // of a packet in its chain; -1: none
	chains      int
	slots       [2 * sendBatch]int8 // of chains, by hash; -1: none
	run         [sendBatch]packet.Segment
}

// wholePathMTU is the size of packets that every way takes whole (RFC 791, section 2.5: what every host accepts), in
// bytes: they go by sockets that set DF also where the packet inside has none.
const wholePathMTU = 576

// inUDP reports whether s is a whole packet, of either family, in UDP.
func inUDP(s packet.Segment) bool {
	h := s.Head
	if h[0]>>4 == 6 {
		return h[6] == packet.ProtoUDP
	}
	return h[0] == 0x45 && h[9] == packet.ProtoUDP && h[6]&0x3f == 0 && h[7] == 0
}

// mayHaveDF reports whether s can go by a socket that sets DF.
func mayHaveDF(s packet.Segment) bool {
	return s.Head[0]>>4 == 6 || s.Head[6]&0x40 != 0 || s.Len() <= wholePathMTU
}

// ends is where s goes from and to: addresses and ports.
func ends(s packet.Segment) []byte {
	if s.Head[0]>>4 == 6 {
		return s.Head[8:44]
	}
	return s.Head[12:24]
}

// couples reports whether b can follow a in a train: what the kernel puts into all headers is one.
func couples(a, b packet.Segment) bool {
	if a.Head[0]>>4 == 6 {
		return [2]byte(a.Head) == [2]byte(b.Head) && a.Head[7] == b.Head[7]
	}
	return a.Head[1] == b.Head[1] && a.Head[8] == b.Head[8]
}

// sort finds the chains in segs, at most sendBatch packets.
func (t *trains) sort(segs []packet.Segment) {
	t.chains = 0
	for i := range t.slots {
		t.slots[i] = -1
	}
	for i, s := range segs {
		t.next[i] = -1
		if !inUDP(s) {
			continue
		}
		e := ends(s)
		h := binary.LittleEndian.Uint32(e[len(e)-4:]) ^ binary.LittleEndian.Uint32(e[len(e)-8:])
		for at := h * 0x9e3779b1 >> 25; ; at = (at + 1) % uint32(len(t.slots)) {
			c := t.slots[at]
			if c < 0 {
				c = int8(t.chains)
				t.slots[at], t.first[c], t.last[c], t.single[c] = c, int8(i), int8(i), !mayHaveDF(s)
				t.chains++
				break
			}
			if bytes.Equal(ends(segs[t.first[c]]), e) {
				t.next[t.last[c]] = int8(i)
				t.last[c] = int8(i)
				t.single[c] = t.single[c] || !mayHaveDF(s)
				break
			}
		}
	}
}

// sendTrains sends those of segs that go together, and leaves the others there.
func (o *output) sendTrains() {
	t := &o.trains
	t.sort(o.segs)
	together := false
	for c := range t.chains {
		if t.first[c] != t.last[c] && !t.single[c] && o.udp != nil {
			o.sendChain(t.first[c])
			together = true
		}
	}
	if !together {
		return
	}
	rest := o.segs[:0]
	for _, s := range o.segs {
		if s.Head != nil {
			rest = append(rest, s)
		}
	}
	o.segs = rest
}

// sendChain sends the packets of a chain, as few trains, and takes them out of segs. Where the kernel refuses that, the
// rest stays in segs, in its order.
func (o *output) sendChain(i int8) {
	t := &o.trains
	for i >= 0 {
		from, n := i, 0
		for i >= 0 && (n == 0 || couples(t.run[0], o.segs[i]) && o.segs[i].Len() <= t.run[0].Len()) {
			t.run[n] = o.segs[i]
			i = t.next[i]
			if n++; t.run[n-1].Len() < t.run[0].Len() {
				break // the last of a train may be shorter
			}
		}
		for run := t.run[:n]; len(run) > 0; {
			sent, err := o.sendUDP(run)
			if err != nil && !errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil {
				sent = len(run)
			}
			if o.tap != nil && err == nil {
				o.tap.sent(run[:sent])
			}
			for _, s := range run[:sent] {
				if err == nil {
					o.tally.OutPackets++
					o.tally.OutBytes += uint64(s.Len())
				}
				o.segs[from].Head = nil
				from = t.next[from]
			}
			run = run[sent:]
		}
	}
}
