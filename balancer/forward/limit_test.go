package forward

import (
	"net/netip"
	"testing"

	"vstun/balancer/conntab"
)

// TestLimitOfAClient: a client gets a burst, then its rate. Other clients do not reduce it.
func TestLimitOfAClient(t *testing.T) {
	for _, c := range []struct{ perSecond, burst int32 }{{1, 6}, {10, 10}} {
		var l limiter
		l.init(c.perSecond, c.burst)
		a := netip.MustParseAddr("192.0.2.7")
		sent := func(from, to conntab.Ticks) (n int32) {
			for now := from; now != to; now++ {
				for range 5 {
					if l.allow(a, now) {
						n++
					}
				}
			}
			return n
		}
		start := conntab.Ticks(0xffffffff - 50) // the clock wraps
		l.allow(a, start-10000)
		if n := sent(start, start+1); n != min(5, c.burst) {
			t.Errorf("%d at once, want 5", n)
		}
		sent(start+1, start+2)
		if n := sent(start+2, start+1002); n < 10*c.perSecond-1 || n > 10*c.perSecond+1 {
			t.Errorf("%d in ten seconds, want %d", n, 10*c.perSecond)
		}
	}
}

// TestLimitOfAll: many clients get 1000 messages a second together. A refused client does not reduce the others' rate.
func TestLimitOfAll(t *testing.T) {
	var l limiter
	l.init(1, 6)
	one := netip.MustParseAddr("2001:db8::1")
	for range 1000 {
		l.allow(one, 1)
		one = one.Next() // in the same /64
	}
	if got := l.all.tokens; got != allCap-6*message {
		t.Errorf("one network has taken %d tokens", allCap-got)
	}
	var n int
	a := netip.MustParseAddr("10.0.0.0")
	for now := range conntab.Ticks(1000) {
		for range 100 {
			if a = a.Next(); l.allow(a, 1+now) {
				n++
			}
		}
	}
	if n < 6000 || n > 10_050 { // 1024 buckets bound it too
		t.Errorf("%d in ten seconds, want up to 10,000", n)
	}
	if n := testing.AllocsPerRun(100, func() { l.allow(one, 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
