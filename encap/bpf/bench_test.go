package bpf

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"vstun/encap"
	"vstun/encap/packet"
)

// measure reports the time of a program for a frame, in ns, by the kernel's own clock.
func measure(b *testing.B, p *ebpf.Program, f []byte, want int) {
	b.Helper()
	if got, _ := run(b, p, f); got != want {
		b.Fatalf("action %d, want %d", got, want)
	}
	_, d, err := p.Benchmark(f, b.N, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(d.Nanoseconds()), "ns/packet")
}

// BenchmarkMiss is a packet that each program leaves: of an unknown flow, and a server's packet.
func BenchmarkMiss(b *testing.B) {
	d, r := newTestDirector(b), newTestRealserver(b)
	rules, _ := rulesOf(encap.Decapsulator{Kind: encap.KindIPIP})
	if err := r.Set(rules); err != nil {
		b.Fatal(err)
	}
	s, six := request(false, packet.ProtoTCP), request(true, packet.ProtoTCP)
	b.Run("director", func(b *testing.B) { measure(b, d.objects.Director, frame(s.bytes()), next) })
	b.Run("director6", func(b *testing.B) { measure(b, d.objects.Director, frame(six.bytes()), next) })
	b.Run("realserver", func(b *testing.B) { measure(b, r.objects.Realserver, frame(s.bytes()), next) })
}

// alternate returns a program that calls the realserver's program for a packet of ipip, and the director's for any
// other.
func alternate(b testing.TB, d *Director, r *Realserver) *ebpf.Program {
	b.Helper()
	programs, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { programs.Close() })
	for i, p := range []*ebpf.Program{d.objects.Director, r.objects.Realserver} {
		if err := programs.Put(uint32(i), p); err != nil {
			b.Fatal(err)
		}
	}
	s := ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual MIT/GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadAbs(packet.EthernetHeaderLen+9, asm.Byte),
		asm.Mov.Imm(asm.R3, 0),
		asm.JNE.Imm(asm.R0, packet.ProtoIPIP, "call"),
		asm.Mov.Imm(asm.R3, 1),
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("call"),
		asm.LoadMapPtr(asm.R2, programs.FD()),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, next),
		asm.Return(),
	}}
	p, err := ebpf.NewProgram(&s)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// BenchmarkAlternating is the mean of encapsulation and decapsulation of one packet, in turns, with the dispatch
// between the two. The director's program lowers the TTL, so that a packet lasts for 253 turns.
func BenchmarkAlternating(b *testing.B) {
	d, r := newTestDirector(b), newTestRealserver(b)
	rules, _ := rulesOf(encap.Decapsulator{Kind: encap.KindIPIP})
	if err := r.Set(rules); err != nil {
		b.Fatal(err)
	}
	s := request(false, packet.ProtoTCP)
	s.ttl = 255
	ref := add(b, d, tunnelPath(b, tunnels(false)[0], false), s, Flow{})
	// With its flags, bpf_skb_adjust_room refuses a packet that has been in a tunnel before.
	record := d.paths[ref.index]
	record.Flags = fixedGSO
	if err := d.objects.Paths.Put(ref.index, &record); err != nil {
		b.Fatal(err)
	}
	p := alternate(b, d, r)
	const turns = 2 * 253
	best, sum, n := time.Hour, time.Duration(0), 0
	for b.Loop() {
		_, each, err := p.Benchmark(frame(s.bytes()), turns, nil)
		if err != nil {
			b.Fatal(err)
		}
		best, sum, n = min(best, each), sum+each, n+1
	}
	packets := uint64(0)
	if err := d.Read(func(_ packet.Flow, s State, _ bool) { packets, _ = s.Count.Since(0) }); err != nil {
		b.Fatal(err)
	}
	if want := uint64(n * turns / 2); packets < want {
		b.Fatalf("%d packets encapsulated, want %d", packets, want)
	}
	b.ReportMetric(float64(sum.Nanoseconds())/float64(n), "ns/packet")
	b.ReportMetric(float64(best.Nanoseconds()), "best-ns/packet")
}
