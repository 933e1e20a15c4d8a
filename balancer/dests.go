package balancer

import (
	"maps"
	"net/netip"
	"sync/atomic"
	"time"

	"vstun/balancer/method"
)

// realserverKey identifies a Dest within its service. Another forwarding method makes another Dest: connections keep
// the method that they began with, as in the kernel.
type realserverKey struct {
	id   netip.AddrPort
	kind method.Kind
}

func (r *Realserver) key() realserverKey { return realserverKey{r.ID(), r.Kind} }

// realserverID identifies a Dest.
type realserverID struct {
	service string
	realserverKey
}

// retired is a realserver that has left the configuration, and when it was last known to have connections.
type retired struct {
	dest  *Dest
	since time.Time
}

// enter returns a Dest for a realserver that is new to the service. A retired realserver gets its number and counts
// back.
func (b *Balancer) enter(service string, r Realserver) *Dest {
	if l := b.retired[realserverID{service, r.key()}]; l != nil {
		delete(b.retired, realserverID{service, r.key()})
		return b.replace(l.dest, r)
	}
	return b.replace(b.newDest(service), r)
}

// newDest returns a Dest with a new number. All else is unset.
func (b *Balancer) newDest(service string) *Dest {
	n := uint32(len(b.numbers))
	if last := len(b.free) - 1; last >= 0 {
		n = b.free[last]
		b.free = b.free[:last]
	} else {
		b.numbers = append(b.numbers, nil)
	}
	return &Dest{number: n, counts: b.table.Counts(n), stats: &destStats{service: service, workers: make([]traffic,
		b.workers)}}
}

// replace returns a Dest with r's parameters and d's number and counts, and puts it in d's place.
func (b *Balancer) replace(d *Dest, r Realserver) *Dest {
	if r.Upper == 0 || r.Upper > d.Upper { // Linux ip_vs_ctl.c, __ip_vs_update_dest
		d.stats.overloaded.Store(false)
	}
	next := &Dest{number: d.number, counts: d.counts, stats: d.stats}
	next.reachAs(r)
	if next.Hops != nil {
		next.former = b.formerOf(d.stats.service)
	}
	next.counts.SetState(r.Down, !r.Down && r.Weight == 0)
	next.counts.SetReplies(r.Kind == method.NAT)
	b.kept.note(next)
	b.numbers[d.number] = next
	return next
}

// reachAs sets d's parameters to r and makes its method. Via stays nil if the method needs a source and r has none.
func (d *Dest) reachAs(r Realserver) {
	d.Realserver, d.Via, d.Back, d.Hops, d.overhead = r, nil, nil, nil, 0
	if m, err := method.New(r.Address, r.Config); err == nil {
		d.Via, d.overhead = m, m.Overhead()
		d.Back, _ = m.(method.Returner)
		d.Hops, _ = m.(method.Hopper)
	}
}

// Gone reports whether d has left the configuration, or is down.
func (d *Dest) Gone() bool { return d.counts.Gone() }

// Reachable reports whether packets can be sent to d. Tunnels over IPv6, and those with a UDP checksum over IPv4, need
// a source address. They have none while none is configured and the kernel has no route. Other tunnels stay reachable
// without a route; the kernel then refuses each packet. VS/NAT needs a route: without one the MTU is 0.
func (d *Dest) Reachable() bool { return d.Via != nil && (d.Kind != method.NAT || d.MTU > 0) }

// Overhead returns the number of bytes that d's method adds to a packet.
func (d *Dest) Overhead() int { return d.overhead }

// Inner returns the size of the largest packet that fits d's path without outer fragments, in bytes.
func (d *Dest) Inner() int { return d.MTU - d.overhead }

// Former finds the realservers to which a service's scheduler led clients before. Any goroutine may use it.
type Former interface {
	// NextHop returns another realserver than to that may have the connection of a client whose packets go to to. It
	// allocates nothing.
	NextHop(client netip.AddrPort, to netip.Addr) (next netip.Addr, ok bool)
}

// SetFormer makes f the Former of a service, by which packets to realservers with Hops name another one; nil: none. It
// stays while other configurations come in force.
func (b *Balancer) SetFormer(service string, f Former) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f != nil {
		b.formerOf(service).Store(&f)
	} else if p := b.former[service]; p != nil {
		p.Store(nil)
	}
}

// formerOf returns where the Former of a service is. b.mu is held.
func (b *Balancer) formerOf(service string) *atomic.Pointer[Former] {
	if b.former[service] == nil {
		b.former[service] = new(atomic.Pointer[Former])
	}
	return b.former[service]
}

// NextHop returns the realserver that the packets of a client to d, which has Hops, may go on to.
func (d *Dest) NextHop(client netip.AddrPort) (next netip.Addr, ok bool) {
	if d.former == nil { // a target of checks
		return netip.Addr{}, false
	}
	f := d.former.Load()
	if f == nil {
		return netip.Addr{}, false
	}
	return (*f).NextHop(client, d.Address)
}

// retire notes that d has left the configuration. Its connections go on.
func (b *Balancer) retire(d *Dest) {
	b.retired[realserverID{d.stats.service, d.key()}] = &retired{d, time.Now()}
	d.counts.SetState(true, false)
}

// forget frees the numbers of retired realservers that have no connections any more, and removes the mappings that they
// needed.
func (b *Balancer) forget(now time.Time) {
	b.forgetMappings(now)
	for key, l := range b.retired {
		c := l.dest.counts
		switch {
		case c.Active()+c.Inactive()+c.Templates() > 0:
			l.since = now
		case now.Sub(l.since) > forgetAfter:
			delete(b.retired, key)
			b.release(l.dest)
		}
	}
	for key, p := range b.probed {
		if p.endedAt.IsZero() || now.Sub(p.endedAt) <= forgetAfter || p.dest.counts.Inactive() > 0 {
			continue
		}
		delete(b.probed, key)
		b.release(p.dest)
	}
}

// release frees d's number for another Dest.
func (b *Balancer) release(d *Dest) {
	b.numbers[d.number] = nil
	b.kept.forget(d.number)
	delete(b.mappings, d.number)
	maps.DeleteFunc(b.left, func(id mappingID, _ time.Time) bool { return id.number == d.number })
	b.free = append(b.free, d.number)
}
