package balancer

import (
	"net/netip"
	"slices"
)

// Reroute takes over the MTU of the ways to realservers that have left, by address: Apply knows those of the others. What is not in mtus stays.
func (b *Balancer) Reroute(mtus map[netip.Addr]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed := false
	for _, l := range b.leaving {
		mtu := mtus[l.dest.Address]
		if mtu == 0 || mtu == l.dest.MTU {
			continue
		}
		next := *l.dest
		next.MTU = mtu
		l.dest, b.numbers[next.number] = &next, &next
		changed = true
	}
	if changed {
		s := b.current.Load()
		b.current.Store(&Snapshot{balancer: b, list: s.list, vips: s.vips, dests: slices.Clone(b.numbers)})
	}
}
