package fastpath

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"slices"
	"sync"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/bpf"
	"vstun/encap/packet"
)

// key is a flow without pointers, so that a million of them cost the garbage collector nothing.
type key struct {
	src, dst         [16]byte
	srcPort, dstPort uint16
	proto            uint8
	six              bool
}

func keyOf(f packet.Flow) key {
	return key{src: f.Src.As16(), dst: f.Dst.As16(), srcPort: f.SrcPort, dstPort: f.DstPort, proto: f.Proto,
		six: f.Src.Is6()}
}

func (k *key) flow() packet.Flow {
	f := packet.Flow{Src: netip.AddrFrom16(k.src), Dst: netip.AddrFrom16(k.dst), SrcPort: k.srcPort,
		DstPort: k.dstPort, Proto: k.proto}
	if !k.six {
		f.Src, f.Dst = f.Src.Unmap(), f.Dst.Unmap()
	}
	return f
}

// conn is a connection in the kernel.
type conn struct {
	ref              bpf.Ref
	dest             uint32
	seen             conntab.Ticks // its last packet, as far as the last account knows
	recent           uint32        // packets between the last two accounts
	requests, replys bpf.Count     // up to the last account
	pass             uint32        // the last account before it got there
	half             bool          // of VS/NAT: only its replies are there, see complete
}

// seed is of the choice of source ports.
var seed = maphash.MakeSeed()

// port returns the source port of tunnels over UDP for a connection. Routers and network cards on the path spread flows
// by it.
func (c *Cache) port(k *key) uint16 {
	var b [37]byte
	copy(b[:], k.src[:])
	copy(b[16:], k.dst[:])
	binary.BigEndian.PutUint16(b[32:], k.srcPort)
	binary.BigEndian.PutUint16(b[34:], k.dstPort)
	b[36] = k.proto
	n, _ := bits.Mul64(maphash.Bytes(seed, b[:]), uint64(len(c.Ports)))
	return c.Ports[n]
}

// current reports whether the kernel has the path of the connection k.
func (c *Cache) current(k *key, at conn) bool {
	p, ok := c.paths[pathID{at.dest, k.six}]
	return ok && p.ref == at.ref
}

// family is the index of the family of the connection k.
func (k *key) family() int {
	if k.six {
		return 1
	}
	return 0
}

// promote gives connections to the kernel. The caller holds c.mu.
func (c *Cache) promote(busy []conntab.Conn) {
	var flows []bpf.Flow
	var keys []key // by flow
	var void []key
	for i := range busy {
		f := busy[i].Flow
		k := keyOf(f)
		// Packets of one that has its path were on their way, or the program leaves them.
		if at, known := c.conns[k]; known && !c.current(&k, at) {
			void = append(void, k)
		}
	}
	c.release(void)
	now, tracked := c.Clock(), sync.OnceValue(c.Tracked)
	for i := range busy {
		f := busy[i].Flow
		k := keyOf(f)
		if _, known := c.conns[k]; known {
			continue
		}
		d, ref, ok := c.admit(&busy[i], tracked)
		if !ok {
			continue
		}
		if c.wanting[k.family()] > 0 {
			c.wanting[k.family()]++
			c.refused[ConnectionsFull].Add(1)
			continue
		}
		is, ok := c.Table.SetFast(f, true, now)
		if ok && is.Dest != busy[i].Dest { // another connection of the same flow
			c.Table.SetFast(f, false, now)
			ok = false
		}
		if !ok {
			continue
		}
		at := conn{ref: ref, dest: is.Dest, seen: now, pass: c.pass, half: d.Back != nil}
		flow := bpf.Flow{Flow: f, Path: ref, Port: c.port(&k)}
		if at.half {
			flow = bpf.Flow{Flow: d.Real(f).Reverse(), Path: ref, Port: f.DstPort, VIP: f.Dst}
			c.replies[keyOf(flow.Flow)] = k
			c.halves++
		}
		c.conns[k] = at
		flows, keys = append(flows, flow), append(keys, k)
	}
	c.set(flows, keys)
}

// complete gives the requests of connections of VS/NAT to the kernel whose replies it has forwarded. Where a rule of
// this host masquerades requests, replies come to the host's own address: the kernel's flow has none of them, and the
// requests must go on by the rule. The caller holds c.mu.
func (c *Cache) complete() {
	var flows []bpf.Flow
	var keys []key
	for _, k := range c.answered {
		at, known := c.conns[k]
		if !known || !at.half || !c.current(&k, at) {
			continue
		}
		at.half = false
		c.halves--
		c.conns[k] = at
		flows, keys = append(flows, bpf.Flow{Flow: k.flow(), Path: at.ref}), append(keys, k)
	}
	c.answered = c.answered[:0]
	c.set(flows, keys)
}

// admit returns the realserver and path of a connection that the kernel may get. tracked is Config.Tracked.
func (c *Cache) admit(b *conntab.Conn, tracked func() bool) (d *balancer.Dest, ref bpf.Ref, ok bool) {
	if b.Flow.Proto != packet.ProtoTCP && b.Flow.Proto != packet.ProtoUDP {
		return nil, ref, false
	}
	if ref, ok = c.get(pathID{b.Dest, b.Flow.Src.Is6()}); !ok {
		return nil, ref, false
	}
	d = c.snapshot.Dest(b.Dest)
	if d.Back != nil && !c.snapshot.OnlyFrontend(d, b.Flow) {
		return nil, ref, false // a reply does not say to which connection it belongs
	}
	if d.Kind == method.NAT && tracked() {
		return nil, ref, false
	}
	return d, ref, c.excluded == nil || !c.excluded(b.Flow, d)
}

// set writes flows of the connections keys. Those for which there is no room stay out.
func (c *Cache) set(flows []bpf.Flow, keys []key) {
	defer c.noteNumber()
	for len(flows) > 0 {
		n, err := c.Kernel.Set(flows)
		if err != nil && !errFull(err) {
			c.fail(err)
			return
		}
		for _, k := range keys[:n] {
			if !c.conns[k].half {
				c.promoted.Add(1)
			}
		}
		if flows, keys = flows[n:], keys[n:]; len(flows) > 0 {
			flows, keys = c.noRoom(flows, keys)
		}
	}
}

// noRoom takes those flows, and their connections, out that are of the first one's family. It returns the others.
func (c *Cache) noRoom(flows []bpf.Flow, keys []key) (others []bpf.Flow, of []key) {
	family := keys[0].family()
	var out []key
	for i := range keys {
		if keys[i].family() == family {
			out = append(out, keys[i])
		} else {
			others, of = append(others, flows[i]), append(of, keys[i])
		}
	}
	c.wanting[family] += len(out)
	c.refused[ConnectionsFull].Add(uint64(len(out)))
	c.release(out)
	return others, of
}

// releaseAtOnce is a number of connections that release takes out in some milliseconds.
const releaseAtOnce = 1024

// releaseAll is release for any number of connections. The caller does not hold c.mu: a change of realservers waits for
// some of them only.
func (c *Cache) releaseAll(keys []key) {
	for some := range slices.Chunk(keys, releaseAtOnce) {
		c.mu.Lock()
		c.release(some)
		c.mu.Unlock()
	}
}

// release is drop for connections that the table still has in the fast path.
func (c *Cache) release(keys []key) {
	now := c.Clock()
	for i := range keys {
		c.Table.SetFast(keys[i].flow(), false, now)
	}
	c.drop(keys)
}

// drop takes connections out of the kernel, with their last counts. The caller holds c.mu.
func (c *Cache) drop(keys []key) {
	var flows []packet.Flow
	for i := range keys {
		f := keys[i].flow()
		flows = append(flows, f)
		at, known := c.conns[keys[i]]
		if !known {
			continue
		}
		if d := c.snapshot.Dest(at.dest); d != nil && d.Back != nil {
			flows = append(flows, d.Real(f).Reverse())
		}
	}
	if len(flows) > 0 {
		now := c.Clock()
		c.fail(c.Kernel.Delete(flows, func(f packet.Flow, s bpf.State) {
			if k, at, reply, known := c.find(f); known {
				c.count(k, at, reply, s, now)
			}
		}))
	}
	for i := range keys {
		if c.conns[keys[i]].half {
			c.halves--
		}
		delete(c.conns, keys[i])
	}
	for i := range flows {
		delete(c.replies, keyOf(flows[i]))
	}
	c.noteNumber()
}

// noteNumber notes the number of connections for Stats.
func (c *Cache) noteNumber() { c.flows.Store(int64(len(c.conns) - c.halves)) }
