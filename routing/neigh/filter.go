package neigh

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// maxFiltered is the maximum number of addresses that a filter names, so that the program fits into BPF_MAXINSNS of
// linux/bpf_common.h. A filter for more lets the requests for all addresses pass.
const maxFiltered = 1500

// accepted is the number of bytes of a packet that pass a filter. Every packet that counts is shorter.
const accepted = 1024

var (
	pass   = bpf.RetConstant{Val: accepted}
	refuse = bpf.RetConstant{}
)

// nothing refuses every packet.
func nothing() []bpf.RawInstruction { return assemble([]bpf.Instruction{refuse}) }

// arpFilter passes ARP packets from or for one of addrs, or all if addrs is nil. Offsets count from the network header.
// Frames to other hosts, which a device in promiscuous mode receives, and frames of a VLAN that has no device here, are
// refused.
func arpFilter(addrs []netip.Addr) []bpf.RawInstruction {
	words := lastWords(addrs)
	p := append(forUs(),
		bpf.LoadAbsolute{Off: 0, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: arpSpaces, SkipTrue: 1}, refuse,
		bpf.LoadAbsolute{Off: 4, Size: 2}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: arpLengths, SkipTrue: 1}, refuse)
	return assemble(oneOf(oneOf(p, arpTarget, words), arpSender, words))
}

// ndFilter passes solicitations and advertisements of one of addrs, or all if addrs is nil.
func ndFilter(addrs []netip.Addr) []bpf.RawInstruction {
	p := append(forUs(),
		bpf.LoadAbsolute{Off: 6, Size: 2}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpv6<<8 | hopLimit, SkipTrue: 1},
		refuse,
		bpf.LoadAbsolute{Off: ipv6Len, Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: solicitation, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: advertisement, SkipTrue: 1}, refuse)
	words := lastWords(addrs)
	// A host that uses an address as the source of a solicitation has it.
	return assemble(oneOf(oneOf(p, ndTarget+12, words), 8+12, words))
}

// forUs refuses frames that are not for this host, or sent by it.
func forUs() []bpf.Instruction {
	return []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: unix.PACKET_OTHERHOST, SkipTrue: 1}, refuse}
}

// oneOf adds to a program that packets pass which have one of words at an offset. It ends the program for them.
func oneOf(p []bpf.Instruction, offset uint32, words []uint32) []bpf.Instruction {
	if words == nil {
		return append(p, pass)
	}
	p = append(p, bpf.LoadAbsolute{Off: offset, Size: 4})
	for _, w := range words {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: w, SkipTrue: 1}, pass)
	}
	return p
}

// lastWords returns the last four bytes of each address, or nil if addrs is nil or there are too many.
func lastWords(addrs []netip.Addr) []uint32 {
	if addrs == nil {
		return nil
	}
	seen := map[uint32]bool{}
	words := []uint32{}
	for _, a := range addrs {
		b := a.AsSlice()
		if w := binary.BigEndian.Uint32(b[len(b)-4:]); !seen[w] {
			seen[w] = true
			words = append(words, w)
		}
	}
	if len(words)*4 > maxFiltered*2 {
		return nil
	}
	return words
}

// assemble adds to a program that all other packets are refused.
func assemble(p []bpf.Instruction) []bpf.RawInstruction {
	raw, err := bpf.Assemble(append(p, refuse))
	if err != nil {
		panic(err) // the program has only known instructions
	}
	return raw
}
