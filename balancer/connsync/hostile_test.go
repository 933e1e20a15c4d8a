package connsync

import (
	"math/rand/v2"
	"testing"

	"vstun/balancer/conntab"
	"vstun/balancer/envelope"
	"vstun/testdata/testkit"
)

// TestHostileDatagrams: forged, replayed, changed and truncated datagrams, a million of them with VSTUN_FULL=1. The
// mode VSTUN takes none, the mode IPVS survives them.
func TestHostileDatagrams(t *testing.T) {
	n := 100_000
	if testkit.Full() {
		n = 1_000_000
	}
	for mode, key := range modes {
		t.Run(mode, func(t *testing.T) {
			w := newNetwork(t, 2, 10_000, key)
			one, two := w.directors[0], w.directors[1]
			recorded := w.record()
			w.run(5 * second)
			for i := range 200 {
				one.open(w, i, vip, 80)
				one.open(w, i, vip6, 83)
				one.open(w, i*256, vip, 443)
				if i%10 == 0 {
					w.run(10)
				}
			}
			w.run(5 * second)
			before, entries := two.Status(), two.table.Len()
			r := rand.New(rand.NewPCG(3, 4))
			forged := envelope.New([]byte("another key of 32 bytes or more.."), protocol)
			for i := range n {
				b := append([]byte(nil), (*recorded)[r.IntN(len(*recorded))]...)
				switch i % 4 {
				case 0: // replayed
				case 1:
					b[r.IntN(len(b))] ^= byte(1 + r.IntN(255))
				case 2:
					b = b[:r.IntN(len(b))]
				case 3:
					if mode == "vstun" {
						b = forged.Seal(append(forged.Head(nil, 0, records, int(b[7]), one.session, 1<<40+uint64(i)),
							b[envelope.HeadSize:len(b)-envelope.MACSize]...))
					} else {
						for range 1 + r.IntN(20) {
							b[r.IntN(len(b))] = byte(r.Uint32())
						}
						putHeader(b[:max(len(b), headerSize)], 0, int(b[4]))
					}
				}
				two.take(b, one.addr, w.now)
				if i%1000 == 0 {
					two.work(w.now, 0)
				}
			}
			after := two.Status()
			if mode == "ipvs" {
				return
			}
			if after.Received.Records != before.Received.Records || two.table.Len() != entries ||
				len(after.Peers) != 1 {
				t.Errorf("%d records were taken; %+v", after.Received.Records-before.Received.Records, after)
			}
			refused := uint64(0)
			for _, n := range after.Refused {
				refused += n
			}
			for _, n := range before.Refused {
				refused -= n
			}
			if refused != uint64(n) {
				t.Errorf("%d are counted as refused, want %d: %v", refused, n, after.Refused)
			}
			one.open(w, 9999, vip, 80) // the true peer goes on
			w.run(conntab.PerSecond)
			if two.table.Len() != entries+1 {
				t.Errorf("%d entries, want %d", two.table.Len(), entries+1)
			}
		})
	}
}
