package conntab

import (
	"net/netip"

	"vstun/encap/packet"
)

// family is the connections of one address family. Its methods are those of Table and View with the same names, for
// flows of that family. Its implementations are *store and absent. Prefetch, Packet and Insert run for each packet or
// connection. They call the stores directly: two indirect calls double the time of a look-up.
type family interface {
	peek(p *packet.Info, by *rules, now Ticks) (c Conn, f Fate, r Result)
	leave(p *packet.Info, dest uint32) bool
	lookup(f packet.Flow, now Ticks) (Conn, bool)
	report(c *Conn, how Report, by *rules, now Ticks) Result
	reportTemplate(c *Conn, how Report, now Ticks) Result
	refresh(f packet.Flow, n uint32, last Ticks, by *rules) bool
	setFast(f packet.Flow, is bool, by *rules, now Ticks) (Conn, bool)

	pin(f packet.Flow, dest uint32, over bool, now Ticks) Result
	unpin(f packet.Flow, end Ticks)

	template(client netip.Addr, service uint32, now Ticks) (dest, number uint32, r Result)
	putTemplate(client netip.Addr, service uint32, n *newTemplate, now Ticks) (dest, number uint32, r Result)
	forget(client netip.Addr, service, former uint32)
	lookupTemplate(client netip.Addr, service uint32, now Ticks) (Conn, bool)

	all(now Ticks, yield func(Conn) bool) bool
	walk(at *cursor, now Ticks, own bool, into []Conn) (_ []Conn, slots int)
	sweep(at *cursor, now Ticks, n int, connections bool)
	bound(half int)
	attach(f *Feed)
	detach(f *Feed)
	changes(f *Feed, at *cursor, now Ticks, into []Change) int
}

// of returns the family of an address. The family of IPv6 is absent until a call with create.
func (t *Table) of(a netip.Addr, create bool) family {
	if a.Is4() {
		return &t.four
	}
	if s := t.ipv6(create); s != nil {
		return s
	}
	return absent{}
}

// families returns the families that have connections.
func (t *Table) families() []family {
	if six := t.ipv6(false); six != nil {
		return []family{&t.four, six}
	}
	return []family{&t.four}
}

// absent is a family without connections. Only methods that add none are called.
type absent struct{ family }

func (absent) peek(p *packet.Info, by *rules, _ Ticks) (Conn, Fate, Result) {
	return Conn{}, NoConnection, by.unknown(p, FromClient)
}

func (absent) leave(*packet.Info, uint32) bool                       { return false }
func (absent) lookup(packet.Flow, Ticks) (Conn, bool)                { return Conn{}, false }
func (absent) refresh(packet.Flow, uint32, Ticks, *rules) bool       { return false }
func (absent) setFast(packet.Flow, bool, *rules, Ticks) (Conn, bool) { return Conn{}, false }
func (absent) unpin(packet.Flow, Ticks)                              {}
func (absent) forget(netip.Addr, uint32, uint32)                     {}
func (absent) lookupTemplate(netip.Addr, uint32, Ticks) (Conn, bool) { return Conn{}, false }

func (absent) template(netip.Addr, uint32, Ticks) (dest, number uint32, r Result) { return 0, 0, Miss }
