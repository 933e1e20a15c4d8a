package bpf

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/packet"
)

// turns is the number of runs of a program in one measurement, which takes less than a time slice.
const turns = 500

// fastest returns the time of a run of a program for a packet, in ns: the mean of turns, in the fastest of many
// measurements. So it is the same on a busy machine.
func fastest(b *testing.B, p *ebpf.Program, f []byte) float64 {
	b.Helper()
	best := time.Hour
	for range 300 {
		_, each, err := p.Benchmark(f, turns, nil)
		if err != nil {
			b.Fatal(err)
		}
		best = min(best, each)
	}
	return float64(best.Nanoseconds())
}

func program(b *testing.B, in asm.Instructions) *ebpf.Program {
	b.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual MIT/GPL", Instructions: in})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// empty returns a program that leaves each packet.
func empty(b *testing.B) *ebpf.Program {
	return program(b, asm.Instructions{asm.Mov.Imm(asm.R0, next), asm.Return()})
}

// report measures a program, and reports its time with and without that of an empty one.
func report(b *testing.B, p, without *ebpf.Program, f []byte) {
	b.Helper()
	for b.Loop() {
	}
	all := fastest(b, p, f)
	b.ReportMetric(all, "ns/packet")
	b.ReportMetric(all-fastest(b, without, f), "net-ns/packet")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkMiss is a packet that each program leaves: of an unknown flow, and a server's packet. The net time is
// without the time that the kernel needs to run any program for a test.
func BenchmarkMiss(b *testing.B) {
	d, r := newTestDirector(b), newTestRealserver(b)
	rules, _ := rulesOf(encap.Decapsulator{Kind: encap.KindIPIP})
	must(b, r.Set(rules))
	s, six := request(false, packet.ProtoTCP), request(true, packet.ProtoTCP)
	b.Run("director", func(b *testing.B) { report(b, d.objects.Director, empty(b), frame(s.bytes())) })
	b.Run("director6", func(b *testing.B) { report(b, d.objects.Director, empty(b), frame(six.bytes())) })
	b.Run("realserver", func(b *testing.B) { report(b, r.objects.Realserver, empty(b), frame(s.bytes())) })
}

// alternate returns a program that calls decap for a packet of ipip, and encap for any other.
func alternate(b *testing.B, encap, decap *ebpf.Program) *ebpf.Program {
	b.Helper()
	programs, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	must(b, err)
	b.Cleanup(func() { programs.Close() })
	for i, p := range []*ebpf.Program{encap, decap} {
		must(b, programs.Put(uint32(i), p))
	}
	return program(b, asm.Instructions{
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
	})
}

// BenchmarkAlternating is the mean of encapsulation and decapsulation of one packet, in turns. The net time is without
// the dispatch between the two. Of it, room is the part of bpf_skb_adjust_room, which both need.
func BenchmarkAlternating(b *testing.B) {
	d, r := newTestDirector(b), newTestRealserver(b)
	rules, _ := rulesOf(encap.Decapsulator{Kind: encap.KindIPIP})
	must(b, r.Set(rules))
	s := request(false, packet.ProtoTCP)
	s.ttl = 255 // it is lowered in each second turn
	ref := add(b, d, tunnelPath(b, tunnels(false)[0], false), s, Flow{})
	// With its flags, bpf_skb_adjust_room refuses a packet that has been in a tunnel before.
	record := d.paths[ref.index]
	record.Flags = fixedGSO
	must(b, d.objects.Paths.Put(ref.index, &record))
	f := frame(s.bytes())
	dispatch := alternate(b, empty(b), empty(b))
	report(b, alternate(b, d.objects.Director, r.objects.Realserver), dispatch, f)
	var packets uint64
	must(b, d.Read(func(_ packet.Flow, s State, _ bool) { packets, _ = s.Count.Since(0) }))
	if packets < 300*turns/2 {
		b.Fatalf("%d packets encapsulated, want %d", packets, 300*turns/2)
	}
	rooms := fastest(b, program(b, both()), f) - fastest(b, empty(b), f)
	b.ReportMetric(rooms/2, "room-ns/packet")
}

// both returns a program that adds 20 bytes to a packet and takes them off.
func both() (in asm.Instructions) {
	in = append(in, asm.Mov.Reg(asm.R6, asm.R1))
	for _, n := range []int32{20, -20} {
		in = append(in, asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, n), asm.Mov.Imm(asm.R3, 1), // BPF_ADJ_ROOM_MAC
			asm.Mov.Imm(asm.R4, fixedGSO), asm.FnSkbAdjustRoom.Call())
	}
	return append(in, asm.Mov.Imm(asm.R0, next), asm.Return())
}

// used is the processor time of the process.
func used(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFlows is the processor time of user space for a flow: set, read and deleted, of many.
func BenchmarkFlows(b *testing.B) {
	needRoot(b)
	const flows = 1 << 17
	d, err := LoadDirector(DirectorConfig{Flows4: flows, Flows6: 1, Paths: 1})
	must(b, err)
	defer d.Close()
	ref, err := d.Add(tunnelPath(b, tunnels(false)[0], false))
	must(b, err)
	all, keys := make([]Flow, flows), make([]packet.Flow, flows)
	for i := range all {
		s := request(false, packet.ProtoTCP)
		keys[i] = s.flow()
		keys[i].SrcPort, keys[i].DstPort = uint16(i), uint16(i>>16)
		all[i] = Flow{Flow: keys[i], Path: ref}
	}
	var set, read, unread, deleted time.Duration
	n := 0
	for b.Loop() {
		begin := used(b)
		_, err := d.Set(all)
		must(b, err)
		afterSet := used(b)
		must(b, d.Read(func(packet.Flow, State, bool) {}))
		afterRead := used(b)
		must(b, d.Delete(keys[:flows/2], nil))
		afterHalf := used(b)
		must(b, d.Delete(keys[flows/2:], func(packet.Flow, State) {}))
		unread, deleted = unread+2*(afterHalf-afterRead), deleted+2*(used(b)-afterHalf)
		set, read = set+afterSet-begin, read+afterRead-afterSet
		n += flows
	}
	for name, took := range map[string]time.Duration{"set": set, "read": read, "deleted": deleted,
		"deleted-unread": unread} {
		b.ReportMetric(float64(took.Nanoseconds())/float64(n), name+"-ns/flow")
	}
}
