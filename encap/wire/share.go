package wire

import (
	"fmt"

	"golang.org/x/net/bpf"
)

// share is a socket filter that keeps part number i, from 0, of n equal parts of the flows in a tunnel: every raw socket of a protocol is
// given every packet (Linux net/ipv4/raw.c, raw_v4_input). The flow is known by the inner source address and the first four bytes behind
// an inner header without options: the ports.
func share(i, n int) ([]bpf.RawInstruction, error) {
	prog, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadMemShift{Off: 0}, // X = length of the outer header
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.ALUOpX{Op: bpf.ALUOpSub},
		// Without an inner source the length is as good. Reading past the end would drop the packet in every socket, uncounted.
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: 16, SkipTrue: 11},
		bpf.LoadIndirect{Off: 12, Size: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: 0},
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.ALUOpX{Op: bpf.ALUOpSub},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: 24, SkipTrue: 5}, // a packet without ports
		bpf.LoadIndirect{Off: 20, Size: 4},
		bpf.TAX{},
		bpf.LoadScratch{Dst: bpf.RegA, N: 0},
		bpf.ALUOpX{Op: bpf.ALUOpXor},
		bpf.Jump{Skip: 1},
		bpf.LoadScratch{Dst: bpf.RegA, N: 0},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0x9e3779b1}, // the top bits depend on all bits
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(n)},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(i), SkipFalse: 1},
		bpf.RetConstant{Val: 0xffffffff},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, fmt.Errorf("socket filter of worker %d: %w", i, err)
	}
	return prog, nil
}
