package packet

import (
	"encoding/binary"
	"math/bits"
)

// Sum adds b to a partial Internet checksum (RFC 1071): one's complement, not yet folded or inverted. b must begin at
// an even offset of the summed bytes.
func Sum(b []byte, partial uint64) uint64 {
	var carry uint64
	// Each round adds 64 bytes in two chains of additions with carry: in one chain each addition would wait for the one
	// before. The loop sums little-endian words and swaps the result once, which gives the big-endian sum (RFC 1071,
	// section 2 (B)).
	if len(b) >= 64 {
		sum, other := bits.ReverseBytes64(partial), uint64(0)
		for len(b) >= 64 {
			w := (*[64]byte)(b)
			sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[0:]), 0)
			sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[8:]), carry)
			sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[16:]), carry)
			sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[24:]), carry)
			sum += carry
			other, carry = bits.Add64(other, binary.LittleEndian.Uint64(w[32:]), 0)
			other, carry = bits.Add64(other, binary.LittleEndian.Uint64(w[40:]), carry)
			other, carry = bits.Add64(other, binary.LittleEndian.Uint64(w[48:]), carry)
			other, carry = bits.Add64(other, binary.LittleEndian.Uint64(w[56:]), carry)
			other += carry
			b = b[64:]
		}
		sum, carry = bits.Add64(sum, other, 0)
		partial = bits.ReverseBytes64(sum + carry)
	}
	for len(b) >= 8 {
		partial, carry = bits.Add64(partial, binary.BigEndian.Uint64(b), 0)
		partial += carry
		b = b[8:]
	}
	var rest uint64
	if len(b) >= 4 {
		rest = uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		rest += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		rest += uint64(b[0]) << 8
	}
	partial, carry = bits.Add64(partial, rest, 0)
	return partial + carry
}

// Fold returns the 16-bit sum of a partial sum, not inverted.
func Fold(partial uint64) uint16 {
	partial = partial>>32 + partial&0xffffffff
	partial = partial>>16 + partial&0xffff
	partial = partial>>16 + partial&0xffff
	partial = partial>>16 + partial&0xffff
	return uint16(partial)
}

// Checksum is the Internet checksum of b (RFC 1071). It is the value for a checksum field that is 0 in b. It is 0 if b
// includes a correct checksum.
func Checksum(b []byte) uint16 { return ^Fold(Sum(b, 0)) }

// PutChecksum folds sum, inverts it and writes it to b. A UDP checksum of 0 is written as 0xffff (RFC 768): 0 would
// mean none, which is illegal over IPv6 (RFC 8200, section 8.1).
func PutChecksum(b []byte, sum uint64, udp bool) {
	c := ^Fold(sum)
	if udp && c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b, c)
}
