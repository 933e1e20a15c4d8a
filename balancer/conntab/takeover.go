package conntab

import "slices"

// Adopted is the outcome of Adopt: numbers of entries.
type Adopted struct {
	Connections, Templates int // taken over
	Expired                int // they have ended since
	Unknown                int // of destinations, or services of templates, that the caller does not know
	Full                   int // beyond Config.Max
	Invalid                int // of impossible values
}

// Heir is what has become of a former destination, and of the service of its templates. Known is false if its
// connections end. Service is 0 if its templates end.
type Heir struct {
	Dest, Service uint32
	Known         bool
}

// Knows reports whether former has a table whose layout this version knows.
func Knows(former Former) bool {
	return former.Section(slotsSection[[4]byte](), slotsLayout[[4]byte]()) != nil
}

// Has reports whether former has a table, of any layout. A process without room for one has none.
func Has(former interface{ Has(section string) bool }) bool {
	return former.Has(slotsSection[[4]byte]())
}

// HasConnections reports whether a section of a Memory has the connections of IPv4 or of IPv6.
func HasConnections(section string) (ipv4, ipv6 bool) {
	return section == slotsSection[[4]byte](), section == slotsSection[[16]byte]()
}

// Adopt takes over the entries of former, which is of a process that has ended at any moment, into the empty table t.
// Each entry is read for itself. An entry that was about to move is there twice, and is taken once. Pinned flows are
// not taken. then is the present time on the former table's clock, now on t's. heir returns what has become of a former
// destination, and of the service of a template to it; service is 0 for connections. All counts result from what is
// taken.
func (t *Table) Adopt(former Former, then, now Ticks, heir func(dest, service uint32) Heir) Adopted {
	a := adoption{then: then, now: now, heir: heir,
		assured: asSlice[uint32](former.Section(assuredSection, bitsLayout))}
	a.held = make([]bool, 32*len(a.assured))
	a.numbers = make([]uint32, len(a.held))
	t.four.adopt(asSlice[entry[[4]byte]](former.Section(slotsSection[[4]byte](), slotsLayout[[4]byte]())), &a)
	six := asSlice[entry[[16]byte]](former.Section(slotsSection[[16]byte](), slotsLayout[[16]byte]()))
	if slices.ContainsFunc(six, func(e entry[[16]byte]) bool { return e.state != stateEmpty }) {
		t.ipv6(true).adopt(six, &a)
	}
	return a.Adopted
}

// adoption is the state of Adopt.
type adoption struct {
	then, now Ticks
	heir      func(dest, service uint32) Heir
	assured   []uint32 // bits by number of the former template
	held      []bool   // by number of the former template: a connection that goes on has it
	numbers   []uint32 // the new number by the former one; 0: none yet
	Adopted
}

// left returns the time until expires, a time on the former table's clock.
func (a *adoption) left(expires Ticks) int32 { return int32(expires - a.then) }

// adopt takes over the entries of from: templates before their connections.
func (s *store[A]) adopt(from []entry[A], a *adoption) {
	templates := false
	for i := range from {
		e := &from[i]
		templates = templates || e.state == TemplateState
		if e.ref != 0 && int(e.ref) < len(a.held) && e.state.connection(e.proto) && a.left(e.expires) > 0 {
			a.held[e.ref] = true
		}
	}
	var unassured []candidate
	if templates {
		for i := range from {
			if from[i].state == TemplateState {
				unassured = s.adoptTemplate(from[i], a, unassured)
			}
		}
	}
	for i := range from {
		if st := from[i].state; st != stateEmpty && st != Pinned && st != TemplateState {
			unassured = s.adoptConnection(from[i], a, unassured)
		}
	}
	// The oldest ones are evicted first.
	slices.SortFunc(unassured, func(x, y candidate) int { return int(int32(x.expires - y.expires)) })
	for _, c := range unassured {
		s.enqueue(s.shard(c.hash), c.hash)
	}
}

// candidate is an unassured entry, which may be evicted.
type candidate struct {
	hash    uint64
	expires Ticks
}

// adoptConnection takes over e, and adds it to unassured if it is.
func (s *store[A]) adoptConnection(e entry[A], a *adoption, unassured []candidate) []candidate {
	left, h := a.left(e.expires), a.heir(e.dest, 0)
	switch {
	case !e.state.connection(e.proto) || left > maxTicks || e.ref != 0 && int(e.ref) >= len(a.numbers):
		a.Invalid++
		return unassured
	case left <= 0:
		a.Expired++
		return unassured
	case !h.Known || h.Dest >= maxDests:
		a.Unknown++
		return unassured
	}
	t := s.table
	e.dest, e.expires = h.Dest, a.now+Ticks(left)
	e.flags &^= fast
	former, orphan := e.ref, false
	if former != 0 {
		if e.ref = a.numbers[former]; e.ref == 0 { // the template is gone
			e.ref, orphan = t.refs.take(), true
		}
		t.refs.hold(e.ref)
		if orphan {
			t.refs.detach(e.ref)
		}
	}
	k, taken := s.adoptEntry(&e, a, e.state.halfOpen())
	if !taken {
		if e.ref != 0 {
			t.refs.release(e.ref)
		}
		return unassured
	}
	a.Connections++
	if former != 0 {
		a.numbers[former] = e.ref
	}
	if e.state.halfOpen() {
		return append(unassured, candidate{k.hash, e.expires})
	}
	t.assure(e.ref)
	return unassured
}

// adoptTemplate takes over e, and adds it to unassured if it is.
func (s *store[A]) adoptTemplate(e entry[A], a *adoption, unassured []candidate) []candidate {
	left, h := a.left(e.expires), a.heir(e.dest, e.service())
	switch {
	case e.proto != 0 || left > maxTicks || e.timeout() == 0 || e.timeout() > Ticks(maxTicks) || e.ref == 0 ||
		int(e.ref) >= len(a.numbers):
		a.Invalid++
		return unassured
	case left <= 0 && !a.held[e.ref]:
		a.Expired++
		return unassured
	case !h.Known || h.Service == 0 || h.Dest >= maxDests:
		a.Unknown++
		return unassured
	}
	t, former := s.table, e.ref
	e.setService(h.Service)
	e.dest, e.expires, e.ref = h.Dest, a.now+Ticks(max(0, left)), t.refs.take()
	assured := a.assured[former/32]&(1<<(former%32)) != 0
	if assured {
		t.refs.assure(e.ref)
	}
	k, taken := s.adoptEntry(&e, a, !assured)
	if !taken {
		t.refs.detach(e.ref)
		return unassured
	}
	a.Templates++
	a.numbers[former] = e.ref
	if !assured {
		unassured = append(unassured, candidate{k.hash, e.expires})
	}
	return unassured
}

// adoptEntry puts e into a slot, unless it is there already or there is no room.
func (s *store[A]) adoptEntry(e *entry[A], a *adoption, unassured bool) (k key[A], taken bool) {
	k = key[A]{src: e.src, dst: e.dst, sport: e.sport, dport: e.dport, proto: e.proto, hash: s.hash(e)}
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if _, found := sh.find(&k); found {
		return k, false
	}
	if s.place(sh, &k, *e, unassured) == nil {
		a.Full++
		return k, false
	}
	return k, true
}
