package conntab

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A template is a client's persistence: the destination of all its connections to a service (Linux ip_vs_core.c,
// ip_vs_sched_persist). It stands in the same slots as connections, under a protocol number that no connection has,
// with the service's number for a destination address. It outlives its timeout as long as connections live that were
// made by it.

// keptFor is how long a template goes on, again and again, after its timeout while there are such connections (Linux
// ip_vs_conn.c, ip_vs_conn_expire).
const keptFor = 60 * PerSecond

// MaxPersistence is the longest timeout of a template.
const MaxPersistence = MaxTimeout

// Template looks for the template of client, whose address is masked, at a service. With Hit, the template's timeout
// begins again, and a hold on it, by its number, is given to the caller: for Insert or Release. Otherwise the answer is
// Miss.
func (t *Table) Template(client netip.Addr, service uint32, now Ticks) (dest, number uint32, r Result) {
	if client.Is4() {
		k := t.templateKey4(client, service)
		return t.four.template(&k, now)
	}
	if s := t.ipv6(false); s != nil {
		k := t.templateKey6(client, service)
		return s.template(&k, now)
	}
	return 0, 0, Miss
}

// PutTemplate makes the template for which Template said Miss, or replaces the one with the number former, on which the
// caller has a hold and keeps it, and gives a hold on the new one. If another goroutine has made one meanwhile, that
// one is taken, with Hit. Otherwise the answer is Inserted, or Full.
func (t *Table) PutTemplate(client netip.Addr, service, dest uint32, timeout time.Duration, former uint32,
	now Ticks) (_, number uint32, r Result) {
	ticks := Ticks(min(timeout, MaxPersistence) * PerSecond / time.Second)
	if client.Is4() {
		k := t.templateKey4(client, service)
		return t.four.putTemplate(&k, dest, ticks, former, now)
	}
	k := t.templateKey6(client, service)
	return t.ipv6(true).putTemplate(&k, dest, ticks, former, now)
}

// Forget removes the template with the number former, on which the caller has a hold and keeps it.
func (t *Table) Forget(client netip.Addr, service, former uint32) {
	if client.Is4() {
		k := t.templateKey4(client, service)
		t.four.forget(&k, former)
	} else if s := t.ipv6(false); s != nil {
		k := t.templateKey6(client, service)
		s.forget(&k, former)
	}
}

func (s *store[A]) forget(k *key[A], former uint32) {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(k); found && sh.slots[i].parent == former {
		s.remove(sh, i)
	}
}

// Release gives back a hold on a template.
func (t *Table) Release(number uint32) { t.children.release(number) }

func (t *Table) templateKey4(client netip.Addr, service uint32) key[[4]byte] {
	k := key[[4]byte]{src: client.As4()}
	binary.BigEndian.PutUint32(k.dst[:], service)
	k.hash = t.hash4(k.src, k.dst, 0, 0, 0)
	return k
}

func (t *Table) templateKey6(client netip.Addr, service uint32) key[[16]byte] {
	k := key[[16]byte]{src: client.As16()}
	binary.BigEndian.PutUint32(k.dst[12:], service)
	k.hash = t.hash6(&k.src, &k.dst, 0, 0, 0)
	return k
}

func (s *store[A]) template(k *key[A], now Ticks) (dest, number uint32, r Result) {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(k)
	if !found || s.over(&sh.slots[i], now) {
		return 0, 0, Miss
	}
	e := &sh.slots[i]
	s.hold(sh, e, now)
	return e.dest, e.parent, Hit
}

// LookupTemplate returns the template of client at a service without touching it.
func (t *Table) LookupTemplate(client netip.Addr, service uint32, now Ticks) (Conn, bool) {
	if client.Is4() {
		k := t.templateKey4(client, service)
		return t.four.lookupTemplate(&k, now)
	}
	if s := t.ipv6(false); s != nil {
		k := t.templateKey6(client, service)
		return s.lookupTemplate(&k, now)
	}
	return Conn{}, false
}

func (s *store[A]) lookupTemplate(k *key[A], now Ticks) (Conn, bool) {
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, found := sh.find(k)
	if !found || sh.slots[i].expires.reached(now) && !s.table.children.has(sh.slots[i].parent) {
		return Conn{}, false
	}
	return sh.slots[i].conn(now), true
}

// hold takes a hold on the template e, and lets its timeout begin again.
func (s *store[A]) hold(sh *shard[A], e *entry[A], now Ticks) {
	s.table.children.hold(e.parent)
	e.expires = now + Ticks(e.packets)
	sh.expects(e.expires)
}

// over reports whether e has ended. A template that has connections goes on.
func (s *store[A]) over(e *entry[A], now Ticks) bool {
	if !e.expires.reached(now) {
		return false
	}
	if e.state != TemplateState || !s.table.children.has(e.parent) {
		return true
	}
	e.packets = keptFor
	for e.expires.reached(now) {
		e.expires += keptFor
	}
	return false
}

func (s *store[A]) putTemplate(k *key[A], dest uint32, timeout Ticks, former uint32, now Ticks) (_, number uint32,
	r Result) {
	t := s.table
	sh := s.shard(k.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i, found := sh.find(k); found {
		e := &sh.slots[i]
		if !s.over(e, now) && e.parent != former {
			s.hold(sh, e, now)
			return e.dest, e.parent, Hit
		}
		s.remove(sh, i)
	}
	number = t.children.take()
	e := s.put(sh, k, entry[A]{state: TemplateState, dest: dest, parent: number, packets: uint32(timeout),
		expires: now + timeout})
	if e == nil {
		t.children.orphan(number)
		return 0, 0, Full
	}
	s.hold(sh, e, now)
	return dest, number, Inserted
}

// assure notes that a connection of the template with that number, 0 for none, has got through.
func (t *Table) assure(number uint32) {
	if number != 0 && t.children.assure(number) {
		t.half.Add(-1)
	}
}

// children counts the connections of each template, by the template's number. A number is used again once its template
// and all its connections are gone.
type children struct {
	mu     sync.Mutex
	free   uint32 // the first free number; its count is the next; 0 for none
	last   uint32
	blocks []atomic.Pointer[[childBlock]atomic.Int32]
}

const (
	childBlock = 1 << 12

	// Beside the count, which is less:
	orphanBit  = 1 << 30 // the template is gone
	assuredBit = 1 << 29 // a connection has got through
	countMask  = assuredBit - 1
)

func (c *children) init(maximum int) {
	// a number may wait for its connections
	c.blocks = make([]atomic.Pointer[[childBlock]atomic.Int32], 2*maximum/childBlock+2)
}

// take gives a number, from 1, without connections.
func (c *children) take() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number := c.free; number != 0 {
		n := c.count(number)
		c.free = uint32(n.Load())
		n.Store(0)
		return number
	}
	c.last++
	if block := &c.blocks[c.last/childBlock]; block.Load() == nil {
		block.Store(new([childBlock]atomic.Int32))
	}
	return c.last
}

func (c *children) count(number uint32) *atomic.Int32 {
	return &c.blocks[number/childBlock].Load()[number%childBlock]
}

func (c *children) has(number uint32) bool     { return c.count(number).Load()&countMask > 0 }
func (c *children) assured(number uint32) bool { return c.count(number).Load()&assuredBit != 0 }
func (c *children) hold(number uint32)         { c.count(number).Add(1) }

// assure notes that a connection has got through, and reports whether it is the first, of a template that is still
// there.
func (c *children) assure(number uint32) bool {
	n := c.count(number)
	return n.Load()&assuredBit == 0 && n.Or(assuredBit)&(assuredBit|orphanBit) == 0
}

// release notes that a connection of the template has ended.
func (c *children) release(number uint32) {
	if n := c.count(number).Add(-1); n&orphanBit != 0 && n&countMask == 0 {
		c.reuse(number)
	}
}

// orphan notes that the template is gone, and reports whether it was assured.
func (c *children) orphan(number uint32) (assured bool) {
	n := c.count(number).Or(orphanBit)
	if n&countMask == 0 {
		c.reuse(number)
	}
	return n&assuredBit != 0
}

func (c *children) reuse(number uint32) {
	c.mu.Lock()
	c.count(number).Store(int32(c.free))
	c.free = number
	c.mu.Unlock()
}
