package packet

import (
	"encoding/binary"
	"testing"

	"vstun/encap/packet/drop"
)

// TestParseSCTP: ports and the chunk that counts.
func TestParseSCTP(t *testing.T) {
	chunk := func(kind byte, n int) []byte {
		c := make([]byte, (n+3)&^3)
		c[0] = kind
		binary.BigEndian.PutUint16(c[2:], uint16(n))
		return c
	}
	for _, c := range []struct {
		name   string
		chunks [][]byte
		want   uint8
		drop   drop.Reason
	}{
		{"init", [][]byte{chunk(ChunkInit, 20)}, ChunkInit, drop.Accept},
		{"cookie and data", [][]byte{chunk(ChunkCookieEcho, 9), chunk(ChunkData, 20)}, ChunkCookieEcho, drop.Accept},
		{"cookie and abort", [][]byte{chunk(ChunkCookieEcho, 9), chunk(ChunkAbort, 4)}, ChunkAbort, drop.Accept},
		{"abort behind data is none", [][]byte{chunk(ChunkData, 20), chunk(ChunkAbort, 4)}, ChunkData, drop.Accept},
		{"cookie that ends outside", [][]byte{{ChunkCookieAck, 0, 0xff, 0xff}}, ChunkCookieAck, drop.Accept},
		{"cookie of no length", [][]byte{{ChunkCookieAck, 0, 0, 0}, chunk(ChunkAbort, 4)}, ChunkCookieAck, drop.Accept},
		{"cookie too short", [][]byte{{ChunkCookieAck, 0, 0, 3}, chunk(ChunkAbort, 4)}, ChunkCookieAck, drop.Accept},
		{"no chunk", nil, 0, drop.Truncated},
		{"half a chunk", [][]byte{{1, 0, 0}}, 0, drop.Truncated},
	} {
		b := make([]byte, IPv4HeaderLen+sctpHeaderLen)
		for _, x := range c.chunks {
			b = append(b, x...)
		}
		binary.BigEndian.PutUint16(b[IPv4HeaderLen:], 4711)
		binary.BigEndian.PutUint16(b[IPv4HeaderLen+2:], 9899)
		IPv4(b).Encode(IPv4Fields{
			TotalLen: len(b), TTL: 64, Protocol: ProtoSCTP, Src: [4]byte{192, 0, 2, 1},
			Dst: [4]byte{198, 51, 100, 80},
		})
		IPv4(b).SetChecksum()
		var p Info
		if d := p.Parse(b); d != c.drop || d == drop.Accept && (p.SCTPChunk != c.want || p.Flow.SrcPort != 4711 ||
			p.Flow.DstPort != 9899) {
			t.Errorf("%s: %v, %+v, want chunk %d, %v", c.name, d, p, c.want, c.drop)
		}
	}
}
