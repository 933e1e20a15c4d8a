// Package stats counts a worker's forwarded and dropped packets, and its batches.
package stats

import (
	"sync/atomic"

	"vstun/encap/packet/drop"
)

// Counters is one worker's counters: packets and bytes in and out, and dropped packets by reason. The worker counts in
// a Tally and adds that once a batch. Any goroutine may read at any time.
type Counters struct {
	inPackets, inBytes, outPackets, outBytes atomic.Uint64
	resets                                   atomic.Uint64
	drops                                    [drop.NumReasons]atomic.Uint64
}

// Tally is a worker's counters for one batch, without synchronisation.
type Tally struct {
	InPackets, InBytes, OutPackets, OutBytes uint64
	Resets                                   uint64 // TCP resets sent to clients; OutPackets includes them
	Drops                                    [drop.NumReasons]uint64
	dropped                                  bool
}

// Drop counts one dropped packet.
func (t *Tally) Drop(r drop.Reason) { t.DropN(r, 1) }

// DropN counts n dropped packets.
func (t *Tally) DropN(r drop.Reason, n uint64) {
	t.Drops[r] += n
	t.dropped = true
}

// Add adds t to c and empties t. The incoming packets are last, and Read reads them first: whoever reads a packet in
// InPackets reads what became of it, too.
func (c *Counters) Add(t *Tally) {
	if t.dropped {
		for i, n := range t.Drops {
			if n != 0 {
				c.drops[i].Add(n)
			}
		}
	}
	if t.Resets != 0 {
		c.resets.Add(t.Resets)
	}
	c.outPackets.Add(t.OutPackets)
	c.outBytes.Add(t.OutBytes)
	c.inBytes.Add(t.InBytes)
	c.inPackets.Add(t.InPackets)
	*t = Tally{}
}

// Read adds the counts of c to t, so that several calls sum up several workers.
func (c *Counters) Read(t *Tally) {
	t.InPackets += c.inPackets.Load()
	t.InBytes += c.inBytes.Load()
	t.OutPackets += c.outPackets.Load()
	t.OutBytes += c.outBytes.Load()
	t.Resets += c.resets.Load()
	for i := range c.drops {
		t.Drops[i] += c.drops[i].Load()
	}
}
