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
