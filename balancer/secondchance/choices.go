package secondchance

import (
	"maps"
	"net/netip"
	"slices"

	"vstun/balancer/maglev"
	"vstun/encap"
)

// Choices is the tables of a service at its director, the newest first. It does not change.
type Choices struct{ entries []*entry }

// Fresh returns the services whose Choices have changed since the last call, in ascending order.
func (d *Director) Fresh() []string {
	names := slices.Sorted(maps.Keys(d.fresh))
	clear(d.fresh)
	return names
}

// Choices returns the tables of a service in force and before, nil for none.
func (d *Director) Choices(service string) *Choices {
	s := d.history[service]
	if s == nil {
		return nil
	}
	c := &Choices{}
	for _, e := range s.entries {
		e.build()
		c.entries = append(c.entries, e)
	}
	return c
}

// NextHop returns the realserver that a client's packets to the realserver to may go on to: the one that may have the
// connection if to does not. That is the choice of the newest table before the one that has led the connection to to,
// or else of the newest of all, which is another realserver. ok is false if there is none, or encap.Hops cannot name
// it. NextHop allocates nothing.
func (c *Choices) NextHop(client netip.AddrPort, to netip.Addr) (next netip.Addr, ok bool) {
	var newest *Member
	led := false
	var key, slot uint32 // of most tables: computed once
	for n, e := range c.entries {
		if k := e.key(client); n == 0 || k != key {
			key, slot = k, maglev.Slot(k)
		}
		m := e.member(client, slot)
		switch {
		case m == nil:
		case m.Address == to:
			led = true
		case led:
			return m.hop()
		case newest == nil:
			newest = m
		}
	}
	if newest == nil {
		return netip.Addr{}, false
	}
	return newest.hop()
}

// member returns the choice for a client whose key has this slot, nil for none.
func (e *entry) member(client netip.AddrPort, slot uint32) *Member {
	if e.slots == nil {
		return nil
	}
	if m := &e.table.Members[e.slots[slot]]; m.Available {
		return m
	}
	if i := e.choose(client); i >= 0 {
		return &e.table.Members[i]
	}
	return nil
}

// Named reports whether packets to a member of t may name another one.
func (t *Table) Named() bool {
	return slices.ContainsFunc(t.Members, func(m Member) bool {
		_, ok := m.hop()
		return ok
	})
}

// hop returns the address of m as a hop. ok is false if it has another tunnel, or is of IPv6.
func (m *Member) hop() (a netip.Addr, ok bool) {
	return m.Address, m.Kind == encap.KindGUE && m.Address.Is4()
}
