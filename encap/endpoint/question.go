package endpoint

import (
	"net/netip"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/query"
)

// Asked is a director's question, which has come out of its tunnel.
type Asked struct {
	query.Question
	From netip.AddrPort // outer source, and the port of the question: where the answer goes
}

// asked hands on the packet in b if it is a question, and reports whether it is one. The policy has refused it for its
// destination, so that no packet for a VIP comes here. Where the questions are not taken fast enough, it drops one.
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
