package conntab

import (
	"testing"
	"unsafe"
)

// sections is a Memory and a Former.
type sections map[string]section

type section struct {
	layout uint32
	bytes  []byte
}

func (m sections) Section(name string, layout uint32, size int) []byte {
	m[name] = section{layout, asBytes(make([]uint64, (size+7)/8))[:size]}
	return m[name].bytes
}

// left is what a process has left behind.
type left sections

func (m left) Section(name string, layout uint32) []byte {
	if s := m[name]; s.layout == layout {
		return s.bytes
	}
	return nil
}

func asBytes(words []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), 8*len(words))
}

// same is the heir of each destination: itself.
func same(dest, service uint32) Heir { return Heir{Dest: dest, Service: service, Known: true} }

// takeOver makes a table that takes over what is in memory, whose clock is the same.
func takeOver(t *testing.T, memory sections, cfg Config, now Ticks) (View, sections) {
	t.Helper()
	next := sections{}
	table := NewIn(next, cfg)
	if a := table.Adopt(left(memory), now, now, same); a.Unknown+a.Full+a.Invalid > 0 {
		t.Errorf("taken over: %+v", a)
	}
	mustAgree(t, table)
	return table.View(), next
}

// mustAgree fails the test unless all counts of a table agree with its entries.
func mustAgree(t *testing.T, table *Table) {
	t.Helper()
	var a agreement
	a.init()
	agree(&a, &table.four)
	if six := table.ipv6(false); six != nil {
		agree(&a, six)
	}
	if n := int(a.entries); table.Len() != n {
		t.Errorf("the table counts %d entries and has %d", table.Len(), n)
	}
	if table.HalfOpen() != a.half {
		t.Errorf("the table counts %d half-open entries and has %d", table.HalfOpen(), a.half)
	}
	for d := range uint32(100) {
		c := table.Counts(d)
		if got := [3]int{c.Active(), c.Inactive(), c.Templates()}; got != a.dests[d] {
			t.Errorf("destination %d counts %v connections and templates and has %v", d, got, a.dests[d])
		}
	}
	for n := uint32(1); n <= table.refs.last; n++ {
		count := table.refs.count(n).Load()
		if h, template := a.holds[n], a.templates[n]; h > 0 || template {
			if int(count&countMask) != h || template != (count&detachedBit == 0) {
				t.Errorf("template number %d: count %#x with %d connections, template %v", n, count, h, template)
			}
		}
	}
	for _, err := range a.faults {
		t.Error(err)
	}
}

// agreement is what a table's entries add up to.
type agreement struct {
	entries   int
	half      int
	dests     map[uint32][3]int // active, inactive, templates
	holds     map[uint32]int    // connections by number of the template
	templates map[uint32]bool
	faults    []string
}

func (a *agreement) init() {
	a.dests, a.holds, a.templates = map[uint32][3]int{}, map[uint32]int{}, map[uint32]bool{}
}

func agree[A address](a *agreement, s *store[A]) {
	for i := range s.shards {
		sh := &s.shards[i]
		used := 0
		for j := range sh.slots {
			e := &sh.slots[j]
			if e.state == stateEmpty {
				continue
			}
			used++
			k := key[A]{src: e.src, dst: e.dst, sport: e.sport, dport: e.dport, proto: e.proto, hash: s.hash(e)}
			if at, found := sh.find(&k); !found || at != j || s.shard(k.hash) != sh {
				a.faults = append(a.faults, "an entry is not found where it is")
			}
			n := a.dests[e.dest]
			switch {
			case e.state == TemplateState:
				n[2]++
				a.templates[e.ref] = true
			case e.state.Active():
				n[0]++
			default:
				n[1]++
			}
			a.dests[e.dest] = n
			if e.state != TemplateState && e.ref != 0 {
				a.holds[e.ref]++
			}
			if e.state != Pinned {
				a.entries++
			}
			if s.unassured(e) {
				a.half++
			}
		}
		if used != sh.used {
			a.faults = append(a.faults, "a shard counts other slots than it uses")
		}
	}
}
