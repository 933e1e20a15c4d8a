package stats

import "testing"

func TestBatches(t *testing.T) {
	var b Batches
	if ended, busy := b.Progress(); ended != 0 || busy {
		t.Errorf("at the start: %d, busy %v", ended, busy)
	}
	for _, n := range []int{0, 1, MaxBatch, MaxBatch} {
		b.Begin(n)
		b.End()
	}
	b.Begin(3)
	if begun := b.Read(); begun[0] != 1 || begun[1] != 1 || begun[3] != 1 || begun[MaxBatch] != 2 {
		t.Errorf("%v", begun)
	}
	if ended, busy := b.Progress(); ended != 4 || !busy {
		t.Errorf("in the fifth: %d, busy %v", ended, busy)
	}
	b.End()
	if ended, busy := b.Progress(); ended != 5 || busy {
		t.Errorf("after it: %d, busy %v", ended, busy)
	}
}
