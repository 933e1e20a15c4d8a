package balancer

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/keep"
	"vstun/encap/packet"
)

// BenchmarkTakeOver is the start of a director's table with 1,000,000 kept connections, from the opening of the former
// file until the new one has its place. It has to take a second at most.
func BenchmarkTakeOver(b *testing.B) {
	const connections = 1_000_000
	path := keep.Path("/run/vstun-takeover-benchmark.sock", ".table")
	failed := func(_ string, err error) { b.Fatal(err) }
	defer func() {
		if err := keep.Remove(path); err != nil {
			b.Error(err)
		}
	}()
	services := []Service{web("wlc", rs(1, 1), rs(2, 1), rs(3, 1))}
	begin := func() (*keep.File, *keep.Former, *Balancer) {
		former, err := keep.Open(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			b.Fatal(err)
		}
		f, err := keep.Create(path, "", former, failed)
		if errors.Is(err, keep.ErrNoTmpfs) {
			b.Skip("SKIPPED: ", err)
		}
		if err != nil {
			b.Fatal(err)
		}
		next := NewIn(f, conntab.NewIn(f, conntab.Config{Max: connections}), 2)
		apply(b, next, services...)
		return f, former, next
	}
	end := func(f *keep.File, former *keep.Former) {
		if err := f.Commit(); err != nil {
			b.Fatal(err)
		}
		if former != nil {
			if err := former.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
	f, former, first := begin()
	for n := range uint32(connections) {
		p := packet.Info{TCPFlags: packet.FlagACK, Flow: flow(0, 0).Flow}
		n *= 0x9e3779b1
		p.Flow.Src = netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		r := first.table.Report(conntab.Conn{Flow: p.Flow, State: conntab.Established, Dest: n % 3,
			Expires: time.Hour}, conntab.Ordered, 0)
		if r != conntab.Inserted {
			b.Fatal(n, r)
		}
	}
	end(f, former)
	for b.Loop() {
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
		var next *Balancer
		f, former, next = begin()
		if a := next.Adopt(former, 0, 0); a.Connections != connections {
			b.Fatalf("%+v", a)
		}
		end(f, former)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkKept is the decision for a packet of one of 10,000 flows, with a table that outlives its process and with
// one that does not, in alternation: medians in nanoseconds. A packet costs the director some 2,000 ns in all.
func BenchmarkKept(b *testing.B) {
	const flows, batches = 10_000, 20
	path := keep.Path("/run/vstun-kept-benchmark.sock", ".table")
	f, err := keep.Create(path, "", nil, func(_ string, err error) { b.Fatal(err) })
	if errors.Is(err, keep.ErrNoTmpfs) {
		b.Skip("SKIPPED: ", err)
	}
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	cfg := conntab.Config{Max: 1_000_000}
	both := [2]*Balancer{New(conntab.New(cfg), 1), NewIn(f, conntab.NewIn(f, cfg), 1)}
	infos := make([]packet.Info, 64)
	at := func(p *packet.Info, n uint32) {
		n *= 0x9e3779b1
		p.Hash, p.Flow.Src = 0, netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
	for _, side := range both {
		apply(b, side, web("wlc", rs(1, 1), rs(2, 1)))
		for n := range uint32(flows) {
			p := flow(1, packet.FlagSYN)
			at(p, n)
			side.Snapshot().Decide(p, 0)
		}
	}
	for i := range infos {
		infos[i] = *flow(1, packet.FlagACK)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	var took [2][]float64
	var sink uint8
	for b.Loop() {
		for i, side := range both {
			s := side.Snapshot()
			begin := time.Now()
			for range batches {
				for j := range infos {
					at(&infos[j], rnd.Uint32N(flows))
				}
				for j := range infos {
					sink |= s.Prefetch(&infos[j])
				}
				for j := range infos {
					if d, reason := s.Decide(&infos[j], 0); d == nil {
						b.Fatal(reason)
					}
				}
			}
			took[i] = append(took[i], float64(time.Since(begin))/float64(batches*len(infos)))
		}
	}
	for i, name := range []string{"ns/packet-without", "ns/packet-with"} {
		slices.Sort(took[i])
		b.ReportMetric(took[i][len(took[i])/2], name)
	}
	runtime.KeepAlive(sink)
}
