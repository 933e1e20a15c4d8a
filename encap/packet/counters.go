package packet

import "sync/atomic"

// Counters is what one worker counts: packets in and out with their bytes, and refused ones by reason. The worker adds
// to a Tally of its own and puts it here once a batch; anybody may read at any time.
type Counters struct {
	inPackets, inBytes, outPackets, outBytes atomic.Uint64
	resets                                   atomic.Uint64
	drops                                    [NumDrops]atomic.Uint64
}

// Tally is what a worker counts in one batch, without synchronisation.
type Tally struct {
	InPackets, InBytes, OutPackets, OutBytes uint64
	Resets                                   uint64 // TCP resets sent to clients; they are among OutPackets
	Drops                                    [NumDrops]uint64
	dropped                                  bool
}

// Drop counts one packet refused.
func (t *Tally) Drop(d Drop) { t.DropN(d, 1) }

// DropN counts n packets refused.
func (t *Tally) DropN(d Drop, n uint64) {
	t.Drops[d] += n
	t.dropped = true
}

// Add adds t to c and empties t.
func (c *Counters) Add(t *Tally) {
	c.inPackets.Add(t.InPackets)
	c.inBytes.Add(t.InBytes)
	c.outPackets.Add(t.OutPackets)
	c.outBytes.Add(t.OutBytes)
	if t.Resets != 0 {
		c.resets.Add(t.Resets)
	}
	if t.dropped {
		for i, n := range t.Drops {
			if n != 0 {
				c.drops[i].Add(n)
			}
		}
	}
	*t = Tally{}
}

// Read adds what c holds to t: the sum over several workers is made by several calls.
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
