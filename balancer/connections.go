package balancer

import (
	"iter"
	"net/netip"

	"vstun/balancer/conntab"
)

// Connection is one connection, or one persistence template, with what it belongs to.
type Connection struct {
	conntab.Conn
	Service    string     // name
	Realserver netip.Addr // its address
}

// Connections walks over all connections, those of realservers that have left included. Workers go on meanwhile: what
// is opened or ends during the walk may be seen or not. The walk takes no memory that grows with the table.
func (b *Balancer) Connections(now conntab.Ticks) iter.Seq[Connection] {
	return func(yield func(Connection) bool) {
		for c := range b.table.All(now) {
			d, _ := b.Snapshot().dest(c.Dest)
			if d == nil {
				continue // it has ended, and its realserver is forgotten
			}
			if !yield(Connection{Conn: c, Service: d.stats.service, Realserver: d.Address}) {
				return
			}
		}
	}
}
