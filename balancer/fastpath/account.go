package fastpath

import (
	"time"

	"vstun/balancer/conntab"
	"vstun/encap/bpf"
	"vstun/encap/packet"
)

// idle is how long a connection may be in the kernel without a packet.
const idle = 60 * conntab.PerSecond

// fewFlows is a number of connections whose counts take some milliseconds.
const fewFlows = 10_000

// Sync takes the kernel's counts now, unless that takes long: before they are read.
func (c *Cache) Sync() {
	if c.flows.Load() < fewFlows {
		c.account()
	}
}

// account takes what the kernel has counted, and takes connections out that do not belong there.
func (c *Cache) account() {
	c.passes.Lock()
	defer c.passes.Unlock()
	begin, now := time.Now(), c.Clock()
	c.mu.Lock()
	c.pass++
	pass := c.pass
	c.mu.Unlock()
	var out []key
	var sum, n [2]uint64 // by family
	err := c.Kernel.Read(func(f packet.Flow, s bpf.State, live bool) {
		c.mu.Lock() // not longer: a change of realservers must not wait for a million flows
		defer c.mu.Unlock()
		k, at, reply, known := c.find(f)
		switch {
		case !known:
			out = append(out, k)
		case at.pass == pass: // it has got there since, and s may be of an earlier connection
		default:
			packets, stays := c.count(k, at, reply, s, now)
			if !live || !stays {
				out = append(out, k)
				return
			}
			sum[k.family()] += packets
			n[k.family()]++
		}
	})
	c.mu.Lock()
	if err == nil {
		for family, wanting := range c.wanting {
			if wanting > 0 {
				out = append(out, c.quiet(family, sum[family]/max(n[family], 1), wanting)...)
				c.wanting[family] = 0
			}
		}
	}
	c.fail(err)
	c.complete()
	c.mu.Unlock()
	if err == nil {
		c.releaseAll(out)
	}
	c.took.Store(int64(time.Since(begin)))
}

// quiet returns connections of a family that have much less than the mean number of packets, most at the most: as many
// others are to have their places. It leaves out those that have got there since the account began.
func (c *Cache) quiet(family int, mean uint64, most int) (all []key) {
	for k, at := range c.conns {
		if len(all) == most {
			break
		}
		if k.family() == family && at.pass != c.pass && uint64(at.recent) <= mean/4 {
			all = append(all, k)
		}
	}
	return all
}

// find returns the connection of f, one of the kernel's flows, and whether f is its replies. If there is none, k is f.
// The caller holds c.mu.
func (c *Cache) find(f packet.Flow) (k key, at conn, reply, known bool) {
	k = keyOf(f)
	of, reply := c.replies[k]
	if reply {
		if at, known = c.conns[of]; known {
			return of, at, true, true
		}
		return k, at, true, false
	}
	at, known = c.conns[k]
	return k, at, false, known
}

// count takes the counts s of the requests, or the replies, of the connection k. It returns the packets since the last
// count, and whether the connection may stay. The caller holds c.mu.
func (c *Cache) count(k key, at conn, reply bool, s bpf.State, now conntab.Ticks) (packets uint64, stays bool) {
	var bytes uint64
	if reply {
		packets, bytes = s.Count.Since(at.replys)
		at.replys = s.Count
	} else {
		packets, bytes = s.Count.Since(at.requests)
		at.requests, at.recent = s.Count, uint32(packets)
	}
	last := now - conntab.Ticks(s.Idle*conntab.PerSecond/time.Second)
	if packets > 0 && int32(last-at.seen) > 0 {
		at.seen = last
	}
	c.conns[k] = at
	if reply && at.half && packets > 0 {
		c.answered = append(c.answered, k)
	}
	requests := uint32(packets)
	if reply {
		requests = 0
	}
	d := c.snapshot.Dest(at.dest)
	if d != nil && packets > 0 {
		if reply {
			d.CountReplies(c.Worker, packets, bytes)
		} else {
			d.Count(c.Worker, packets, bytes)
		}
		c.in.packets.Add(packets)
		c.in.bytes.Add(bytes)
		c.out.packets.Add(packets)
		c.out.bytes.Add(bytes + packets*uint64(d.Overhead()))
	}
	stays = c.Table.Refresh(k.flow(), requests, at.seen) && int32(now-at.seen) < idle
	if reply && d != nil && !c.snapshot.OnlyFrontend(d, k.flow()) { // another VIP leads there by now
		stays = false
	}
	return packets, stays
}
