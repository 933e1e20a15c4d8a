package balancer

import (
	"net/netip"
	"slices"

	"vstun/balancer/method"
)

// Path is the kernel's data about the path to a realserver.
type Path struct {
	MTU int // largest packet, in bytes
	// Source is the source address for tunnels that have one already or need one; the zero Addr: unknown.
	Source netip.Addr
	Link   method.Link // of VS/DR; Device 0: unknown
}

// Reroute sets the paths to retired realservers, by address. Apply sets the paths to the others. Retired realservers
// that are not in paths keep theirs.
func (b *Balancer) Reroute(paths map[netip.Addr]Path) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed := false
	for _, l := range b.retired {
		r := l.dest.Realserver
		path, known := paths[r.Address]
		if !known {
			continue
		}
		r.MTU = path.MTU
		if path.Source.IsValid() && (r.Source.IsValid() || !l.dest.Reachable()) {
			r.Source = path.Source
		}
		if r.Kind == method.DR && path.Link.Device != 0 {
			r.Link = path.Link
		}
		if r == l.dest.Realserver {
			continue
		}
		next := *l.dest
		next.reachAs(r)
		l.dest, b.numbers[next.number] = &next, &next
		changed = true
	}
	if changed {
		s := b.current.Load()
		b.current.Store(&Snapshot{balancer: b, table: s.table, options: s.options,
			list: s.list, vips: s.vips, leftVIPs: s.leftVIPs, dests: slices.Clone(b.numbers),
			backends: s.backends, hints: s.hints})
	}
}
