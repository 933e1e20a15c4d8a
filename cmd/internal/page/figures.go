package page

import "math"

// figures is the numbers of a service or a realserver that change often. The page's script uses the same indexes.
type figures [numFigures]float64

const (
	active      = iota // connections
	inactive           //
	connections        // scheduled since the director's start
	packets            // since the director's start
	bytes              //
	newRate            // connections a second
	packetRate         //
	bitRate            //
	checked            // when the last check ended, in Unix seconds; 0: never
	took               // that check, in milliseconds
	numFigures
)

// counts is values of counters, or their growth.
type counts struct{ connections, packets, bytes uint64 }

// since returns the growth from old to c. A counter that is smaller than before has restarted at 0.
func (c counts) since(old counts) counts {
	return counts{grown(c.connections, old.connections), grown(c.packets, old.packets), grown(c.bytes, old.bytes)}
}

func grown(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

func (c *counts) add(o counts) {
	c.connections += o.connections
	c.packets += o.packets
	c.bytes += o.bytes
}

// set sets the counters c and the rates by their growth within seconds.
func (f *figures) set(c, growth counts, seconds float64) {
	f[connections], f[packets], f[bytes] = float64(c.connections), float64(c.packets), float64(c.bytes)
	f[newRate], f[packetRate], f[bitRate] = rate(growth.connections, seconds), rate(growth.packets, seconds),
		rate(8*growth.bytes, seconds)
}

// rate returns n per second, to a tenth; 0 if seconds is 0.
func rate(n uint64, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return math.Round(float64(n)/seconds*10) / 10
}
