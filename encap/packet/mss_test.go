package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// syn returns a SYN with TCP options, whose length is a multiple of 4, and a right checksum.
func syn(options []byte) IPv4 {
	p := make(IPv4, IPv4HeaderLen+TCPHeaderLen+len(options))
	p.Encode(IPv4Fields{TotalLen: len(p), TTL: 64, Protocol: ProtoTCP, Src: [4]byte{192, 0, 2, 1},
		Dst: [4]byte{198, 51, 100, 80}})
	t := TCP(p[IPv4HeaderLen:])
	copy(t[TCPHeaderLen:], options)
	t.SetHeaderLen(len(t))
	t.SetFlags(FlagSYN)
	t.SetChecksum(p.PseudoSum(len(t)))
	return p
}

// TestClampMSS: only a larger MSS changes, and the checksum stays right, wherever the option stands.
func TestClampMSS(t *testing.T) {
	for _, c := range []struct {
		name    string
		options []byte
		most    int
		want    int
		at      int // of the value in options; 0: no option
	}{
		{"larger", []byte{2, 4, 5, 180}, 1380, 1380, 2},
		{"smaller", []byte{2, 4, 4, 0}, 1380, 1024, 2},
		{"any", []byte{2, 4, 5, 180}, 0, 1460, 2},
		{"at an odd offset", []byte{1, 2, 4, 5, 180, 1, 1, 0}, 1380, 1380, 3},
		{"behind others", []byte{4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 5, 180}, 536, 536, 14},
		{"behind the end", []byte{0, 2, 4, 5, 180, 0, 0, 0}, 536, 0, 0},
		{"none", nil, 536, 0, 0},
		{"cut", []byte{1, 1, 2, 4}, 536, 0, 0},
		{"of length 1", []byte{7, 1, 2, 4}, 536, 0, 0},
		{"of another length", []byte{2, 3, 5, 1}, 536, 0, 0},
	} {
		for _, partial := range []bool{false, true} {
			p := syn(c.options)
			bufs := NewBufs(1)
			b := &bufs[0]
			b.SetLen(copy(b.Room(), p))
			if partial {
				b.Offload = Offload{Partial: true, CsumStart: IPv4HeaderLen, CsumOffset: TCPChecksumAt}
				seg := TCP(b.Bytes()[IPv4HeaderLen:])
				seg.SetPartialChecksum(p.PseudoSum(len(seg)))
			}
			if got := ClampMSS(b, IPv4HeaderLen, c.most); got != c.want {
				t.Errorf("%s: %d, want %d", c.name, got, c.want)
			}
			b.Finish()
			seg := TCP(b.Bytes()[IPv4HeaderLen:])
			if Fold(Sum(seg, p.PseudoSum(len(seg)))) != 0xffff {
				t.Errorf("%s, partial %v: wrong checksum", c.name, partial)
			}
			if c.at > 0 && int(binary.BigEndian.Uint16(seg[TCPHeaderLen+c.at:])) != c.want {
				t.Errorf("%s: %x", c.name, seg.Options())
			}
		}
	}
}

// TestClampMSSKeepsDamage: a wrong checksum stays wrong.
func TestClampMSSKeepsDamage(t *testing.T) {
	p := syn([]byte{2, 4, 5, 180})
	p[IPv4HeaderLen+4] ^= 1
	bufs := NewBufs(1)
	b := &bufs[0]
	b.SetLen(copy(b.Room(), p))
	ClampMSS(b, IPv4HeaderLen, 1000)
	if seg := TCP(b.Bytes()[IPv4HeaderLen:]); Fold(Sum(seg, p.PseudoSum(len(seg)))) == 0xffff {
		t.Error("the damage is hidden")
	}
}

// TestClampMSSAnyBytes: no options make it read or write beyond them.
func TestClampMSSAnyBytes(t *testing.T) {
	bufs := NewBufs(1)
	b := &bufs[0]
	for range 20_000 {
		options := make([]byte, 4*rand.IntN(11))
		for i := range options {
			options[i] = byte(rand.IntN(6))
		}
		p := syn(options)
		p[IPv4HeaderLen+12] = byte(rand.Uint32())
		b.SetLen(copy(b.Room(), p[:IPv4HeaderLen+rand.IntN(len(p)-IPv4HeaderLen+1)]))
		ClampMSS(b, IPv4HeaderLen, 1+rand.IntN(1460))
	}
}
