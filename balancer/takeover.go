package balancer

import (
	"encoding/json"
	"slices"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
)

// Adopted is the outcome of Adopt.
type Adopted struct {
	conntab.Adopted
	Names   int // realservers that the former process knew
	Retired int // those of them that are not configured any more, and have connections
}

// Adopt takes over what is in former: the connections, the counts of realservers, the positions of schedulers. b has
// its first configuration and no packet yet. Connections to a realserver that is not configured any more go on, as they
// do after a reload. then is the present time on the former process's clock, now on this one's.
func (b *Balancer) Adopt(former conntab.Former, then, now conntab.Ticks) Adopted {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.heirs(former)
	a := Adopted{Adopted: b.table.Adopt(former, then, now, h.heir), Retired: h.retired}
	for number, r := range h.records {
		if text := r.text(); text != nil {
			a.Names++
			if d := b.dest(h.heirs[number]); d != nil {
				d.stats.resume(r)
			}
		}
	}
	b.resume(former, h)
	if moved := b.remap(now); moved || h.retired > 0 {
		b.publish()
	}
	return a
}

// dest returns the Dest of an heir, nil for none.
func (b *Balancer) dest(h *heir) *Dest {
	if h == nil || !h.Known {
		return nil
	}
	return b.numbers[h.Dest]
}

// heirs are the Dests that take the place of former ones.
type heirs struct {
	balancer *Balancer
	records  []*keptRealserver // by former number
	heirs    []*heir           // by former number; nil: not looked for yet
	byID     map[realserverID]*Dest
	retired  int
}

type heir struct{ conntab.Heir }

// heirs returns the heirs of the Dests in former. The configured ones are looked up at once.
func (b *Balancer) heirs(former conntab.Former) *heirs {
	h := &heirs{balancer: b, byID: map[realserverID]*Dest{}}
	for i := 0; ; i++ {
		list := records[keptRealserver](former.Section(realserversSection(i), keptLayout))
		if list == nil {
			break
		}
		for j := range list {
			h.records = append(h.records, &list[j])
		}
	}
	h.heirs = make([]*heir, len(h.records))
	for name, s := range b.services {
		for _, d := range slices.Concat(s.list, s.down) {
			h.byID[realserverID{name, d.key()}] = d
		}
	}
	for number := range h.records {
		if id, _, ok := h.name(uint32(number)); ok && h.byID[id] != nil {
			h.heirs[number] = h.of(id, h.byID[id])
		}
	}
	return h
}

// of returns d, of a realserver with this identity, as an heir.
func (h *heirs) of(id realserverID, d *Dest) *heir {
	next := &heir{conntab.Heir{Dest: d.number, Known: true}}
	if s := h.balancer.services[id.service]; s != nil {
		next.Service = s.number
	}
	return next
}

// name returns what the former number means. It reports whether it means anything to this version.
func (h *heirs) name(number uint32) (id realserverID, r Realserver, ok bool) {
	var n keptName
	if text := h.records[number].text(); text == nil || json.Unmarshal(text, &n) != nil {
		return id, r, false
	}
	r, ok = n.realserver()
	return realserverID{n.Service, r.key()}, r, ok
}

// heir returns the heir of a former number that has a connection. A realserver that is not configured any more becomes
// a retired one.
func (h *heirs) heir(former, _ uint32) conntab.Heir {
	if int(former) >= len(h.heirs) {
		return conntab.Heir{}
	}
	if h.heirs[former] == nil {
		h.heirs[former] = &heir{}
		if id, r, ok := h.name(former); ok {
			d := h.byID[id]
			if d == nil {
				d = h.retire(id, r)
			}
			h.heirs[former] = h.of(id, d)
		}
	}
	return h.heirs[former].Heir
}

// retire makes a retired Dest.
func (h *heirs) retire(id realserverID, r Realserver) *Dest {
	b := h.balancer
	d := b.replace(b.newDest(id.service), r)
	b.retire(d)
	h.byID[id] = d
	h.retired++
	return d
}

// resume lets the schedulers go on where those of the former process were.
func (b *Balancer) resume(former conntab.Former, h *heirs) {
	for i := 0; ; i++ {
		list := records[keptService](former.Section(servicesSection(i), keptLayout))
		if list == nil {
			return
		}
		for j := range list {
			r := &list[j]
			s := b.services[string(r.name[:min(r.length.Load(), longestName)])]
			number, current, known := r.cursor.get()
			if s == nil || !known || int(number) >= len(h.heirs) {
				continue
			}
			if d := b.dest(h.heirs[number]); d != nil {
				s.resume(d.number, current)
			}
		}
	}
}

// remap adds the mappings of connections that the configuration does not explain: their realservers of VS/NAT are
// retired, or other VIPs or ports lead there now. It reports whether there are any. No worker runs yet.
func (b *Balancer) remap(now conntab.Ticks) (moved bool) {
	configured := b.configured()
	if configured == nil {
		return false
	}
	known := map[mappingID]bool{}
	for c := range b.table.All(now) {
		if c.Template || int(c.Dest) >= len(configured) || !configured[c.Dest].translates ||
			configured[c.Dest].has(c.Flow) {
			continue
		}
		d, port := b.numbers[c.Dest], c.Flow.DstPort
		id := mappingID{c.Dest, mapping{c.Flow.Dst, c.Flow.Proto, PortRange{port, port}, d.Port}}
		if known[id] {
			continue
		}
		known[id] = true
		b.mappings[c.Dest] = append(b.mappings[c.Dest], id.mapping)
		if !configured[c.Dest].retired {
			b.left[id] = time.Now()
		}
	}
	return len(known) > 0
}

// translated is a Dest for remap.
type translated struct {
	translates bool // it is one of VS/NAT
	retired    bool
	mappings   []mapping
}

// configured returns the Dests by number, nil if there are none of VS/NAT.
func (b *Balancer) configured() (all []translated) {
	for n, d := range b.numbers {
		if d == nil || d.Kind != method.NAT {
			continue
		}
		if all == nil {
			all = make([]translated, len(b.numbers))
		}
		_, retired := b.retired[realserverID{d.stats.service, d.key()}]
		all[n] = translated{true, retired, b.mappings[uint32(n)]}
	}
	return all
}

// has reports whether a mapping leads the requests of f, from a client to a VIP, to the realserver.
func (t *translated) has(f packet.Flow) bool {
	return slices.ContainsFunc(t.mappings, func(m mapping) bool {
		return m.vip == f.Dst && m.proto == f.Proto &&
			(m.ports == EveryPort || m.ports.First <= f.DstPort && f.DstPort <= m.ports.Last)
	})
}

// publish makes a snapshot of the services in force, with the present Dests.
func (b *Balancer) publish() {
	s := b.current.Load()
	next := &Snapshot{balancer: b, table: s.table, options: s.options, list: s.list, vips: s.vips,
		leftVIPs: s.leftVIPs, dests: slices.Clone(b.numbers), backends: b.backends(s.list), hints: s.hints}
	if next.backends.several() {
		if b.hints == nil {
			b.hints = new(hints)
		}
		next.hints = b.hints
	}
	b.current.Store(next)
}
