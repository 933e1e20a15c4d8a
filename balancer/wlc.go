package balancer

import "vstun/encap/packet"

// wlc is weighted least connection (Linux net/netfilter/ipvs/ip_vs_wlc.c): the least overhead by weight, the first in the list where
// several have it.
type wlc struct{ stateless }

func (wlc) pick(list []*Dest, _ *packet.Info) *Dest {
	var best *Dest
	var least int64
	for _, d := range list {
		if d.Weight <= 0 {
			continue
		}
		// least/best.Weight > overhead/d.Weight, without a division
		if o := d.overhead(); best == nil || least*int64(d.Weight) > o*int64(best.Weight) {
			best, least = d, o
		}
	}
	return best
}

func (s wlc) clone() scheduler { return s }
