package forward

import (
	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// resets are the TCP resets that a worker sends to clients, in the name of the VIP. all bounds them, but nothing
// bounds those to one client: a client has many connections. room has space for one reset for each packet of a batch,
// and is free again with every batch.
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

// reset answers the TCP packet in b, of a connection that the director does not know, with a RST.
func (w *Worker) reset(b *packet.Buf, p *packet.Info, now conntab.Ticks) {
	r := &w.resets
	if p.Flow.Proto != packet.ProtoTCP || !r.all.ready(now) {
		return
	}
	n := packet.Reset(r.free, b, p)
	if n == 0 {
		return
	}
	w.out.add(r.free[:n])
	r.free = r.free[n:]
	r.all.tokens -= message
	w.tally.Resets++
}
