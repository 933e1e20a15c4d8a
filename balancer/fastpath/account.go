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
	var out []key
	sum, n := uint64(0), uint64(0)
	err := c.Kernel.Read(func(f packet.Flow, s bpf.State, live bool) {
		c.mu.Lock() // not longer: a change of realservers must not wait for a million flows
		defer c.mu.Unlock()
		k, packets, stays := c.count(f, s, now)
		if !live || !stays {
			out = append(out, k)
			return
		}
		sum, n = sum+packets, n+1
	})
	c.mu.Lock()
	if err == nil && c.full {
		out = append(out, c.quiet(sum/max(n, 1))...)
		c.full = false
	}
	c.fail(err)
	c.mu.Unlock()
	if err == nil {
		c.releaseAll(out)
	}
	c.took.Store(int64(time.Since(begin)))
}

// quiet returns the connections that have much less than the mean number of packets: others are to have their places.
func (c *Cache) quiet(mean uint64) (all []key) {
	for k, at := range c.conns {
		if uint64(at.recent) <= mean/4 {
			all = append(all, k)
		}
	}
	return all
}

// count takes the counts of one of the kernel's flows. It returns the flow's connection, the packets since the last
// count, and whether the connection may stay. The caller holds c.mu.
func (c *Cache) count(f packet.Flow, s bpf.State, now conntab.Ticks) (k key, packets uint64, stays bool) {
	k = keyOf(f)
	of, reply := c.replies[k]
	if reply {
		k = of
	}
	at, known := c.conns[k]
	if !known {
		return keyOf(f), 0, false
	}
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
	requests := uint32(packets)
	if reply {
		requests = 0
	}
	if d := c.snapshot.Dest(at.dest); d != nil && packets > 0 {
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
	return k, packets, stays
}
