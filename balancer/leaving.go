package balancer

import (
	"net/netip"
	"slices"
)

// Path is what the kernel knows of the way to a realserver.
type Path struct {
	MTU int // largest packet, in bytes
	// that a tunnel has as its source which has one already, or needs one; the zero Addr: none is known
	Source netip.Addr
}

// Reroute takes over the ways to realservers that have left, by address: Apply knows those of the others. What is not
// in ways stays.
func (b *Balancer) Reroute(ways map[netip.Addr]Path) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed := false
	for _, l := range b.leaving {
		r := l.dest.Realserver
		way, known := ways[r.Address]
		if !known {
			continue
		}
		r.MTU = way.MTU
		if way.Source.IsValid() && (r.Source.IsValid() || !l.dest.Reachable()) {
			r.Source = way.Source
		}
		if r == l.dest.Realserver {
			continue
		}
		next := *l.dest
		next.Realserver, next.Via = r, via(r.Target())
		l.dest, b.numbers[next.number] = &next, &next
		changed = true
	}
	if changed {
		s := b.current.Load()
		b.current.Store(&Snapshot{balancer: b, table: s.table, options: s.options,
			list: s.list, vips: s.vips, leftVIPs: s.leftVIPs, dests: slices.Clone(b.numbers)})
	}
}
