package endpoint

import (
	"net/netip"
	"testing"
)

// TestFlowsOfWorkers: an entry of a worker whose time is a little ahead is a new one, not one of long ago.
func TestFlowsOfWorkers(t *testing.T) {
	f := NewFlows()
	at := f.hash(netip.AddrPortFrom(client, 1), netip.AddrPortFrom(vip, 80))
	f.put(at, flowLocal, 0, 101)
	if state, _, _ := f.look(at, 100); state != flowLocal {
		t.Errorf("state %d, want %d", state, flowLocal)
	}
	f = NewFlows()
	same := func(n uint64) uint64 { return n << 40 } // hashes of one bucket
	f.put(same(1), flowLocal, 0, 101)
	for n := range uint64(7) {
		f.put(same(2+n), flowLocal, 0, 50)
	}
	f.put(same(20), flowLocal, 0, 100)
	if state, _, _ := f.look(same(1), 101); state != flowLocal {
		t.Error("a new entry has made room for another one")
	}
}
