package balancer

import (
	"net/netip"
	"slices"
	"sync"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

var local = []Scheduler{
	{Name: "lblc", make: func(kind) scheduler { return &lblc{newLocality()} },
		Choice: "the one that the VIP had last, if it is not crowded, else the fewest connections for its weight"},
	{Name: "lblcr", make: func(kind) scheduler { return &lblcr{newLocality()} },
		Choice: "the fewest connections for its weight among the VIP's realservers, if it is not crowded, else among " +
			"all"},
}

// locality is wlc with a memory of each destination address.
type locality struct {
	leastLoad
	memory *memory
}

func newLocality() locality {
	return locality{leastLoad{choose: leastOverhead}, &memory{destinations: map[netip.Addr]*destination{}}}
}

// memory has the realservers of each destination address, for lblc and lblcr. A service's snapshots share it. Its
// realservers are identified by their destStats, which outlive a reload.
type memory struct {
	mu           sync.Mutex
	destinations map[netip.Addr]*destination
	swept        conntab.Ticks // time of the last sweep
}

// destination is a destination address's set of realservers, the last added first. A realserver that leaves the service
// stays in the set, as it may come back.
type destination struct {
	members        []member
	used, modified conntab.Ticks
}

// member is a realserver of a set, and its last known index in the list.
type member struct {
	stats *destStats
	index int
}

// The kernel's numbers.
const (
	maxDestinations = 1 << 14                          // addresses that are remembered
	day             = 24 * 60 * 60 * conntab.PerSecond // an address is forgotten after a day without use
	idle            = 6 * 60 * conntab.PerSecond       // and after this when the memory is full
	sweepInterval   = 60 * conntab.PerSecond           // between two sweeps of a full memory
)

// age returns the time from t to now. It is 0 if t is a little after now, since the workers' clocks may differ.
func age(t, now conntab.Ticks) conntab.Ticks {
	const little = 60 * conntab.PerSecond
	if t-now < little {
		return 0
	}
	return now - t
}

// get returns a's entry, or nil. The caller must hold m.mu while it uses the entry.
func (m *memory) get(a netip.Addr, now conntab.Ticks) *destination {
	d := m.destinations[a]
	if d == nil || age(d.used, now) >= day {
		return nil
	}
	d.used = now
	return d
}

// put makes an entry for a with d alone, if there is room. The caller must hold m.mu.
func (m *memory) put(a netip.Addr, d *Dest, now conntab.Ticks) {
	if len(m.destinations) >= maxDestinations && m.destinations[a] == nil {
		if age(m.swept, now) < sweepInterval {
			return
		}
		m.swept = now
		for key, known := range m.destinations {
			if age(known.used, now) >= idle {
				delete(m.destinations, key)
			}
		}
		if len(m.destinations) >= maxDestinations {
			return
		}
	}
	m.destinations[a] = &destination{members: []member{{stats: d.stats}}, used: now, modified: now}
}

// only returns a copy with the entry of a alone.
func (m *memory) only(a netip.Addr) *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &memory{destinations: map[netip.Addr]*destination{}, swept: m.swept}
	if d := m.destinations[a]; d != nil {
		c.destinations[a] = &destination{members: slices.Clone(d.members), used: d.used, modified: d.modified}
	}
	return c
}

// find returns the member's Dest in list, or nil if it has left the service.
func (m *member) find(list []*Dest) *Dest {
	if m.index < 0 || m.index >= len(list) || list[m.index].stats != m.stats {
		m.index = slices.IndexFunc(list, func(d *Dest) bool { return d.stats == m.stats })
	}
	if m.index < 0 {
		return nil
	}
	return list[m.index]
}

// crowded reports whether d has more active connections than its weight, and another realserver has fewer than half of
// its own weight.
func (s *leastLoad) crowded(d *Dest) bool {
	return d.counts.Active() > d.Weight && slices.ContainsFunc(s.loads,
		func(l load) bool { return 2*int64(l.counts.Active()) < l.weight })
}

// lblc is locality-based least connection (Linux net/netfilter/ipvs/ip_vs_lblc.c): the destination address's last
// realserver, unless it is crowded, else the choice of wlc. As in the kernel, the last realserver's threshold is not
// checked again.
type lblc struct{ locality }

func (s *lblc) pick(list []*Dest, p *packet.Info, now conntab.Ticks) *Dest {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	known := s.memory.get(p.Flow.Dst, now)
	if known != nil {
		if d := known.members[0].find(list); d != nil && d.Weight > 0 && !s.crowded(d) {
			return d
		}
	}
	d := s.leastLoad.pick(list, p, now)
	switch {
	case d == nil:
	case known != nil:
		known.members[0] = member{stats: d.stats}
	default:
		s.memory.put(p.Flow.Dst, d, now)
	}
	return d
}

func (s *lblc) clone() scheduler { return &lblc{s.locality} }

func (s *lblc) trial(p *packet.Info) scheduler {
	return &lblc{locality{s.leastLoad, s.memory.only(p.Flow.Dst)}}
}

// lblcr is locality-based least connection with replication (Linux net/netfilter/ipvs/ip_vs_lblcr.c): the member with
// the least overhead by weight, of the destination address's set. While that one is crowded, wlc's choice joins the
// set. After a day without a change of a set, the member with the most overhead leaves it.
type lblcr struct{ locality }

func (s *lblcr) pick(list []*Dest, p *packet.Info, now conntab.Ticks) *Dest {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	known := s.memory.get(p.Flow.Dst, now)
	if known != nil {
		d := known.least(list)
		if len(known.members) > 1 && age(known.modified, now) > day {
			known.shrink(list, now)
		}
		if d != nil && !s.crowded(d) {
			return d
		}
	}
	d := s.leastLoad.pick(list, p, now)
	switch {
	case d == nil:
	case known != nil:
		known.join(list, d, now)
	default:
		s.memory.put(p.Flow.Dst, d, now)
	}
	return d
}

func (s *lblcr) clone() scheduler { return &lblcr{s.locality} }

func (s *lblcr) trial(p *packet.Info) scheduler {
	return &lblcr{locality{s.leastLoad, s.memory.only(p.Flow.Dst)}}
}

// least returns the available member with the least overhead by weight, or nil.
func (t *destination) least(list []*Dest) (best *Dest) {
	for i := range t.members {
		d := t.members[i].find(list)
		if d != nil && d.available() && (best == nil ||
			best.connOverhead()*int64(d.Weight) > d.connOverhead()*int64(best.Weight)) {
			best = d
		}
	}
	return best
}

// shrink removes the member with the most overhead by weight, of those with a weight.
func (t *destination) shrink(list []*Dest, now conntab.Ticks) {
	var most *Dest
	at := 0
	for i := range t.members {
		d := t.members[i].find(list)
		if d != nil && d.Weight > 0 && (most == nil ||
			most.connOverhead()*int64(d.Weight) < d.connOverhead()*int64(most.Weight)) {
			most, at = d, i
		}
	}
	if most != nil {
		t.members = slices.Delete(t.members, at, at+1)
		t.modified = now
	}
}

// join adds d, if it is not a member. A set as large as the list has members that have left the service: join removes
// them first.
func (t *destination) join(list []*Dest, d *Dest, now conntab.Ticks) {
	if slices.ContainsFunc(t.members, func(m member) bool { return m.stats == d.stats }) {
		return
	}
	if len(t.members) >= len(list) {
		t.members = slices.DeleteFunc(t.members, func(m member) bool { return m.find(list) == nil })
	}
	t.members = slices.Insert(t.members, 0, member{stats: d.stats})
	t.modified = now
}
