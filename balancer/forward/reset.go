package forward

import (
	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// resets are the TCP resets that a worker sends to clients, with the VIP as source. all bounds them. One client has no
// bound of its own, since it has many connections. room has space for a reset of each packet of a batch; the next batch
// uses it again.
type resets struct {
	all  bucket
	room []byte
	free []byte
}

func (r *resets) init() {
	r.all.tokens = allCap
	r.room = make([]byte, batch*packet.ResetRoom)
	r.free = r.room
}

// reset answers the TCP packet in b, which belongs to no known connection, with a RST.
func (w *Worker) reset(b *packet.Buf, p *packet.Info, now conntab.Ticks) {
	r := &w.resets
	if p.Flow.Proto != packet.ProtoTCP || !r.all.ready(now) {
		return
	}
	n := packet.Reset(r.free, b, p)
	if n == 0 {
		return
	}
	w.answer(r.free[:n], b, p)
	r.free = r.free[n:]
	r.all.tokens -= message
	w.tally.Resets++
}
