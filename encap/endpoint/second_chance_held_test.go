package endpoint

import (
	"testing"
	"time"

	"vstun/encap"
	"vstun/encap/packet"
)

// TestSecondChanceHeldOnce: a connection that the kernel does not find, as of a server in another namespace, is held
// once, also if no table ever comes.
func TestSecondChanceHeldOnce(t *testing.T) {
	n := newChanceNet(t, encap.KindIPIP)
	n.exit, n.unsettled = nil, true
	p := from(encap.KindIPIP, director, 1, packet.FlagACK)
	n.take(t, p)
	n.c.start = n.c.start.Add(-time.Duration(holdFor+1) * flowTick)
	for i := range 100 {
		if injected, _ := n.take(t, p); injected != 1 {
			t.Fatalf("it is held again after %d s", i)
		}
		n.c.start = n.c.start.Add(-time.Second)
	}
}
