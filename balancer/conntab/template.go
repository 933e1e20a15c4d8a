package conntab

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"vstun/encap/packet"
)

// A template is a client's persistence: the destination of all its connections to a service (Linux ip_vs_core.c,
// ip_vs_sched_persist). Templates share the slots of connections. Their protocol is 0, and their destination address is
// the service's number. A template outlives its timeout while connections that it led to exist.

// templateGrace is the time by which an expired template is extended, repeatedly, while there are such connections
// (Linux ip_vs_conn.c, ip_vs_conn_expire).
const templateGrace = 60 * PerSecond

// TemplateGrace is the time by which a template outlives its timeout, repeatedly, while it is held by connections.
const TemplateGrace = templateGrace * time.Second / PerSecond

// MaxPersistence is the longest timeout of a template.
const MaxPersistence = MaxTimeout

// Template looks up the template of client, a masked address, at a service. With Hit it restarts the template's timeout
// and gives the caller a hold on it, by its number, for Insert or Release. Otherwise the result is Miss.
func (t *Table) Template(client netip.Addr, service uint32, now Ticks) (dest, number uint32, r Result) {
	return t.of(client, false).template(client, service, now)
}

// PutTemplate makes the template for which Template returned Miss, or replaces the one with the number former, on which
// the caller keeps its hold. It gives a hold on the new one. If another goroutine has made one meanwhile, it returns
// that one with Hit. Otherwise the result is Inserted, or Full.
func (t *Table) PutTemplate(client netip.Addr, service, dest uint32, timeout time.Duration, former uint32,
	now Ticks) (_, number uint32, r Result) {
	n := newTemplate{dest: dest, timeout: ticks(timeout), former: former}
	return t.of(client, true).putTemplate(client, service, &n, now)
}

// newTemplate has the parameters of putTemplate.
type newTemplate struct {
	dest    uint32
	timeout Ticks
	former  uint32 // number of the one that it replaces, 0 for none
}

// ticks converts a timeout, and bounds it by MaxPersistence.
func ticks(timeout time.Duration) Ticks {
	return Ticks(min(timeout, MaxPersistence) * PerSecond / time.Second)
}

// Forget removes the template with the number former. The caller has a hold on it and keeps the hold.
func (t *Table) Forget(client netip.Addr, service, former uint32) {
	t.of(client, false).forget(client, service, former)
}

func (s *store[A]) forget(client netip.Addr, service, former uint32) {
	k := s.templateKey(client, service)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(&k); found && sh.slots[i].ref == former {
		s.remove(sh, i)
	}
}

// Release gives back a hold on a template.
func (t *Table) Release(number uint32) { t.refs.release(number) }

// templateKey returns the key of a client's template at a service.
func (s *store[A]) templateKey(client netip.Addr, service uint32) key[A] {
	var to netip.Addr
	if client.Is4() {
		to = netip.AddrFrom4(binary4(service))
	} else {
		b := binary4(service)
		to = netip.AddrFrom16([16]byte{12: b[0], 13: b[1], 14: b[2], 15: b[3]})
	}
	return s.key(packet.Flow{Src: client, Dst: to})
}

// binary4 returns n in network byte order.
func binary4(n uint32) (b [4]byte) {
	binary.BigEndian.PutUint32(b[:], n)
	return b
}

func (s *store[A]) template(client netip.Addr, service uint32, now Ticks) (dest, number uint32, r Result) {
	k := s.templateKey(client, service)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(&k)
	if !found || s.expired(&sh.slots[i], now) {
		return 0, 0, Miss
	}
	e := &sh.slots[i]
	s.hold(sh, e, now)
	return e.dest, e.ref, Hit
}

// LookupTemplate returns the template of client at a service and does not change it.
func (t *Table) LookupTemplate(client netip.Addr, service uint32, now Ticks) (Conn, bool) {
	return t.of(client, false).lookupTemplate(client, service, now)
}

func (s *store[A]) lookupTemplate(client netip.Addr, service uint32, now Ticks) (Conn, bool) {
	k := s.templateKey(client, service)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(&k)
	if !found || sh.slots[i].expires.reached(now) && !s.table.refs.has(sh.slots[i].ref) {
		return Conn{}, false
	}
	c := sh.slots[i].conn(now)
	c.Held = s.table.refs.has(sh.slots[i].ref)
	return c, true
}

// hold takes a hold on the template e, and lets its timeout begin again.
func (s *store[A]) hold(sh *shard[A], e *entry[A], now Ticks) {
	s.table.refs.hold(e.ref)
	e.expires = now + e.timeout()
	e.flags &^= reported
	sh.noteExpiry(e.expires)
}

// expired reports whether e has ended. A template that has connections goes on: expired extends it by templateGrace.
func (s *store[A]) expired(e *entry[A], now Ticks) bool {
	if !e.expires.reached(now) {
		return false
	}
	if e.state != TemplateState || !s.table.refs.has(e.ref) {
		return true
	}
	e.value = templateGrace
	for e.expires.reached(now) {
		e.expires += templateGrace
	}
	return false
}

func (s *store[A]) putTemplate(client netip.Addr, service uint32, n *newTemplate, now Ticks) (dest, number uint32,
	r Result) {
	t, k := s.table, s.templateKey(client, service)
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(&k); found {
		e := &sh.slots[i]
		if !s.expired(e, now) && e.ref != n.former {
			s.hold(sh, e, now)
			return e.dest, e.ref, Hit
		}
		s.remove(sh, i)
	}
	number = t.refs.take()
	e := entry[A]{state: TemplateState, dest: n.dest, ref: number, value: uint32(n.timeout), expires: now + n.timeout}
	if s.add(sh, &k, e) == nil {
		t.refs.detach(number)
		return 0, 0, Full
	}
	t.refs.hold(number)
	return n.dest, number, Inserted
}

// assure marks the template with that number, 0 for none, after a connection of it was established.
func (t *Table) assure(number uint32) {
	if number != 0 && t.refs.assure(number) {
		t.half.Add(-1)
	}
}

// templateRefs counts the connections of each template, by the template's number. A number is used again once its
// template and all its connections are gone.
type templateRefs struct {
	mu     sync.Mutex
	free   uint32 // the first free number, 0 for none; a free number's count is the next free number
	last   uint32
	blocks []atomic.Pointer[[childBlock]atomic.Int32]
	kept   []uint32 // a bit for each number, which outlives the process: assured; nil: there is no such memory
}

const (
	childBlock = 1 << 12

	// Beside the count, which is less:
	detachedBit = 1 << 30 // the template is gone
	assuredBit  = 1 << 29 // a connection was established
	countMask   = assuredBit - 1
)

func (c *templateRefs) init(maximum int) {
	// Twice: the number of a removed template stays in use while its connections exist.
	c.blocks = make([]atomic.Pointer[[childBlock]atomic.Int32], 2*maximum/childBlock+2)
}

// take returns a free number, from 1 on. Its count is 0.
func (c *templateRefs) take() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number := c.free; number != 0 {
		n := c.count(number)
		c.free = uint32(n.Load())
		n.Store(0)
		if c.kept != nil {
			atomic.AndUint32(&c.kept[number/32], ^(1 << (number % 32)))
		}
		return number
	}
	c.last++
	if block := &c.blocks[c.last/childBlock]; block.Load() == nil {
		block.Store(new([childBlock]atomic.Int32))
	}
	return c.last
}

func (c *templateRefs) count(number uint32) *atomic.Int32 {
	return &c.blocks[number/childBlock].Load()[number%childBlock]
}

func (c *templateRefs) has(number uint32) bool     { return c.count(number).Load()&countMask > 0 }
func (c *templateRefs) assured(number uint32) bool { return c.count(number).Load()&assuredBit != 0 }
func (c *templateRefs) hold(number uint32)         { c.count(number).Add(1) }

// assure marks a template as assured. It reports whether the template exists and was unassured before.
func (c *templateRefs) assure(number uint32) bool {
	n := c.count(number)
	if n.Load()&assuredBit != 0 {
		return false
	}
	if c.kept != nil {
		atomic.OrUint32(&c.kept[number/32], 1<<(number%32))
	}
	return n.Or(assuredBit)&(assuredBit|detachedBit) == 0
}

// release notes that a connection of the template has ended.
func (c *templateRefs) release(number uint32) {
	if n := c.count(number).Add(-1); n&detachedBit != 0 && n&countMask == 0 {
		c.reuse(number)
	}
}

// detach notes that the template is gone, and reports whether it was assured.
func (c *templateRefs) detach(number uint32) (assured bool) {
	n := c.count(number).Or(detachedBit)
	if n&countMask == 0 {
		c.reuse(number)
	}
	return n&assuredBit != 0
}

func (c *templateRefs) reuse(number uint32) {
	c.mu.Lock()
	c.count(number).Store(int32(c.free))
	c.free = number
	c.mu.Unlock()
}
