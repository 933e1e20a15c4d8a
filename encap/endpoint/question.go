package endpoint

import (
	"net/netip"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/query"
)

// Asked is a director's question that the worker has decapsulated.
type Asked struct {
	query.Question
	From netip.AddrPort // outer source, and the question's source port: the answer's destination
}

// asked sends the question in b to w.questions, and reports whether b is a question. It is called only for packets
// whose inner destination is no VIP. It drops the question if w.questions is full.
func (w *Worker) asked(b *packet.Buf, from netip.Addr, in inside) bool {
	if in.proto != packet.ProtoUDP || in.fragment {
		return false
	}
	u := b.Bytes()[in.offset:]
	q, port, ok := query.FromUDP(u, packet.PseudoSum(b.Bytes(), packet.ProtoUDP, len(u)))
	if !ok {
		return false
	}
	select {
	case w.questions <- Asked{q, netip.AddrPortFrom(from, port)}:
		w.questionsTaken.Add(1)
	default:
		w.tally.Drop(drop.Question)
	}
	return true
}
