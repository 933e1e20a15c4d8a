package stats

import (
	"testing"

	"vstun/encap/packet/drop"
)

func TestCounters(t *testing.T) {
	var c Counters
	for range 3 {
		tally := Tally{InPackets: 2, InBytes: 10, OutPackets: 1, OutBytes: 7}
		tally.Drop(drop.Fragment)
		c.Add(&tally)
		if tally != (Tally{}) {
			t.Fatal("the tally is not emptied")
		}
	}
	var sum Tally
	c.Read(&sum)
	want := Tally{InPackets: 6, InBytes: 30, OutPackets: 3, OutBytes: 21}
	want.Drops[drop.Fragment] = 3
	if sum != want {
		t.Errorf("%+v", sum)
	}
}

// TestReadDuringAdd: a reader that sees a packet come in sees what became of it, at any moment.
func TestReadDuringAdd(t *testing.T) {
	var c Counters
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 200_000 {
			tally := Tally{InPackets: 2, InBytes: 20, OutPackets: 1, OutBytes: 10}
			tally.Drop(drop.Fragment)
			c.Add(&tally)
		}
	}()
	for {
		select {
		case <-ended:
			return
		default:
		}
		var sum Tally
		c.Read(&sum)
		if sum.OutPackets+sum.Drops[drop.Fragment] < sum.InPackets || sum.OutBytes < sum.InPackets/2*10 {
			t.Fatalf("of %d packets %d went out with %d bytes and %d were dropped", sum.InPackets, sum.OutPackets,
				sum.OutBytes, sum.Drops[drop.Fragment])
		}
	}
}
