package endpoint

import (
	"net/netip"
	"sync/atomic"
	"testing"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/stats"
)

// repeated is a source of the same packets again and again.
type repeated [][]byte

func (r repeated) ReadBatch(bufs []packet.Buf) (int, error) {
	n := min(len(bufs), len(r))
	for i := range n {
		bufs[i].SetLen(copy(bufs[i].Room(), r[i]))
	}
	return n, nil
}

// BenchmarkInbound receives a batch of TCP packets of directors: without an Inbound in front of the worker, with one of
// an agent that has no tunnel, and with one that has a tunnel of WireGuard, or one of GUE from another host.
func BenchmarkInbound(b *testing.B) {
	end := func(kind encap.Kind) *Peers {
		e := &End{Remote: netip.MustParseAddr("10.99.0.9"), Decap: encap.Decapsulator{Kind: kind}}
		if kind.UDP() {
			e.Port = 6080
		}
		return NewPeers([]*End{e}, 0)
	}
	for _, c := range []struct {
		name  string
		in    bool
		peers *Peers
	}{{"without", false, nil}, {"none", true, nil}, {"wireguard", true, end(encap.KindWireGuard)},
		{"gue", true, end(encap.KindGUE)}} {
		b.Run(c.name, func(b *testing.B) {
			var packets repeated
			for i := range batch {
				packets = append(packets, from(encap.KindIPIP, director, uint16(1000+i), packet.FlagACK))
			}
			var source Source = packets
			if c.in {
				var peers atomic.Pointer[Peers]
				peers.Store(c.peers)
				source = NewInbound(source, &peers, 0, true, false, &stats.Counters{})
			}
			w := NewWorker(source, discard{}, inForce(policy()), true)
			b.ReportAllocs()
			for b.Loop() {
				n, err := w.source.ReadBatch(w.bufs)
				if err == nil {
					err = w.move(w.bufs[:n])
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/packet")
		})
	}
}
