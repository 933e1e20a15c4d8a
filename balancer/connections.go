package balancer

import (
	"iter"
	"net/netip"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
)

// Connection is one connection or persistence template, with its service and realserver.
type Connection struct {
	conntab.Conn
	Service    string         // name
	Realserver netip.AddrPort // its ID
	Forward    method.Kind    // its forwarding method
}

// connection returns c, whose realserver is d.
func (d *Dest) connection(c conntab.Conn) Connection {
	return Connection{Conn: c, Service: d.stats.service, Realserver: d.ID(), Forward: d.Kind}
}

// RealserverPort returns the port to which c's packets go at the realserver. For a template it is the realserver's own
// port, or 0.
func (c *Connection) RealserverPort() uint16 {
	if port := c.Realserver.Port(); port != 0 || c.Template {
		return port
	}
	return c.Flow.DstPort
}

// Connections iterates over all connections, those of retired realservers included. Workers go on meanwhile: a
// connection that is opened or ends during the iteration may be seen or not. The memory of an iteration does not grow
// with the table.
func (b *Balancer) Connections(now conntab.Ticks) iter.Seq[Connection] {
	return func(yield func(Connection) bool) {
		for c := range b.table.All(now) {
			d, _ := b.Snapshot().dest(c.Dest)
			if d == nil {
				continue // it has ended, and its realserver is forgotten
			}
			if !yield(d.connection(c)) {
				return
			}
		}
	}
}
