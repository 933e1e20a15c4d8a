package secondchance

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/maglev"
)

// Of each service the last MaxTables tables are kept that a director had in force within Remember.
const (
	MaxTables = 4
	Remember  = time.Hour
)

// maxServices bounds the services of a history: with MaxTables each they take 33 MB.
const maxServices = 1024

// entry is a table of a history.
type entry struct {
	table   *Table
	content string        // its encoding
	slots   *maglev.Table // nil until it is needed, or no member has a weight
	built   bool          // slots is set
	since   time.Time     // when it came in force; of a former table, when it ended: older ones have older times
	last    time.Time     // when it was in force last
}

// choose returns the index of the member to which the table leads a client, -1 for none.
func (e *entry) choose(client netip.AddrPort) int {
	if e.slots == nil {
		return -1
	}
	members := e.table.Members
	available := func(i int) bool { return members[i].Available }
	fallback := e.table.Fallback && slices.ContainsFunc(members, func(m Member) bool { return m.Available })
	return e.slots.Choose(e.key(client), fallback, available)
}

// key returns the key of a client.
func (e *entry) key(client netip.AddrPort) uint32 {
	if e.table.SrcPort {
		return maglev.Key(client.Addr(), client.Port())
	}
	return maglev.Key(client.Addr(), 0)
}

// build makes the table of slots.
func (e *entry) build() {
	if e.built {
		return
	}
	list, order := make([]maglev.Member, len(e.table.Members)), make([]int32, len(e.table.Members))
	for i, m := range e.table.Members {
		order[i], list[i] = int32(i), maglev.NewMember(m.Address, cmp.Or(m.Port, e.table.Port), int(m.Weight))
	}
	e.slots, e.built = maglev.New(list, order), true
}

// history is the tables of all services, the newest of each first.
type history map[string]*service

// service is the tables of a service.
type service struct {
	entries []*entry
	born    time.Time // when its first table was noted
}

// note notes that a table with this encoding is in force, or was so age ago. begins is true if its director had another
// one before. note returns the entry, nil if there are too many services. changed reports whether a choice can differ
// now.
func (h history) note(t *Table, content string, age time.Duration, begins bool,
	now time.Time) (e *entry, changed bool) {
	s := h[t.Service]
	if s == nil {
		if len(h) >= maxServices {
			return nil, false
		}
		s = &service{born: now}
		h[t.Service] = s
	}
	at := now.Add(-age)
	i := slices.IndexFunc(s.entries, func(e *entry) bool { return e.content == content })
	if i < 0 {
		e = &entry{table: t, content: content, since: at, last: at}
		s.entries, changed = append(s.entries, e), true
	} else {
		e = s.entries[i]
		if at.After(e.last) {
			e.last = at
		}
		if begins && i > 0 {
			e.since, changed = now, true
		}
	}
	if changed {
		slices.SortStableFunc(s.entries, func(a, b *entry) int { return b.since.Compare(a.since) })
		s.entries = s.entries[:min(len(s.entries), MaxTables)]
	}
	return e, changed
}

// forget removes the tables that were in force more than Remember ago, and reports whether there were any.
func (h history) forget(now time.Time) (any bool) {
	for name, s := range h {
		n := len(s.entries)
		s.entries = slices.DeleteFunc(s.entries, func(e *entry) bool { return now.Sub(e.last) > Remember })
		any = any || len(s.entries) < n
		if len(s.entries) == 0 {
			delete(h, name)
		}
	}
	return any
}

// View is the choices by the tables of a history. It does not change.
type View struct {
	byVIP map[netip.Addr][]choice // the newest first
}

// choice is a table in a view.
type choice struct {
	*entry
	born  time.Time // of its service
	local []bool    // by member: it is this host
}

// settled is the time after which the former tables of a service must have come, once its first table is here.
const settled = 2 * time.Second

// view makes the view of a host with the addresses for which own returns true.
func (h history) view(own func(netip.Addr) bool) *View {
	v := &View{byVIP: map[netip.Addr][]choice{}}
	for _, s := range h {
		for _, e := range s.entries {
			e.build()
			c := choice{entry: e, born: s.born, local: make([]bool, len(e.table.Members))}
			for i := range e.table.Members {
				c.local[i] = own(e.table.Members[i].Address)
			}
			for _, vip := range e.table.VIPs {
				v.byVIP[vip] = append(v.byVIP[vip], c)
			}
		}
	}
	for _, list := range v.byVIP {
		slices.SortStableFunc(list, func(a, b choice) int { return b.since.Compare(a.since) })
	}
	return v
}

// Other returns the tunnel to the newest choice for a client that is another host than this one; the zero Via if there
// is none. unsettled reports that tables may still come that know one: there is no table for the frontend, or the first
// one has just come.
func (v *View) Other(client, frontend netip.AddrPort, now time.Time) (to Via, unsettled bool) {
	unsettled = true
	for _, c := range v.byVIP[frontend.Addr()] {
		if !c.table.has(frontend.Port()) {
			continue
		}
		if now.Sub(c.born) > settled {
			unsettled = false
		}
		if i := c.choose(client); i >= 0 && !c.local[i] {
			return c.table.Members[i].Via, false
		}
	}
	return Via{}, unsettled
}

// has reports whether the service has a port.
func (t *Table) has(port uint16) bool {
	for _, p := range t.Ports {
		if p.First <= port && port <= p.Last || p == (Ports{}) {
			return true
		}
	}
	return false
}

// Vias returns the tunnels to the members that are other hosts, each once.
func (v *View) Vias() (all []Via) {
	seen := map[Via]bool{}
	for _, list := range v.byVIP {
		for _, c := range list {
			for i := range c.table.Members {
				if via := c.table.Members[i].Via; !c.local[i] && !seen[via] {
					seen[via], all = true, append(all, via)
				}
			}
		}
	}
	return all
}

// status returns the tables by service.
func (h history) status() (all []ServiceStatus) {
	for _, name := range slices.Sorted(maps.Keys(h)) {
		s := ServiceStatus{Name: name}
		for _, e := range h[name].entries {
			s.Tables = append(s.Tables, TableStatus{len(e.table.Members), e.since, e.last})
		}
		all = append(all, s)
	}
	return all
}
