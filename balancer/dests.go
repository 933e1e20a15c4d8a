package balancer

import (
	"slices"
	"time"

	"vstun/encap"
)

// enter returns a Dest for a realserver that is new to the service: one that left it before, with its number and counts, or a fresh one.
func (b *Balancer) enter(service string, r Realserver) *Dest {
	for d := range b.leaving {
		if d.stats.service == service && d.Address == r.Address {
			delete(b.leaving, d)
			return b.replace(d, r)
		}
	}
	n := slices.Index(b.numbers, nil)
	if n < 0 {
		n = len(b.numbers)
		b.numbers = append(b.numbers, nil)
	}
	d := &Dest{number: uint32(n), counts: b.table.Counts(uint32(n)), stats: &destStats{service: service, workers: make([]traffic, b.workers)}}
	return b.replace(d, r)
}

// replace returns a Dest with r's parameters and d's number and counts, and puts it in d's place.
func (b *Balancer) replace(d *Dest, r Realserver) *Dest {
	if r.Upper == 0 || r.Upper > d.Upper { // Linux ip_vs_ctl.c, __ip_vs_update_dest
		d.stats.overloaded.Store(false)
	}
	next := &Dest{Realserver: r, Tunnel: tunnel(r), number: d.number, counts: d.counts, stats: d.stats}
	next.counts.Judge(false, r.Weight == 0)
	b.numbers[d.number] = next
	return next
}

// tunnel is the header towards r. There is none for IPv6 yet.
func tunnel(r Realserver) (t encap.IPIP) {
	if r.Address.Is4() {
		t = encap.NewIPIP(r.Source, r.Address)
	}
	return t
}

// leave notes that d has left the configuration. Its connections go on.
func (b *Balancer) leave(d *Dest) {
	b.leaving[d] = time.Now()
	d.counts.Judge(true, false)
}

// forget frees the numbers of those that have left, and have no connections any more.
func (b *Balancer) forget(now time.Time) {
	for d, since := range b.leaving {
		switch {
		case d.counts.Active()+d.counts.Inactive()+d.counts.Templates() > 0:
			b.leaving[d] = now
		case now.Sub(since) > forgetAfter:
			delete(b.leaving, d)
			b.numbers[d.number] = nil
		}
	}
}
