package wire

import (
	"fmt"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// share is a socket filter that accepts part i, from 0, of n equal parts of the flows in the tunnel of s. The kernel
// delivers every packet to every raw socket of its protocol (Linux net/ipv4/raw.c, raw_v4_input). The filter hashes the
// inner source address, half of an IPv6 one, and the ports: the first four bytes behind an inner header without options
// or extension headers. It hashes only the address of a packet that is too short for ports, and the length of one that
// is too short for the address. A read past the end would drop the packet in every socket, uncounted.
//
// The BPF programs of this package use numeric offsets of header fields: the kernel runs them.
func share(s Socket, i, n int) []bpf.Instruction {
	// Scratch 0 is the sum so far, 1 the offset of the inner header. X has this offset, too, except inside mix.
	mix := func(off uint32) []bpf.Instruction {
		return []bpf.Instruction{
			bpf.LoadIndirect{Off: off, Size: 4},
			bpf.TAX{},
			bpf.LoadScratch{Dst: bpf.RegA, N: 0},
			bpf.ALUOpX{Op: bpf.ALUOpXor},
			bpf.StoreScratch{Src: bpf.RegA, N: 0},
			bpf.LoadScratch{Dst: bpf.RegX, N: 1},
		}
	}
	// unless skips the next skip instructions if the packet has fewer than least bytes from X on.
	unless := func(least uint32, skip int) []bpf.Instruction {
		return []bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtLen},
			bpf.ALUOpX{Op: bpf.ALUOpSub},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: least, SkipTrue: uint8(skip)},
		}
	}
	length := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtLen}}
	end := []bpf.Instruction{
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0x9e3779b1}, // the top bits depend on all bits
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(n)},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(i), SkipFalse: 1},
		bpf.RetConstant{Val: 0xffffffff},
		bpf.RetConstant{Val: 0},
	}
	// flow mixes in the source, and the ports if the packet is long enough. It then skips the next between
	// instructions, which are those before end.
	flow := func(between int, ports uint32, source ...uint32) (p []bpf.Instruction) {
		for _, off := range source {
			p = append(p, mix(off)...)
		}
		p = append(p, unless(ports+4, len(mix(0)))...)
		p = append(p, mix(ports)...)
		return append(p, bpf.LoadScratch{Dst: bpf.RegA, N: 0}, bpf.Jump{Skip: uint32(between)})
	}
	six := flow(len(length), 40, 12, 20)
	six = append(unless(24, len(six)), six...)
	four := flow(len(six)+len(length), 20, 12)
	four = append(unless(16, len(four)+len(six)), four...)

	program := []bpf.Instruction{
		bpf.LoadConstant{Dst: bpf.RegA, Val: 0},
		bpf.StoreScratch{Src: bpf.RegA, N: 0},
		bpf.LoadConstant{Dst: bpf.RegX, Val: 0},
	}
	if !s.Over6 {
		// the length of the outer header, which raw IPv6 sockets don't have in their packets
		program[2] = bpf.LoadMemShift{Off: 0}
	}
	inner := append([]bpf.Instruction{
		bpf.StoreScratch{Src: bpf.RegX, N: 1},
	}, unless(1, 3+len(four)+len(six))...)
	inner = append(inner,
		bpf.LoadIndirect{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: uint8(len(four))})
	inner = slices.Concat(inner, four, six)
	if s.Protocol == packet.ProtoGRE {
		gre := greOffset(len(inner))
		program = slices.Concat(program, unless(4, len(gre)+len(inner)), gre)
	}
	return slices.Concat(program, inner, length, end)
}

// greOffset adds the length of the GRE header at X to X and scratch 1 (RFC 2784 and 2890): checksum and key have 4
// bytes each, if their bits are set. It jumps over skip instructions if the packet ends before that.
func greOffset(skip int) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadIndirect{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: packet.GREChecksum >> 8},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 5},
		bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: packet.GREMinLen},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.StoreScratch{Src: bpf.RegA, N: 1},
		bpf.LoadIndirect{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: packet.GREKey >> 8},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 3},
		bpf.LoadScratch{Dst: bpf.RegX, N: 1},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.TAX{},
		// Otherwise len - X in unless could be negative, which is a large unsigned number.
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIfX{Cond: bpf.JumpLessThan, SkipTrue: uint8(skip)},
	}
}

// filter sets the filter of the socket fd, and discards packets that it received before.
func filter(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	drain(fd)
	return nil
}

// drain discards the packets that the socket fd has received.
func drain(fd int) {
	var b [1]byte
	for {
		if _, _, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT|unix.MSG_TRUNC); err != nil && err != unix.EINTR {
			return
		}
	}
}
