package packet

import "testing"

// TestLowerTTL: the checksum stays right for each TTL and many headers, and no packet gets a TTL of 0.
func TestLowerTTL(t *testing.T) {
	b := make(IPv4, IPv4HeaderLen)
	for ttl := range 256 {
		for id := range 1 << 9 {
			b.Encode(IPv4Fields{TotalLen: 20, TTL: byte(ttl), Protocol: ProtoUDP, Src: [4]byte{192, 0, 2, byte(id)}})
			b.SetID(uint16(id * 129))
			b.SetChecksum()
			ok := LowerTTL(b)
			if ok != (ttl > 1) || ok && int(b.TTL()) != ttl-1 || !ok && int(b.TTL()) != ttl {
				t.Fatalf("TTL %d: %v, %d", ttl, ok, b.TTL())
			}
			got := [2]byte(b[10:])
			if b.SetChecksum(); got != [2]byte(b[10:]) {
				t.Fatalf("TTL %d, ID %d: checksum %x, want %x", ttl, id, got, b[10:12])
			}
		}
		six := make(IPv6, IPv6HeaderLen)
		six.Encode(IPv6Fields{TotalLen: 40, HopLimit: byte(ttl)})
		if ok := LowerTTL(six); ok != (ttl > 1) || ok && int(six.HopLimit()) != ttl-1 {
			t.Fatalf("hop limit %d: %v, %d", ttl, ok, six.HopLimit())
		}
	}
}
